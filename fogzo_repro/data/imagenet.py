"""The files and labels of an ImageNet tree: data_dir/imagenet/{train,val}/<wnid>/<file>.

`scripts/prepare_imagenet.py` checks a tree and writes imagenet/manifest.json with all file names;
where it is there, it is trusted and nothing is listed. ImageNet-100 is a list of classes over the
same tree. The label of a class is its place among the sorted wnids that are used.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from fogzo_repro.config import UserError
from fogzo_repro.data.augmentation import read_pixels
from fogzo_repro.project import CONFIGS, script

CLASS_LISTS = CONFIGS / "classes"
MANIFEST = "manifest.json"
MANIFEST_VERSION = 1
SPLITS = ("train", "val")
CLASSES = 1000
IMAGES = {"train": 1_281_167, "val": 50_000}  # of all classes, ILSVRC2012
CLASS_IMAGES = {"train": (732, 1300), "val": (50, 50)}  # of one class: fewest and most
SUFFIXES = (".jpeg", ".jpg", ".png")
WNID = re.compile(r"n\d{8}")
Listing = dict[str, dict[str, list[str]]]  # split -> wnid -> file names


def check_command(root: Path, *more: object) -> str:
    """Return the command that checks a tree."""
    return script("prepare_imagenet", "--root", root, *more)


@dataclass(frozen=True)
class Files:
    """One split: file names relative to its folder (as the system's bytes), and labels int64."""

    folder: Path
    names: np.ndarray
    labels: np.ndarray
    remedy: ClassVar[str] = "replace the file, or give dataset.on_bad_image=skip"

    def pixels(self, index: int) -> np.ndarray:
        """Decode one image to (H, W, 3) uint8.

        Raises:
            UnreadableImage: for a file that is not a whole image.
        """
        return read_pixels(self.path(index))

    def path(self, index: int) -> Path:
        """Return the path of one image."""
        return self.folder / os.fsdecode(self.names[index])


@dataclass(frozen=True)
class ImageNetIndex:
    """The images of the classes that are used, sorted by class and name."""

    train: Files
    val: Files
    classes: list[str]  # the wnids, sorted; the label is the place
    fingerprint: str  # hash of the class list and of all file names in use


def build(data_dir: Path, classes: str | None, allow_partial: bool) -> ImageNetIndex:
    """Read which images there are.

    Raises:
        UserError: where the tree, the class list or a class is missing, with the remedy.
    """
    root = data_dir / "imagenet"
    wanted = None if classes is None else read_class_list(classes)
    listing = _manifest(root) or {
        split: list_split(root / split, None if wanted is None else set(wanted)) for split in SPLITS
    }
    wnids = _usable(root, listing, wanted, allow_partial)
    digest = hashlib.sha256("\n".join(wnids).encode())
    kind = f"{len(wnids)}-{digest.hexdigest()[:16]}"
    splits = {}
    for split in SPLITS:
        names = [f"{wnid}/{name}" for wnid in wnids for name in sorted(listing[split][wnid])]
        counts = [len(listing[split][wnid]) for wnid in wnids]
        digest.update(os.fsencode("\n".join([split, *names])))
        labels = np.repeat(np.arange(len(wnids)), counts)
        encoded = np.array([os.fsencode(name) for name in names], dtype=np.bytes_)
        splits[split] = Files(root / split, encoded, labels)
    fingerprint = f"classes:{kind}/files:{digest.hexdigest()[:16]}"
    return ImageNetIndex(splits["train"], splits["val"], wnids, fingerprint)


def read_class_list(classes: str, option: str = "dataset.classes=") -> list[str]:
    """Return the wnids of configs/classes/<classes>.txt or of a file given by its path.

    `option` is what the user has named it by.

    Raises:
        UserError: where there is no such file, or a line that is not a wnid.
    """
    known = CLASS_LISTS / f"{classes}.txt"
    path = known if known.is_file() else Path(classes)
    if not path.is_file():
        lists = ", ".join(sorted(p.stem for p in CLASS_LISTS.glob("*.txt")))
        raise UserError(f"{option}{classes} is neither a file nor one of: {lists}")
    try:
        wnids = path.read_text("utf-8-sig").split()
    except UnicodeDecodeError as error:
        raise UserError(f"{option}{classes} is not a text in UTF-8 ({error})") from None
    for wnid in wnids:
        if not WNID.fullmatch(wnid):
            raise UserError(f"{option}{classes}: {wnid!r} is not a wnid such as n01440764")
    if not wnids or len(set(wnids)) < len(wnids):
        raise UserError(f"{option}{classes} is empty or names a class twice")
    return sorted(wnids)


def list_split(folder: Path, wanted: set[str] | None = None) -> dict[str, list[str]]:
    """Return the image files of each class folder.

    Raises:
        UserError: where the folder is not there or holds no class folders.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder} is not there: data_dir must hold imagenet/train/<wnid>/ and "
            f"imagenet/val/<wnid>/; check a tree with {check_command(folder.parent)}"
        )
    wnids = [e.name for e in os.scandir(folder) if e.is_dir() and WNID.fullmatch(e.name)]
    if not wnids:
        raise UserError(
            f"{folder} has no class folders such as n01440764; run "
            f"{check_command(folder.parent)} to see what is wrong"
        )
    return {
        wnid: sorted(e.name for e in os.scandir(folder / wnid) if is_image_name(e.name))
        for wnid in sorted(wnids)
        if wanted is None or wnid in wanted
    }


def is_image_name(name: str) -> bool:
    """Whether a file counts as an image; hidden ones do not, such as macOS's `._1.JPEG`.

    >>> is_image_name("n01440764_1.JPEG"), is_image_name("._n01440764_1.JPEG")
    (True, False)
    """
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def odd_counts(split: str, classes: dict[str, list[str]]) -> str | None:
    """Say which classes have fewer or more images than any of ILSVRC2012; None where none has."""
    low, high = CLASS_IMAGES[split]
    odd = sorted(wnid for wnid, names in classes.items() if not low <= len(names) <= high)
    if not odd:
        return None
    per_class = f"{low} to {high:,}" if low < high else str(low)
    return (
        f"{len(odd)} of {len(classes)} classes of {split} have not the {per_class} images of "
        f"ILSVRC2012, the first is {odd[0]} with {len(classes[odd[0]]):,}"
    )


def _manifest(root: Path) -> Listing | None:
    path = root / MANIFEST
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text())
        if content["version"] != MANIFEST_VERSION:
            raise ValueError(f"version {content['version']}")
        return {split: content[split] for split in SPLITS}
    except Exception as error:  # whatever may be wrong with a file
        raise UserError(
            f"{path} is not a manifest ({error}); delete it and run {check_command(root)}"
        ) from None


def _usable(
    root: Path, listing: Listing, wanted: list[str] | None, allow_partial: bool
) -> list[str]:
    """Return the classes that are there; refuse a subset that was not asked for."""
    there = {split: {w for w, names in listing[split].items() if names} for split in SPLITS}
    both = there["train"] & there["val"]
    expected = set(wanted) if wanted is not None else set().union(*there.values())
    missing = sorted(expected - both)
    kept = sorted(expected & both)
    if not allow_partial:
        if missing:
            split = next(s for s in SPLITS if missing[0] not in there[s])
            raise UserError(
                f"{len(missing)} of {len(expected)} classes have no images, the first is "
                f"{root / split / missing[0]}; complete the tree or give dataset.allow_partial=true"
            )
        if wanted is None and len(kept) != CLASSES:
            raise UserError(
                f"{root} has {len(kept)} classes, ImageNet-1K has {CLASSES}; complete the tree or "
                "give dataset.allow_partial=true"
            )
        for split in SPLITS:
            used = {wnid: listing[split][wnid] for wnid in kept}
            count = sum(map(len, used.values()))
            odd = odd_counts(split, used)
            if not odd and len(kept) == CLASSES and count != IMAGES[split]:
                odd = f"{split} has {count:,} images, ILSVRC2012 has {IMAGES[split]:,}"
            if odd:
                raise UserError(
                    f"{root}: {odd}; complete the tree or give dataset.allow_partial=true"
                )
    if not kept:
        raise UserError(f"{root} has none of the {len(expected)} classes of dataset.classes")
    return kept
