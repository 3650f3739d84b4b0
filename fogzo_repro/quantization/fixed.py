"""What the quantizers with a fixed scale share.

alpha is the standard deviation of the initial weights, times a constant factor; choice, see
docs/choices.md. The scale is a buffer, so it is part of every checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class FixedScale(nn.Module):
    """A quantizer alpha * levels(w / alpha) with one constant alpha for the tensor.

    Args:
        weight: initial weights, any shape.
        factor: alpha in standard deviations of the initial weights.
    """

    smoothing: Any
    scale: Tensor

    def __init__(self, weight: Tensor, factor: float = 1.0) -> None:
        super().__init__()
        scale = weight.detach().std()
        # Of equal weights the deviation is a rounding error of their size, not always 0.
        has_spread = torch.isfinite(scale) & (scale > 1e-6 * weight.detach().abs().max())
        if not (weight.is_meta or has_spread):  # without numbers there is nothing to check
            raise ValueError(
                f"the scale is the deviation of the initial weights, and those of shape "
                f"{tuple(weight.shape)} have no spread; name the layer in model.first_last"
            )
        self.register_buffer("scale", factor * scale)

    def units(self, weight: Tensor) -> Tensor:
        """Return the latent weight in units of alpha."""
        return weight / self.scale

    def levels(self, units: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return the level of each latent weight, in units of alpha.

        Args:
            units: latent weights in units of alpha; the rounding happens in their type.
            dtype: of the result; a narrower one holds levels exactly and is faster to move.
        """
        raise NotImplementedError

    def perturbation_scale(self, weight: Tensor) -> Tensor:
        """Return alpha, a 0-dim tensor: the level spacing of round, half of it for sign."""
        return self.scale
