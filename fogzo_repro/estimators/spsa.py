"""n-SPSA: the mean of n two-sided differences along random directions (PAPER 1).

    G = 1/n sum_i [L(theta + eps u_i) - L(theta - eps u_i)] / (2 eps) u_i

On smooth losses E[G] is the gradient to first order in eps; the variance falls as 1/n. On a
quantized loss component i of E[G] is the derivative in theta_i of the loss averaged with the
density q(w) = int_w^inf t p(t) dt in coordinate i and p in the others; q = p only for a Gaussian.
Cost: 2n forward passes, and the STE pass for all parameters that are not quantized.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators.directions import draw, unmixed
from fogzo_repro.estimators.fused import replace_, weighted
from fogzo_repro.estimators.probes import probes_of
from fogzo_repro.estimators.protocol import Estimate, LossFunction, Point, Probes, QuantizedWeight


@torch.no_grad()
def nspsa(
    weights: Sequence[QuantizedWeight],
    loss: LossFunction | None = None,
    *,
    n: int = 1,
    generator: torch.Generator,
    probes: Probes | None = None,
) -> Estimate:
    """Replace the gradient in `.grad` of each weight by the n-SPSA estimate.

    Args:
        weights: the quantized weights; `.grad` holds the STE gradient. Left bitwise unchanged.
        loss: returns the loss at the current parameters; or give `probes`.
        n: number of probe pairs, at least 1.
        generator: the stream of the directions u.
        probes: how the losses are measured; one pair after another by default.

    Returns:
        What the estimate rested on. A probe that is not finite leaves the STE gradient in place.

    Raises:
        ValueError: where there is no weight, one has no gradient or is listed twice, or n < 1.
        TypeError: where `loss` returns something else than a tensor with one element.
    """
    probes = probes_of(loss, probes)
    here = Point(weights)
    total = Total(here, n)
    for u in draw(here, n, generator):
        v = unmixed(u, here)
        losses = probes(here, v)
        c = (losses.plus - losses.minus) / 2
        total.add(c, v, losses.flips)
    return total.write()


class Total:
    """The sum G_l = 1/n sum_i c_i v_i / eps_l over n directions, and what there is to log of it.

    Args:
        here: the point theta, with the STE gradient still in `.grad`.
        n: the number of directions in all blocks together.
    """

    def __init__(self, here: Point, n: int) -> None:
        self.here = here
        self.n = n
        self.guide_norm = here.guide_norm  # before the estimate takes the gradient's place
        self.sums: list[Tensor] | None = None  # over the blocks but the last
        zero = torch.zeros((), device=self.guide_norm.device)
        self.squares = self.flips = self.flat = self.bad = zero
        self.taken = 0

    def add(self, c: Tensor, v: list[Tensor], flips: Tensor) -> None:
        """Take in a block of k directions.

        Args:
            c: (k,), half the difference of the losses along each direction.
            v: per weight (k, *shape), in the weight's coordinates.
            flips: see `ProbeLosses`.
        """
        self.count(c, flips)
        if self.taken < self.n:
            self.sums = weighted(c / self.n, self.here.epsilons, v, self.sums)
        else:  # the last block is added while the gradient is written
            self.last = c, v

    def count(self, c: Tensor, flips: Tensor) -> None:
        """Count a block for the log only, without adding its share of the sum.

        Args:
            c: (k,), as in `add`.
            flips: see `ProbeLosses`.
        """
        self.squares = self.squares + c.square().sum()
        self.flips = self.flips + flips
        self.flat = self.flat + (c == 0).sum()
        self.bad = self.bad + (~c.isfinite()).sum()
        self.taken += len(c)
        self.c = c

    def write(self) -> Estimate:
        """Put the sum into `.grad`, where the STE gradient stays if a probe was not finite."""
        here, (c, v) = self.here, self.last
        gradients = [w.gradient() for w in here.weights]
        replace_(gradients, c / self.n, here.epsilons, v, self.sums, self.bad)
        return self.estimate()

    def estimate(self) -> Estimate:
        """Return what there is to log."""
        n = self.n
        coefficient = self.c[0] if n == 1 else (self.squares / n).sqrt()
        dead = (self.guide_norm == 0).to(self.guide_norm.dtype)
        return Estimate(coefficient, self.flips / n, self.flat, self.bad, dead, self.guide_norm)


class Nspsa:
    """n-SPSA in the training loop.

    Args:
        n: probe pairs per step.
    """

    def __init__(self, n: int) -> None:
        self.n = n

    def begin_step(self, step: int, total_steps: int) -> bool:
        """Return True: each step is probed."""
        return True

    def __call__(
        self,
        weights: Sequence[QuantizedWeight],
        probes: Probes,
        generator: torch.Generator,
        signs: torch.Generator,
    ) -> Estimate:
        """Write the estimate."""
        return nspsa(weights, n=self.n, generator=generator, probes=probes)


build = Nspsa
