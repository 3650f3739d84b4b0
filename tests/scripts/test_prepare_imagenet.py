"""The check of an ImageNet tree says what is wrong, and its manifest is trusted afterwards."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
from PIL import Image

from fogzo_repro.data.imagenet import read_index
from tests.forked import python

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_imagenet.py"
CONFIG = SimpleNamespace(classes=None, allow_partial=True)


def prepare(root: Path, *more: str) -> CompletedProcess[str]:
    return python(SCRIPT, "--root", root, "--workers", "1", *more)


def tree(folder: Path) -> Path:
    for split in ("train", "val"):
        for c in range(2):
            where = folder / "imagenet" / split / f"n{c:08d}"
            where.mkdir(parents=True)
            for i in range(2):
                Image.new("RGB", (40, 30), (c, i, 0)).save(where / f"{split}_{c}{i}.JPEG")
    return folder / "imagenet"


def test_a_whole_tree_gets_a_manifest_that_equals_a_listing(tmp_path: Path) -> None:
    root = tree(tmp_path)
    listed = read_index(CONFIG, tmp_path)
    done = prepare(root)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images in 2 classes" in done.stdout
    shutil.rmtree(root / "train")  # a manifest is trusted: nothing is listed
    assert read_index(CONFIG, tmp_path).fingerprint == listed.fingerprint


def flat_val(root: Path) -> None:
    for path in list((root / "val").glob("*/*")):
        path.rename(root / "val" / path.name)


def truncated(root: Path) -> None:
    path = root / "train" / "n00000001" / "train_10.JPEG"
    path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (flat_val, "val is flat: 4 images.*--val-labels"),
        (truncated, "1 files cannot be read: train/n00000001/train_10.JPEG; .*--leave-out-bad"),
        (lambda root: shutil.rmtree(root / "val/n00000000"), "val/n00000000 is missing"),
        (lambda root: (root / "train/n00000009").mkdir(), "empty, the first is n00000009"),
        (lambda root: (root / "train/cats").mkdir(), "train/cats is not a class folder"),
        (lambda root: shutil.rmtree(root / "val"), "val is not there"),
    ],
    ids=["flat", "truncated", "missing-class", "empty-class", "strange-folder", "no-split"],
)
def test_what_is_wrong_is_one_line_with_its_remedy(tmp_path, break_it, message: str) -> None:
    import re

    root = tree(tmp_path)
    break_it(root)
    done = prepare(root)
    assert done.returncode == 2
    assert re.search(message, done.stderr), done.stderr
    assert not (root / "manifest.json").exists()


def test_bad_files_can_be_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path)
    truncated(root)
    assert prepare(root, "--leave-out-bad", "--full").returncode == 0
    manifest = json.loads((root / "manifest.json").read_text())
    assert manifest["left_out"] == ["train/n00000001/train_10.JPEG"]
    assert len(read_index(CONFIG, tmp_path).train.names) == 3


def test_a_flat_val_is_sorted_by_its_labels(tmp_path: Path) -> None:
    root = tree(tmp_path)
    flat_val(root)
    lines = [f"val_{c}{i}.JPEG n{c:08d}" for c in range(2) for i in range(2)]
    (tmp_path / "labels").write_text("\n".join(lines))
    assert prepare(root, "--val-labels", str(tmp_path / "labels")).returncode == 0
    assert read_index(CONFIG, tmp_path).val.labels.tolist() == [0, 0, 1, 1]
