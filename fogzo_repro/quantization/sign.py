"""`quantizer=sign`: one bit at a fixed scale, with the surrogates hardtanh, tanh and ApproxSign."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fogzo_repro.quantization.fixed import FixedScale
from fogzo_repro.quantization.functional import (
    SIGN_SURROGATES,
    sign_levels,
    with_surrogate_gradient,
)


class Sign(FixedScale):
    """alpha * sign(w / alpha) with derivative surrogate'(w / alpha).

    Args:
        weight: initial weights, any shape.
        surrogate: `hardtanh`, `tanh` or `approxsign`.
    """

    def __init__(self, weight: Tensor, surrogate: str) -> None:
        super().__init__(weight)
        self.smoothing = ("sign", surrogate)
        self._surrogate = SIGN_SURROGATES[surrogate]

    def levels(self, units: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return +1 or -1."""
        return sign_levels(units, dtype)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight."""
        units = self.units(weight)
        value, surrogate = self.levels(units), self._surrogate(units)
        return self.scale * with_surrogate_gradient(value, surrogate)


def build_sign(config: Any, weight: Tensor) -> Sign:
    """Build from the `quantizer` section."""
    return Sign(weight, config.surrogate)
