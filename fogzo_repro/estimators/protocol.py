"""What an estimator sees: weights with their scales, and losses. Nothing else of the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fogzo_repro.estimators.smoothing import SmoothingLaw

# Returns the loss, a 0-dim tensor, at the current parameters: same batch, same masks, every time.
LossFunction = Callable[[], Tensor]


def _identity(x: Tensor) -> Tensor:
    return x


@dataclass(frozen=True)
class QuantizedWeight:
    """A latent weight that an estimator perturbs.

    Attributes:
        parameter: the latent weight theta, a leaf; its `.grad` holds the STE gradient.
        scale: alpha, broadcastable to the parameter: the distance between neighbouring levels of a
            round-type grid, half of it for sign. A tensor (a learned step stays live) or a function
            of the parameter.
        law: the smoothing law of its operator and surrogate.
        levels: the level of each latent weight; only for counting flips.
        rotate: to the coordinates in which the rounding happens, an orthonormal map of each row
            (its last axes); directions and guide live there.
        rotate_back: its inverse.
    """

    parameter: Tensor
    scale: Tensor | Callable[[Tensor], Tensor]
    law: SmoothingLaw
    levels: Callable[[Tensor], Tensor] | None = None
    rotate: Callable[[Tensor], Tensor] = _identity
    rotate_back: Callable[[Tensor], Tensor] = _identity

    def alpha(self) -> Tensor:
        """Return the scale at the current parameter, without a gradient."""
        alpha = self.scale(self.parameter) if callable(self.scale) else self.scale
        return alpha.detach()

    def epsilon(self) -> Tensor:
        """Return epsilon = alpha * epsilon_bar, broadcastable to the parameter."""
        return self.alpha().abs() * self.law.epsilon_bar

    def gradient(self) -> Tensor:
        """Return the STE gradient.

        Raises:
            ValueError: where backward has not been called.
        """
        if self.parameter.grad is None:
            raise ValueError("call loss.backward() before the estimator: a weight has no gradient")
        return self.parameter.grad.detach()


@dataclass(frozen=True)
class Estimate:
    """What one estimate rested on. All tensors are 0-dim and on the weights' device.

    Attributes:
        coefficient: root mean square over the n pairs of c = (L+ - L-)/2; c itself for n = 1.
        flips: weights whose level differs between the two probes, mean over the pairs.
        flat_probes: pairs with L+ = L-.
        bad_probes: pairs with a loss that is not finite; any makes the step take the STE gradient.
        dead_guides: 1 where the STE gradient is exactly zero, so that v = sqrt(1 - beta) u.
        guide_norm: the norm of epsilon * g over all quantized weights.
    """

    coefficient: Tensor
    flips: Tensor
    flat_probes: Tensor
    bad_probes: Tensor
    dead_guides: Tensor
    guide_norm: Tensor


@dataclass(frozen=True)
class ProbeLosses:
    """Losses at theta + epsilon v and theta - epsilon v for k directions: float32, shape (k,)."""

    plus: Tensor
    minus: Tensor
    flips: Tensor


class Probes(Protocol):
    """Evaluates the loss on both sides of theta."""

    def __call__(
        self, weights: Sequence[QuantizedWeight], directions: Sequence[Tensor]
    ) -> ProbeLosses:
        """Measure k probe pairs.

        Args:
            weights: the quantized weights, left bitwise unchanged.
            directions: per weight (k, *shape), v in units of epsilon, in the weight's coordinates.
        """
        ...


class Estimator(Protocol):
    """An estimator in the training loop, one object for a whole run.

    It is called after the backward pass, when `.grad` holds the STE gradient of every parameter,
    and replaces the `.grad` of the quantized weights.
    """

    def prepare(self, step: int, total_steps: int) -> bool:
        """Set what depends on the step (beta); return whether probes are wanted at it."""
        ...

    def __call__(
        self,
        weights: Sequence[QuantizedWeight],
        probes: Probes,
        generator: torch.Generator,
        signs: torch.Generator,
    ) -> Estimate | None:
        """Write the gradient estimate."""
        ...
