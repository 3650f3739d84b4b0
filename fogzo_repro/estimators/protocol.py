"""What an estimator sees: weights with their scales, and losses. Nothing else of the training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from fogzo_repro.estimators.fused import alphas, rotated, total_norm, unrotated
from fogzo_repro.estimators.smoothing import SmoothingLaw, widest

# Returns the loss, a 0-dim tensor, at the current parameters: same batch, same masks, every time.
LossFunction = Callable[[], Tensor]


def one_number(loss: Any) -> Tensor:
    """Return what a loss function has returned as a 0-dim tensor without a graph.

    In float32 at least: a difference of bf16 losses is rounding.

    Raises:
        TypeError: where it is something else than a tensor with one element.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().reshape(()).to(widest(loss.dtype))
    shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
    raise TypeError(
        f"the loss function returned a {type(loss).__name__}{shape}; return the loss, a tensor "
        "with one element"
    )


def check_shape(of: str, scale: Tensor, parameter: Tensor) -> None:
    """Refuse a scale that does not broadcast to its weight, or has fewer axes and several numbers.

    Raises:
        ValueError: in one line.
    """
    if scale.dim() == 0:  # each step asks this of each weight
        return
    shape, rows = tuple(scale.shape), (len(parameter), *[1] * (parameter.dim() - 1))
    if scale.numel() > 1 and scale.dim() != parameter.dim():
        raise ValueError(
            f"the scale of {of} has shape {shape} and the weight {tuple(parameter.shape)}, so that "
            "it is not clear which axis is meant; give it as many axes, one scale a row as "
            f"{rows}"
        )
    if any(s not in (1, n) for s, n in zip(shape[::-1], parameter.shape[::-1], strict=False)):
        raise ValueError(
            f"the scale of {of} has shape {shape}, which does not go with the weight's "
            f"{tuple(parameter.shape)}"
        )


NO_WEIGHTS = "the list of quantized weights is empty; there is nothing to perturb"


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
        slope: the surrogate's derivative h' at each latent weight; only for logging.
        rotate: to the coordinates in which the rounding happens, an orthonormal map of each row
            (its last axes); directions and guide live there.
        rotate_back: its inverse.
        quantized: the weight that the network computes with, in the latent weight's coordinates,
            where an estimator asks for it.
    """

    parameter: Tensor
    scale: Tensor | Callable[[Tensor], Tensor]
    law: SmoothingLaw
    levels: Callable[[Tensor], Tensor] | None = None
    slope: Callable[[Tensor], Tensor] | None = None
    rotate: Callable[[Tensor], Tensor] = unrotated
    rotate_back: Callable[[Tensor], Tensor] = unrotated
    quantized: Callable[[Tensor], Tensor] | None = None

    def epsilon(self) -> Tensor:
        """Return epsilon = alpha * epsilon_bar, broadcastable to the parameter."""
        return Point([self]).epsilons[0]

    def gradient(self) -> Tensor:
        """Return the STE gradient.

        Raises:
            ValueError: where backward has not been called, or the gradient is sparse.
        """
        if self.parameter.grad is None:
            raise ValueError("call loss.backward() before the estimator: a weight has no gradient")
        if self.parameter.grad.is_sparse:
            raise ValueError(
                "the gradient of a quantized weight is sparse; make its embedding with sparse=False"
            )
        return self.parameter.grad.detach()


class Point:
    """The weights theta of a step, with the epsilons and guides that its formulas need there.

    Each property is computed on first use and then kept, so that a step computes it once. A point
    is valid until the weights or their gradients change.

    Args:
        weights: the quantized weights, each parameter listed once.

    Raises:
        ValueError: where there is no weight, or a parameter is listed twice.
    """

    def __init__(self, weights: Sequence[QuantizedWeight]) -> None:
        if not weights:
            raise ValueError(NO_WEIGHTS)
        if len({id(w.parameter) for w in weights}) < len(weights):
            raise ValueError(
                "a tied weight is perturbed once: list each parameter once in `weights`"
            )
        self.weights = weights

    @cached_property
    def epsilons(self) -> list[Tensor]:
        """Epsilon of each weight, broadcastable to it."""
        scales = alphas(
            [w.parameter.detach() for w in self.weights], [w.scale for w in self.weights]
        )
        for alpha, w in zip(scales, self.weights, strict=True):
            check_shape("a weight", alpha, w.parameter)  # may have changed since it was listed
        sizes = torch._foreach_abs([alpha.detach() for alpha in scales])
        return list(torch._foreach_mul(sizes, [w.law.epsilon_bar for w in self.weights]))

    @cached_property
    def guides(self) -> list[Tensor]:
        """The STE gradient g of each weight, in the coordinates of its rounding.

        Where those are the weight's own, this is its `.grad` itself and takes no memory.
        """
        return rotated([w.gradient() for w in self.weights], [w.rotate for w in self.weights])

    @cached_property
    def guide_norm(self) -> Tensor:
        """The norm of epsilon * g over all weights together; 0 where its inverse overflows."""
        norm = total_norm(list(torch._foreach_mul(self.guides, self.epsilons)))
        return torch.where(norm < torch.finfo(norm.dtype).tiny, 0.0, norm)

    @cached_property
    def inverse_norm(self) -> Tensor:
        """1 / `guide_norm`; 0 for a guide that is zero, so that a direction is then noise alone."""
        return torch.where(self.guide_norm > 0, 1 / self.guide_norm, 0.0)


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
    """Losses on both sides of theta, for k directions v.

    Attributes:
        plus: (k,), the losses at theta + epsilon v, in float32 at least.
        minus: (k,), the losses at theta - epsilon v.
        flips: how many weights have another level on one side than on the other, summed over the k
            pairs; 0-dim.
    """

    plus: Tensor
    minus: Tensor
    flips: Tensor


class Probes(Protocol):
    """Evaluates the loss on both sides of theta."""

    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure k probe pairs.

        Args:
            here: the point theta; its weights are left bitwise unchanged.
            directions: per weight (k, *shape), v in units of epsilon, in the weight's coordinates.
        """
        ...


class Estimator(Protocol):
    """An estimator in the training loop, one object for a whole run.

    It is called after the backward pass, when `.grad` holds the STE gradient of every parameter,
    and replaces the `.grad` of the quantized weights. Where it has an attribute `noise`, its share
    of noise at the step that has begun, 1 - beta, this is logged.

    Where it has a method `after_update(weights, lr)`, this is called behind the optimizer's update
    of each of its steps, without autograd, and may change the weights in place: a correction that
    the optimizer does not scale. lr is the learning rate of the update, a 0-dim tensor that is 0
    where the update was skipped: what is changed in proportion to it is not changed then.

    It is not stored with a checkpoint: what it does at a step must follow from the step alone.
    """

    def begin_step(self, step: int, total_steps: int) -> bool:
        """Set what depends on the step (beta); return whether the estimator is called at it.

        It may be asked for any step, in any order.

        Args:
            step: from 0, of the steps that are the estimator's: those after `start_fraction`.
            total_steps: how many these are.
        """
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
