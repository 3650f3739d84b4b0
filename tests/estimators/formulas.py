"""PAPER 1 written out a second time: densities, a quadrature, and probes of a formula."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators import Point, SmoothingLaw
from fogzo_repro.estimators.protocol import ProbeLosses

DENSITIES: dict[tuple[str, str], Callable[[float], float]] = {
    ("round", "identity"): lambda u: (abs(u) <= math.sqrt(3)) / (2 * math.sqrt(3)),
    ("sign", "hardtanh"): lambda u: (abs(u) <= math.sqrt(3)) / (2 * math.sqrt(3)),
    ("sign", "tanh"): lambda u: math.pi / math.sqrt(12) / 2 / math.cosh(math.pi / 12**0.5 * u) ** 2,
    ("sign", "approxsign"): lambda u: max(0.0, math.sqrt(6) - abs(u)) / 6,
}


def quantiles(law: SmoothingLaw, points: int = 2_000_001) -> Tensor:
    """The law's inverse distribution function at the midpoints of equal cells: its quadrature."""
    r = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return law.from_symmetric(2 * r - 1)


class FormulaProbes:
    """Losses of all displaced weights at once, from a formula over (k, d)."""

    def __init__(self, formula: Callable[[Tensor], Tensor]) -> None:
        self.formula = formula

    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        theta = torch.cat([w.parameter.flatten() for w in here.weights])
        offsets = [(e * v).flatten(1) for e, v in zip(here.epsilons, directions, strict=True)]
        offset = torch.cat(offsets, 1)
        above, below = self.formula(theta + offset), self.formula(theta - offset)
        return ProbeLosses(above, below, torch.zeros(()))
