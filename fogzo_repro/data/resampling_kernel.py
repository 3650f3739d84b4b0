"""`resampling.resize` as two Triton kernels, one for each axis."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fogzo_repro.data.resampling import BITS, HALF, Windows

LINES = 8  # lines of a window that a program computes


@triton.jit(do_not_specialize=["count", "longest"])
def _along_lines(
    flat, offsets, lengths, steps, all_lines, line_steps, first, weights, middle,
    count, longest, size,
    BITS: tl.constexpr, HALF: tl.constexpr, LINES: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Resize along the first axis: middle (B, L, 3, S)."""
    image = tl.program_id(0).to(tl.int64)
    lines = tl.load(all_lines + image)
    begin = tl.program_id(1) * LINES
    if begin < lines:
        length = tl.load(lengths + image)
        step = tl.load(steps + image)
        line = begin + tl.arange(0, LINES)
        column = tl.arange(0, SIDE)
        inside = column < size
        start = tl.load(first + image * size + column, mask=inside, other=0)
        base = flat + tl.load(offsets + image) + (line * tl.load(line_steps + image))[:, None]
        red = tl.full((LINES, SIDE), HALF, tl.int32)
        green = tl.full((LINES, SIDE), HALF, tl.int32)
        blue = tl.full((LINES, SIDE), HALF, tl.int32)
        for k in range(count):
            weight = tl.load(weights + (image * count + k) * size + column, mask=inside, other=0)
            used = (line < lines)[:, None] & ((weight != 0) & (start + k < length))[None, :]
            pixel = base + ((start + k) * step)[None, :]
            red += weight[None, :] * tl.load(pixel, mask=used, other=0).to(tl.int32)
            green += weight[None, :] * tl.load(pixel + 1, mask=used, other=0).to(tl.int32)
            blue += weight[None, :] * tl.load(pixel + 2, mask=used, other=0).to(tl.int32)
        out = middle + ((image * longest + line) * 3 * size)[:, None] + column[None, :]
        kept = (line < lines)[:, None] & inside[None, :]
        red = tl.minimum(tl.maximum(red >> BITS, 0), 255)
        green = tl.minimum(tl.maximum(green >> BITS, 0), 255)
        blue = tl.minimum(tl.maximum(blue >> BITS, 0), 255)
        tl.store(out, red.to(tl.uint8), mask=kept)
        tl.store(out + size, green.to(tl.uint8), mask=kept)
        tl.store(out + 2 * size, blue.to(tl.uint8), mask=kept)


@triton.jit(do_not_specialize=["count", "longest"])
def _over_lines(
    middle, all_lines, first, weights, turned, mirrored, out, count, longest, size,
    BITS: tl.constexpr, HALF: tl.constexpr, LINES: tl.constexpr, SIDE: tl.constexpr,
):  # fmt: skip
    """Resize along the second axis, turn back and mirror: out (B, 3, S, S)."""
    image = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(2)
    line = tl.program_id(1) * LINES + tl.arange(0, LINES)
    column = tl.arange(0, SIDE)
    inside = column < size
    lines = tl.load(all_lines + image)
    start = tl.load(first + image * size + line, mask=line < size, other=0)
    total = tl.full((LINES, SIDE), HALF, tl.int32)
    for k in range(count):
        weight = tl.load(weights + (image * count + k) * size + line, mask=line < size, other=0)
        used = ((weight != 0) & (start + k < lines))[:, None] & inside[None, :]
        place = ((image * longest + start + k) * 3 + channel) * size
        pixel = tl.load(middle + place[:, None] + column[None, :], mask=used, other=0)
        total += weight[:, None] * pixel.to(tl.int32)
    total = tl.minimum(tl.maximum(total >> BITS, 0), 255)
    kept = (line < size)[:, None] & inside[None, :]
    lines_2d, columns_2d = tl.broadcast(line[:, None], column[None, :])
    is_turned = tl.load(turned + image) != 0
    y = tl.where(is_turned, columns_2d, lines_2d)
    x = tl.where(is_turned, lines_2d, columns_2d)
    x = tl.where(tl.load(mirrored + image) != 0, size - 1 - x, x)
    tl.store(out + ((image * 3 + channel) * size + y) * size + x, total.to(tl.uint8), mask=kept)


def resize(
    windows: Windows,
    size: int,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    mirrored: Tensor,
) -> Tensor:
    """Return what `resampling.resize` returns, by the `taps` along the first and second axis."""
    flat, images, longest = windows.flat, len(windows.offsets), windows.longest[1]
    (length, step), (lines, line_step) = windows.axes()
    middle = torch.empty(images, longest, 3, size, dtype=torch.uint8, device=flat.device)
    out = torch.empty(images, 3, size, size, dtype=torch.uint8, device=flat.device)
    side = triton.next_power_of_2(size)
    begin, weights = first
    _along_lines[(images, triton.cdiv(longest, LINES))](
        flat, windows.offsets, length, step, lines, line_step, begin, weights, middle,
        weights.shape[1], longest, size, BITS, HALF, LINES, side,
    )  # fmt: skip
    begin, weights = second
    flags = (v.to(torch.uint8) for v in (windows.turned, mirrored))
    _over_lines[(images, triton.cdiv(size, LINES), 3)](
        middle, lines, begin, weights, *flags, out,
        weights.shape[1], longest, size, BITS, HALF, LINES, side,
    )  # fmt: skip
    return out
