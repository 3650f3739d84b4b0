"""From an image file to a tensor: decoding, augmentation, the view for evaluation.

The transforms of torchvision and timm draw from the global generators of `random`, numpy and torch
and take no other. `drawn_from` seeds all three for one sample and puts them back: what happens to
an image is a function of (seed, epoch, sample, copy), whichever worker or rank loads it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

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
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


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


def training_view(recipe: Any, size: int) -> Callable[[Any], Tensor]:
    """Return the recipe's augmentation: image -> (3, size, size).

    uint8 pixels, to be normalised on the device; with random erasing, whose noise is that of
    normalised inputs, float32 inputs.
    """
    if recipe.augmentation == "torchvision":
        from torchvision.transforms import InterpolationMode, v2

        mode = InterpolationMode(recipe.interpolation)
        steps: list[Any] = [
            v2.RandomResizedCrop(size, interpolation=mode, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
        ]
        return v2.Compose(steps)

    from timm.data import create_transform
    from timm.data.random_erasing import RandomErasing

    augment = create_transform(
        size,
        is_training=True,
        color_jitter=recipe.color_jitter,
        auto_augment=recipe.rand_augment,
        interpolation=recipe.interpolation,
        use_prefetcher=True,  # ends with uint8 pixels
    )
    if not recipe.erase_probability:
        return lambda image: torch.as_tensor(augment(image))
    erase = RandomErasing(recipe.erase_probability, mode="pixel", max_count=1, device="cpu")
    return lambda image: erase(normalize(torch.as_tensor(augment(image))))


def evaluation_view(recipe: Any, size: int) -> Callable[[Any], Tensor]:
    """Return the view for evaluation: shorter side to test_resize, central crop, uint8."""
    from torchvision.transforms import InterpolationMode, v2

    side = round(recipe.test_resize * size / REFERENCE_SIZE)
    mode = InterpolationMode(recipe.interpolation)
    return v2.Compose(
        [v2.Resize(side, interpolation=mode, antialias=True), v2.CenterCrop(size), v2.PILToTensor()]
    )
