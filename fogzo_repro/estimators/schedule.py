"""When an estimator starts, and its share of noise at a step (PAPER 4, "beta schedule")."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cache


@cache
def start_step(start_fraction: float, total_steps: int) -> int:
    """Return t0 = ceil(start_fraction * T), in decimal: 0.07 * 100 is above 7 in binary.

    >>> start_step(0.07, 100), start_step(0.7, 15)
    (7, 11)
    """
    return math.ceil(Decimal(repr(start_fraction)) * total_steps)


def noise_at(step: int, total_steps: int, *, noise: float, schedule: str) -> float:
    """Return 1 - beta at step t of T, both counted from the start on.

    `constant`: 1 - beta_min. `linear`: (1 - beta_min) t/(T - 1), so beta goes from 1 at the first
    probed step to beta_min at the last; a single probed step has beta = 1.

    >>> noise_at(9, 10, noise=1e-9, schedule="linear")
    1e-09
    """
    return noise if schedule == "constant" else noise * (step / max(1, total_steps - 1))
