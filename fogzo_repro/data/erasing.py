"""timm's random erasing on the device: what was drawn for each image, a batch at once.

As in `operations.py` a worker draws by timm itself, which is handed something to note down in.

Shapes: B images of a batch, E of them that are erased, S their side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Erased(NamedTuple):
    """Where inputs are erased, and the noise that is put there.

    Attributes:
        windows: (E, 5) int64: place in the batch, top, left, height, width.
        noise: of all windows one after another, each (3, height, width) float32.
    """

    windows: Tensor
    noise: Tensor


class NotedErasing:
    """Draws as timm's RandomErasing, `erase`, and notes where and what, in place of inputs."""

    dtype = torch.float32

    def __init__(self, erase: Any, size: int) -> None:
        self.erase = erase
        self.shape = (3, size, size)
        self.noted: tuple[tuple[int, int, int, int], Tensor] | None = None

    def size(self) -> tuple[int, int, int]:
        """Return the shape of the inputs."""
        return self.shape

    def __setitem__(self, place: tuple[slice, slice, slice], noise: Tensor) -> None:
        _, rows, columns = place
        _, height, width = noise.shape
        self.noted = (rows.start, columns.start, height, width), noise

    def __call__(self) -> tuple[tuple[int, int, int, int], Tensor] | None:
        """Return top, left, height and width, and noise (3, height, width); None for nowhere."""
        self.noted = None
        self.erase(self)
        return self.noted


def pack_erased(drawn: Sequence[tuple[tuple[int, int, int, int], Tensor] | None]) -> Erased:
    """Put together what is erased in a batch."""
    own = [(i, *each) for i, each in enumerate(drawn) if each is not None]
    windows = torch.tensor([(i, *window) for i, window, _ in own], dtype=torch.int64).view(-1, 5)
    return Erased(windows, torch.cat([noise.flatten() for *_, noise in own] or [torch.empty(0)]))


def erase(erased: Erased, inputs: Tensor) -> Tensor:
    """Put the noise into inputs (B, 3, S, S) float32, in place; return them."""
    if not len(erased.noise):
        return inputs
    image, top, left, height, width = erased.windows.unbind(1)
    sizes = 3 * height * width
    count = len(erased.noise)
    own = torch.repeat_interleave(
        torch.arange(len(sizes), device=inputs.device), sizes, output_size=count
    )
    place = torch.arange(count, device=inputs.device) - (sizes.cumsum(0) - sizes)[own]
    channel, place = place // (height * width)[own], place % (height * width)[own]
    row, column = top[own] + place // width[own], left[own] + place % width[own]
    inputs[image[own], channel, row, column] = erased.noise
    return inputs
