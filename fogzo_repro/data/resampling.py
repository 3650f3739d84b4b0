"""Pillow's resizing of a batch of windows, to the last bit, on any device.

Pillow computes with 8-bit pixels, along one axis and then along the other, each time a sum of
integer weights times pixels, rounded to 8 bits (Resample.c). So does this; the weights are made in
float64 by Pillow's formulas in Pillow's order. Which axis comes first depends on Pillow's version
and on the shape; `turned` says so for each window, found out from the Pillow that is installed.

Shapes: B windows, S the side that they are resized to, K taps, L lines: the pixels of a window that
lie on the axis that comes second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BITS = 22  # of a weight after the point; Pillow's PRECISION_BITS
HALF = 1 << (BITS - 1)


class Windows(NamedTuple):
    """Windows of images in one buffer.

    Attributes:
        flat: the windows one after another, each as rows of RGB; uint8.
        offsets: where each begins in the buffer, (B,) int64.
        heights: (B,) int64.
        widths: (B,) int64.
        turned: whether columns are resized before rows, (B,) bool.
        longest: pixels of the longest axis that comes first, and of the longest that comes second.
    """

    flat: Tensor
    offsets: Tensor
    heights: Tensor
    widths: Tensor
    turned: Tensor
    longest: tuple[int, int]

    def axes(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return length and distance between pixels, (B,) each, of the first and second axis."""
        turned, row, pixel = self.turned, 3 * self.widths, torch.full_like(self.widths, 3)
        first = torch.where(turned, self.heights, self.widths), torch.where(turned, row, pixel)
        second = torch.where(turned, self.widths, self.heights), torch.where(turned, pixel, row)
        return first, second


def pack(windows: Sequence[np.ndarray], size: int) -> Windows:
    """Copy windows (H, W, 3) uint8 into one buffer, on the CPU.

    Args:
        windows: B of them. An empty one, as timm cuts out of an image of 1 x 1, becomes a black
            pixel: Pillow resizes it to black.
        size: S.
    """
    windows = [window if window.size else np.zeros((1, 1, 3), np.uint8) for window in windows]
    sizes = np.array([window.size for window in windows])
    ends = sizes.cumsum()
    flat = np.empty(ends[-1], np.uint8)
    for window, end in zip(windows, ends, strict=True):
        flat[end - window.size : end].reshape(window.shape)[:] = window
    heights, widths = np.array([window.shape[:2] for window in windows]).T
    turned = np.zeros(len(windows), bool)
    if _pillow_turns():
        turned = (heights > size) & (heights - size > 2 * (widths - size)) & (widths != size)
    offsets, tall, wide = (
        torch.from_numpy(np.ascontiguousarray(v)) for v in (ends - sizes, heights, widths)
    )
    longest = np.where(turned, heights, widths).max(), np.where(turned, widths, heights).max()
    return Windows(
        torch.from_numpy(flat), offsets, tall, wide, torch.from_numpy(turned),
        (int(longest[0]), int(longest[1])),
    )  # fmt: skip


@cache
def _pillow_turns() -> bool:
    """Whether this Pillow shrinks a tall image first, as 13 does and earlier ones do not."""
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 16, 3), np.uint8))
    down_first = image.resize((16, 32), Image.Resampling.BILINEAR)
    down_first = down_first.resize((32, 32), Image.Resampling.BILINEAR)
    return image.resize((32, 32), Image.Resampling.BILINEAR).tobytes() == down_first.tobytes()


def _triangle(x: Tensor) -> Tensor:
    x = x.abs()
    return torch.where(x < 1.0, 1.0 - x, 0.0)


def _cubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1.0, near, torch.where(x < 2.0, far, 0.0))


FILTERS: dict[str, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bilinear": (1.0, _triangle),
    "bicubic": (2.0, _cubic),
}


