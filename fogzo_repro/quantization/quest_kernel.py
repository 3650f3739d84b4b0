"""QuEST's quantizer of inputs as two Triton kernels, for half-precision inputs on a GPU.

`Quest.forward` says what is computed, in plain torch; this is the same in one pass over memory each
way, where compiled torch takes seven: a matrix product is a pass of its own there. Rotations are
products with the small Sylvester matrix, on tensor cores, which accumulate in float32.

Of the forward pass only the mask M is kept, a bit an element: bit k of byte j of a block says
whether element k B/8 + j of it was trusted, B the length of a block.

For products in eight bits (`products.py`) the levels are written too, doubled as integers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fogzo_repro.quantization.hadamard import entry, rest

TILE, WARPS = 64, 4  # blocks a tile; the fastest of eight pairs on an H200
# The compiler may keep channels last where it did not say so when it traced: no copy is made.
ANY_STRIDES = (torch.Tag.flexible_layout,)


def quantize_rows(
    x: Tensor,
    spacing: Tensor,
    block: int,
    outer_unit: float,
    limit: float,
    width: float,
    rotate_back: bool = False,
    kind: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the quantized rows, in the type of x, and their doubled levels.

    Args:
        x: (..., row), bf16 or fp16.
        spacing: Delta, (..., 1), float32; without a gradient.
        block: B, a power of two from 16 to 128 that divides the row.
        outer_unit: alpha in units of Delta.
        limit: M needs |x| <= limit, in units of Delta,
        width: and |Q(x) - x| <= width, in units of Delta.
        rotate_back: whether the levels are rotated back, as in the full variant.
        kind: the eight-bit type of the doubled levels, which are empty without. With it, and no
            backward pass to come, it is the rows that are empty.
    """
    keep = torch.is_grad_enabled() and x.requires_grad
    rows, _, codes = _quantize(x, spacing, block, outer_unit, limit, width, rotate_back, keep, kind)
    return rows, codes if kind is None else codes.view(kind)


@triton.jit
def _sylvester(B: tl.constexpr, POWER: tl.constexpr, kind: tl.constexpr):
    """Return the Sylvester matrix (B, B) over 2^k, see hadamard.py."""
    index = tl.arange(0, B)
    ones = index[:, None] & index[None, :]
    ones = ones ^ (ones >> 4)
    ones = ones ^ (ones >> 2)
    ones = ones ^ (ones >> 1)
    return ((1 - 2 * (ones & 1)).to(tl.float32) * POWER).to(kind)


