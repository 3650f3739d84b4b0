"""The smoothing laws: which noise turns an operator into its surrogate (PAPER 1, "Smoothing law").

A surrogate is the operator averaged over noise, surrogate(x) = E_u[operator(x + epsilon_bar u)].
So every STE fixes its own epsilon_bar and its own law of u, with zero mean and unit variance.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class SmoothingLaw:
    """The law of u and the width epsilon_bar that belong to one operator and surrogate.

    Attributes:
        epsilon_bar: the width of the noise in units of the quantizer's scale.
        factor: u = transform(factor * t), with t = 2r - 1 and r uniform on (0, 1).
        transform: works in place.

    Raises:
        ValueError: where it does not; its result would not be used.
    """

    epsilon_bar: float
    factor: float
    transform: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        t = torch.zeros(1, device="cpu")
        if self.transform(t) is not t:
            raise ValueError(
                "the transform of a SmoothingLaw does not change its tensor in place and return "
                "it, as t.mul_(2) or t.copy_(...) does"
            )

    def from_symmetric(self, t: Tensor) -> Tensor:
        """Return the u that belong to t = 2r - 1."""
        return self.transform(t * self.factor)

    def shape_(self, t: Tensor) -> Tensor:
        """Turn integers K of `draw_integers_` into draws of u, in place.

        t = (K + 1/2) 2^-23, an odd multiple of 2^-24, is exact in float32; u = transform(factor t).
        """
        unit = 2.0**-23 * self.factor
        return self.transform(torch.add(torch.tensor(unit / 2), t, alpha=unit, out=t))  # one pass


def draw_integers_(t: Tensor, generator: torch.Generator) -> Tensor:
    """Fill a float32 tensor with integers K, uniform on -2^23 .. 2^23 - 1, and return it.

    r = (K + 2^23 + 1/2)/2^24 is never 0 or 1, where atanh(2r - 1) would be infinite. K is drawn in
    float32 whatever the type of the directions: in bf16 r would round to 0 or 1, in fp16 it would
    overflow, and float64's own uniform has 53 bits.
    """
    if t.device.type == "cpu":  # the same K, four times faster: uniform_ draws k / 2^24
        return t.uniform_(generator=generator).mul_(2.0**24).sub_(2.0**23)
    return t.random_(-(2**23), 2**23, generator=generator)


def widest(dtype: torch.dtype) -> torch.dtype:
    """Return the type in which directions of a type are computed: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


def _uniform(t: Tensor) -> Tensor:
    """sqrt(3) (2r - 1), uniform on +-sqrt(3); sqrt(3) is the law's factor."""
    return t


def _triangular(t: Tensor) -> Tensor:
    """Triangular on +-sqrt(6): sqrt(6) (sqrt(2r) - 1) below r = 1/2, mirrored above."""
    magnitude = (1 - t.abs()).sqrt_().neg_().add_(1).mul_(math.sqrt(6))
    return t.copy_(magnitude.copysign_(t))


_TANH_EPSILON = math.pi / math.sqrt(12)


def _logistic(t: Tensor) -> Tensor:
    """atanh(2r - 1) / epsilon_bar: density epsilon_bar (1 - tanh^2(epsilon_bar u)) / 2."""
    return t.atanh_().div_(_TANH_EPSILON)


LAWS: dict[tuple[str, str], SmoothingLaw] = {  # (operator, surrogate)
    ("round", "identity"): SmoothingLaw(1 / (2 * math.sqrt(3)), math.sqrt(3), _uniform),
    ("sign", "hardtanh"): SmoothingLaw(1 / math.sqrt(3), math.sqrt(3), _uniform),
    ("sign", "tanh"): SmoothingLaw(_TANH_EPSILON, 1.0, _logistic),
    ("sign", "approxsign"): SmoothingLaw(1 / math.sqrt(6), 1.0, _triangular),
}


def smoothing_law(operator: str, surrogate: str) -> SmoothingLaw:
    """Return the smoothing law of an operator and its STE's surrogate.

    Raises:
        ValueError: with the list of pairs.

    >>> round(smoothing_law("round", "identity").epsilon_bar, 4)
    0.2887
    """
    if (operator, surrogate) not in LAWS:
        known = ", ".join(f"({o}, {s})" for o, s in LAWS)
        raise ValueError(f"no smoothing law for ({operator}, {surrogate}); known: {known}")
    return LAWS[operator, surrogate]
