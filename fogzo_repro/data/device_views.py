"""The second half of an augmentation, for a whole batch on the device: all but draws and cutting.

The draws are those of `TrainingView`, made by a worker for each image; the pixels are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fogzo_repro.data.augmentation import Drawn, TrainingView, drawn_from, normalize
from fogzo_repro.data.erasing import Erased, erase, pack_erased
from fogzo_repro.data.operations import Layer, apply, fill_colour, pack_operations
from fogzo_repro.data.resampling import Windows, pack, resize
from fogzo_repro.terminal import first_line

ALIGNED = 16  # bytes
TRIED = (
    (300, 400), (500, 333), (90, 640), (640, 96), (60, 41), (224, 224), (7, 500), (233, 5), (1, 1),
)  # fmt: skip


class Part(NamedTuple):
    """What a worker makes of an image: the window (h, w, 3), and what was drawn."""

    pixels: np.ndarray
    drawn: Drawn


class Parts(NamedTuple):
    """The parts of a batch as tensors."""

    windows: Windows
    mirrored: Tensor  # (B,) bool
    layers: list[Layer]  # of timm's operations
    erased: Erased


class Bundle(NamedTuple):
    """Nested tuples and lists of tensors as one tensor, which is quickly handed over and copied.

    Attributes:
        buffer: all bytes, uint8.
        layout: the tuples and lists; in place of a tensor a `_Place`.
    """

    buffer: Tensor
    layout: Any

    @classmethod
    def of(cls, data: Any) -> Bundle:
        """Put data together, on the CPU."""
        found: list[tuple[int, Tensor]] = []  # where it begins
        end = 0

        def place(tensor: Tensor) -> _Place:
            nonlocal end
            begin = end
            end += -(-tensor.nbytes // ALIGNED) * ALIGNED
            found.append((begin, tensor))
            return _Place(begin, tensor.nbytes, tensor.dtype, tensor.shape)

        layout = _mapped(data, Tensor, place)
        buffer = torch.empty(end, dtype=torch.uint8)
        for begin, tensor in found:
            whole = tensor.contiguous().view(-1).view(torch.uint8)
            buffer[begin : begin + tensor.nbytes] = whole
        return cls(buffer, layout)

    def open(self) -> Any:
        """Return the data, with tensors that look into the buffer."""

        def tensor(place: _Place) -> Tensor:
            part = self.buffer[place.begin : place.begin + place.size]
            return part.view(place.dtype).view(place.shape)

        return _mapped(self.layout, _Place, tensor)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a bundle, in bytes, and what it is."""

    begin: int
    size: int
    dtype: torch.dtype
    shape: torch.Size


def _mapped(data: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return nested tuples and lists with each part of a kind changed."""
    if isinstance(data, kind):
        return change(data)
    if isinstance(data, tuple | list):
        parts = [_mapped(part, kind, change) for part in data]
        return type(data)(*parts) if hasattr(data, "_fields") else parts
    return data


def cut(view: TrainingView, pixels: np.ndarray) -> Part:
    """Draw for an image (H, W, 3), and cut its window out."""
    drawn = view.draw(pixels)
    return Part(drawn.window.of(pixels), drawn)


def pack_parts(view: TrainingView, parts: Sequence[Part]) -> Parts:
    """Put the parts of a batch together, on the CPU."""
    drawn = [part.drawn for part in parts]
    return Parts(
        pack([part.pixels for part in parts], view.size),
        torch.tensor([each.mirrored for each in drawn]),
        pack_operations([each.operations for each in drawn]),
        pack_erased([each.erased for each in drawn]),
    )


def finish(view: TrainingView, parts: Parts) -> Tensor:
    """Return what the view gives, (B, 3, size, size), on the device of the parts."""
    pixels = resize(parts.windows, view.size, view.interpolation, parts.mirrored)
    for layer in parts.layers:
        pixels = apply(layer, pixels, fill_colour(view.operations))
    return pixels if view.erase is None else erase(parts.erased, normalize(pixels))


def why_not(view: TrainingView, device: torch.device) -> str:
    """Return why the device cannot do the second half of a view; empty where it can.

    It is tried on a few images of noise; it has to give Pillow's pixels, to the last bit.
    """
    if view.note_operations is None:
        return "the recipe's augmentation is not known to the device"
    noise = np.random.default_rng(0)
    sizes = TRIED if view.operations is None else TRIED * 12  # each operation comes
    images = [noise.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    wanted, parts = [], []
    for seed, image in enumerate(images):
        with drawn_from(seed):
            wanted.append(view(image))
        with drawn_from(seed):
            parts.append(cut(view, image))
    try:
        found = finish(view, to_device(pack_parts(view, parts), device)).cpu()
    except Exception as error:  # a compiler's, a driver's
        return f"the device fails ({first_line(error)})"
    expected = torch.stack(wanted)
    close = (found - expected).abs().max().item() < 1e-5 if found.is_floating_point() else False
    return "" if close or torch.equal(found, expected) else "the device gives other pixels"


def to_device(data: Any, device: torch.device) -> Any:
    """Return tensors, and tuples and lists of them, on a device; what else is in there stays."""
    return _mapped(data, Tensor, lambda tensor: tensor.to(device, non_blocking=True))
