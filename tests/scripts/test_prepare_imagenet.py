"""The check of an ImageNet tree says what is wrong, and its manifest is trusted afterwards."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from PIL import Image

from fogzo_repro.data.imagenet import build
from tests.forked import python

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "prepare_imagenet.py"


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
    listed = build(tmp_path, None, True)
    done = prepare(root)
    assert done.returncode == 0, done.stderr
    assert "train: 4 images in 2 classes" in done.stdout
    shutil.rmtree(root / "train")  # a manifest is trusted: nothing is listed
    assert build(tmp_path, None, True).fingerprint == listed.fingerprint


def test_a_list_of_classes_that_is_not_there_is_told_before_all_files_are_read(
    tmp_path: Path,
) -> None:
    done = prepare(tree(tmp_path), "--decoded", "16", "--classes", "none")
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == "error: --classes none is neither a file nor one of: imagenet100\n"


def test_a_class_whose_files_are_all_bad_is_named_where_the_tree_is_decoded(tmp_path: Path) -> None:
    root = tree(tmp_path)
    for path in (root / "train/n00000001").iterdir():
        path.write_bytes(b"")
    done = prepare(root, "--decoded", "16", "--leave-out-bad")
    assert done.returncode == 2
    assert done.stderr.startswith("error: 1 of 2 classes have no images in ")
    assert done.stderr.count("\n") == 1


def test_names_beyond_ascii_and_hidden_files_do_no_harm(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "train/n00000000/train_00.JPEG").rename(root / "train/n00000000/größe_1.JPEG")
    (root / "train/n00000000/._train_01.JPEG").write_bytes(b"left by a desktop")
    (root / "train/.Trashes").mkdir()
    (root / "val/.DS_Store.png").write_bytes(b"left by a desktop")
    listed = build(tmp_path, None, True)
    done = prepare(root)
    assert done.returncode == 0, done.stderr
    index = build(tmp_path, None, True)
    assert index.fingerprint == listed.fingerprint
    paths = [index.train.path(i).name for i in range(len(index.train.names))]
    assert paths == ["größe_1.JPEG", "train_01.JPEG", "train_10.JPEG", "train_11.JPEG"]


def test_an_image_of_too_many_pixels_is_named_by_the_full_check(tmp_path: Path) -> None:
    root = tree(tmp_path)
    Image.new("1", (14_000, 13_000)).save(root / "train/n00000001/huge.JPEG", "PNG")
    done = prepare(root, "--full")
    assert done.returncode == 2
    assert "1 files cannot be read: train/n00000001/huge.JPEG; " in done.stderr


def flat_val(root: Path) -> None:
    for path in list((root / "val").glob("*/*")):
        path.rename(root / "val" / path.name)


def truncated(root: Path) -> None:
    path = root / "train" / "n00000001" / "train_10.JPEG"
    path.write_bytes(path.read_bytes()[:-40])


def nested(root: Path) -> None:
    root.rename(root.parent / "moved")
    root.mkdir()
    (root.parent / "moved").rename(root / "imagenet")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (flat_val, "val is flat: 4 images.*--val-labels"),
        (truncated, "1 files cannot be read: train/n00000001/train_10.JPEG; .*--leave-out-bad"),
        (lambda root: shutil.rmtree(root / "val/n00000000"), "val/n00000000 is missing"),
        (lambda root: (root / "train/n00000009").mkdir(), "empty, the first is n00000009"),
        (lambda root: (root / "train/cats").mkdir(), "train/cats is not a class folder"),
        (lambda root: shutil.rmtree(root / "val"), "imagenet holds no val/; unpack the archives"),
        (lambda root: root.rename(root / "../b"), "imagenet holds no train/ and no val/; unpack"),
        (nested, "imagenet holds no train/ and no val/; give --root .*/imagenet/imagenet"),
        (
            lambda root: (root / "train/n00000000/gone.JPEG").symlink_to("/nowhere"),
            "1 files cannot be read: train/n00000000/gone.JPEG",
        ),
        (
            lambda root: (root / "train/n00000000/folder.JPEG").mkdir(),
            "1 files cannot be read: train/n00000000/folder.JPEG",
        ),
    ],
    ids=[
        "flat",
        "truncated",
        "missing-class",
        "empty-class",
        "strange-folder",
        "no-split",
        "no-tree",
        "nested",
        "broken-link",
        "folder",
    ],
)
def test_what_is_wrong_is_one_line_with_its_remedy(tmp_path, break_it, message: str) -> None:
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
    assert len(build(tmp_path, None, True).train.names) == 3


def test_classes_with_other_counts_than_imagenets_are_named(tmp_path: Path) -> None:
    done = prepare(tree(tmp_path))
    assert "2 of 2 classes of train have not the 732 to 1,300 images" in done.stdout
    assert "classes of val have not the 50 images of ILSVRC2012, the first is n00000000 with 2" in (
        done.stdout
    )


LABELS = {
    "missing": (None, "labels is not a text of labels: .*No such file"),
    "not-text": (b"\xff\xfe\x00", "labels is not a text of labels: "),
    "no-label": (b"val_00.JPEG n00000000\nval_01.JPEG", "line 2: 'val_01.JPEG' is not `file wnid`"),
    "index": (b"val_00.JPEG 1", "`file index` with all 1000 class folders in train/"),
}


@pytest.mark.parametrize(("content", "message"), LABELS.values(), ids=LABELS)
def test_wrong_labels_are_one_line_and_move_nothing(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    root = tree(tmp_path)
    flat_val(root)
    if content is not None:
        (tmp_path / "labels").write_bytes(content)
    done = prepare(root, "--val-labels", str(tmp_path / "labels"))
    assert done.returncode == 2
    assert re.fullmatch(f"error: .*{message}.*\n", done.stderr), done.stderr
    assert len(list((root / "val").glob("*.JPEG"))) == 4


def test_labels_may_be_gzipped_and_count_among_all_classes(tmp_path: Path) -> None:
    root = tree(tmp_path)
    flat_val(root)
    for c in range(2, 1000):
        (root / "train" / f"n{c:08d}").mkdir()
    (tmp_path / "labels.gz").write_bytes(gzip.compress(b"val_00.JPEG 0\nval_10.JPEG 999\n"))
    prepare(root, "--val-labels", str(tmp_path / "labels.gz"))
    assert (root / "val/n00000999/val_10.JPEG").is_file()
    assert (root / "val/n00000000/val_00.JPEG").is_file()


def test_a_flat_val_is_sorted_by_its_labels(tmp_path: Path) -> None:
    root = tree(tmp_path)
    flat_val(root)
    lines = [f"val_{c}{i}.JPEG n{c:08d}" for c in range(2) for i in range(2)]
    (tmp_path / "labels").write_text("\n".join(lines))
    assert prepare(root, "--val-labels", str(tmp_path / "labels")).returncode == 0
    assert build(tmp_path, None, True).val.labels.tolist() == [0, 0, 1, 1]
