"""CIFAR-100: the same images in the same order from both sources; what is damaged is named."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fogzo_repro.config import UserError
from fogzo_repro.data import cifar100
from fogzo_repro.data.images import Batch, ImageBatches, Images
from fogzo_repro.data.order import EpochOrder


@pytest.fixture(scope="module")
def images(data_dir: Path) -> Images:
    if not (data_dir / "cifar100").is_dir():
        pytest.skip(f"no cifar100/*.parquet under {data_dir}")
    return cifar100.read(data_dir)


@pytest.mark.slow
def test_all_images_are_read_and_normalised_by_their_own_mean(images: Images) -> None:
    assert images.train.pixels.shape == (50_000, 3, 32, 32)
    for split, each in ((images.train, 500), (images.test, 100)):
        assert torch.equal(split.labels.bincount(), torch.full((100,), each))
    inputs = images.normalize(images.train.pixels)
    deviation, mean = torch.std_mean(inputs, (0, 2, 3), correction=0)
    torch.testing.assert_close(mean, torch.zeros(3), rtol=0, atol=1e-4)
    torch.testing.assert_close(deviation, torch.ones(3), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_torchvisions_folder_gives_the_same_batches(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torchvision's reader is replaced: its files, in an order of their own, are not at hand."""
    import torchvision.datasets

    class Shuffled:
        def __init__(self, root: Path, train: bool) -> None:
            split = images.train if train else images.test
            order = torch.randperm(len(split.labels), generator=torch.Generator().manual_seed(1))
            self.data = split.pixels[order].permute(0, 2, 3, 1).numpy()
            self.targets = split.labels[order].tolist()

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", Shuffled)
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).touch()
    official = cifar100.read(tmp_path)

    def first_batch(data: Batch) -> Batch:
        order = EpochOrder(len(data.labels), 512)
        return next(ImageBatches(order, 0, data, 4).epoch(torch.Generator().manual_seed(7)))

    for a, b in ((images.train, official.train), (images.test, official.test)):
        for x, y in zip(first_batch(a), first_batch(b), strict=True):
            assert torch.equal(x, y)


def test_describing_it_reads_and_downloads_nothing(tmp_path: Path) -> None:
    dataset = cifar100.build(tmp_path)
    assert (dataset.examples, dataset.shape, dataset.classes) == (50_000, (3, 32, 32), 100)
    assert not list(tmp_path.iterdir())


def test_without_files_or_network_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torchvision.datasets

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no network")

    monkeypatch.setattr(torchvision.datasets, "CIFAR100", offline)
    with pytest.raises(
        UserError, match=r"CIFAR-100 is not under .* \(no network\); give data_dir="
    ):
        cifar100.read(tmp_path)


# --- damaged files, small ones: each is refused before the images are counted --------------------


def encoded(
    size: tuple[int, int] = (32, 32), mode: str = "RGB", kind: str = "PNG", **options: Any
) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(values)
    if mode == "I;16":
        image = Image.fromarray(values[..., 0].astype(np.uint16))
    elif mode != "RGB":
        image = image.convert(mode)
    image.save(file, kind, **options)
    return file.getvalue()


def write(data_dir: Path, rows: list[tuple[bytes | None, Any]], name: str = "train-0") -> Path:
    import pyarrow
    import pyarrow.parquet

    folder = data_dir / "cifar100"
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.parquet"
    table = {
        "img": [{"bytes": image, "path": None} for image, _ in rows],
        "fine_label": [label for _, label in rows],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), path)
    return path


