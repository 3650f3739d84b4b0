"""From an image file to a tensor: decoding, augmentation, the view for evaluation.

The transforms of torchvision and timm draw from the global generators of `random`, numpy and torch
and take no other. `drawn_from` seeds all three for one sample and puts them back: what happens to
an image is a function of (seed, epoch, sample, copy), whichever worker or rank loads it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UnreadableImage(f"{path}: {error}") from None


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
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


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
