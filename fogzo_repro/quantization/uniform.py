"""`quantizer=round`: rounding to 2^b levels at a fixed scale (PAPER 1 and 4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fogzo_repro.quantization.fixed import FixedScale
from fogzo_repro.quantization.functional import round_levels, round_range, with_surrogate_gradient


class Round(FixedScale):
    """alpha * round(w / alpha), clipped to 2^b levels.

    Args:
        weight: initial weights, any shape.
        bits: b, 2 to 8.
        half_integer: the grid {-2^(b-1)+1/2, ..., 2^(b-1)-1/2} instead of the integers.
        clip_gradient: derivative 0 outside the outer levels instead of 1 everywhere.
    """

    smoothing = ("round", "identity")

    def __init__(
        self, weight: Tensor, bits: int, half_integer: bool = False, clip_gradient: bool = False
    ) -> None:
        super().__init__(weight)
        self.bits = bits
        self.half_integer = half_integer
        self.clip_gradient = clip_gradient

    def levels(self, units: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return round(units) on the grid."""
        return round_levels(units, self.bits, self.half_integer, dtype)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight; its derivative is 1 (or the indicator of the range)."""
        units = self.units(weight)
        low, high = (level + 0.5 * self.half_integer for level in round_range(self.bits))
        surrogate = units.clamp(low, high) * self.scale if self.clip_gradient else weight
        return with_surrogate_gradient(self.levels(units) * self.scale, surrogate)


def build_round(config: Any, weight: Tensor) -> Round:
    """Build from the `quantizer` section."""
    return Round(weight, config.weight_bits, config.grid == "half_integer", config.clip_gradient)
