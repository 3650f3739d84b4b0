"""`operations.move` as a Triton kernel, in float64 without fused products."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # rows of an image that a program computes


@triton.jit
def _cubic(v1, v2, v3, v4, d):
    """Interpolate between v2 and v3, see `operations._cubic`."""
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return v2 + d * (p2 + d * (p3 + d * p4))


@triton.jit
def _row(plane, row, left, size, across):
    """Interpolate along a row: four taps around `left`."""
    begin = plane + tl.minimum(tl.maximum(row, 0), size - 1) * size
    v1 = tl.load(begin + tl.minimum(tl.maximum(left - 1, 0), size - 1)).to(tl.float64)
    v2 = tl.load(begin + tl.minimum(tl.maximum(left, 0), size - 1)).to(tl.float64)
    v3 = tl.load(begin + tl.minimum(tl.maximum(left + 1, 0), size - 1)).to(tl.float64)
    v4 = tl.load(begin + tl.minimum(tl.maximum(left + 2, 0), size - 1)).to(tl.float64)
    return _cubic(v1, v2, v3, v4, across)


@triton.jit
def _move(
    pixels, images, matrices, out, red, green, blue, size,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    one = tl.program_id(0).to(tl.int64)
    image = tl.load(images + one)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    matrix = matrices + 6 * one
    x = (column.to(tl.float64) + 0.5)[None, :]
    y = (row.to(tl.float64) + 0.5)[:, None]
    u = tl.load(matrix) * x + tl.load(matrix + 1) * y + tl.load(matrix + 2)
    v = tl.load(matrix + 3) * x + tl.load(matrix + 4) * y + tl.load(matrix + 5)
    inside = (u >= 0) & (u < size) & (v >= 0) & (v < size)
    u = tl.where(inside, u, 0.5) - 0.5
    v = tl.where(inside, v, 0.5) - 0.5
    left, top = tl.floor(u), tl.floor(v)
    across, down = u - left, v - top
    left, top = left.to(tl.int32), top.to(tl.int32)
    kept = (row < size)[:, None] & (column < size)[None, :]
    place = row[:, None] * size + column[None, :]
    for channel in tl.static_range(3):
        plane = pixels + (3 * image + channel) * size * size
        v1 = _row(plane, top - 1, left, size, across)
        v2 = _row(plane, top, left, size, across)
        v3 = _row(plane, top + 1, left, size, across)
        v4 = _row(plane, top + 2, left, size, across)
        found = _cubic(v1, v2, v3, v4, down)
        found = tl.minimum(tl.maximum(found, 0.0), 255.0).to(tl.int32)
        blank = red if channel == 0 else (green if channel == 1 else blue)
        found = tl.where(inside, found, blank)
        tl.store(out + (3 * one + channel) * size * size + place, found.to(tl.uint8), mask=kept)


def move(pixels: Tensor, images: Tensor, matrices: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Return what `operations.move` returns, for the same arguments."""
    size, pixels = pixels.shape[-1], pixels.contiguous()
    out = torch.empty(len(images), 3, size, size, dtype=torch.uint8, device=pixels.device)
    exact: dict[str, Any] = {"enable_fp_fusion": False}  # a rounded product, then a rounded sum
    _move[(len(images), triton.cdiv(size, ROWS))](
        pixels, images, matrices, out, *fill, size, ROWS, triton.next_power_of_2(size), **exact
    )
    return out
