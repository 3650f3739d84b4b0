"""From an image file to a tensor: decoding, augmentation, the view for evaluation.

The transforms of torchvision and timm draw from the global generators of `random`, numpy and torch
and take no other. `drawn_from` seeds all three for one sample and puts them back: what happens to
an image is a function of (seed, epoch, sample, copy), whichever worker or rank loads it.

An augmentation has two halves. A worker draws, by the library's own functions, and cuts the window
out of the decoded image; the rest, resizing above all, is done there by Pillow or for a whole batch
on the device (`device_views.py`). Both give the same pixels.
"""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fogzo_repro.data.erasing import NotedErasing
from fogzo_repro.data.operations import Operation, noting, repaired

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RECIPES A
REFERENCE_SIZE = 224  # the side that recipe.test_resize goes with


class UnreadableImage(Exception):
    """A file that is not a whole image."""


def read_image(path: Path) -> Any:
    """Decode a file to an RGB image; greyscale, CMYK and palettes are converted.

    Raises:
        UnreadableImage: naming the file and what is wrong with it.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return _with_eight_bits(image).convert("RGB")
    except Exception as error:  # every decoder has exceptions of its own
        name = os.fsencode(path).decode(errors="backslashreplace")  # names need not be UTF-8
        raise UnreadableImage(f"{name}: {str(error) or repr(error)}") from None


def read_pixels(path: Path) -> np.ndarray:
    """Decode a file to (H, W, 3) uint8: the pixels of `read_image`, sooner.

    torchvision's decoder calls the same library for JPEGs without Pillow's copies.

    Raises:
        UnreadableImage: see `read_image`.
    """
    decode = _jpeg_decoder()
    if decode is not None:
        try:
            content = np.fromfile(path, np.uint8)
            if _is_plain_jpeg(content):
                pixels = decode(torch.from_numpy(content), 0, False)
                return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy()
        except Exception:  # Pillow says what is wrong with it
            pass
    return np.asarray(read_image(path))


@cache
def _jpeg_decoder() -> Callable[..., Tensor] | None:
    """Return torchvision's decoder, without the wrapper that says it will move; None without it."""
    import torchvision.io  # noqa: F401

    return getattr(torch.ops.image, "decode_jpeg", None)


def _is_plain_jpeg(content: np.ndarray) -> bool:
    """Whether a file is a JPEG whose colours both decoders convert alike: not CMYK."""
    from PIL import Image

    with Image.open(io.BytesIO(content.data)) as image:  # the header alone
        return image.format == "JPEG" and image.mode in ("L", "RGB")


def _with_eight_bits(image: Any) -> Any:
    """Scale 16-bit grey to 8 bits, by the high byte as Pillow does for 16-bit colours.

    `convert` alone would clip it: all values above 255 become white.
    """
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(
            f"mode {image.mode} has no largest value to scale by; convert it to 8 bits"
        )
    return image


@contextmanager
def drawn_from(seed: int) -> Iterator[None]:
    """Seed the global generators that library transforms draw from; restore them afterwards."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_generators(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_generators(seed: int) -> None:
    """Seed the global generators; enough in a worker, where nobody else draws from them."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)


def normalize(pixels: Tensor) -> Tensor:
    """Return (pixel / 255 - mean) / std of (..., 3, H, W) in float32; floats stay as they are."""
    if pixels.is_floating_point():
        return pixels
    slope, offset = _affine(pixels.device)
    return (pixels * slope).sub_(offset)


