"""`quantizer=round`: rounding to 2^b levels at a fixed scale (PAPER 1 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor

from fogzo_repro.quantization.fixed import FixedScale
from fogzo_repro.quantization.functional import (
    IDENTITY,
    Surrogate,
    identity,
    round_levels,
    round_range,
    with_surrogate_gradient,
)

BEYOND = {True: 0.0, "half_step": 0.5}  # clip_gradient: how far beyond the outer levels


class Round(FixedScale):
    """alpha * round(w / alpha), clipped to 2^b levels, with derivative h'(w / alpha).

    Args:
        weight: initial weights, any shape.
        bits: b, 2 to 8.
        surrogate: h and its smoothing law; the identity by default.
        half_integer: the grid {-2^(b-1)+1/2, ..., 2^(b-1)-1/2} instead of the integers.
        clip_gradient: derivative 0 beyond the outer levels (True), or beyond them by more than
            half a step (`half_step`), where rounding would go on to further levels; False: nowhere.
        factor: alpha in standard deviations of the initial weights.
    """

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        surrogate: Surrogate = IDENTITY,
        half_integer: bool = False,
        clip_gradient: bool | str = False,
        factor: float = 1.0,
    ) -> None:
        super().__init__(weight, factor)
        self.bits = bits
        self.half_integer = half_integer
        self.h, self.smoothing = surrogate
        low, high = (level + 0.5 * half_integer for level in round_range(bits))
        beyond = BEYOND.get(clip_gradient)
        self.gradient_range = None if beyond is None else (low - beyond, high + beyond)

    def levels(self, units: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return round(units) on the grid."""
        return round_levels(units, self.bits, self.half_integer, dtype)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight; its derivative is h', and 0 outside the gradient's range."""
        units = self.units(weight)
        bounds = self.gradient_range
        inside = units.clamp(*bounds) if bounds else units
        plain = self.h is identity and bounds is None  # 1 exactly, not alpha (1 / alpha)
        smooth = weight if plain else self.h(inside) * self.scale
        return with_surrogate_gradient(self.levels(units) * self.scale, smooth)


def build(
    weight: Tensor,
    weight_bits: int,
    surrogate: Surrogate,
    grid: str,
    clip_gradient: bool | str,
    scale_factor: float,
) -> Round:
    """Build the quantizer of one weight."""
    half_integer = grid == "half_integer"
    return Round(weight, weight_bits, surrogate, half_integer, clip_gradient, scale_factor)
