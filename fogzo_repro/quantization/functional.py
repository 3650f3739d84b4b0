"""Levels and surrogates, in units of the scale: x = weight / alpha.

A quantizer's forward value is piecewise constant; its backward pass is the derivative of a smooth
surrogate (PAPER 1, "Smoothing law"). Both sides are plain torch operations: they compile, and they
run under vmap.
"""

from __future__ import annotations

from collections.abc import Callable

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


def hardtanh(x: Tensor) -> Tensor:
    """Return clip(x, -1, 1), the surrogate of BNN, with derivative 1 on the closed interval.

    The derivative of torch's own clamp at the bounds is 1 or 0, depending on its version.
    """
    return torch.where(x.abs() <= 1, x, x.sign())


def approx_sign(x: Tensor) -> Tensor:
    """Return 2x - x|x| on [-1, 1] and +-1 outside, the surrogate of Bi-Real Net."""
    clipped = x.clamp(-1, 1)
    return 2 * clipped - clipped * clipped.abs()


SIGN_SURROGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "hardtanh": hardtanh,
    "tanh": torch.tanh,
    "approxsign": approx_sign,
}
