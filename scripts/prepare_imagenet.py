"""Check an ImageNet tree, say what is wrong and how to mend it, and write its manifest.

    python scripts/prepare_imagenet.py --root DIR            # DIR holds train/ and val/
    python scripts/prepare_imagenet.py --root DIR --full     # decodes every image
    python scripts/prepare_imagenet.py --root DIR --val-labels FILE   # sorts a flat val/ first
    python scripts/prepare_imagenet.py --root DIR --decoded 256 --classes imagenet100

The quick check reads both ends of every file: empty files, files that are no image, and truncated
JPEGs are found. Runs trust DIR/manifest.json and list no folders; write it again when files change.
Classes with too few or too many images are named; a run refuses them without dataset.allow_partial.

--decoded SIDE then writes the training images decoded, their shorter side at most SIDE, into
DIR/decoded-SIDE/, for runs with dataset.decoded=SIDE: 33 GB for ImageNet-100 at 256. A SIDE beyond
all images keeps every pixel. After a kill the same command goes on; it also mends a damaged file.
It never replaces a tree of other images, nor of files that have changed: delete DIR/decoded-SIDE/.
Exit status: 0 manifest written; 2 something is to be mended.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.decoded import folder_of
from fogzo_repro.data.decoded_shards import plan_tree, write_tree
from fogzo_repro.data.imagenet import (
    CLASSES,
    IMAGES,
    MANIFEST,
    MANIFEST_VERSION,
    SPLITS,
    WNID,
    Listing,
    is_image_name,
    list_split,
    odd_counts,
    read_class_list,
)
from fogzo_repro.data.workers import in_order, worker_pool
from fogzo_repro.terminal import at_least_one, command_parser, one_line_errors
from fogzo_repro.tracking.progress import RunProgress

SHOWN = 10  # bad files named on the terminal


@one_line_errors
def main() -> None:
    """Check, then write the manifest."""
    parser = command_parser(__doc__)
    parser.add_argument("--root", type=Path, required=True, help="holds train/ and val/")
    parser.add_argument("--full", action="store_true", help="decode every image")
    parser.add_argument(
        "--workers", type=at_least_one, default=os.cpu_count(), help="processes; 1 or more"
    )
    parser.add_argument(
        "--val-labels",
        type=Path,
        help="sort a flat val/ by this file first; lines `file index-or-wnid`",
    )
    parser.add_argument(
        "--leave-out-bad",
        action="store_true",
        help="keep files that cannot be read out of the manifest",
    )
    parser.add_argument("--decoded", type=int, metavar="SIDE", help="px; 16 or more")
    parser.add_argument(
        "--classes", help="decode these alone: a list of configs/classes or a file of wnids"
    )
    arguments = parser.parse_args()
    root = arguments.root
    if arguments.decoded is not None and arguments.decoded < 16:
        parser.error(f"--decoded {arguments.decoded} must be at least 16")
    if arguments.classes and arguments.decoded is None:
        parser.error("--classes says what --decoded SIDE decodes; give both")
    classes = arguments.classes
    wnids = None if classes is None else read_class_list(classes, "--classes ")
    check_root(root)
    if arguments.val_labels:
        sort_val(root, arguments.val_labels)
    listing = {split: list_checked(root / split) for split in SPLITS}
    compare_classes(root, listing)
    bad = check_files(root, listing, arguments.full, arguments.workers)
    if bad and not arguments.leave_out_bad:
        more = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise UserError(
            f"{len(bad)} files cannot be read: {', '.join(sorted(bad)[:SHOWN])}{more}; "
            "fetch them again, or give --leave-out-bad"
        )
    kept = write_manifest(root, listing, bad)
    if arguments.decoded is not None:
        decode(arguments, kept["train"], wnids or sorted(kept["train"]))


def check_root(root: Path) -> None:
    """Refuse a folder that does not hold both splits; name the one that was meant, if it is near.

    Raises:
        UserError: naming what is missing.
    """
    missing = [split for split in SPLITS if not (root / split).is_dir()]
    if not missing:
        return
    near = [p for p in (root / "imagenet", root.parent) if all((p / s).is_dir() for s in SPLITS)]
    unpack = "unpack the archives of ILSVRC2012 there"
    remedy = f"give --root {shlex.quote(str(near[0]))}" if near else unpack
    raise UserError(
        f"{root} holds no {' and no '.join(f'{split}/' for split in missing)}; {remedy}"
    )


def list_checked(folder: Path) -> dict[str, list[str]]:
    """Return the files of a split by class.

    Raises:
        UserError: for a flat folder, a class folder by another name, or an empty one.
    """
    flat = [e.name for e in os.scandir(folder) if is_image_name(e.name)]
    if flat:
        raise UserError(
            f"{folder} is flat: {len(flat)} images lie beside the class folders, such as "
            f"{min(flat)}; sort them into {folder}/<wnid>/, for val/ with --val-labels FILE"
        )
    folders = [e.name for e in os.scandir(folder) if e.is_dir() and not e.name.startswith(".")]
    strange = [name for name in folders if not WNID.fullmatch(name)]
    if strange:
        raise UserError(
            f"{folder / min(strange)} is not a class folder such as n01440764; move it away"
        )
    listing = list_split(folder)
    empty = sorted(wnid for wnid, names in listing.items() if not names)
    if empty:
        raise UserError(
            f"{len(empty)} class folders of {folder} are empty, the first is {empty[0]}; unpack "
            "its archive again or remove the folder"
        )
    return listing


def compare_classes(root: Path, listing: Listing) -> None:
    """Refuse splits of different classes; say what differs from ILSVRC2012."""
    train, val = (set(listing[split]) for split in SPLITS)
    if train != val:
        split, wnid = ("val", min(train - val)) if train - val else ("train", min(val - train))
        raise UserError(
            f"train has {len(train)} classes, val {len(val)}, {len(train & val)} in common; "
            f"{root / split / wnid} is missing; add it or remove the class from the other split"
        )
    for split in SPLITS:
        count = sum(map(len, listing[split].values()))
        print(f"{split}: {count:,} images in {len(listing[split]):,} classes")
        if len(train) == CLASSES and count != IMAGES[split]:
            print(f"  note: ILSVRC2012 has {IMAGES[split]:,} images")
        if odd := odd_counts(split, listing[split]):
            print(f"  note: {odd}; unpack the archive again")
    if len(train) != CLASSES:
        print(f"note: not all {CLASSES} classes; runs need dataset.allow_partial=true, or a list")


def check_files(root: Path, listing: Listing, full: bool, workers: int) -> set[str]:
    """Return `split/wnid/name` of every file that is not a whole image."""
    names = [f"{s}/{w}/{n}" for s in SPLITS for w, files in listing[s].items() for n in files]
    progress = RunProgress("checking images", len(names), 0)
    bad = set()
    with worker_pool(workers) as pool:
        found = in_order(pool, partial(is_whole, root, full), names, 256)
        for done, (name, whole) in enumerate(zip(names, found, strict=True), 1):
            if not whole:
                bad.add(name)
            if done % 256 == 0 or done == len(names):
                progress.update(done, {"bad": len(bad)})
    progress.close()
    return bad


def is_whole(root: Path, full: bool, name: str) -> bool:
    """Return whether a file is an image, by its two ends or by decoding it."""
    path = root / name
    if not path.is_file():  # a broken link, a folder with the name of an image
        return False
    if full:
        from fogzo_repro.data.augmentation import UnreadableImage, read_image

        try:
            read_image(path)
        except UnreadableImage:
            return False
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(8)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4096))
            tail = file.read()
    except OSError:
        return False
    if head.startswith(b"\x89PNG\r\n\x1a\n"):  # one training image of ILSVRC2012 is a PNG
        return b"IEND" in tail
    return head.startswith(b"\xff\xd8") and b"\xff\xd9" in tail


def sort_val(root: Path, labels: Path) -> None:
    """Move the images of a flat val/ into class folders; nothing is moved if a line is wrong.

    Args:
        root: holds train/ and val/.
        labels: lines `file label`, also gzipped; a label is a wnid, or the place of one among
            train's classes, from 0 on.

    Raises:
        UserError: for a file that cannot be read or a line that does not fit.
    """
    folder = root / "val"
    wnids = sorted(e.name for e in os.scandir(root / "train") if WNID.fullmatch(e.name))
    try:
        content = labels.read_bytes()
        if labels.suffix == ".gz":
            content = gzip.decompress(content)
        lines = content.decode().splitlines()
    except Exception as error:  # gzip alone has three kinds
        raise UserError(f"--val-labels {labels} is not a text of labels: {error}") from None
    found = {}
    for number, line in enumerate(lines, 1):
        name, _, label = line.strip().rpartition(" ")
        if label.isdigit() and int(label) < len(wnids) == CLASSES:
            label = wnids[int(label)]
        if not name or not WNID.fullmatch(label):
            raise UserError(
                f"{labels}, line {number}: {line!r} is not `file wnid`, or `file index` with all "
                f"{CLASSES} class folders in train/"
            )
        found[name] = label
    moved = [name for name in found if (folder / name).is_file()]
    for name in moved:
        (folder / found[name]).mkdir(exist_ok=True)
        (folder / name).rename(folder / found[name] / name)
    print(f"val: {len(moved):,} images sorted into class folders")


def write_manifest(root: Path, listing: Listing, bad: set[str]) -> Listing:
    """Write DIR/manifest.json whole or not at all; return what is in it."""
    kept = {
        split: {
            w: [n for n in names if f"{split}/{w}/{n}" not in bad] for w, names in found.items()
        }
        for split, found in listing.items()
    }
    content = {"version": MANIFEST_VERSION, "left_out": sorted(bad), **kept}
    path = root / MANIFEST
    files.write(path, json.dumps(content))
    left_out = f", {len(bad):,} left out" if bad else ""
    count = sum(len(names) for split in kept.values() for names in split.values())
    print(f"wrote {path}: {count:,} images{left_out}", flush=True)
    return kept


def decode(arguments: argparse.Namespace, train: dict[str, list[str]], wnids: list[str]) -> None:
    """Write the decoded tree of these classes, see `fogzo_repro.data.decoded`.

    Raises:
        UserError: for a class without images, a tree of other images, a disk that is too small, a
            file that is no image.
    """
    root, side, workers = arguments.root, arguments.decoded, arguments.workers
    if missing := [wnid for wnid in wnids if not train.get(wnid)]:
        raise UserError(
            f"{len(missing)} of {len(wnids)} classes have no images in {root / 'train'}, the first "
            f"is {missing[0]}; complete the tree or give a list of --classes without them"
        )
    names = [f"{wnid}/{name}" for wnid in wnids for name in sorted(train[wnid])]
    progress = None
    rows = plan_tree(root, names, side, workers)
    for done, total in write_tree(root, side, rows, workers, arguments.classes):
        progress = progress or RunProgress("decoding", total, 0)
        progress.update(done, {})
    if progress is not None:
        progress.close()
    print(f"{folder_of(root, side)} is whole: runs take it by dataset.decoded={side}")


if __name__ == "__main__":
    sys.exit(main())
