"""Directions u of some weights, for tests of what measures along them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators import Point, QuantizedWeight
from fogzo_repro.estimators.directions import draw, unmixed


def random_directions(weights: Sequence[QuantizedWeight], k: int, seed: int = 1) -> list[Tensor]:
    """Return k directions of the weights' laws, per weight (k, *shape)."""
    here = Point(weights)
    return unmixed(next(draw(here, k, torch.Generator().manual_seed(seed))), here)
