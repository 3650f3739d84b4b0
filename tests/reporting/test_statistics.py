"""The tests behind the verdicts, against closed forms, textbook values and simulation."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from scipy import stats

from fogzo_repro.reporting.statistics import gain_test, holm, jackknife, visible_difference

DRAW = random.Random(1)
TEN = {seed: DRAW.gauss(0.6, 0.05) for seed in range(10)}
OTHER_TEN = {seed: value + DRAW.gauss(0.03, 0.08) for seed, value in TEN.items()}
THIRTY = {seed: DRAW.gauss(0.7, 0.2) for seed in range(30)}


def by_seed(*values: float) -> dict[int, float]:
    return dict(enumerate(values))


def test_a_paired_test_equals_the_closed_form_for_two_pairs() -> None:
    # gains 1, 3: mean 2, sd sqrt(2), error 1, t = 2; with 1 degree of freedom (Cauchy)
    # p = 1 - 2 atan(2) / pi, and the 95% interval is 2 -+ tan(0.95 pi / 2)
    test = gain_test(by_seed(0.0, 0.0), by_seed(1.0, 3.0))
    assert test.paired and test.n == (2, 2)
    assert test.p == pytest.approx(1 - 2 * math.atan(2) / math.pi, rel=1e-12)
    assert test.high == pytest.approx(2 + math.tan(0.95 * math.pi / 2), rel=1e-9)
    assert test.low == pytest.approx(2 - math.tan(0.95 * math.pi / 2), rel=1e-9)


def test_welch_equals_the_closed_form_for_two_and_three_values() -> None:
    # worse 1, 3 (variance 2); better 0, 1, 2 (variance 1); gain 1; squared error 2/2 + 1/3 = 4/3;
    # df = (4/3)^2 / (1^2/1 + (1/3)^2/2) = (16/9) / (19/18) = 32/19
    test = gain_test(by_seed(0.0, 1.0, 2.0), by_seed(1.0, 3.0))
    error, df = math.sqrt(4 / 3), 32 / 19
    assert not test.paired and test.n == (3, 2)
    assert test.gain == pytest.approx(1.0)
    assert test.p == pytest.approx(2 * stats.t.sf(1 / error, df), rel=1e-10)
    assert test.high == pytest.approx(1 + stats.t.ppf(0.975, df) * error, rel=1e-10)


@pytest.mark.parametrize("margin", [0.3, -0.02], ids=["positive", "negative"])
@pytest.mark.parametrize("worse", [OTHER_TEN, THIRTY], ids=["paired", "Welch"])
def test_a_margin_moves_the_gain_that_is_tested(margin: float, worse: Mapping[int, float]) -> None:
    moved = gain_test(TEN, {seed: value - margin for seed, value in worse.items()})
    test = gain_test(TEN, worse, margin=margin)
    assert test.p == pytest.approx(moved.p, rel=1e-9)
    assert test.gain == pytest.approx(moved.gain + margin, rel=1e-9)
    assert test.low == pytest.approx(moved.low + margin, rel=1e-9)


@pytest.mark.parametrize("worse", [OTHER_TEN, THIRTY], ids=["paired", "Welch"])
def test_two_one_sided_tests_say_what_the_90_percent_interval_says(
    worse: Mapping[int, float],
) -> None:
    """A gain lies within a bound at 5% where its 90% interval does (Schuirmann 1987)."""
    test = gain_test(TEN, worse)
    df = _df(TEN, worse, test.paired)
    error = (test.high - test.low) / 2 / stats.t.ppf(0.975, df)
    reach = abs(test.gain) + stats.t.ppf(0.95, df) * error
    assert gain_test(TEN, worse, bound=reach).p_same == pytest.approx(0.05, abs=1e-9)
    assert gain_test(TEN, worse, bound=1.01 * reach).p_same < 0.05
    assert gain_test(TEN, worse, bound=0.99 * reach).p_same > 0.05


def _df(better: Mapping[int, float], worse: Mapping[int, float], paired: bool) -> float:
    if paired:
        return len(better) - 1
    a, b = (np.var([*side.values()], ddof=1) / len(side) for side in (better, worse))
    return float((a + b) ** 2 / (a**2 / (len(better) - 1) + b**2 / (len(worse) - 1)))


def test_no_bound_gives_no_equivalence() -> None:
    assert math.isnan(gain_test(TEN, OTHER_TEN).p_same)


def test_the_same_seeds_are_paired_and_others_are_not() -> None:
    assert gain_test(TEN, OTHER_TEN).paired
    assert not gain_test(TEN, {seed + 1: value for seed, value in OTHER_TEN.items()}).paired
    assert not gain_test(TEN, THIRTY).paired


@pytest.mark.parametrize(
    ("pairs", "enough"), [(34, True), (33, False)], ids=["34 pairs", "33 pairs"]
)
def test_half_a_standard_deviation_needs_34_pairs(pairs: int, enough: bool) -> None:
    """Cohen's textbook value for a paired t test, two-sided 5%, power 80%."""
    assert (visible_difference(1 / math.sqrt(pairs), pairs - 1) <= 0.5) == enough


