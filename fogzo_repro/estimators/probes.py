"""The losses on both sides of theta, L+ at theta + eps v and L- at theta - eps v: the probes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from fogzo_repro.estimators.directions import random_signs
from fogzo_repro.estimators.fused import cross_, displace_
from fogzo_repro.estimators.protocol import (
    LossFunction,
    Point,
    ProbeLosses,
    Probes,
    one_number,
)


class SequentialProbes:
    """Probes of any model: displace the weights in place, take the loss, copy the weights back.

    Restoring is a copy and therefore bitwise: adding the displacement back would drift. The
    parameters keep their storage, so compiled and captured graphs stay valid.

    Args:
        loss: returns the loss at the current parameters, a tensor with one element.
    """

    def __init__(self, loss: LossFunction) -> None:
        self.loss = loss

    @torch.no_grad()
    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure the k probe pairs one after another."""
        parameters = [w.parameter.detach() for w in here.weights]
        levels = [w.levels for w in here.weights]
        steps = here.epsilons
        saved = [torch.empty_like(p) for p in parameters]
        torch._foreach_copy_(saved, parameters)
        plus, minus, flips = [], [], []
        try:
            for j in range(len(directions[0])):
                vectors = [v[j] for v in directions]
                displace_(parameters, saved, steps, vectors)
                plus.append(one_number(self.loss()))
                flips.append(cross_(parameters, saved, steps, vectors, levels))
                minus.append(one_number(self.loss()))
        finally:
            torch._foreach_copy_(parameters, saved)
        return ProbeLosses(torch.stack(plus), torch.stack(minus), torch.stack(flips).sum())


class CountedProbes:
    """Probes that count the pairs that they measure, as `pairs`."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes
        self.pairs = 0

    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure k pairs, and count them."""
        self.pairs += len(directions[0])
        return self.probes(here, directions)


class AveragedProbes:
    """Probes whose losses are means over the processes' shares of a batch: one coefficient."""

    def __init__(self, probes: Probes) -> None:
        self.probes = probes

    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure, then average."""
        losses = self.probes(here, directions)
        both = torch.stack([losses.plus, losses.minus])
        dist.all_reduce(both)
        both /= dist.get_world_size()
        return ProbeLosses(both[0], both[1], losses.flips)


class RandomSign:
    """A control: swaps L+ and L- with probability 1/2, so the sign of each difference is random.

    The generator is a stream of its own.
    """

    def __init__(self, probes: Probes, generator: torch.Generator) -> None:
        self.probes = probes
        self.generator = generator

    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure, then swap."""
        losses = self.probes(here, directions)
        swap = random_signs(len(losses.plus), losses.plus, self.generator) < 0
        return ProbeLosses(
            torch.where(swap, losses.minus, losses.plus),
            torch.where(swap, losses.plus, losses.minus),
            losses.flips,
        )


def probes_of(loss: LossFunction | None, probes: Probes | None) -> Probes:
    """Return the probes that a caller gave, or sequential ones of the loss that it gave.

    Raises:
        ValueError: where it gave neither.
    """
    if probes is not None:
        return probes
    if loss is None:
        raise ValueError("give a loss function or probes")
    return SequentialProbes(loss)
