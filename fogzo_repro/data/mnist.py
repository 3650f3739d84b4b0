"""MNIST from its four original files, packed or unpacked, verified by their md5 sums.

Looked for under `data_dir`/MNIST/raw, else downloaded there by torchvision.
"""

from __future__ import annotations

import gzip
import hashlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fogzo_repro.config import UserError
from fogzo_repro.data.download import download
from fogzo_repro.data.images import Batch, ImageDataset, Images

FILES = {  # name: md5 of NAME.gz, as torchvision publishes it, and of what is in it
    "train-images-idx3-ubyte": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "6bbc9ace898e44ae57da46a324031adb",
    ),
    "train-labels-idx1-ubyte": (
        "d53e105ee54ea40749a09fcbcd1e9432",
        "a25bea736e30d166cdddb491f175f624",
    ),
    "t10k-images-idx3-ubyte": (
        "9fb629c4189551a2d022fa330f9573f3",
        "2646ac647ad5339dbf082846283269ea",
    ),
    "t10k-labels-idx1-ubyte": (
        "ec29112dd5afa0611ce80d1b7f02629c",
        "27ae3e4e09519cfbb04c329615203637",
    ),
}
OFFLINE = "; images that need no download, with a recipe for them: dataset=digits recipe=digits_mlp"
MEAN, STD = 0.1307, 0.3081  # choice, see docs/choices.md


def build(data_dir: Path) -> ImageDataset:
    """Return the dataset; its fingerprint is a constant, the files are verified when read."""
    digests = "".join(packed for packed, _ in FILES.values())
    return ImageDataset(
        fingerprint=hashlib.md5(digests.encode()).hexdigest(),
        examples=60_000,
        shape=(1, 28, 28),
        classes=10,
        read=lambda: read(data_dir),
        is_there=lambda: is_there(data_dir),
    )


@lru_cache(maxsize=1)  # a worker runs many cells in one process; nothing writes to the pixels
def read(data_dir: Path) -> Images:
    """Read MNIST; download it first where it is not there.

    Raises:
        UserError: where a file is missing offline, or corrupt.
    """
    download("MNIST", data_dir, lambda: is_there(data_dir), _fetch, OFFLINE)
    pixels, labels, test_pixels, test_labels = (_content(data_dir, name) for name in FILES)
    return Images(
        train=Batch(pixels.view(-1, 1, 28, 28), labels.long()),
        test=Batch(test_pixels.view(-1, 1, 28, 28), test_labels.long()),
        mean=MEAN,
        std=STD,
        classes=10,
    )


def is_there(data_dir: Path) -> bool:
    """Return whether all files are under `data_dir`."""
    return all(_path(data_dir, name) for name in FILES)


def _fetch(folder: Path) -> None:
    from torchvision.datasets import MNIST

    MNIST(folder, download=True)


def _path(data_dir: Path, name: str) -> Path | None:
    """Return the file, packed or not; None where it is missing."""
    raw = data_dir / "MNIST" / "raw"
    return next((p for p in (raw / f"{name}.gz", raw / name) if p.is_file()), None)


def _content(data_dir: Path, name: str) -> Tensor:
    """Return the bytes behind an IDX header: 16 bytes for images, 8 for labels."""
    path = _path(data_dir, name)
    assert path is not None
    data = path.read_bytes()
    found, expected = hashlib.md5(data).hexdigest(), FILES[name][path.suffix != ".gz"]
    if found != expected:
        raise UserError(
            f"{path} is corrupt: md5 {found}, expected {expected}; delete it and run again"
        )
    content = bytearray(gzip.decompress(data) if path.suffix == ".gz" else data)
    return torch.frombuffer(content, dtype=torch.uint8, offset=16 if "images" in name else 8)
