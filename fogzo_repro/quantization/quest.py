"""`quantizer=quest`: QuEST, a Hadamard rotation, a grid fitted to a Gaussian, a trust mask.

RECIPES D.1 to D.3. For a row x, rotated by the block Hadamard matrix H,

    alpha = a_b rms(x) + 1e-8,   Delta = 2 alpha / (2^b - 1),
    Q(x) = Delta (round(clip(x, -alpha, alpha) / Delta + 1/2) - 1/2),

half-integer levels without a zero, alpha being the outer one. alpha is computed in every forward
pass and takes no gradient; nothing is learned. Backward is the mask M = 1{|Q(x) - x| <= T}. A row
is an output channel of a weight (of a convolution: in * kh * kw together) and a token of an
activation (of an image: the channels of one pixel).
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from fogzo_repro.quantization.functional import autocast_dtype, with_surrogate_gradient
from fogzo_repro.quantization.hadamard import (
    block_hadamard,
    block_size,
    scaled_block_hadamard,
)
from fogzo_repro.quantization.products import CODES, Coded

OUTER_LEVEL = {  # a_b: the outer level that is best for a Gaussian, in units of rms [RECIPES D.1]
    1: 0.7978845587140913,
    2: 1.4935346200015913,
    3: 2.051068354131873,
    4: 2.513930578568423,
    5: 2.9160938834961225,
    6: 3.276597282593217,
    7: 3.6010497188221655,
    8: 3.884938678807525,
}
LEAST_BLOCK = 16  # that a tensor core multiplies


@cache
def has_kernels() -> bool:
    """Return whether Triton is there, and supports the GPUs: Ampere and later."""
    ages = [torch.cuda.get_device_capability(k) for k in range(torch.cuda.device_count())]
    return find_spec("triton") is not None and bool(ages) and min(ages) >= (8, 0)


class Quest(nn.Module):
    """QuEST's projection of rows, for weights and for activations.

    Args:
        row: the length of a row.
        bits: b, 1 to 8.
        hadamard: `full`, Q(x H) H^T; `half`, Q(x H) without the rotation back, so that with both
            operands (x H)(w H)^T = x w^T; or `none`. With weights alone, half computes
            x Q(w H)^T as upstream does: the stored weight then lives in a rotated basis.
        trust_width: T in units of rms, for b >= 2; None is half a level, Delta/2.
        clip_scale: the mask at 1 bit is 1{|x| <= clip_scale alpha} [RECIPES D.2].
        row_axes: how many of the last axes make up a row; 0 for axis 1, the channels of an image.
        of_inputs: rotate in autocast's type where autocast is on, as the layer's own product runs
            and as upstream does. A weight is rotated in float32: a probe moves it by less.

    Raises:
        ValueError: where the row cannot be rotated.
    """

    def __init__(
        self,
        row: int,
        bits: int,
        hadamard: str = "full",
        trust_width: float | None = None,
        clip_scale: float = 1.30,
        row_axes: int = 1,
        of_inputs: bool = False,
    ) -> None:
        super().__init__()
        if hadamard != "none" and row % 2:
            raise ValueError(
                f"quantizer.hadamard={hadamard} rotates rows of even length and a row here has "
                f"{row} numbers; use quantizer.hadamard=none or keep the layer in model.first_last"
            )
        if hadamard == "half" and row_axes != 1:
            raise ValueError(
                "quantizer.hadamard=half is defined for linear layers, where both operands have "
                "the same rows, and this is a convolution; use quantizer.hadamard=full"
            )
        # Equal ones are one function: quantizers of one input with these can share their work.
        self.settings = (row, bits, hadamard, trust_width, clip_scale, row_axes, of_inputs)
        self.bits = bits
        self.hadamard = hadamard
        self.row_axes = row_axes
        self.of_inputs = of_inputs
        self.block = self.basis = 1 if hadamard == "none" else block_size(row)
        self.has_kernels = of_inputs and self.block >= LEAST_BLOCK and has_kernels()
        self.outer_unit = (2**bits - 1) / 2  # alpha in units of Delta
        # The mask M is |x| <= limit and |Q(x) - x| <= width, in units of Delta. Between the outer
        # levels no error exceeds Delta/2, so the default is the outer clip |x| <= alpha + Delta/2
        # exactly; written so, it has no round-off at the inner thresholds.
        self.limit, self.width = self.outer_unit + 0.5, math.inf
        if bits == 1:
            self.limit = clip_scale * self.outer_unit
        elif trust_width is not None:
            self.limit = math.inf
            self.width = trust_width * self.outer_unit / OUTER_LEVEL[bits]
        # One bit has levels +-alpha, and a mask that is a hardtanh but for clip_scale.
        self.smoothing = ("round", "identity") if bits > 1 else ("sign", "hardtanh")

    def forward(self, x: Tensor) -> Tensor:
        """Return the quantized rows, shaped and typed as x."""
        kind = self._product_type(x)
        if self._takes_kernels(x):
            return self._unrows(self._by_kernel(self._last(x).to(kind)).rows, x).to(x.dtype)
        quantized, spacing = self._in_units(x)
        if self.hadamard == "full":
            rows = scaled_block_hadamard(quantized, spacing, self.block, kind)
        else:
            rows = quantized * spacing
        return self._unrows(rows, x).to(x.dtype)

    def coded(self, x: Tensor) -> Coded:
        """Return the quantized rows of a linear layer, which stay rotated, with their codes.

        Those of the layer's other operand are rotated too: in the product both rotations cancel.
        """
        if self._takes_kernels(x):
            return self._by_kernel(x.to(self._product_type(x)), CODES)
        quantized, spacing = self._in_units(x)
        codes = (2 * quantized.detach()).to(CODES)
        return Coded((quantized * spacing).to(x.dtype), codes, (spacing / 2).float())

    def _in_units(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rotated quantized rows in units of Delta, with their derivative, and Delta."""
        rotated = self._rows(x)
        spacing = self._spacing(rotated)
        units = rotated / spacing
        levels = self.levels(units.detach())
        surrogate = units * self.trusted(units.detach(), levels)
        return with_surrogate_gradient(levels, surrogate), spacing

    def _takes_kernels(self, x: Tensor) -> bool:
        """Return whether Triton takes one pass over memory where torch takes several."""
        return self.has_kernels and x.is_cuda and self._product_type(x) is not None

    def _by_kernel(self, rows: Tensor, kind: torch.dtype | None = None) -> Coded:
        """Return the quantized rows; with codes of a kind they stay rotated."""
        from fogzo_repro.quantization import quest_kernel  # triton takes a while to import

        spacing = self._spacing(rows.float())  # a rotation keeps the rms
        limits = self.block, self.outer_unit, self.limit, self.width
        back = self.hadamard == "full" and kind is None
        return Coded(*quest_kernel.quantize_rows(rows, spacing, *limits, back, kind), spacing / 2)

    def quantized(self, weight: Tensor) -> Tensor:
        """Return the quantized weight in its own coordinates, which `half` leaves rotated."""
        found = self(weight)
        return self.rotate_back(found) if self.hadamard == "half" else found

    def levels(self, units: Tensor) -> Tensor:
        """Return the level, a half-integer, that each rotated element rounds to; 0 to -1/2."""
        return (units.clamp(-self.outer_unit, self.outer_unit) + 0.5).round() - 0.5

    def trusted(self, units: Tensor, levels: Tensor) -> Tensor:
        """Return the mask M of the backward pass."""
        return (units.abs() <= self.limit) & ((levels - units).abs() <= self.width)

    def slope(self, weight: Tensor) -> Tensor:
        """Return the mask M as numbers, in the coordinates of the rounding, (..., row)."""
        units = self.units(weight)
        return self.trusted(units, self.levels(units)).to(weight.dtype)

    def units(self, x: Tensor) -> Tensor:
        """Return the rotated rows in units of Delta, (..., row)."""
        rotated = self._rows(x)
        return rotated / self._spacing(rotated)

    def perturbation_scale(self, weight: Tensor) -> Tensor:
        """Return Delta of each row, alpha (half the distance of the levels) at 1 bit.

        A rotation keeps a row's rms, so the weight needs none here.

        Returns:
            (out, 1, ...), broadcastable to the weight.
        """
        spacing = self._spacing(weight.flatten(-self.row_axes))
        if self.bits == 1:
            spacing = spacing / 2
        return spacing.view(-1, *[1] * self.row_axes)

    def rotate(self, x: Tensor) -> Tensor:
        """Return x in the coordinates of the rounding, shaped as x."""
        return self._unrows(self._rows(x), x).to(x.dtype)

    rotate_back = rotate  # H is symmetric and orthonormal

    def _rows(self, x: Tensor) -> Tensor:
        """Return the rows on the last axis, rotated, in at least float32."""
        return block_hadamard(self._last(x), self.block, self._product_type(x))

    def _last(self, x: Tensor) -> Tensor:
        return x.flatten(-self.row_axes) if self.row_axes else x.movedim(1, -1)

    def _product_type(self, x: Tensor) -> torch.dtype | None:
        return autocast_dtype(x.device.type) if self.of_inputs else None

    def _unrows(self, rows: Tensor, like: Tensor) -> Tensor:
        return rows.reshape(like.shape) if self.row_axes else rows.movedim(-1, 1)

    @torch.no_grad()
    def _spacing(self, rows: Tensor) -> Tensor:
        """Return Delta, (..., 1)."""
        rms = rows.square().mean(-1, keepdim=True).sqrt()
        return (OUTER_LEVEL[self.bits] * rms + 1e-8) / self.outer_unit


def build(
    weight: Tensor, weight_bits: int, hadamard: str, trust_width: float | None, clip_scale: float
) -> Quest:
    """Build the quantizer of one weight, (out, in) or (out, in, kh, kw)."""
    row, axes = weight[0].numel(), weight.dim() - 1
    return Quest(row, weight_bits, hadamard, trust_width, clip_scale, row_axes=axes)


def build_input(
    layer: nn.Module,
    activation_bits: int,
    hadamard: str,
    trust_width: float | None,
    clip_scale: float,
) -> Quest:
    """Build the quantizer of a layer's inputs: per token, or per pixel of a convolution's."""
    settings = (activation_bits, hadamard, trust_width, clip_scale)
    if isinstance(layer, nn.Conv2d):
        return Quest(layer.in_channels, *settings, row_axes=0, of_inputs=True)
    assert isinstance(layer, nn.Linear)
    return Quest(layer.in_features, *settings, of_inputs=True)
