"""Directions, and the losses on both sides of theta."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators.arithmetic import (
    alphas,
    cross_,
    displace_,
    replace_,
    rotated,
    scaled_norm,
    shape_,
    weighted,
)
from fogzo_repro.estimators.protocol import (
    Estimate,
    LossFunction,
    ProbeLosses,
    Probes,
    QuantizedWeight,
)
from fogzo_repro.estimators.smoothing import draw_integers_, widest

# Directions are drawn in blocks of at most this many numbers (64 MiB). The block size depends on
# nothing but the weights and n, so the draws do not depend on how the probes are evaluated.
BLOCK_NUMBERS = 2**24


def checked_probes(
    weights: Sequence[QuantizedWeight], loss: LossFunction | None, n: int, probes: Probes | None
) -> Probes:
    """Return the probes to use, sequential ones by default.

    Raises:
        ValueError: where the estimate would be wrong without a word.
    """
    if n < 1:
        raise ValueError(f"n={n} must be at least 1")
    if len({id(w.parameter) for w in weights}) < len(weights):
        raise ValueError("a tied weight is perturbed once: list each parameter once in `weights`")
    if probes is not None:
        return probes
    if loss is None:
        raise ValueError("give a loss function or probes")
    return SequentialProbes(loss)


def integer_blocks(
    weights: Sequence[QuantizedWeight], n: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """Yield what n directions are made of, in blocks: per weight integers (k, *shape)."""
    block = max(1, BLOCK_NUMBERS // sum(w.parameter.numel() for w in weights))
    for start in range(0, n, block):
        shapes = [(min(block, n - start), *w.parameter.shape) for w in weights]
        drawn = [
            draw_integers_(w.parameter.new_empty(shape, dtype=torch.float32), generator)
            for w, shape in zip(weights, shapes, strict=True)
        ]
        yield [d.to(widest(w.parameter.dtype)) for d, w in zip(drawn, weights, strict=True)]


def direction_blocks(
    weights: Sequence[QuantizedWeight], n: int, generator: torch.Generator
) -> Iterator[list[Tensor]]:
    """Yield n directions u in blocks: per weight a tensor (k, *shape) of the weight's law."""
    for draws in integer_blocks(weights, n, generator):
        shape_(draws, [w.law for w in weights])
        yield draws


def epsilons(weights: Sequence[QuantizedWeight]) -> list[Tensor]:
    """Return epsilon of each weight, all with a few kernels."""
    live = alphas([w.parameter.detach() for w in weights], [w.scale for w in weights])
    sizes = torch._foreach_abs([alpha.detach() for alpha in live])
    return list(torch._foreach_mul(sizes, [w.law.epsilon_bar for w in weights]))


def guides(weights: Sequence[QuantizedWeight]) -> list[Tensor]:
    """Return the STE gradient of each weight in the coordinates of its rounding.

    Raises:
        ValueError: where backward has not been called.
    """
    return rotated([w.gradient() for w in weights], [w.rotate for w in weights])


class SequentialProbes:
    """Probes of any model: displace the weights in place, take the loss, copy the weights back.

    Restoring is a copy and therefore bitwise: adding the displacement back would drift. The
    parameters keep their storage, so compiled and captured graphs stay valid.

    Args:
        loss: returns the loss at the current parameters.
    """

    def __init__(self, loss: LossFunction) -> None:
        self.loss = loss

    @torch.no_grad()
    def __call__(
        self, weights: Sequence[QuantizedWeight], directions: Sequence[Tensor]
    ) -> ProbeLosses:
        """Measure the k probe pairs one after another."""
        parameters = [w.parameter.detach() for w in weights]
        levels = [w.levels for w in weights]
        steps = epsilons(weights)
        saved = [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(saved, parameters)
        plus, minus, flips = [], [], []
        try:
            for j in range(len(directions[0])):
                vectors = [v[j] for v in directions]
                displace_(parameters, saved, steps, vectors)
                plus.append(at_least_float32(self.loss().detach()))
                flips.append(cross_(parameters, saved, steps, vectors, levels))
                minus.append(at_least_float32(self.loss().detach()))
        finally:
            torch._foreach_copy_(parameters, saved)
        return ProbeLosses(torch.stack(plus), torch.stack(minus), torch.stack(flips).sum())


class RandomSign:
    """A control: swaps L+ and L- with probability 1/2, so the sign of each difference is random.

    Args:
        probes: the probes whose losses are swapped.
        generator: a stream of its own.
    """

    def __init__(self, probes: Probes, generator: torch.Generator) -> None:
        self.probes = probes
        self.generator = generator

    def __call__(
        self, weights: Sequence[QuantizedWeight], directions: Sequence[Tensor]
    ) -> ProbeLosses:
        """Measure, then swap."""
        losses = self.probes(weights, directions)
        swap = random_signs(losses.plus, self.generator) < 0
        return ProbeLosses(
            torch.where(swap, losses.minus, losses.plus),
            torch.where(swap, losses.plus, losses.minus),
            losses.flips,
        )


def write_estimate(
    weights: Sequence[QuantizedWeight],
    blocks: Iterable[list[Tensor]],
    probes: Probes,
    n: int,
    guide_norm: Tensor,
) -> Estimate:
    """Put the mean of two-sided differences along n directions into `.grad`.

    G_l = 1/n sum_i c_i v_i / eps_l,  c_i = [L(theta + eps v_i) - L(theta - eps v_i)] / 2. If a
    probe was not finite, the STE gradient stays there.

    Args:
        weights: the quantized weights.
        blocks: n directions v in blocks, per weight (k, *shape), in the rounding's coordinates.
        probes: measures the losses.
        n: the number of directions in all blocks together.
        guide_norm: of the STE gradient, see `guide_norm`.
    """
    earlier: list[Tensor] | None = None  # the sum over the blocks before
    squares = flips = flat = bad = torch.zeros((), device=weights[0].parameter.device)
    taken = 0
    for drawn in blocks:
        directions = _in_weight_coordinates(weights, drawn)
        losses = probes(weights, directions)
        c = (losses.plus - losses.minus) / 2
        squares = squares + c.square().sum()
        flips = flips + losses.flips
        flat = flat + (c == 0).sum()
        bad = bad + (~c.isfinite()).sum()
        taken += len(c)
        if taken < n:
            earlier = weighted(c / n, epsilons(weights), directions, earlier)
    written = [w.parameter.grad for w in weights if w.parameter.grad is not None]
    replace_(written, c / n, epsilons(weights), directions, earlier, bad)
    coefficient = c[0] if n == 1 else (squares / n).sqrt()
    dead = (guide_norm == 0).to(guide_norm.dtype)
    return Estimate(coefficient, flips / n, flat, bad, dead, guide_norm)


def _in_weight_coordinates(
    weights: Sequence[QuantizedWeight], directions: Sequence[Tensor]
) -> list[Tensor]:
    """Return v rotated back: a row has one epsilon, so that it scales v before or after."""
    back = rotated(directions, [w.rotate_back for w in weights])
    return [v.to(w.parameter.dtype) for w, v in zip(weights, back, strict=True)]


def guide_norm(weights: Sequence[QuantizedWeight]) -> Tensor:
    """Return the norm of eps * g over all quantized weights together."""
    return scaled_norm(epsilons(weights), guides(weights))


def at_least_float32(x: Tensor) -> Tensor:
    """Return x, in float32 where its type is narrower: a difference of bf16 losses is rounding."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def random_signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return +1 or -1 with probability 1/2 each, shaped as `like`."""
    return torch.empty_like(like).random_(0, 2, generator=generator).mul_(2).sub_(1)
