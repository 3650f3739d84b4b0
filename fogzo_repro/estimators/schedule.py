"""When an estimator starts, and its share of noise at a step (PAPER 4, "beta schedule")."""

from __future__ import annotations

import math
from decimal import Decimal


def start_step(start_fraction: float, total_steps: int) -> int:
    """Return t0 = ceil(start_fraction * T), in decimal: 0.07 * 100 is above 7 in binary.

    >>> start_step(0.07, 100), start_step(0.7, 15)
    (7, 11)
    """
    return math.ceil(Decimal(repr(start_fraction)) * total_steps)


def noise_at(
    step: int, total_steps: int, *, noise: float, schedule: str, start_fraction: float
) -> float | None:
    """Return 1 - beta at step t of T, or None before t0.

    `constant`: 1 - beta_min. `linear`: (1 - beta_min)(t - t0)/(T - 1 - t0), so beta goes from 1 at
    the first probed step to beta_min at the last; a single probed step has beta = 1.

    >>> noise_at(9, 10, noise=1e-9, schedule="linear", start_fraction=0.0)
    1e-09
    """
    start = start_step(start_fraction, total_steps)
    if step < start:
        return None
    if schedule == "constant":
        return noise
    return noise * ((step - start) / max(1, total_steps - 1 - start))
