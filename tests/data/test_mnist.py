"""MNIST: packed and unpacked files, verified; nothing is read before it is needed."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.data import mnist


@pytest.fixture
def raw(data_dir: Path) -> Path:
    folder = data_dir / "MNIST" / "raw"
    if not folder.is_dir():
        pytest.skip(f"no MNIST under {data_dir}")
    return folder


def unpacked(raw: Path, data_dir: Path) -> Path:
    folder = data_dir / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for name in mnist.FILES:
        (folder / name).write_bytes(gzip.decompress((raw / f"{name}.gz").read_bytes()))
    return folder


def test_unpacked_files_are_the_same_images(raw: Path, data_dir: Path, tmp_path: Path) -> None:
    unpacked(raw, tmp_path)
    packed, plain = mnist.read(data_dir), mnist.read(tmp_path)
    assert packed.train.pixels.shape == (60_000, 1, 28, 28)
    for split in ("train", "test"):
        for a, b in zip(getattr(packed, split), getattr(plain, split), strict=True):
            assert torch.equal(a, b)


def test_a_damaged_unpacked_file_is_named(raw: Path, tmp_path: Path) -> None:
    path = unpacked(raw, tmp_path) / "t10k-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"t10k-labels-idx1-ubyte is corrupt: md5 .* delete it"):
        mnist.read(tmp_path)


def test_describing_it_reads_and_downloads_nothing(tmp_path: Path) -> None:
    dataset = mnist.build(tmp_path)
    assert dataset.fingerprint == "ee625814236d7d0e2ecdd8a2eb7c6770"
    assert (dataset.examples, dataset.shape, dataset.classes) == (60_000, (1, 28, 28), 10)
    assert not list(tmp_path.iterdir())


def test_without_a_network_a_run_that_makes_sense_is_proposed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(folder: Path) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(mnist, "_fetch", fail)
    mnist.read.cache_clear()
    with pytest.raises(UserError, match="no route to host") as error:
        mnist.read(tmp_path)
    words = str(error.value).rpartition(": ")[2].split()
    config = compose_run(*words)
    assert (config.dataset.name, config.recipe.name) == ("digits", "digits_mlp")
