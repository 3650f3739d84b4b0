"""What the quantizers with a fixed scale share.

alpha is the standard deviation of the initial weights; choice, see README. The scale is a buffer,
so it is part of every checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class FixedScale(nn.Module):
    """A quantizer alpha * levels(w / alpha) with one constant alpha for the tensor."""

    smoothing: tuple[str, str]
    scale: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        scale = weight.detach().std()
        if not (torch.isfinite(scale) and scale > 0):
            raise ValueError(f"initial weights of shape {tuple(weight.shape)} have no spread")
        self.register_buffer("scale", scale)

    def units(self, weight: Tensor) -> Tensor:
        """Return the latent weight in units of alpha."""
        return weight / self.scale

    def levels(self, units: Tensor) -> Tensor:
        """Return the level of each latent weight, in units of alpha."""
        raise NotImplementedError

    def perturbation_scale(self, weight: Tensor) -> Tensor:
        """Return alpha, a 0-dim tensor: the level spacing of round, half of it for sign."""
        return self.scale
