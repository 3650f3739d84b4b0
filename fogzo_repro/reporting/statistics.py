"""Means, spreads and intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n values; `half` is half the 95% t interval."""

    n: int
    mean: float
    sd: float
    half: float


def summarize(values: Sequence[float]) -> Summary | None:
    """Summarize values over seeds: None for no value; sd and half are nan for one.

    >>> summarize([1.0, 2.0, 3.0]).sd
    1.0
    """
    from scipy import stats

    n = len(values)
    if n == 0:
        return None
    mean = math.fsum(values) / n
    if n == 1:
        return Summary(1, mean, math.nan, math.nan)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    return Summary(n, mean, sd, float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n))
