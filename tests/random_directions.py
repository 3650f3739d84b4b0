"""Random numbers for tests: streams, and directions u of some weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators import Point, QuantizedWeight
from fogzo_repro.estimators.directions import draw, unmixed


def stream(seed: int = 5) -> torch.Generator:
    """Return a generator at the beginning of its stream."""
    return torch.Generator().manual_seed(seed)


def random_directions(weights: Sequence[QuantizedWeight], k: int, seed: int = 1) -> list[Tensor]:
    """Return k directions of the weights' laws, per weight (k, *shape)."""
    here = Point(weights)
    return unmixed(next(draw(here, k, stream(seed))), here)
