"""A decoded tree: the pixels that were written, a kill, damage, and what a run says of it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fogzo_repro.config import UserError
from fogzo_repro.data import decoded, decoded_shards
from fogzo_repro.data.augmentation import read_pixels, training_view
from fogzo_repro.data.decoded import folder_of, open_decoded
from fogzo_repro.data.decoded_shards import kept_size, plan_tree, write_tree
from fogzo_repro.data.imagenet import build
from fogzo_repro.data.photographs import PhotographLoader, Photographs, Sample
from tests.data.test_photographs import RESNET, picture

SIDE = 40


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree of 12 training images, each of another size, whose shards hold two or three."""
    monkeypatch.setattr(decoded_shards, "SHARD_BYTES", 20_000)
    for c in range(3):
        for split, images in (("train", 4), ("val", 1)):
            where = tmp_path / "imagenet" / split / f"n{c:08d}"
            where.mkdir(parents=True)
            for i in range(images):
                size = (30 + 9 * i + c, 38 + 6 * c + i)
                picture(size).rotate(90 * i).save(where / f"{split}_{i}.JPEG")
    return tmp_path


def write(data_dir: Path, side: int = SIDE, classes: Path | None = None) -> Path:
    root, given = data_dir / "imagenet", classes and str(classes)
    names = [name.decode() for name in build(data_dir, given, True).train.names]
    for _ in write_tree(root, side, plan_tree(root, names, side, 1), 1, given):
        pass
    return folder_of(root, side)


def opened(data_dir: Path, side: int = SIDE) -> decoded.DecodedFiles:
    return open_decoded(build(data_dir, None, True).train, side)


def test_images_are_kept_whole_and_no_larger_than_asked(data_dir: Path) -> None:
    folder = write(data_dir)
    assert len(list(folder.glob("*.pixels"))) > 3
    files, found = build(data_dir, None, True).train, opened(data_dir)
    shrunk = 0
    for index in range(len(files.names)):
        image = Image.fromarray(read_pixels(files.path(index)))
        kept = kept_size(*image.size, SIDE)
        shrunk += kept != image.size
        assert min(kept) == min(SIDE, *image.size)
        if kept != image.size:
            image = image.resize(kept, Image.Resampling.BICUBIC)
        assert np.array_equal(found.pixels(index), np.asarray(image))
    assert 0 < shrunk < len(files.names)
    assert found.labels.tolist() == files.labels.tolist()


def test_a_side_beyond_all_images_keeps_every_pixel_and_so_every_batch(data_dir: Path) -> None:
    write(data_dir, 1000)
    batch = [[Sample(i, 3 * i) for i in range(12)]]
    view = training_view(RESNET, 32)
    ways = (build(data_dir, None, True).train, opened(data_dir, 1000))
    loaders = (PhotographLoader(Photographs(w, view, False), 0, torch.device("cpu")) for w in ways)
    (a,), (b,) = (list(loader.load(batch)) for loader in loaders)
    assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def test_a_run_takes_the_images_of_its_classes(data_dir: Path, tmp_path: Path) -> None:
    """Which others the tree has does not matter to its identity."""
    folder = write(data_dir)
    (two := tmp_path / "two.txt").write_text("n00000002\nn00000000\n")
    wanted = build(data_dir, str(two), True).train
    found, whole = open_decoded(wanted, SIDE), opened(data_dir)
    assert np.array_equal(found.pixels(7), whole.pixels(11)) and found.digest != whole.digest
    shutil.rmtree(folder)
    write(data_dir, classes=two)
    assert open_decoded(wanted, SIDE).digest == found.digest


