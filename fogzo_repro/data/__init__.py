"""Datasets. Nothing here draws from a global generator: the order of an epoch is an argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fogzo_repro.data import digits, mnist
from fogzo_repro.data.images import Batch, ImageBatches, Images
from fogzo_repro.data.mixing import MixedBatches, Mixing

__all__ = [
    "Batch",
    "ImageBatches",
    "Images",
    "MixedBatches",
    "Mixing",
    "data_fingerprint",
    "load_images",
]

LOADERS: dict[str, Callable[[Path], Images]] = {"digits": digits.load, "mnist": mnist.load}
FINGERPRINTS: dict[str, Callable[[Path], str]] = {
    "digits": digits.fingerprint,
    "mnist": mnist.fingerprint,
}


def load_images(config: Any, data_dir: Path) -> Images:
    """Load a dataset that is held in memory.

    Raises:
        UserError: where it is missing or corrupt, with the remedy.
    """
    return LOADERS[config.name](data_dir)


def data_fingerprint(config: Any, data_dir: Path) -> str:
    """Return what identifies the data; part of a run's identity. Reads no data."""
    return FINGERPRINTS[config.name](data_dir)