@triton.jit
def _places(tile, blocks, B: tl.constexpr, TILE: tl.constexpr):
    """Return a tile's blocks, which of them there are, and where their elements and bits are."""
    block = (tile * TILE + tl.arange(0, TILE)).to(tl.int64)
    elements = block[:, None] * B + tl.arange(0, B)[None, :]
    bytes = block[:, None] * (B // 8) + tl.arange(0, B // 8)[None, :]
    return block, block < blocks, elements, bytes


@triton.jit
def _forward(
    x_pointer, spacing_pointer, out_pointer, mask_pointer, code_pointer, blocks, of_a_row,
    outer_unit, limit, width,
    B: tl.constexpr, POWER: tl.constexpr, REST: tl.constexpr,
    BACK: tl.constexpr, KEEP: tl.constexpr, CODE: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = x_pointer.dtype.element_ty
    matrix = _sylvester(B, POWER, kind)
    bit = tl.arange(0, 8)
    for tile in range(tl.program_id(0), tl.cdiv(blocks, TILE), tl.num_programs(0)):
        block, there, elements, bytes = _places(tile, blocks, B, TILE)
        x = tl.load(x_pointer + elements, there[:, None], other=0.0)
        spacing = tl.load(spacing_pointer + block // of_a_row, there, other=1.0)
        units = tl.dot(x, matrix) * (REST / spacing)[:, None]
        clipped = tl.minimum(tl.maximum(units, -outer_unit), outer_unit) + 0.5
        # to the nearest, ties to even: float32 has no fractions at 1.5 * 2^23
        levels = (clipped + 12582912.0) - 12582912.0 - 0.5
        if KEEP:
            trusted = (tl.abs(units) <= limit) & (tl.abs(levels - units) <= width)
            bits = tl.reshape(trusted.to(tl.int32), (TILE, 8, B // 8)) << bit[None, :, None]
            tl.store(mask_pointer + bytes, tl.sum(bits, 1).to(tl.uint8), there[:, None])
        if CODE:
            codes = (2 * levels).to(code_pointer.dtype.element_ty)
            tl.store(code_pointer + elements, codes, there[:, None])
        if BACK:
            out = tl.dot((levels * (spacing * REST)[:, None]).to(kind), matrix)
        else:
            out = levels * spacing[:, None]
        if KEEP or not CODE:
            tl.store(out_pointer + elements, out.to(kind), there[:, None])


@triton.jit
def _backward(
    g_pointer, out_pointer, mask_pointer, blocks,
    B: tl.constexpr, POWER: tl.constexpr, REST: tl.constexpr,
    BACK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    kind: tl.constexpr = g_pointer.dtype.element_ty
    matrix = _sylvester(B, POWER, kind)
    bit = tl.arange(0, 8)
    for tile in range(tl.program_id(0), tl.cdiv(blocks, TILE), tl.num_programs(0)):
        _, there, elements, bytes = _places(tile, blocks, B, TILE)
        g = tl.load(g_pointer + elements, there[:, None], other=0.0)
        bits = tl.load(mask_pointer + bytes, there[:, None], other=0).to(tl.int32)
        trusted = tl.reshape((bits[:, None, :] >> bit[None, :, None]) & 1, (TILE, B)) == 1
        rotated = tl.dot(g, matrix) * (REST * REST) if BACK else g.to(tl.float32) * REST
        out = tl.dot(tl.where(trusted, rotated, 0.0).to(kind), matrix)
        tl.store(out_pointer + elements, out.to(kind), there[:, None])


def _launch(kernel: Any, x: Tensor, *arguments: Any, block: int, **choices: bool) -> None:
    """Run a kernel over all blocks, by as many programs as run at a time, or fewer."""
    blocks = x.numel() // block
    if not blocks:
        return
    programs = -(-blocks // TILE)
    if x.is_cuda:
        processors = torch.cuda.get_device_properties(x.device).multi_processor_count
        programs = min(programs, 8 * processors)
    with torch.cuda.device_of(x):
        kernel[(programs,)](
            x, *arguments,
            B=block, POWER=entry(block), REST=rest(block), TILE=TILE, num_warps=WARPS, **choices,
        )  # fmt: skip


@torch.library.custom_op("fogzo_repro::quest_quantize", mutates_args=(), tags=ANY_STRIDES)
def _quantize(
    x: Tensor,
    spacing: Tensor,
    block: int,
    outer_unit: float,
    limit: float,
    width: float,
    rotate_back: bool,
    keep: bool,
    kind: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    x, spacing = x.contiguous(), spacing.contiguous()
    out, mask, codes = _empty(x, keep, kind)
    blocks, of_a_row = x.numel() // block, x.shape[-1] // block
    _launch(
        _forward, x, spacing, out, mask, codes.view(kind) if kind else codes,
        blocks, of_a_row, outer_unit, limit, width,
        block=block, BACK=rotate_back, KEEP=keep, CODE=kind is not None,
    )  # fmt: skip
    return out, mask, codes


@_quantize.register_fake
def _(x: Tensor, spacing: Tensor, *numbers: Any) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(x, *numbers[-2:])


def _empty(x: Tensor, keep: bool, kind: torch.dtype | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return room for the quantized rows, the mask and the doubled levels, as far as they are due.

    The doubled levels are bytes here: an integer type, which autograd knows to have no gradient.
    """
    bits = (*x.shape[:-1], x.shape[-1] // 8) if keep else (0,)
    return (
        x.new_empty(x.shape if keep or kind is None else (0,)),
        x.new_empty(bits, dtype=torch.uint8),
        x.new_empty(x.shape if kind else (0,), dtype=torch.uint8),
    )


@torch.library.custom_op("fogzo_repro::quest_gradient", mutates_args=(), tags=ANY_STRIDES)
def _gradient(g: Tensor, mask: Tensor, block: int, rotate_back: bool) -> Tensor:
    g = g.contiguous()
    out = g.new_empty(g.shape)
    _launch(_backward, g, out, mask, g.numel() // block, block=block, BACK=rotate_back)
    return out


@_gradient.register_fake
def _(g: Tensor, mask: Tensor, block: int, rotate_back: bool) -> Tensor:
    return g.new_empty(g.shape)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(output[1])
    ctx.block, ctx.rotate_back = inputs[2], inputs[6]


def _differentiate(ctx: Any, g: Tensor, *_: Any) -> tuple[Any, ...]:
    return _gradient(g, ctx.saved_tensors[0], ctx.block, ctx.rotate_back), *[None] * 8


_quantize.register_autograd(_differentiate, setup_context=_remember)
