"""scikit-learn's handwritten digits: real data that needs no download.

1,797 images of 8 x 8 with values 0..16, resized bilinearly to 28 x 28 and to 0..255, so that the
network is the paper's 784-10-10. A fixed permutation leaves 360 of them for the test.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F

from fogzo_repro.data.images import Batch, ImageDataset, Images

IMAGES, TEST_IMAGES = 1797, 360
SPLIT_SEED = 0


def build() -> ImageDataset:
    """Return the dataset; its fingerprint is a constant, the data have not changed."""
    return ImageDataset("scikit-learn-digits-28", IMAGES - TEST_IMAGES, (1, 28, 28), 10, read)


@cache  # a worker runs many cells in one process; nothing writes to the pixels
def read() -> Images:
    """Read, resize and split the digits."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    large = F.interpolate(small, size=28, mode="bilinear", align_corners=False)
    pixels = (large * 255).round().to(torch.uint8)
    labels = torch.from_numpy(digits.target).long()

    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
    values = pixels[train].float() / 255
    return Images(
        train=Batch(pixels[train], labels[train]),
        test=Batch(pixels[test], labels[test]),
        mean=values.mean().item(),
        std=values.std().item(),
        classes=10,
    )
