r"""FOGZO: first-order-guided zeroth-order gradient descent (arXiv 2510.23926, Algorithm 1 [sum]).

    v_i = sqrt(beta) s_i g^ + sqrt(1 - beta) u_i,     g^ = g / ||g|| from the STE,  s_i = +-1
    G   = 1/n sum_i [L(theta + eps v_i) - L(theta - eps v_i)] / (2 eps) v_i

With one scale per tensor or row, everything is written in units of epsilon: weight l moves by
+-eps_l v_l, the guide is eps_l g_l normalised over all quantized weights together, and the estimate
for theta_l is (L+ - L-)/2 * v_l / eps_l. With one common epsilon this is the formula above.

To first order in eps, E[G] = beta g^ g^T grad + (1 - beta) grad: a biased part that shrinks by
itself where the STE is wrong, and an unbiased part. Cost: the STE pass and 2n forward passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators.directions import draw, mixed, random_signs
from fogzo_repro.estimators.probes import probes_of
from fogzo_repro.estimators.protocol import Estimate, LossFunction, Point, Probes, QuantizedWeight
from fogzo_repro.estimators.schedule import noise_at
from fogzo_repro.estimators.spsa import Total
from fogzo_repro.randomness import split_stream


def fogzo(
    weights: Sequence[QuantizedWeight],
    loss: LossFunction | None = None,
    *,
    beta: float,
    n: int = 1,
    generator: torch.Generator,
    signs: torch.Generator | None = None,
    probes: Probes | None = None,
) -> Estimate:
    """Replace the STE gradient in `.grad` of each weight by the FOGZO estimate.

    Args:
        weights: the quantized weights; `.grad` holds the STE gradient. Left bitwise unchanged.
        loss: returns the loss at the current parameters; or give `probes`.
        beta: share of the guide in the direction, in [0, 1].
        n: number of probe pairs, at least 1.
        generator: the stream of the directions u.
        signs: the stream of the signs s; where not given, one split off from `generator`, so that
            the directions are those of n-SPSA with the same seed.
        probes: how the losses are measured; one pair after another by default.

    Returns:
        What the estimate rested on. A probe that is not finite leaves the STE gradient in place.

    Raises:
        ValueError: where there is no weight, one has no gradient or is listed twice, beta is
            outside [0, 1] or n < 1.
        TypeError: where `loss` returns something else than a tensor with one element.
    """
    sqrt_beta, sqrt_noise = square_roots(beta)
    signs = signs or split_stream(generator)
    return algorithm_1(weights, probes_of(loss, probes), n, sqrt_beta, sqrt_noise, generator, signs)


@torch.no_grad()
def algorithm_1(
    weights: Sequence[QuantizedWeight],
    probes: Probes,
    n: int,
    sqrt_beta: float | Tensor,
    sqrt_noise: float | Tensor,
    generator: torch.Generator,
    signs: torch.Generator,
) -> Estimate:
    """Do what `fogzo` says, given sqrt(beta) and sqrt(1 - beta).

    They are 0-dim tensors in the training loop: a captured graph reads them anew at every step.
    """
    here = Point(weights)  # eps_l, the guides g_l and ||eps g||
    total = Total(here, n)
    for u in draw(here, n, generator):  # u_i, for a block of pairs i at once
        s = random_signs(len(u[0]), u[0], signs)  # +-1 with probability 1/2 each
        v = mixed(u, here, s * sqrt_beta, sqrt_noise)  # v = sqrt(beta) s g^ + sqrt(1 - beta) u
        losses = probes(here, v)  # L+ at theta + eps v, L- at theta - eps v
        c = (losses.plus - losses.minus) / 2
        total.add(c, v, losses.flips)  # G_l += 1/n c v_l / eps_l
    return total.write()


def square_roots(beta: float) -> tuple[float, float]:
    """Return sqrt(beta) and sqrt(1 - beta) as Python floats: 1 - 1e-9 is 1.0 in float32.

    Raises:
        ValueError: where beta is outside [0, 1].

    >>> square_roots(1 - 1e-9)[1] > 3.1e-5
    True
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta} is outside [0, 1]")
    return math.sqrt(beta), math.sqrt(1 - beta)


class Fogzo:
    """FOGZO in the training loop, with beta by its schedule.

    Args:
        n: probe pairs per step.
        noise: 1 - beta_min.
        beta_schedule: `constant`, or `linear` from beta = 1 to beta_min over the probed steps
            [rep].
        device: where the weights are.
        algorithm: what is made of the directions, see `averaged` for another one.

    Attributes:
        noise: 1 - beta at the step that has begun.
    """

    def __init__(
        self,
        n: int,
        noise: float,
        beta_schedule: str,
        device: torch.device,
        algorithm: Callable[..., Estimate] = algorithm_1,
    ) -> None:
        self.algorithm = algorithm
        self.n = n
        self.last_noise = noise
        self.schedule = beta_schedule
        self.noise = 0.0
        self.sqrt_beta = torch.zeros((), dtype=torch.float64, device=device)
        self.sqrt_noise = torch.zeros_like(self.sqrt_beta)

    def begin_step(self, step: int, total_steps: int) -> bool:
        """Set beta for a step; return True: each step is probed."""
        self.noise = noise_at(step, total_steps, noise=self.last_noise, schedule=self.schedule)
        self.sqrt_beta.fill_(math.sqrt(1 - self.noise))
        self.sqrt_noise.fill_(math.sqrt(self.noise))
        return True

    def __call__(
        self,
        weights: Sequence[QuantizedWeight],
        probes: Probes,
        generator: torch.Generator,
        signs: torch.Generator,
    ) -> Estimate:
        """Write the estimate."""
        return self.algorithm(
            weights, probes, self.n, self.sqrt_beta, self.sqrt_noise, generator, signs
        )


build = Fogzo
