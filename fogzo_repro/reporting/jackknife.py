"""Intervals of functions of a mean, from few samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Interval(NamedTuple):
    """A value with its 95% interval."""

    value: float
    low: float
    high: float


def jackknife(samples: Sequence[Sequence[float]], figure: Callable[[Tensor], Tensor]) -> Interval:
    """Return a function of the mean of B samples, with a 95% interval by the jackknife.

    Args:
        samples: B rows of k numbers, independent and alike.
        figure: from the mean row (k,) to a number.
    """
    from scipy.stats import t

    rows = torch.tensor(samples, dtype=torch.float64)
    count = len(rows)
    value = figure(rows.mean(0)).item()
    without = torch.stack([figure((rows.sum(0) - row) / (count - 1)) for row in rows])
    error = ((count - 1) * without.var(correction=0)).sqrt().item()
    half = error * float(t.ppf(0.975, count - 1))
    return Interval(value, value - half, value + half)
