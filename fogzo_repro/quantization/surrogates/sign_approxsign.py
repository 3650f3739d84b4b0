"""2x - x|x| on [-1, 1], sign averaged over triangular noise: that of Bi-Real Net (PAPER 1)."""

from __future__ import annotations

from torch import Tensor

from fogzo_repro.quantization.functional import Surrogate


def approx_sign(x: Tensor) -> Tensor:
    """Return 2x - x|x| on [-1, 1] and +-1 outside."""
    clipped = x.clamp(-1, 1)
    return 2 * clipped - clipped * clipped.abs()


def build() -> Surrogate:
    """Return ApproxSign."""
    return Surrogate(approx_sign, law=("sign", "approxsign"))
