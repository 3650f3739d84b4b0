"""RandAugment and random erasing on the device: timm's draws, Pillow's pixels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment
from timm.data.random_erasing import RandomErasing
from torch import Tensor

from fogzo_repro.data.augmentation import drawn_from, training_view
from fogzo_repro.data.device_views import why_not
from fogzo_repro.data.erasing import NotedErasing, erase, pack_erased
from fogzo_repro.data.operations import (
    apply,
    noting,
    pack_operations,
    repaired,
)
from tests.data.test_photographs import DEIT
from tests.forked import by_triton

SIDE, FILL = 48, (124, 116, 104)
GPU = torch.cuda.is_available()
HINTS = {
    "translate_const": 20, "img_mean": FILL, "magnitude_std": 3.0,
    "interpolation": Image.Resampling.BICUBIC,
}  # fmt: skip


def pictures() -> list[Any]:
    """Noise, one colour, two colours of one value each, and slopes."""
    draw = np.random.default_rng(0)
    slope = np.arange(SIDE * SIDE * 3).reshape(SIDE, SIDE, 3) // 40
    found = [draw.integers(0, 256, (SIDE, SIDE, 3)) for _ in range(8)]
    found += [draw.integers(90, 120, (SIDE, SIDE, 3)), np.full((SIDE, SIDE, 3), 77)]
    found += [np.where(slope > 80, 255, 3), slope, 255 - slope.transpose(1, 0, 2)]
    return [Image.fromarray(values.astype(np.uint8)) for values in found]


def tensor(image: Any) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def both_ways(augment: Any) -> tuple[Tensor, Tensor]:
    """Return what Pillow makes of the pictures, and what the device's half does."""
    note = noting(augment, SIDE)
    assert note is not None
    images, wanted, noted = pictures(), [], []
    for seed, image in enumerate(images):
        with drawn_from(seed):
            wanted.append(tensor(augment(image)))
        with drawn_from(seed):
            noted.append(note())
    found = torch.stack([tensor(image) for image in images])
    for layer in pack_operations(noted):
        found = apply(layer, found, FILL)
    return torch.stack(wanted), found


@pytest.mark.parametrize("name", auto_augment._RAND_INCREASING_TRANSFORMS)
def test_each_operation_gives_pillows_pixels(name: str) -> None:
    operation = auto_augment.AugmentOp(name, prob=1.0, magnitude=7, hparams=HINTS)
    wanted, found = both_ways(repaired(auto_augment.RandAugment([operation], 1)))
    assert torch.equal(found, wanted)
    assert not torch.equal(found, torch.stack([tensor(image) for image in pictures()]))


@pytest.mark.parametrize("text", ["rand-m9-mstd0.5-inc1", "rand-m7-n4-p0.8"], ids=str)
def test_operations_one_after_another_give_pillows_pixels(text: str) -> None:
    hints = {k: v for k, v in HINTS.items() if k != "magnitude_std"}
    for _ in range(4):
        wanted, found = both_ways(repaired(auto_augment.rand_augment_transform(text, hints)))
        assert torch.equal(found, wanted)


def test_posterize_may_keep_no_bits() -> None:
    """Magnitude 9 + N(0, 1/2) is cut at 10, where timm keeps 0 bits and Pillow 13 refuses to."""
    operation = auto_augment.AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10, hparams={})
    augment = repaired(auto_augment.RandAugment([operation], 1))
    assert not tensor(augment(pictures()[0])).any()


def test_what_the_device_does_not_know_is_left_to_the_loaders() -> None:
    for text in ("rand-m9-t3a", "augmix-m3", "original-mstd0.5", None):
        view = training_view(SimpleNamespace(**{**vars(DEIT), "rand_augment": text}), 32)
        assert view.note_operations is None and "not known" in why_not(view, torch.device("cpu"))
    bare = SimpleNamespace(**{**vars(DEIT), "rand_augment": None, "color_jitter": None})
    assert training_view(bare, 32).note_operations is not None


def test_erasing_on_the_device_is_timms() -> None:
    theirs = RandomErasing(0.6, mode="pixel", max_count=1, device="cpu")
    inputs = torch.randn(20, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    wanted, noted = inputs.clone(), []
    for seed in range(20):
        with drawn_from(seed):
            theirs(wanted[seed])
        with drawn_from(seed):
            noted.append(NotedErasing(theirs, SIDE)())
    found = erase(pack_erased(noted), inputs.clone())
    assert torch.equal(found, wanted) and not torch.equal(found, inputs)
    assert torch.equal(erase(pack_erased([None] * 20), inputs.clone()), inputs)


KERNEL = """
import sys

sys.path.insert(0, sys.argv[1])
import torch

from fogzo_repro.data import operations_kernel
from fogzo_repro.data.operations import _move
from tests.data.test_operations import FILL, pictures, tensor

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":  # where a program takes as long whatever its size
    operations_kernel.ROWS = 32
pixels = torch.stack([tensor(image) for image in pictures()])
images = torch.tensor([0, 3, 7, 7, 11, 2])
matrices = torch.tensor([
    [1, 0.27, 0, 0, 1, 0], [1, 0, 0, -0.3, 1, 0], [1, 0, 13.3, 0, 1, 0], [1, 0, 0, 0, 1, -20.7],
    [0.97, 0.24, -4.3, -0.24, 0.97, 7.1], [1, 0, 0, 0, 1, 0],
], dtype=torch.float64)
given = [each.to(device) for each in (pixels, images, matrices)]
found = operations_kernel.move(*given, FILL).cpu()
assert torch.equal(found, _move(pixels, images, matrices, FILL))
"""


@pytest.mark.slow
def test_the_kernel_moves_images_alike() -> None:
    by_triton(KERNEL, GPU)
