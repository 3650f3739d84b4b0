"""The course of a run in some forty numbers: metrics.jsonl averaged over equal bins of steps.

It goes into the record, so that curves over time can be drawn from committed records alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

BINS = 40
DIGITS = 5  # significant; enough for a curve, and records stay small

History = dict[str, list[float | None]]
Line = Mapping[str, Any]
Quantities = Callable[[Line], Mapping[str, float | None]]


def binned_history(
    lines: Iterable[Line], steps: int, quantities: Quantities, bins: int = BINS
) -> History:
    """Return the means of a run's metrics over equal bins of its steps, in one pass.

    Step t = 1 .. T falls into bin floor((t - 1) bins / T); where T < bins, each step has its own.

    Args:
        lines: of metrics.jsonl, those of evaluations among them, which are left out.
        steps: T, the steps that were taken.
        quantities: from a line to its numbers by name; None for one that is unknown.
        bins: how many.

    Returns:
        For each quantity its mean in each bin, None for a bin without one that is finite; what no
        line has is left out.
    """
    bins = min(bins, steps)
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for line in lines:
        if "split" in line or line["step"] > steps:
            continue
        place = (line["step"] - 1) * bins // steps
        for name, value in quantities(line).items():
            if value is None or not math.isfinite(value):
                continue
            sums.setdefault(name, [0.0] * bins)[place] += value
            counts.setdefault(name, [0] * bins)[place] += 1
    return {
        name: [
            float(f"{t / n:.{DIGITS}g}") if n else None
            for t, n in zip(total, counts[name], strict=True)
        ]
        for name, total in sums.items()
    }
