"""Directions: the noise u, the signs s, and v, which mixes the guide into the noise.

They come in blocks, for each weight a tensor (k, *shape) for k directions. `draw` fills it with
integers; `unmixed` and `mixed` turn these into u or v where they lie, in one pass over memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fogzo_repro.estimators.fused import mix_, rotated, shape_
from fogzo_repro.estimators.protocol import Point
from fogzo_repro.estimators.smoothing import draw_integers_, widest

# Directions are drawn in blocks of at most this many numbers (64 MiB). The block size depends on
# nothing but the weights and n, so the draws do not depend on how the probes are evaluated.
BLOCK_NUMBERS = 2**24


def draw(here: Point, n: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
    """Yield n directions u in blocks, still as the integers that `mixed` or `unmixed` shapes.

    Raises:
        ValueError: where n < 1.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    parameters = [w.parameter for w in here.weights]
    block = max(1, BLOCK_NUMBERS // sum(p.numel() for p in parameters))
    for start in range(0, n, block):
        k = min(block, n - start)
        yield [
            draw_integers_(
                p.new_empty((k, *p.shape), dtype=torch.float32), generator
            ).to(widest(p.dtype))
            for p in parameters
        ]  # fmt: skip


def unmixed(u: list[Tensor], here: Point) -> list[Tensor]:
    """Return the directions u of a draw themselves, in the draw's place."""
    shape_(u, [w.law for w in here.weights])
    return _in_weight_coordinates(u, here)


def mixed(u: list[Tensor], here: Point, along: Tensor, across: Tensor | float) -> list[Tensor]:
    """Return v_k = across * u_k + along_k * g^ of a draw, in the draw's place.

    g^ = epsilon g / ||epsilon g|| is the guide, normalised over all weights together.

    Args:
        u: k directions from `draw`.
        here: the point, with the guide.
        along: (k,), each direction's share of the guide, with its sign.
        across: the share of the noise.
    """
    laws = [w.law for w in here.weights]
    mix_(u, laws, here.epsilons, here.guides, here.inverse_norm, along, across)
    return _in_weight_coordinates(u, here)


def _in_weight_coordinates(v: list[Tensor], here: Point) -> list[Tensor]:
    """Rotate directions back to the weights' coordinates, and to their types.

    A row has one epsilon, so that it scales v before or after.
    """
    back = rotated(v, [w.rotate_back for w in here.weights])
    # Into the list that was given: the draw would else lie in memory beside its rotated form.
    v[:] = [t.to(w.parameter.dtype) for w, t in zip(here.weights, back, strict=True)]
    return v


def random_signs(count: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Return (count,) numbers +1 or -1 with probability 1/2 each, of the type of `like`."""
    return like.new_empty(count).random_(0, 2, generator=generator).mul_(2).sub_(1)
