"""The batched resizing gives Pillow's pixels, in plain torch and by the kernels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fogzo_repro.data.resampling import pack, resize
from tests.forked import by_triton

GPU = torch.cuda.is_available()
ODD = [
    (0, 0), (0, 1), (5, 0), (1, 1), (1, 60), (60, 1), (24, 24), (25, 24), (24, 3), (3, 24),
    (50, 37), (37, 50),
]  # fmt: skip
CASES = [(24, "bilinear"), (24, "bicubic"), (37, "bicubic"), (100, "bilinear")]


def pillows(windows, size, interpolation, mirrored):
    found = []
    for window, flip in zip(windows, mirrored.tolist(), strict=True):
        image = Image.fromarray(window)
        image = image.resize((size, size), Image.Resampling[interpolation.upper()])
        if flip:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append(torch.from_numpy(np.array(image)).permute(2, 0, 1))
    return torch.stack(found)


def noise(seed, most, count):
    """Windows of noise: of odd shapes, then of any."""
    draw = np.random.default_rng(seed)
    shapes = [*ODD, *draw.integers(1, most, (count, 2)).tolist()]
    mirrored = torch.from_numpy(draw.integers(2, size=len(shapes)).astype(bool))
    return [draw.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes], mirrored


@pytest.mark.parametrize(("size", "interpolation"), CASES, ids=str)
def test_every_window_is_resized_as_pillow_resizes_it(size: int, interpolation: str) -> None:
    windows, mirrored = noise(size, 400, 30)
    found = resize(pack(windows, size), size, interpolation, mirrored)
    assert torch.equal(found, pillows(windows, size, interpolation, mirrored))


def test_extreme_pixels_are_cut_at_0_and_255() -> None:
    """Bicubic overshoots at the edges of black and white."""
    window = np.zeros((50, 70, 3), np.uint8)
    window[:25, ::2] = window[25:, 30:] = 255
    found = resize(pack([window], 64), 64, "bicubic", torch.tensor([True]))
    assert torch.equal(found, pillows([window], 64, "bicubic", torch.tensor([True])))
    assert found.min() == 0 and found.max() == 255


KERNEL = """
import sys

sys.path.insert(0, sys.argv[1])
import torch

from fogzo_repro.data import resampling, resampling_kernel
from fogzo_repro.data.device_views import to_device
from tests.data.test_resampling import noise, pillows

device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":  # where a program takes as long whatever its size
    resampling_kernel.LINES = 32
for size, interpolation in ((24, "bilinear"), (37, "bicubic")):
    windows, mirrored = noise(size, 70, 4)
    packed = to_device(resampling.pack(windows, size), torch.device(device))
    weights = [
        resampling.taps(length, longest, size, interpolation)
        for (length, _), longest in zip(packed.axes(), packed.longest, strict=True)
    ]
    found = resampling_kernel.resize(packed, size, *weights, mirrored.to(device)).cpu()
    assert torch.equal(found, pillows(windows, size, interpolation, mirrored)), size
"""


@pytest.mark.slow
def test_the_kernels_give_the_same_pixels() -> None:
    by_triton(KERNEL, GPU)