def kept_files(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_a_tree_that_has_the_images_among_others_serves_them_and_is_mended(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = kept_files(folder := write(data_dir))
    (two := tmp_path / "two.txt").write_text("n00000002\nn00000000\n")
    flip_a_bit(folder / "00000.pixels", -1)
    capsys.readouterr()
    write(data_dir, classes=two)
    assert "has these 8 images among its 12" in capsys.readouterr().out
    assert kept_files(folder) == before


def test_shards_of_other_classes_are_never_replaced(data_dir: Path, tmp_path: Path) -> None:
    (two := tmp_path / "two.txt").write_text("n00000002\nn00000000\n")
    before = kept_files(folder := write(data_dir, classes=two))
    with pytest.raises(UserError, match=r"holds \d files .* delete the folder first") as said:
        write(data_dir)
    assert kept_files(folder) == before and "\n" not in str(said.value)
    flip_a_bit(folder / "00000.pixels", -1)
    found = open_decoded(build(data_dir, str(two), True).train, SIDE)
    assert found.remedy.endswith(f"--decoded {SIDE} --classes {two}")
    (folder / "manifest.json").unlink()  # as a kill leaves them
    with pytest.raises(UserError, match="delete the folder first"):
        write(data_dir)


def test_an_image_replaced_by_another_of_its_size_does_not_keep_its_pixels(data_dir: Path) -> None:
    before = kept_files(folder := write(data_dir))
    first = opened(data_dir)
    image = data_dir / "imagenet/train/n00000001/train_1.JPEG"
    with Image.open(image) as old:
        Image.eval(old, lambda v: 255 - v).save(image)
    with pytest.raises(UserError, match="delete the folder first"):
        write(data_dir)
    assert kept_files(folder) == before
    shutil.rmtree(folder)
    write(data_dir)
    assert opened(data_dir).digest != first.digest


def test_the_identity_is_of_the_pixels_and_not_of_when_a_file_was_touched(data_dir: Path) -> None:
    folder = write(data_dir)
    first = opened(data_dir).digest
    for image in (data_dir / "imagenet/train").glob("*/*"):
        os.utime(image, (1, 1))
    shutil.rmtree(folder)
    write(data_dir)
    assert opened(data_dir).digest == first


def test_what_a_kill_has_left_is_kept_and_the_rest_written(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {p.name: p.read_bytes() for p in write(data_dir).iterdir()}
    folder = folder_of(data_dir / "imagenet", SIDE)
    for name in ("manifest.json", "images.npy", "00001.pixels", "00003.pixels"):
        (folder / name).unlink()
    (folder / "00001.pixels.77.tmp").write_bytes(b"half of it")
    (folder / "00000.pixels").touch()
    before = (folder / "00000.pixels").stat().st_mtime_ns
    capsys.readouterr()
    write(data_dir)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == whole
    assert (folder / "00000.pixels").stat().st_mtime_ns == before
    there = float(re.search(r"([\d.e-]+) GB of them are there", capsys.readouterr().out).group(1))
    assert 0 < there * 1e9 < sum(map(len, whole.values()))


def flip_a_bit(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def of_another_tree(data_dir: Path, folder: Path) -> None:
    """Put a shard of the same size there, of another SIDE."""
    other = write(data_dir, SIDE + 1)
    content = (folder / "00001.pixels").read_bytes()
    head = (other / "00001.pixels").read_bytes()[: decoded.HEAD_BYTES]
    (folder / "00001.pixels").write_bytes(head + content[decoded.HEAD_BYTES :])


def another_image(data_dir: Path, folder: Path) -> None:
    picture().save(data_dir / "imagenet/train/n00000001/new.JPEG")


def manifest(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path, Path], Any]:
    def damage(data_dir: Path, folder: Path) -> None:
        content = json.loads((folder / "manifest.json").read_text())
        change(content)
        (folder / "manifest.json").write_text(json.dumps(content))

    return damage


DAMAGE: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "missing": (lambda d, f: shutil.rmtree(f), "manifest.json is not there: no whole decoded tree"),
    "unfinished": (lambda d, f: (f / "manifest.json").unlink(), "no whole decoded tree"),
    "manifest": (lambda d, f: (f / "manifest.json").write_text("{}"), "is not a manifest"),
    "manifest-short": (manifest(lambda m: m.pop("plan")), "is not a manifest .it lacks plan"),
    "manifest-plan": (manifest(lambda m: m.update(plan=5)), "is not a manifest .plan is 5"),
    "manifest-classes": (manifest(lambda m: m.update(classes=5)), "manifest .classes is 5"),
    "side": (lambda d, f: shutil.copytree(write(d, 41), f, dirs_exist_ok=True), "at a side of 41"),
    "list": (lambda d, f: flip_a_bit(f / "images.npy", -3), "images.npy is damaged"),
    "shard-gone": (lambda d, f: (f / "00001.pixels").unlink(), "00001.pixels cannot be read"),
    "shard-short": (
        lambda d, f: (f / "00001.pixels").write_bytes((f / "00001.pixels").read_bytes()[:-1]),
        "00001.pixels is damaged: it has ",
    ),
    "other-manifest": (of_another_tree, "00001.pixels is of another manifest"),
    "other-images": (another_image, "13 training images.* n00000001/new.JPEG.*; delete it and run"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_wrong_tree_is_one_line_with_the_command_that_mends_it(
    data_dir: Path, damage: Callable[[Path, Path], Any], message: str
) -> None:
    damage(data_dir, write(data_dir))
    with pytest.raises(UserError, match=message) as caught:
        opened(data_dir)
    assert str(caught.value).endswith(f"imagenet --decoded {SIDE}") and "\n" not in str(
        caught.value
    )
    if re.search("delete|side", message):
        shutil.rmtree(folder_of(data_dir / "imagenet", SIDE))
    write(data_dir)
    opened(data_dir)


@pytest.mark.parametrize("place", [decoded.HEAD_BYTES + 5, -1], ids=["pixels", "checksum"])
def test_a_damaged_image_is_named_when_it_is_read_and_mended_by_the_command(
    data_dir: Path, place: int
) -> None:
    flip_a_bit(write(data_dir) / "00000.pixels", place)
    photographs = Photographs(opened(data_dir), training_view(RESNET, 32), False)
    loader = PhotographLoader(photographs, 0, torch.device("cpu"))
    with pytest.raises(
        UserError, match=rf"cannot decode n0.*00000\.pixels is damaged; run .* --decoded {SIDE}$"
    ):
        list(loader.load([[Sample(i, 0) for i in range(12)]]))
    write(data_dir)
    found = opened(data_dir)
    assert all(found.pixels(i).size for i in range(12))


LOSSES = {"gone": Path.unlink, "emptied": lambda path: path.write_bytes(b"")}


@pytest.mark.parametrize("lose", LOSSES.values(), ids=LOSSES)
def test_a_shard_that_is_lost_before_it_is_read_is_one_line(
    data_dir: Path, lose: Callable[[Path], Any]
) -> None:
    shard = write(data_dir) / "00000.pixels"
    photographs = Photographs(opened(data_dir), training_view(RESNET, 32), False)
    loader = PhotographLoader(photographs, 1, torch.device("cpu"))
    lose(shard)
    with pytest.raises(UserError, match=rf"cannot decode .*00000\.pixels.*; run .*{SIDE}$"):
        list(loader.load([[Sample(0, 0)]]))


def test_the_command_for_a_tree_that_is_not_there_decodes_the_classes_of_the_run(
    data_dir: Path,
) -> None:
    """A tenth of ImageNet, and of the hours and gigabytes that all of it takes."""
    with pytest.raises(UserError, match=rf"run .* --decoded {SIDE} --classes imagenet100$"):
        open_decoded(build(data_dir, None, True).train, SIDE, "imagenet100")


def test_a_disk_that_is_too_small_is_said_before_anything_is_written(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = SimpleNamespace(free=10**6)
    monkeypatch.setattr(decoded_shards.shutil, "disk_usage", lambda _: free)
    with pytest.raises(UserError, match=r"GB more and its disk has 0.001 GB free; free") as said:
        write(data_dir)
    assert float(re.search(r"needs ([\d.e-]+) GB more", str(said.value)).group(1)) > 0.001
    assert not list(folder_of(data_dir / "imagenet", SIDE).glob("*.pixels"))


def test_a_file_that_is_no_image_is_named(data_dir: Path) -> None:
    bad = data_dir / "imagenet/train/n00000001/train_1.JPEG"
    content = bad.read_bytes()
    bad.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"cannot decode .*train_1.JPEG.*--full --leave-out-bad"):
        write(data_dir)
    bad.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"train_1.JPEG cannot be read"):
        write(data_dir)


def test_another_decoder_or_image_gives_another_digest(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(data_dir)
    first = opened(data_dir).digest
    shutil.rmtree(folder)
    monkeypatch.setattr(decoded_shards, "decoder_versions", lambda: {"Pillow": "0"})
    write(data_dir)
    other = opened(data_dir).digest
    monkeypatch.undo()
    monkeypatch.setattr(decoded_shards, "SHARD_BYTES", 20_000)
    with pytest.raises(UserError, match="by another decoder; delete the folder first"):
        write(data_dir)
    shutil.rmtree(folder)
    picture((38, 38)).save(data_dir / "imagenet/train/n00000001/train_1.JPEG")
    write(data_dir)
    assert len({first, other, opened(data_dir).digest}) == 3
