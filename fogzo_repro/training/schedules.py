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


SCHEDULES: dict[str, Callable[[int, int], float]] = {"cosine": cosine, "constant": constant}
