"""MNIST from its four original files, verified by torchvision's published md5 sums.

Looked for under `data_dir`/MNIST/raw, else downloaded there by torchvision.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fogzo_repro.config import UserError
from fogzo_repro.data.images import Batch, Images

FILES = {  # name: md5
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
MEAN, STD = 0.1307, 0.3081  # choice, see README


def fingerprint(data_dir: Path) -> str:
    """Return a constant: the files are verified when they are read."""
    return hashlib.md5("".join(FILES.values()).encode()).hexdigest()


@lru_cache(maxsize=1)  # a worker runs many cells in one process; nothing writes to the pixels
def load(data_dir: Path) -> Images:
    """Read MNIST; download it first where it is not there.

    Raises:
        UserError: where a file is missing offline, or corrupt.
    """
    raw = data_dir / "MNIST" / "raw"
    missing = [name for name in FILES if not (raw / name).is_file()]
    if missing:
        _download(data_dir, missing[0])
    pixels, labels, test_pixels, test_labels = (_read(raw / f, md5) for f, md5 in FILES.items())
    return Images(
        train=Batch(pixels.view(-1, 1, 28, 28), labels.long()),
        test=Batch(test_pixels.view(-1, 1, 28, 28), test_labels.long()),
        mean=MEAN,
        std=STD,
        classes=10,
    )


def _download(data_dir: Path, missing: str) -> None:
    print(f"MNIST is not under data_dir={data_dir}: downloading it with torchvision", flush=True)
    try:
        from torchvision.datasets import MNIST

        MNIST(data_dir, download=True)
    except (OSError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"MNIST/raw/{missing} is not under data_dir={data_dir} and cannot be downloaded "
            f"({reason}); give data_dir=<folder with MNIST/raw> or use dataset=digits"
        ) from None


def _read(path: Path, md5: str) -> Tensor:
    """Return the bytes behind an IDX header: 16 bytes for images, 8 for labels."""
    data = path.read_bytes()
    found = hashlib.md5(data).hexdigest()
    if found != md5:
        raise UserError(f"{path} is corrupt: md5 {found}, expected {md5}; delete it and run again")
    try:
        content = bytearray(gzip.decompress(data))
    except (OSError, EOFError, zlib.error) as error:  # pragma: no cover - the md5 excludes it
        raise UserError(f"{path} cannot be unpacked ({error}); delete it and run again") from None
    return torch.frombuffer(content, dtype=torch.uint8, offset=16 if "images" in path.name else 8)
