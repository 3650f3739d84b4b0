"""When an estimator starts, and how much noise it takes (PAPER 4, "beta schedule")."""

from __future__ import annotations

import math
from decimal import Decimal
from functools import cache

# Where nothing is chosen: on the tuning seeds of results/records the best of a grid of tenfold
# values was 0.08 (MLP), 0.05 and 0.5 (DeiT-Tiny, LSQ and sign) and 0.09 (LLaMA, sign).
RHO = 0.1


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


def noise_from_rho(rho: float, d: int) -> float:
    """Return the noise 1 - beta at which the noise has rho times the energy of the guide.

    The random part of a direction has d components and the guide counts once, so that the ratio of
    their energies is rho = (1 - beta) d / beta. It carries over from one network to another where
    beta does not.

    Args:
        rho: the ratio, at least 0.
        d: the number of perturbed weights.

    >>> round(1 - noise_from_rho(8, 7940), 3), noise_from_rho(0, 7940)
    (0.999, 0.0)
    """
    return rho / (rho + d)


def rho_from_noise(noise: float, d: int) -> float:
    """Return the ratio rho that belongs to noise = 1 - beta; infinite for noise alone."""
    return noise * d / (1 - noise) if noise < 1 else math.inf