def taps(lengths: Tensor, longest: int, size: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """Return from where, and with which weights, each output pixel sums up, along one axis.

    Args:
        lengths: of the windows, (B,).
        longest: of them.
        size: S.
        interpolation: a key of FILTERS.

    Returns:
        The first input pixel (B, S) int32 and the weights in units of 2^-22, (B, K, S) int32.
    """
    support, kernel = FILTERS[interpolation]
    device = lengths.device
    scale = lengths.double().view(-1, 1) / size
    stretch = scale.clamp(min=1.0)
    reach = support * stretch
    count = 2 * math.ceil(support * max(1.0, longest / size)) + 1
    centre = (torch.arange(size, dtype=torch.float64, device=device) + 0.5) * scale  # (B, S)
    first = (centre - reach + 0.5).long().clamp(min=0)
    last = torch.minimum((centre + reach + 0.5).long(), lengths.view(-1, 1))
    place = first.unsqueeze(1) + torch.arange(count, device=device).view(-1, 1)  # (B, K, S)
    weights = kernel((place - centre.unsqueeze(1) + 0.5) * (1.0 / stretch).unsqueeze(1))
    weights = torch.where(place < last.unsqueeze(1), weights, 0.0)
    total = torch.zeros_like(centre)
    for k in range(count):  # one after another, as Pillow adds them up
        total = total + weights[:, k]
    weights = torch.where(total.unsqueeze(1) != 0, weights / total.unsqueeze(1), weights)
    scaled = weights * float(1 << BITS)
    rounded = torch.where(scaled < 0, scaled - 0.5, scaled + 0.5).int()
    return first.int(), rounded


def resize(windows: Windows, size: int, interpolation: str, mirrored: Tensor) -> Tensor:
    """Return the windows resized and, where asked for, mirrored: (B, 3, S, S) uint8.

    Args:
        windows: B of them.
        size: S.
        interpolation: a key of FILTERS.
        mirrored: (B,) bool.
    """
    weights = [
        taps(length, longest, size, interpolation)
        for (length, _), longest in zip(windows.axes(), windows.longest, strict=True)
    ]
    if windows.flat.is_cuda:
        from fogzo_repro.data.resampling_kernel import resize as by_kernel

        return by_kernel(windows, size, weights[0], weights[1], mirrored)
    return _resize(windows, size, weights[0], weights[1], mirrored)


def _resize(
    windows: Windows,
    size: int,
    first: tuple[Tensor, Tensor],
    second: tuple[Tensor, Tensor],
    mirrored: Tensor,
) -> Tensor:
    """Resize in plain torch: what the kernels are tested against."""
    flat, offsets = windows.flat, windows.offsets.view(-1, 1, 1)
    (length, step), (lines, line_step) = windows.axes()
    length, step, lines, line_step = (v.view(-1, 1, 1) for v in (length, step, lines, line_step))
    line = torch.arange(windows.longest[1], device=flat.device).view(1, -1, 1)
    start = offsets + line_step * torch.minimum(line, lines - 1)  # lines past the end: not used
    channel = torch.arange(3, device=flat.device)
    begin, weights = first
    total = torch.full((len(offsets), line.numel(), size, 3), HALF, device=flat.device)
    for k in range(weights.shape[1]):
        place = start + step * torch.minimum(begin.unsqueeze(1) + k, length - 1)
        total += weights[:, k].view(-1, 1, size, 1) * flat[place.unsqueeze(-1) + channel].int()
    middle = (total >> BITS).clamp_(0, 255)  # (B, L, S, 3)
    begin, weights = second
    total = torch.full((len(offsets), size, size, 3), HALF, device=flat.device)
    for k in range(weights.shape[1]):
        place = torch.minimum(begin.long().unsqueeze(2) + k, lines - 1).unsqueeze(3)
        total += weights[:, k].view(-1, size, 1, 1) * middle.gather(
            1, place.expand(-1, -1, size, 3)
        )
    out = (total >> BITS).clamp_(0, 255).to(torch.uint8).permute(0, 3, 1, 2)
    turned, mirrored = (v.view(-1, 1, 1, 1) for v in (windows.turned, mirrored))
    out = torch.where(turned, out.transpose(2, 3), out)
    return torch.where(mirrored, out.flip(3), out).contiguous()
