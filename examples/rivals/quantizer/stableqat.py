"""StableQAT's surrogate, RDFS (Chen et al. 2026, arXiv 2601.19320), weights alone.

    w_q = s clip(round(v), Q_N, Q_P),   v = w / s,   Q_N = -2^(b-1),   Q_P = 2^(b-1) - 1
    dL/dw = G (1 - C) / (1 + C) where Q_N <= v <= Q_P, else 0
    C = sqrt(2) pi sum_m A_m cos((2m + 1) pi (v + round(v)))

On the half-integer grid, which is not theirs, levels and v are shifted by 1/2.

The derivative of the rotated, damped Fourier series is smallest on a level (0.035 for A_0 = 0.21)
and 1, the STE's, half-way between two; with A = 0 it is the STE with derivative 0 beyond the outer
levels. The rule is Eq. 5 and that of microsoft/StableQAT at 4760535, written anew.

With `learned_scales` there is one step s a row, as there, with LSQ's derivative, which the series
does not touch:

    dL/ds = sum over the row of G (Q_N below, Q_P above, else round(v) - v) / sqrt(N Q_P)

N is the number of weights of the tensor. s begins at max|w| / Q_P of its row, at 2 bits at max|w|,
and is never below 1e-5. Without, s is the spacing of `quantizer=round`, so that only the derivative
is StableQAT's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.quantization.fixed import FixedScale
from fogzo_repro.quantization.functional import round_levels, round_range

LEAST_STEP = 1e-5


def derivative(v: Tensor, amplitudes: Sequence[float]) -> Tensor:
    """Return (1 - C) / (1 + C) at v, in units of the step."""
    turned = math.pi * (v - v.round())  # v + round(v) differs by an even number of half turns
    series = sum(a * torch.cos((2 * m + 1) * turned) for m, a in enumerate(amplitudes))
    c = math.sqrt(2) * math.pi * series
    return (1 - c) / (1 + c)


class Rounded(torch.autograd.Function):
    """w_q of w and s, which broadcasts to w, with the derivatives of the head of this file."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, s: Tensor, bits: int, half: bool, amplitudes: Sequence[float]
    ) -> Tensor:
        """Return s clip(round(w / s)); `half` is the half-integer grid."""
        ctx.save_for_backward(w, s)
        ctx.bits, ctx.half, ctx.amplitudes = bits, half, amplitudes
        return s * round_levels(w / s, bits, half)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        """Return the gradients of w and s."""
        w, s = ctx.saved_tensors
        v = w / s
        low, high = round_range(ctx.bits)
        shift = 0.5 * ctx.half
        inside = (v >= low + shift) & (v <= high + shift)
        for_w = torch.where(inside, g * derivative(v - shift, ctx.amplitudes), 0)
        slope = round_levels(v, ctx.bits, ctx.half) - torch.where(inside, v, 0)
        for_s = (g * slope).sum_to_size(s.shape) / math.sqrt(w.numel() * high)
        return for_w, for_s, None, None, None


class StableQat(nn.Module):
    """The quantizer of one weight.

    Args:
        weight: initial weights, (rows, ...).
        bits: b, 2 to 8.
        amplitudes: A_m, m = 0, 1, ...
        learned: whether there is a learned step for each row.
        half_integer: the half-integer grid.

    Raises:
        ValueError: for one bit, whose derivatives the published kernels do not agree on, and for
            weights without spread.
    """

    scale: Tensor

    def __init__(
        self,
        weight: Tensor,
        bits: int,
        amplitudes: Sequence[float],
        learned: bool,
        half_integer: bool = False,
    ) -> None:
        super().__init__()
        if not 2 <= bits <= 8:
            raise ValueError(f"quantizer.weight_bits={bits} is outside 2..8")
        self.bits = bits
        self.half_integer = half_integer
        self.amplitudes = tuple(amplitudes)
        alpha = FixedScale(weight).scale  # refuses weights without spread
        if learned:
            largest = weight.detach().abs().flatten(1).amax(1)
            begin = largest / (1 if bits == 2 else round_range(bits)[1])
            self.scale = nn.Parameter(begin.view(-1, *[1] * (weight.dim() - 1)))
        else:
            self.register_buffer("scale", alpha)

    def perturbation_scale(self, weight: Tensor) -> Tensor:
        """Return s, broadcastable to the weight."""
        return self.scale.clamp(min=LEAST_STEP)

    def units(self, weight: Tensor) -> Tensor:
        """Return v."""
        return weight / self.perturbation_scale(weight)

    def levels(self, units: Tensor) -> Tensor:
        """Return round(v), clipped to the grid; ties go to even."""
        return round_levels(units, self.bits, self.half_integer)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight."""
        scale = self.perturbation_scale(weight)
        return Rounded.apply(weight, scale, self.bits, self.half_integer, self.amplitudes)


def build(
    weight: Tensor, weight_bits: int, amplitudes: list[float], learned_scales: bool, grid: str
) -> StableQat:
    """Build the quantizer of one weight."""
    return StableQat(weight, weight_bits, amplitudes, learned_scales, grid == "half_integer")