def flipped(content: bytes) -> bytes:
    """Flip a bit of the pixels: the stream's checksum is then wrong."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


ROWS = {
    "label-too-large": ((encoded(), 100), r"row 1: fine_label is 100, not one of 0 \.\. 99"),
    "label-negative": ((encoded(), -1), "row 1: fine_label is -1"),
    "label-missing": ((encoded(), None), "row 1: fine_label is None"),
    "size": (
        (encoded((28, 32)), 5),
        "row 1: an image of 28 x 32 with channels: 3 of 8 bits, CIFAR",
    ),
    "grey": ((encoded(mode="L"), 5), "row 1: an image of 32 x 32 with channels: 1 of 8 bits"),
    "palette": ((encoded(mode="P"), 5), "row 1: an image of 32 x 32 with channels: 1 of 8 bits"),
    "deep-grey": ((encoded(mode="I;16"), 5), "row 1: an image of 32 x 32 with channels: 1 of 16 b"),
    "alpha": ((encoded(mode="RGBA"), 5), "row 1: an image of 32 x 32 with channels: 4 of 8 bits"),
    "other-kind": ((encoded(kind="JPEG"), 5), r"row 1: not an image \(neither PNG nor WebP\)"),
    "no-image": ((b"nothing", 5), "row 1: not an image .*delete it and fetch it again"),
    "image-cut-off": ((encoded()[:700], 5), "row 1: not an image "),
    "image-with-a-flipped-bit": ((flipped(encoded()), 5), "row 1: not an image "),
    "image-missing": ((None, 5), "row 1: not an image "),
}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"], ids=str)
def test_the_pixels_are_those_of_pillow(tmp_path: Path, kind: str) -> None:
    made = encoded(kind=kind, lossless=True)
    write(tmp_path, [(made, 3)] * 2)
    pixels, labels = cifar100.read_parquet(tmp_path / "cifar100", "train")
    assert pixels.shape == (2, 32, 32, 3) and set(labels.tolist()) == {3}
    assert (pixels == np.asarray(Image.open(io.BytesIO(made)))).all()


@pytest.mark.parametrize(("row", "message"), ROWS.values(), ids=ROWS)
def test_a_wrong_row_is_named(tmp_path: Path, row: tuple[Any, Any], message: str) -> None:
    write(tmp_path, [(encoded(), 3), row])
    with pytest.raises(UserError, match=rf"cifar100/train-0\.parquet {message}"):
        cifar100.read(tmp_path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def other_layout(path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"image": [1], "label": [2]}), path)


@pytest.mark.parametrize("damage", [cut_off, other_layout], ids=["cut-off", "other-layout"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: Any) -> None:
    damage(write(tmp_path, [(encoded(), 3)]))
    with pytest.raises(UserError, match=r"train-0\.parquet cannot be read .*; delete it and fetch"):
        cifar100.read(tmp_path)


def test_a_missing_file_is_told_by_the_number_of_images(tmp_path: Path) -> None:
    write(tmp_path, [(encoded(), 3)] * 2, "train-00000-of-00002")
    write(tmp_path, [(encoded(), 4)], "train-00001-of-00002")
    (tmp_path / "cifar100" / "._train-0.parquet").write_bytes(b"left by a desktop")
    with pytest.raises(UserError, match=r"cifar100 has 3 images in train, CIFAR-100 has 50,000; "):
        cifar100.read(tmp_path)


@pytest.mark.slow
def test_other_pixels_and_other_labels_are_told_by_the_digest(
    images: Images, tmp_path: Path
) -> None:
    pixels = images.test.pixels.permute(0, 2, 3, 1).numpy().copy()
    labels = images.test.labels.numpy().copy()
    same = cifar100.in_one_order(pixels[::-1], labels[::-1], "test", tmp_path)
    assert torch.equal(same.pixels, images.test.pixels)
    pixels[77, 3, 4, 1] ^= 1
    with pytest.raises(UserError, match="pixels or labels of test are not CIFAR-100's"):
        cifar100.in_one_order(pixels, labels, "test", tmp_path)
    pixels[77, 3, 4, 1] ^= 1
    labels[77] = (labels[77] + 1) % 100
    with pytest.raises(UserError, match="pixels or labels of test are not CIFAR-100's"):
        cifar100.in_one_order(pixels, labels, "test", tmp_path)


def test_a_damaged_folder_of_torchvision_is_named(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"half")
    with pytest.raises(UserError, match=r"cifar-100-python cannot be read .*corrupted.*delete it"):
        cifar100.read(tmp_path)