@pytest.mark.parametrize(("each", "enough"), [(64, True), (63, False)], ids=["64", "63"])
def test_half_a_standard_deviation_needs_64_a_side_unpaired(each: int, enough: bool) -> None:
    assert (visible_difference(math.sqrt(2 / each), 2 * each - 2) <= 0.5) == enough


def test_the_visible_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(0)
    visible = visible_difference(0.2 / math.sqrt(10), 9)
    gains = generator.normal(visible, 0.2, (20_000, 10))
    found = stats.ttest_1samp(gains, 0.0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.012)  # 4 standard errors


@pytest.mark.parametrize(
    ("gain", "bound", "p", "p_same"),
    [(0.25, 0.1, 0.0, 1.0), (0.0, 0.1, 1.0, 0.0)],
    ids=["away from the margin", "at the margin"],
)
def test_values_without_spread_have_p_zero_or_one(
    gain: float, bound: float, p: float, p_same: float
) -> None:
    same = by_seed(*[0.5] * 5)
    for worse in (by_seed(*[0.5 + gain] * 5), by_seed(*[0.5 + gain] * 7)):
        test = gain_test(same, worse, bound=bound)
        assert (test.p, test.p_same) == (p, p_same)


def test_one_value_on_a_side_has_no_p() -> None:
    test = gain_test(by_seed(0.5), by_seed(0.6, 0.7), bound=0.1)
    assert test.gain == pytest.approx(0.15)
    assert math.isnan(test.p) and math.isnan(test.p_same) and math.isnan(test.visible)


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02) and adjusted[2] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


def test_holm_never_exceeds_one() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]


def test_jackknife_of_a_mean_is_students_interval() -> None:
    x = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife([[v] for v in x.tolist()], lambda row: row[0])
    half = stats.t.ppf(0.975, 8) * x.std().item() / 3
    assert found.value == pytest.approx(x.mean().item())
    assert found.high - found.value == pytest.approx(half)


def test_jackknife_of_a_ratio_covers_at_its_level() -> None:
    """95% of 400 intervals of 8 samples each; 90 to 99% is about 4 standard errors."""
    g = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 8, 2, generator=g, dtype=torch.float64) * 0.2
    samples += torch.tensor([3.0, 2.0])
    covered = 0
    for rows in samples:
        found = jackknife(rows.tolist(), lambda row: row[0] / row[1])
        covered += found.low <= 1.5 <= found.high
    assert 0.90 < covered / 400 < 0.99


def test_tests_that_wait_make_no_adjusted_p_larger_when_they_are_made() -> None:
    """For all places that the p of a waiting test can take among the others."""
    ps = [0.001, 0.004, 0.02, 0.3]
    before = holm(ps, waiting=1)
    assert before == pytest.approx([0.005, 0.016, 0.06, 0.6])
    for made in (0.0, 0.0009, 0.001, 0.003, 0.01, 0.2, 1.0):
        after = holm([*ps, made])[:-1]
        assert all(b <= a + 1e-15 for a, b in zip(before, after, strict=True)), made
