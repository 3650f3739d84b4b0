"""Learning-rate schedules: the factor on the recipe's lr at step t of T, t = 0 .. T-1."""

from __future__ import annotations

import math
from collections.abc import Callable


def cosine(step: int, total_steps: int) -> float:
    """Return (1 + cos(pi t / T)) / 2: 1 at the first step, towards 0 after the last.

    >>> cosine(0, 10), round(cosine(5, 10), 6)
    (1.0, 0.5)
    """
    return (1 + math.cos(math.pi * step / total_steps)) / 2


def constant(step: int, total_steps: int) -> float:
    """Return 1."""
    return 1.0


def onecycle(step: int, total_steps: int) -> float:
    """Return QuEST's OneCycle in closed form (RECIPES C.3): 1/100 up to 1, then down to 1/10.

    Both parts are half cosines. The warm-up takes W = floor(T / 10) steps and reaches 1 at step
    W - 1; it is left out where W < 2.

    >>> [round(onecycle(t, 11444), 4) for t in (0, 1143, 11443)]
    [0.01, 1.0, 0.1]
    """
    warmup = max(1, total_steps // 10)
    if step < warmup - 1:
        return _half_cosine(0.01, 1.0, step / (warmup - 1))
    return _half_cosine(1.0, 0.1, (step - warmup + 1) / max(1, total_steps - warmup))


def _half_cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * position))


SCHEDULES: dict[str, Callable[[int, int], float]] = {
    "cosine": cosine,
    "constant": constant,
    "onecycle": onecycle,
}
