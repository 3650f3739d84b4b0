"""Levels, and what a surrogate is, in units of the scale: x = weight / alpha.

A quantizer's forward value is piecewise constant; its backward pass is the derivative of a smooth
surrogate (PAPER 1, "Smoothing law"). Both sides are plain torch operations: they compile, and they
run under vmap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


def with_surrogate_gradient(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return `value`, bit for bit, with the gradient of `surrogate`.

    >>> x = torch.tensor([0.3], requires_grad=True)
    >>> with_surrogate_gradient(torch.sign(x), torch.tanh(x)).sum().backward()
    >>> bool(torch.isclose(x.grad, 1 - torch.tanh(x.detach()) ** 2))
    True
    """
    if not torch.is_grad_enabled():
        return value
    return value.detach() + (surrogate - surrogate.detach())


def surrogate_slope(quantizer: Callable[[Tensor], Tensor], weight: Tensor) -> Tensor:
    """Return h' at each weight: what back-propagation through a quantizer multiplies a gradient by.

    The quantizer has `slope(weight)` where that is not elementwise in the weight's own coordinates.

    >>> surrogate_slope(lambda w: with_surrogate_gradient(torch.sign(w), w.clamp(-1, 1)),
    ...                 torch.tensor([0.5, 2.0]))
    tensor([1., 0.])
    """
    if hasattr(quantizer, "slope"):
        return quantizer.slope(weight)
    with torch.enable_grad():
        leaf = weight.detach().requires_grad_()
        (slope,) = torch.autograd.grad(quantizer(leaf).sum(), leaf)
    return slope


def autocast_dtype(kind: str) -> torch.dtype | None:
    """Return the type that autocast multiplies in on a kind of device; None where it is off."""
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None


def round_range(bits: int) -> tuple[int, int]:
    """Return the lowest and highest integer level, -2^(b-1) and 2^(b-1)-1.

    >>> round_range(2)
    (-2, 1)
    """
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def round_levels(
    x: Tensor, bits: int, half_integer: bool = False, dtype: torch.dtype | None = None
) -> Tensor:
    """Round x to the nearest of 2^b levels; ties go to even, as in IEEE 754.

    The integer grid is {-2^(b-1), ..., 2^(b-1)-1}; the half-integer grid is that shifted by 1/2.

    >>> round_levels(torch.tensor([-9.0, -0.4, 0.6, 9.0]), bits=2).tolist()
    [-2.0, -0.0, 1.0, 1.0]
    >>> round_levels(torch.tensor([-9.0, -0.4, 0.6, 9.0]), bits=2, half_integer=True).tolist()
    [-1.5, -0.5, 0.5, 1.5]
    """
    low, high = round_range(bits)
    if half_integer:
        return (x - 0.5).round_().to(dtype or x.dtype).clamp_(low, high).add_(0.5)
    return x.round().to(dtype or x.dtype).clamp_(low, high)


def sign_levels(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return +1 for x >= 0 and -1 below; torch.sign(0) = 0 would be a third level.

    >>> sign_levels(torch.tensor([-0.1, 0.0, 0.1])).tolist()
    [-1.0, 1.0, 1.0]
    """
    return (x >= 0).to(dtype or x.dtype).mul_(2).sub_(1)


def identity(x: Tensor) -> Tensor:
    """Return x."""
    return x


class Surrogate(NamedTuple):
    """The smooth stand-in for an operator, in the backward pass.

    Attributes:
        h: the function; its derivative is that of the quantizer, in units of the scale.
        law: the noise u for which h(x) = E[operator(x + epsilon_bar u)]: a smoothing law, or the
            pair (operator, surrogate) by which `estimators.smoothing_law` knows it. Without one
            (None) the surrogate is for the STE alone.
    """

    h: Callable[[Tensor], Tensor]
    law: Any = None


IDENTITY = Surrogate(identity, law=("round", "identity"))
