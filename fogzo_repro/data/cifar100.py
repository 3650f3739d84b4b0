"""CIFAR-100 (A. Krizhevsky, 2009), the same from every source: 60,000 images of 32 x 32 x 3.

Under `data_dir`, torchvision's folder cifar-100-python/ or the hub's files cifar100/*.parquet, else
downloaded by torchvision. Not every source has the official order of the images, so they are put
into one of our own, by label and then by the digest of label and pixels. That also verifies them:
the md5 over the sorted digests does not depend on the order that a source has.

Shapes: N images, H height, W width, C channels.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from io import BytesIO
from pathlib import Path

import numpy as np
import torch

from fogzo_repro.config import UserError
from fogzo_repro.data.download import download
from fogzo_repro.data.images import Batch, ImageDataset, Images
from fogzo_repro.terminal import first_line

IMAGES = {"train": 50_000, "test": 10_000}
DIGESTS = {  # md5 over the sorted md5(label byte + HWC bytes)
    "train": "61d9968eeae6c8a198154d67c13a1968",
    "test": "60c2b61f707dbe0de1a910ae21882778",
}
SIZE, CLASSES = 32, 100
MEAN = (0.50707516, 0.48654887, 0.44091784)  # of the training images
STD = (0.26733429, 0.25643846, 0.27615047)
OFFICIAL, HUB = "cifar-100-python", "cifar100"
AGAIN = "delete it and fetch it again"


def build(data_dir: Path) -> ImageDataset:
    """Return the dataset; its fingerprint is a constant, the images are verified when read."""
    return ImageDataset(
        fingerprint=f"cifar-100 {DIGESTS['train']}",
        examples=IMAGES["train"],
        shape=(3, SIZE, SIZE),
        classes=CLASSES,
        read=lambda: read(data_dir),
        is_there=lambda: _source(data_dir) is not None,
    )


@lru_cache(maxsize=1)  # a worker runs many cells in one process; nothing writes to the pixels
def read(data_dir: Path) -> Images:
    """Read CIFAR-100; download it first where it is not there.

    Raises:
        UserError: where it is missing offline, incomplete or damaged.
    """
    download("CIFAR-100", data_dir, lambda: _source(data_dir) is not None, _fetch)
    folder = _source(data_dir)
    assert folder is not None
    read_split = read_official if folder.name == OFFICIAL else read_parquet
    train, test = (in_one_order(*read_split(folder, s), s, folder) for s in IMAGES)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return Images(train, test, mean, std, CLASSES)


def _source(data_dir: Path) -> Path | None:
    """Return the folder that the images are read from; None where there is none."""
    official, hub = data_dir / OFFICIAL, data_dir / HUB
    if all((official / name).is_file() for name in (*IMAGES, "meta")):
        return official
    return hub if any(_parquet_files(hub, split) for split in IMAGES) else None


def in_one_order(pixels: np.ndarray, labels: np.ndarray, split: str, source: Path) -> Batch:
    """Verify a split and sort it by label, then by the digest of label and pixels.

    Pixels are (N, H, W, C) uint8, labels (N,) from 0 to 99.

    Raises:
        UserError: where it is not the split that it should be.
    """
    if len(labels) != IMAGES[split]:
        raise UserError(
            f"{source} has {len(labels):,} images in {split}, CIFAR-100 has {IMAGES[split]:,}; "
            f"{AGAIN}"
        )
    own = labels.tolist()
    pairs = zip(own, pixels, strict=True)
    digests = [hashlib.md5(bytes([label]) + image.tobytes()).digest() for label, image in pairs]
    if hashlib.md5(b"".join(sorted(digests))).hexdigest() != DIGESTS[split]:
        raise UserError(f"{source}: pixels or labels of {split} are not CIFAR-100's; {AGAIN}")
    order = sorted(range(len(own)), key=lambda i: (own[i], digests[i]))
    in_order = torch.from_numpy(pixels[order]).permute(0, 3, 1, 2).contiguous()
    return Batch(in_order, torch.from_numpy(labels[order]).long())


def _fetch(folder: Path) -> None:
    from torchvision.datasets import CIFAR100

    CIFAR100(folder, download=True)
    (folder / CIFAR100.filename).unlink()  # the archive


def read_official(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels (N, H, W, C) and labels (N,) of the folder of torchvision, which verifies it.

    Raises:
        UserError: where it cannot be read.
    """
    from torchvision.datasets import CIFAR100

    try:
        data = CIFAR100(folder.parent, train=split == "train")
    except Exception as error:
        raise UserError(f"{folder} cannot be read ({first_line(error)}); {AGAIN}") from None
    return data.data, np.array(data.targets)


def _parquet_files(folder: Path, split: str) -> list[Path]:
    return sorted(folder.glob(f"{split}*.parquet"))  # hidden files have another beginning


def read_parquet(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return pixels and labels of the hub's files: columns `img` with `bytes`, and `fine_label`.

    The images are PNG, or WebP without loss; pixels are (N, H, W, C) uint8, labels (N,) int64.

    Raises:
        UserError: naming the file, and the row of an image or label that is not CIFAR-100's.
    """
    import pyarrow.parquet

    pixels: list[np.ndarray] = []
    labels: list[int] = []
    for path in _parquet_files(folder, split):
        try:
            table = pyarrow.parquet.read_table(path, columns=["img", "fine_label"]).flatten()
            encoded, found = (table[c].to_pylist() for c in ("img.bytes", "fine_label"))
        except Exception as error:  # a file that is cut off, another layout, a missing value
            raise UserError(f"{path} cannot be read ({first_line(error)}); {AGAIN}") from None
        images = np.empty((len(found), SIZE, SIZE, 3), np.uint8)
        for row, label in enumerate(found):
            if not (isinstance(label, int) and 0 <= label < CLASSES):
                raise UserError(
                    f"{path} row {row}: fine_label is {label}, not one of 0 .. {CLASSES - 1}"
                )
            images[row] = _decode(encoded[row], path, row)  # threads would wait for Python's lock
        pixels.append(images)
        labels += found
    empty = np.empty((0, SIZE, SIZE, 3), np.uint8)
    return np.concatenate([empty, *pixels]), np.array(labels, dtype=np.int64)


def _decode(encoded: bytes, path: Path, row: int) -> np.ndarray:
    """Return an image (H, W, C), by Pillow: at a damaged PNG torchvision can end the process."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(BytesIO(encoded), formats=("PNG", "WEBP")) as image:
            pixels = np.array(image)
    except UnidentifiedImageError:
        raise UserError(f"{path} row {row}: not an image (neither PNG nor WebP); {AGAIN}") from None
    except Exception as error:  # no bytes, or the decoder's
        raise UserError(f"{path} row {row}: not an image ({first_line(error)}); {AGAIN}") from None
    if pixels.shape != (SIZE, SIZE, 3) or pixels.dtype != np.uint8:
        height, width, channels = (*pixels.shape, 1)[:3]
        raise UserError(
            f"{path} row {row}: an image of {width} x {height} with channels: {channels} of "
            f"{8 * pixels.itemsize} bits, CIFAR-100 has {SIZE} x {SIZE} with 3 of 8"
        )
    return pixels
