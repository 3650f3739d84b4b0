"""The course of a run in some forty numbers: metrics.jsonl averaged over equal bins of steps.

It goes into the record, so that curves over time can be drawn from committed records alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

BINS = 40
DIGITS = 5  # significant; enough for a curve, and records stay small

History = dict[str, list[float | None]]


def binned_history(lines: Iterable[Mapping[str, Any]], steps: int, bins: int = BINS) -> History:
    """Return the means of a run's metrics over equal bins of its steps, in one pass.

    Step t = 1 .. T falls into bin floor((t - 1) bins / T); where T < bins, each step has its own.

    Args:
        lines: of metrics.jsonl, those of evaluations among them, which are left out.
        steps: T, the steps that were taken.
        bins: how many.

    Returns:
        For each bin the mean of `step`, `loss` and `skipped`, and of the probed steps' `noise`
        (1 - beta), `c_over_g` (|c| / ||eps g||, 1 where the loss changes along the guide as the
        STE's gradient says) and `flips`. A bin without any such number has None; a quantity that
        no step has is left out.
    """
    bins = min(bins, steps)
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for line in lines:
        if "split" in line or line["step"] > steps:
            continue
        place = (line["step"] - 1) * bins // steps
        for name, value in _quantities(line).items():
            if value is None or not math.isfinite(value):
                continue
            sums.setdefault(name, [0.0] * bins)[place] += value
            counts.setdefault(name, [0] * bins)[place] += 1
    return {
        name: [_rounded(t / n) if n else None for t, n in zip(total, counts[name], strict=True)]
        for name, total in sums.items()
    }


def _quantities(line: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what a step's line says; the estimator's share only where it was probed."""
    found = {name: line[name] for name in ("step", "loss", "skipped")}
    guide, coefficient = line.get("guide_norm"), line.get("coefficient")
    if guide or coefficient:  # both are 0 without probes, and where a step was skipped
        found["flips"] = line["flips"]
    if guide and coefficient is not None:  # None stood for a number that was not finite
        found["c_over_g"] = abs(coefficient) / guide
    if "noise" in line:
        found["noise"] = line["noise"]
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
