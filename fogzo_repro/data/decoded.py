"""The training images of an ImageNet tree decoded once: imagenet/decoded-SIDE/.

A whole image is kept, its shorter side at most SIDE: larger ones are resized by Pillow's bicubic
filter, others stay as they are. `scripts/prepare_imagenet.py --decoded SIDE` writes the folder, see
`decoded_shards.py`:

    manifest.json   how it was made and of what; written last
    images.npy      a row an image, see ROW
    00000.pixels    a shard: 64 bytes that name the plan, the pixels of one image after another as
                    rows of RGB, and their CRC-32, an unsigned 32-bit number each

The plan is all that decides the bytes of a shard: names and sizes of the images, bytes and time of
change of their files, SIDE, the versions of the decoder. Shards of another plan are never replaced:
who wants other images deletes the folder first. A run's identity has no plan in it, but side,
decoder, names and pixels of the images that it uses, see `DecodedFiles.digest`.

Validation images are not in there: they are evaluated from their files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fogzo_repro.config import UserError
from fogzo_repro.data.augmentation import UnreadableImage
from fogzo_repro.data.imagenet import Files, check_command

VERSION = 2
MADE_BY = {  # of a manifest, what a run reads
    "side": int, "filter": str, "decoder": dict, "plan": str, "images": str,
}  # fmt: skip
HEAD_BYTES = 64
ROW = [
    ("shard", "<u4"), ("offset", "<u8"), ("height", "<u4"), ("width", "<u4"),
]  # fmt: skip


def folder_of(root: Path, side: int) -> Path:
    """Return where the images of a tree lie, decoded."""
    return root / f"decoded-{side}"


def command(root: Path, side: int, classes: str | None = None) -> str:
    """Return the command that writes them, and mends them."""
    return check_command(root, "--decoded", side, *(("--classes", classes) if classes else ()))


@dataclass(frozen=True)
class DecodedFiles:
    """Images of a decoded tree.

    Attributes:
        folder: the decoded tree.
        rows: one for each image, see ROW.
        checksums: of each image.
        labels: of each image, int64.
        names: of each image, as in `Files`.
        remedy: how to mend the folder.
        digest: of side, filter, decoder, and the names, sizes and pixels of these images; other
            images in the tree do not count.
    """

    folder: Path
    rows: np.ndarray
    checksums: np.ndarray
    labels: np.ndarray
    names: np.ndarray
    remedy: str
    digest: str
    _checked: np.ndarray  # by this process, bool
    _shards: dict[int, np.ndarray] = field(default_factory=dict)

    def pixels(self, index: int) -> np.ndarray:
        """Return one image (H, W, 3) uint8, read from the memory map.

        Each process checks an image when it first reads it.

        Raises:
            UnreadableImage: for other pixels than those that were written.
        """
        shard, offset, height, width = self.rows[index].tolist()
        if shard not in self._shards:
            path = self.folder / shard_name(shard)
            try:
                self._shards[shard] = np.memmap(path, np.uint8, "r")
            except (OSError, ValueError) as error:  # gone, or emptied, since the run began
                raise UnreadableImage(f"{path}: {error}") from None
        size = height * width * 3
        found = self._shards[shard][offset : offset + size]
        if not self._checked[index]:
            if len(found) != size or zlib.crc32(found.data) != self.checksums[index]:
                raise UnreadableImage(
                    f"{os.fsdecode(self.names[index])}: {self.folder / shard_name(shard)} is "
                    "damaged"
                )
            self._checked[index] = True
        return found.reshape(height, width, 3)


def open_decoded(wanted: Files, side: int, classes: str | None = None) -> DecodedFiles:
    """Return the training images of a run from the decoded tree of that side beside their files.

    Args:
        wanted: the images.
        side: of the tree.
        classes: the list that they are of, for the command that writes the tree; None for all.

    Raises:
        UserError: where it is not there, is of other images, or a file of it is damaged.
    """
    root = wanted.folder.parent
    folder, write = folder_of(root, side), command(root, side, classes)
    manifest = read_manifest(folder, write)
    remedy = command(root, side, manifest["classes"])
    if manifest["side"] != side:
        raise UserError(
            f"{folder} was decoded at a side of {manifest['side']}, not {side}; rename it to "
            f"{folder_of(root, manifest['side']).name} and run {write}"
        )
    rows = read_rows(folder, manifest, remedy)
    plan, shards = manifest["plan"], int(rows["shard"].max()) + 1
    checksums = np.concatenate(
        [_checksums(folder, plan, shard, rows, remedy) for shard in range(shards)]
    )
    place = places(rows["name"], wanted.names)
    missing = np.flatnonzero(rows["name"][place] != wanted.names)
    if len(missing):
        raise UserError(
            f"{folder} has {len(wanted.names) - len(missing):,} of the {len(wanted.names):,} "
            f"training images, the first that is missing is "
            f"{os.fsdecode(wanted.names[missing[0]])}: it was decoded from another tree or list of "
            f"classes; delete it and run {write}"
        )
    made = [manifest[key] for key in ("side", "filter", "decoder")]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
    digest.update(b"\n".join(wanted.names.tolist()))
    for used in (rows["height"], rows["width"], checksums):
        digest.update(used[place].tobytes())
    fields = [name for name, _ in ROW]
    return DecodedFiles(
        folder, rows[fields][place], checksums[place], wanted.labels, wanted.names,
        f"run {remedy}", digest.hexdigest()[:16], np.zeros(len(place), bool),
    )  # fmt: skip


def read_manifest(folder: Path, remedy: str) -> dict[str, Any]:
    """Read how a decoded tree was made; `remedy` is the command that writes or mends it.

    Raises:
        UserError: where there is no manifest of this version.
    """
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        if lacking := [key for key in MADE_BY if key not in content]:
            raise ValueError(f"it lacks {', '.join(lacking)}")
        for key, kind in {"classes": str | None, **MADE_BY}.items():
            if not isinstance(content.get(key), kind):
                raise ValueError(f"{key} is {content[key]!r}")
        return {"classes": None, **content}
    except FileNotFoundError:
        raise UserError(f"{path} is not there: no whole decoded tree; run {remedy}") from None
    except Exception as error:  # whatever may be wrong with a file
        raise UserError(f"{path} is not a manifest ({error}); run {remedy}") from None


def read_rows(folder: Path, manifest: dict[str, Any], remedy: str) -> np.ndarray:
    """Read where the images of a tree are.

    Raises:
        UserError: where the rows are not those of the manifest.
    """
    path = folder / "images.npy"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["images"]:
            raise ValueError("another checksum")
        return np.lib.format.read_array(io.BytesIO(content))
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}); run {remedy}") from None


def places(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return for each wanted name (W,) its place among the names (N,), or any place without one."""
    order = np.argsort(names, kind="stable")
    return order[np.searchsorted(names, wanted, sorter=order).clip(max=len(names) - 1)]


def _checksums(folder: Path, plan: str, shard: int, rows: np.ndarray, remedy: str) -> np.ndarray:
    """Return the checksums of a shard's images, from its end.

    Raises:
        UserError: where the shard is not that of the plan.
    """
    path = folder / shard_name(shard)
    own = rows[rows["shard"] == shard]
    size = shard_bytes(own)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            found = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * len(own)))
            tail = file.read(4 * len(own))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run {remedy}") from None
    if head != head_of(plan):
        raise UserError(f"{path} is of another manifest than the one beside it; run {remedy}")
    if found != size:
        raise UserError(f"{path} is damaged: it has {found:,} bytes, not {size:,}; run {remedy}")
    return np.frombuffer(tail, "<u4")


def head_of(plan: str) -> bytes:
    """Return the bytes that a shard of a plan begins with."""
    return f"fogzo decoded {VERSION} {plan[:32]}".ljust(HEAD_BYTES - 1).encode() + b"\n"


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"{shard:05d}.pixels"


def shard_bytes(own: np.ndarray) -> int:
    """Return the size of a shard of some images."""
    pixels = 3 * (own["height"].astype(np.int64) * own["width"]).sum()
    return HEAD_BYTES + int(pixels) + 4 * len(own)