@cache
def _affine(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 1 / (255 std) and mean / std; made once, a copy to the device waits for it."""
    mean, std = (torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in (MEAN, STD))
    slope, offset = 1 / (255 * std), mean / std
    return slope.float().to(device), offset.float().to(device)


class Window(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int

    def of(self, pixels: np.ndarray) -> np.ndarray:
        """Return the part of an image (H, W, 3)."""
        return pixels[self.top : self.top + self.height, self.left : self.left + self.width]


class Drawn(NamedTuple):
    """What is drawn for an image; see `TrainingView.draw`."""

    window: Window
    mirrored: bool
    operations: list[Operation]  # timm's, in their order
    erased: tuple[tuple[int, int, int, int], Tensor] | None  # see `NotedErasing`; None for nowhere


@dataclass(frozen=True)
class TrainingView:
    """A recipe's augmentation.

    Attributes:
        size: the side of what it returns.
        interpolation: `bilinear` or `bicubic`.
        draw_window: draws the window of an image (3, H, W).
        operations: of timm, on the resized image; None where the recipe has none.
        erase: timm's random erasing of normalised inputs; None where the recipe has none.
        note_operations: draws them and says what they are; None where they are not known, so that
            the second half cannot be done on the device.
    """

    size: int
    interpolation: str
    draw_window: Callable[[Tensor], Window]
    operations: Any
    erase: Any
    note_operations: Callable[[], list[Operation]] | None

    def __call__(self, pixels: np.ndarray) -> Tensor:
        """Return an image (H, W, 3) augmented by Pillow: (3, size, size).

        uint8 pixels, to be normalised on the device; with random erasing, whose noise is that of
        normalised inputs, float32 inputs.
        """
        from PIL import Image

        image = Image.fromarray(np.ascontiguousarray(self._draw_window(pixels).of(pixels)))
        image = image.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])
        if self._draw_mirrored():
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if self.operations is not None:
            image = self.operations(image)
        seen = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return seen if self.erase is None else self.erase(normalize(seen))

    def draw(self, pixels: np.ndarray) -> Drawn:
        """Draw what `__call__` draws for an image (H, W, 3), and do nothing yet."""
        assert self.note_operations is not None, "its second half is not known"
        return Drawn(
            self._draw_window(pixels),
            self._draw_mirrored(),
            self.note_operations(),
            NotedErasing(self.erase, self.size)() if self.erase is not None else None,
        )

    def _draw_window(self, pixels: np.ndarray) -> Window:
        height, width, _ = pixels.shape
        return self.draw_window(torch.empty(3, height, width, device="meta"))  # the size alone

    @staticmethod
    def _draw_mirrored() -> bool:
        """Draw as torchvision's RandomHorizontalFlip does."""
        return torch.rand(1).item() < 0.5


def training_view(recipe: Any, size: int) -> TrainingView:
    """Return the augmentation of a recipe: `augmentation`, `interpolation` and what timm takes."""
    mode = recipe.interpolation
    if recipe.augmentation == "torchvision":
        from torchvision.transforms import v2

        crop = v2.RandomResizedCrop(size)

        def draw(image: Tensor) -> Window:
            return Window(**crop.make_params([image]))

        return TrainingView(size, mode, draw, None, None, list)

    from timm.data import create_transform
    from timm.data.random_erasing import RandomErasing
    from torchvision.transforms import Compose

    (first, _), rest, _ = (
        part.transforms
        for part in create_transform(
            size,
            is_training=True,
            color_jitter=recipe.color_jitter,
            auto_augment=recipe.rand_augment,
            interpolation=mode,
            separate=True,
        )
    )
    rest = [repaired(each) for each in rest]
    augment = Compose(rest) if len(rest) > 1 else rest[0] if rest else None
    erase = RandomErasing(recipe.erase_probability, mode="pixel", max_count=1, device="cpu")
    return TrainingView(
        size,
        mode,
        lambda image: Window(*first.get_params(image, first.scale, first.ratio)),
        augment,
        erase if recipe.erase_probability else None,
        list if augment is None else noting(augment, size),
    )


def evaluation_view(recipe: Any, size: int) -> Callable[[np.ndarray], Tensor]:
    """Return the view for evaluation: shorter side to test_resize, central crop, uint8."""
    from PIL import Image
    from torchvision.transforms import InterpolationMode, v2

    side = round(recipe.test_resize * size / REFERENCE_SIZE)
    mode = InterpolationMode(recipe.interpolation)
    view = v2.Compose(
        [v2.Resize(side, interpolation=mode, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
    )
    return lambda pixels: view(Image.fromarray(pixels))
