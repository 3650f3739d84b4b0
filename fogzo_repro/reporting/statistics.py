"""Means and spreads over seeds, and the tests behind the verdicts (PAPER 4, "Verdicts")."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

LEVEL = 0.05  # of every test, two-sided; intervals cover 1 - LEVEL
POWER = 0.8  # with which a difference must be found to count as visible


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n values, and the ends of the 95% t interval."""

    n: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class GainTest:
    """How much better one side is than the other, and what chance makes of it."""

    n: tuple[int, int]  # values of the better side and of the worse
    paired: bool  # each seed's difference was taken, else the two means were compared (Welch)
    gain: float  # mean gain of the better side
    low: float  # its 95% interval; nan where a side has a single value
    high: float
    p: float  # two-sided, of the gain against the margin; nan likewise
    p_same: float  # the larger of two one-sided tests, gain within the bound; nan without a bound
    visible: float  # difference from the margin that such a test finds with probability `POWER`


def summarize(values: Sequence[float]) -> Summary | None:
    """Summarize values over seeds: None for no value; sd and interval are nan for one.

    >>> summarize([1.0, 2.0, 3.0]).sd
    1.0
    """
    from scipy import stats

    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def gain_test(
    better: Mapping[int, float],
    worse: Mapping[int, float],
    *,
    margin: float = 0.0,
    bound: float | None = None,
    level: float = LEVEL,
) -> GainTest:
    """Test the gain `worse - better` of a loss, from each side's values by seed.

    Paired where both sides have the same seeds, which share the initial weights and the order of
    the data; Welch's t test where they have not. Values without any spread have p = 1 at the margin
    and 0 elsewhere.

    Args:
        better: the side that is claimed to have the lower values.
        worse: the other one.
        margin: the gain that it is tested against.
        bound: a gain between -bound and bound counts as none; tested by two one-sided tests.
        level: at which the test will be read; the interval is 95% all the same.
    """
    from scipy import stats

    paired = better.keys() == worse.keys()
    n = len(better), len(worse)
    gain = math.fsum(worse.values()) / n[1] - math.fsum(better.values()) / n[0]
    if min(n) == 1:
        return GainTest(n, paired, gain, *[math.nan] * 5)

    def t_test(at: float, alternative: str = "two-sided") -> Any:
        if paired:
            gains = [worse[seed] - better[seed] for seed in better]
            return stats.ttest_1samp(gains, at, alternative=alternative)
        moved = [value - at for value in worse.values()]
        sides = moved, [*better.values()]
        return stats.ttest_ind(*sides, equal_var=False, alternative=alternative)

    if _without_spread(better, worse, paired):
        p_same = math.nan if bound is None else float(abs(gain) >= bound)
        return GainTest(n, paired, gain, gain, gain, float(gain == margin), p_same, 0.0)
    p_same = math.nan
    if bound is not None:
        p_same = max(t_test(-bound, "greater").pvalue, t_test(bound, "less").pvalue)
    two_sided, interval = t_test(margin), t_test(0.0).confidence_interval(1 - LEVEL)
    half = (interval.high - interval.low) / 2
    error = half / float(stats.t.ppf(1 - LEVEL / 2, two_sided.df))
    return GainTest(
        n, paired, gain, float(interval.low), float(interval.high), float(two_sided.pvalue),
        float(p_same), visible_difference(error, float(two_sided.df), level),
    )  # fmt: skip


def _without_spread(better: Mapping[int, float], worse: Mapping[int, float], paired: bool) -> bool:
    if paired:
        return len({worse[seed] - better[seed] for seed in better}) == 1
    return len({*better.values()}) == len({*worse.values()}) == 1


@cache  # several pages and figures ask for the same
def visible_difference(error: float, df: float, level: float = LEVEL) -> float:
    """Return the difference that a two-sided t test finds with a probability of `POWER`.

    `error` is the standard error of the difference, `df` its degrees of freedom.

    >>> round(visible_difference(1 / 34**0.5, 33), 2)  # 34 pairs see half a standard deviation
    0.5
    """
    from scipy import optimize, stats

    limit = float(stats.t.ppf(1 - level / 2, df))

    def lacking(difference: float) -> float:  # the chance of a t beyond -limit is left out
        return float(stats.nct.sf(limit, df, difference)) - POWER

    return error * float(optimize.brentq(lacking, 0.0, 100.0))


def holm(ps: Sequence[float], waiting: int = 0) -> list[float]:
    """Return Holm's adjusted p values, in the order given; nan stays and does not count.

    Args:
        ps: of the tests.
        waiting: tests of the same family that were not made yet. They count as if their p were the
            largest: whatever comes of them, no adjusted p grows.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    >>> holm([0.01, 0.04], waiting=1)
    [0.03, 0.08]
    """
    order = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    adjusted, running = list(ps), 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (waiting + len(order) - rank) * p))
        adjusted[i] = running
    return adjusted


class Interval(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def jackknife(samples: Sequence[Sequence[float]], figure: Callable[[Tensor], Tensor]) -> Interval:
    """Return a figure of the mean (k,) of B samples, with a 95% interval by the jackknife.

    The samples are rows of k numbers, independent and alike.
    """
    import torch
    from scipy.stats import t

    rows = torch.tensor(samples, dtype=torch.float64)
    count = len(rows)
    value = figure(rows.mean(0)).item()
    without = torch.stack([figure((rows.sum(0) - row) / (count - 1)) for row in rows])
    error = ((count - 1) * without.var(correction=0)).sqrt().item()
    half = error * float(t.ppf(1 - LEVEL / 2, count - 1))
    return Interval(value, value - half, value + half)
