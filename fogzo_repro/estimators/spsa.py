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

from fogzo_repro.estimators.perturbation import (
    checked_probes,
    direction_blocks,
    guide_norm,
    write_estimate,
)
from fogzo_repro.estimators.protocol import Estimate, LossFunction, Probes, QuantizedWeight
from fogzo_repro.estimators.schedule import start_step


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
        weights: the quantized weights. Left bitwise unchanged.
        loss: returns the loss at the current parameters; or give `probes`.
        n: number of probe pairs, at least 1.
        generator: the stream of the directions u.
        probes: how the losses are measured; one pair after another by default.

    Raises:
        ValueError: where a weight has no gradient or is listed twice, or n < 1.
    """
    probes = checked_probes(weights, loss, n, probes)
    norm = guide_norm(weights)  # of the STE gradient that is replaced; for the log
    return write_estimate(weights, direction_blocks(weights, n, generator), probes, n, norm)


class Nspsa:
    """n-SPSA in the training loop.

    Args:
        n: probe pairs per step.
        start_fraction: share of the steps that are left to the STE.
    """

    def __init__(self, n: int, start_fraction: float) -> None:
        self.n = n
        self.start_fraction = start_fraction

    def prepare(self, step: int, total_steps: int) -> bool:
        """Return whether a step is probed."""
        return step >= start_step(self.start_fraction, total_steps)

    def __call__(
        self,
        weights: Sequence[QuantizedWeight],
        probes: Probes,
        generator: torch.Generator,
        signs: torch.Generator,
    ) -> Estimate:
        """Write the estimate."""
        return nspsa(weights, n=self.n, generator=generator, probes=probes)
