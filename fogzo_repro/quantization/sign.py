"""`quantizer=sign`: one bit at a fixed scale; the surrogates are in surrogates/sign_*.py."""

from __future__ import annotations

import torch
from torch import Tensor

from fogzo_repro.quantization.fixed import FixedScale
from fogzo_repro.quantization.functional import Surrogate, sign_levels, with_surrogate_gradient


class Sign(FixedScale):
    """alpha * sign(w / alpha) with derivative h'(w / alpha); the surrogate is h and its law."""

    def __init__(self, weight: Tensor, surrogate: Surrogate) -> None:
        super().__init__(weight)
        self.h, self.smoothing = surrogate

    def levels(self, units: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return +1 or -1."""
        return sign_levels(units, dtype)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight."""
        units = self.units(weight)
        return self.scale * with_surrogate_gradient(self.levels(units), self.h(units))


build = Sign
