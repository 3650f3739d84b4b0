r"""The STE averaged over FOGZO's probe points: a control in which no loss decides.

    G = 1/n sum_i [g(theta + eps v_i) + g(theta - eps v_i)] / 2

g is the STE's gradient and v_i is drawn exactly as FOGZO draws it. So this has FOGZO's noise, which
smooths the gradient, and not its loss differences, which rescale it. v needs the guide g(theta), so
that a step takes 1 + 2n passes forward and backward. All other parameters keep the gradient at
theta, as they do under FOGZO.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators.directions import draw, mixed, random_signs
from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.protocol import Estimate, Point, Probes, QuantizedWeight
from fogzo_repro.estimators.spsa import Total


@torch.no_grad()
def averaged_gradient(
    weights: Sequence[QuantizedWeight],
    probes: Probes,
    n: int,
    sqrt_beta: float | Tensor,
    sqrt_noise: float | Tensor,
    generator: torch.Generator,
    signs: torch.Generator,
) -> Estimate:
    """Replace the STE gradient in `.grad` of each weight by its mean over the points of n pairs.

    All is as for `fogzo.algorithm_1`, but that probes add the STE gradient there to `.grad`.

    Returns:
        What FOGZO's estimate along the same directions would have rested on. A loss that is not
        finite leaves the STE gradient in place.
    """
    here = Point(weights)
    seen = Total(here, n)  # looks at the guides, which lie in `.grad`
    guides = [w.gradient() for w in weights]
    for w in weights:
        w.parameter.grad = torch.zeros_like(w.parameter)
    for u in draw(here, n, generator):
        s = random_signs(len(u[0]), u[0], signs)
        v = mixed(u, here, s * sqrt_beta, sqrt_noise)
        losses = probes(here, v)
        seen.count((losses.plus - losses.minus) / 2, losses.flips)
    for w, g in zip(weights, guides, strict=True):
        mean = w.gradient().div_(2 * n)
        mean.copy_(torch.where(seen.bad > 0, g, mean))
    return seen.estimate()


def build(n: int, noise: float, beta_schedule: str, device: torch.device) -> Fogzo:
    """Build the estimator of a run: FOGZO's directions and schedule, and another sum."""
    return Fogzo(n, noise, beta_schedule, device, averaged_gradient)
