"""clip(x, -1, 1), sign averaged over uniform noise: the surrogate of BNN (PAPER 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from fogzo_repro.quantization.functional import Surrogate


def hardtanh(x: Tensor) -> Tensor:
    """Return clip(x, -1, 1) with derivative 1 on the closed interval.

    The derivative of torch's own clamp at the bounds is 1 or 0, depending on its version.
    """
    return torch.where(x.abs() <= 1, x, x.sign())


def build() -> Surrogate:
    """Return hardtanh."""
    return Surrogate(hardtanh, law=("sign", "hardtanh"))
