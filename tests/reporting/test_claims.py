"""The test behind the verdicts, against closed forms and scipy, and its edge cases."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import Judged, chosen, holm, judge, paired_t, read_claims
from fogzo_repro.reporting.results import read_results

TABLE = "figure-shallow"
STE = ("STE", "lr=0.032")
FOGZO = ("FOGZO n=1", "1-beta=0.001")
Save = Callable[..., dict[str, Any]]


def verdict_of(results: Path, claim: str = "fogzo-0.999-better") -> Judged:
    judged = judge(read_results(results, TABLE), read_claims(results / "paper/claims.csv", TABLE))
    return next(j for j in judged if j.claim.id == claim)


def save_pairs(save: Save, gains: list[float]) -> None:
    """FOGZO at 0.5 on every seed, the STE worse by the gain."""
    for seed, gain in enumerate(gains):
        save(*FOGZO, seed, 0.5)
        save(*STE, seed, 0.5 + gain)


def test_paired_t_equals_the_closed_form_for_two_pairs() -> None:
    # gains 1, 3: mean 2, sd sqrt(2), error 1, t = 2; with 1 degree of freedom (Cauchy)
    # p = 1 - 2 atan(2) / pi, and the 95% interval is 2 -+ tan(0.95 pi / 2)
    test = paired_t([1.0, 3.0], 0.0)
    assert test.p == pytest.approx(1 - 2 * math.atan(2) / math.pi, rel=1e-12)
    assert test.high == pytest.approx(2 + math.tan(0.95 * math.pi / 2), rel=1e-9)
    assert test.low == pytest.approx(2 - math.tan(0.95 * math.pi / 2), rel=1e-9)


@pytest.mark.parametrize("margin", [0.0, 0.3, -0.02], ids=["none", "positive", "negative"])
def test_paired_t_equals_scipy_against_any_margin(margin: float) -> None:
    draw = random.Random(1)
    gains = [draw.gauss(0.1, 0.2) for _ in range(11)]
    reference = stats.ttest_1samp(gains, margin)
    interval = reference.confidence_interval(0.95)
    test = paired_t(gains, margin)
    assert (test.p, test.low, test.high) == pytest.approx(
        (reference.pvalue, interval.low, interval.high), rel=1e-10
    )


def test_holm_equals_the_worked_example() -> None:
    # sorted 0.005, 0.01, 0.03, 0.04 times 4, 3, 2, 1, made increasing
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_leaves_out_what_was_not_tested() -> None:
    adjusted = holm([0.01, math.nan, 0.04])
    assert adjusted[0] == pytest.approx(0.02) and adjusted[2] == pytest.approx(0.04)
    assert math.isnan(adjusted[1])


def test_holm_never_exceeds_one() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]


@pytest.mark.parametrize(
    ("gains", "p"),
    [([0.25] * 5, 0.0), ([0.0] * 5, 1.0)],
    ids=["away from the margin", "at the margin"],
)
def test_equal_gains_have_p_zero_or_one(gains: list[float], p: float) -> None:
    assert paired_t(gains, 0.0).p == p


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.10, 0.11, 0.09, 0.12, 0.10], "holds"),
        ([-0.10, -0.11, -0.09, -0.12, -0.10], "contradicted"),
        ([0.10, -0.11, 0.09, -0.12, 0.10], "inconclusive"),
        ([], "not run"),
    ],
    ids=["better", "worse", "unclear", "no runs"],
)
def test_the_verdict_follows_the_sign_of_a_clear_gain(
    results: Path, save: Save, gains: list[float], verdict: str
) -> None:
    save_pairs(save, gains)
    assert verdict_of(results).verdict == verdict


def test_fewer_than_five_seeds_are_at_most_inconclusive(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, 0.11, 0.09, 0.10])
    judged = verdict_of(results)
    assert judged.adjusted_p < 0.05
    assert (judged.verdict, judged.note) == ("inconclusive", "only 4 seeds")


def test_one_seed_gives_no_p_and_no_verdict(results: Path, save: Save) -> None:
    save_pairs(save, [0.1])
    judged = verdict_of(results)
    assert judged.test is not None and math.isnan(judged.test.p)
    assert judged.verdict == "inconclusive"


def test_a_seed_that_one_side_lacks_is_left_out(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, 0.11, 0.09, 0.12, 0.10])
    save(*FOGZO, 5, 99.0)
    judged = verdict_of(results)
    assert judged.test is not None
    assert judged.test.n == 5 and judged.test.gain == pytest.approx(0.104)


def test_a_diverged_run_forbids_a_clear_verdict(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, 0.11, 0.09, 0.12, 0.10])
    save(*FOGZO, 5, 0.5, status="diverged", metrics={})
    judged = verdict_of(results)
    assert (judged.verdict, judged.note) == ("inconclusive", "diverged: FOGZO n=1, seed 5")


def test_a_margin_is_part_of_the_claim(results: Path, save: Save) -> None:
    gains = [0.10, 0.11, 0.09, 0.12, 0.10]  # clearly better, clearly not by 0.3
    for seed, gain in enumerate(gains):
        save(*STE, seed, 0.5)
        save("n-SPSA n=1", "-", seed, 0.5 + gain)
    assert verdict_of(results, "spsa-1-far-worse").verdict == "contradicted"


def test_beta_is_chosen_on_the_tuning_seeds_alone(results: Path, save: Save) -> None:
    for column, tuned, reported in (("1-beta=0.001", 0.7, 0.1), ("1-beta=1e-05", 0.6, 0.9)):
        for seed in (100, 101, 102):
            save("FOGZO n=1", column, seed, tuned)
        save("FOGZO n=1", column, 0, reported)
    best = chosen(read_results(results, TABLE), "FOGZO n=1")
    assert best is not None and best.column == "1-beta=1e-05"


def test_an_incomplete_tuning_sweep_chooses_nothing(results: Path, save: Save) -> None:
    for seed in (100, 101, 102):
        save("FOGZO n=1", "1-beta=0.001", seed, 0.7)
    save("FOGZO n=1", "1-beta=1e-05", 100, 0.6)
    assert chosen(read_results(results, TABLE), "FOGZO n=1") is None
    judged = verdict_of(results, "fogzo-chosen-better")
    assert (judged.verdict, judged.note) == ("not run", "the tuning sweep is not complete")


def test_a_cell_that_diverged_in_tuning_is_not_chosen(results: Path, save: Save) -> None:
    for seed in (100, 101, 102):
        save("FOGZO n=1", "1-beta=0.001", seed, 0.7)
        ended = {"status": "diverged", "metrics": {}} if seed == 102 else {}
        save("FOGZO n=1", "1-beta=1e-05", seed, 0.1, **ended)
    best = chosen(read_results(results, TABLE), "FOGZO n=1")
    assert best is not None and best.column == "1-beta=0.001"


def test_the_random_sign_control_has_the_chosen_beta(full_table: Path) -> None:
    judged = verdict_of(full_table, "loss-information")
    assert judged.better is not None and judged.worse is not None
    assert judged.worse.column == judged.better.column
    assert judged.worse.row == "FOGZO n=1, random sign"


def test_a_claim_about_an_unknown_cell_is_one_clear_error(results: Path) -> None:
    path = results / "paper" / "claims.csv"
    path.write_text(path.read_text().replace("STE,lr=0.032", "STE,lr=7"))
    with pytest.raises(UserError, match=r"unknown cell STE \| lr=7"):
        verdict_of(results)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [(",lower,0.3,", ",lower,much,", "give a number"), (",lower,0.3,", ",down,0.3,", "lower or")],
    ids=["margin", "direction"],
)
def test_a_claim_that_cannot_be_tested_is_refused(
    results: Path, old: str, new: str, message: str
) -> None:
    path = results / "paper" / "claims.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_claims(path, TABLE)
