"""From the image files of an ImageNet tree to the shards of a decoded one, see `decoded.py`.

Several processes decode, a shard each. An interrupted call, made again, goes on: a shard that is
there is checked and kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.augmentation import UnreadableImage, read_pixels
from fogzo_repro.data.decoded import (
    HEAD_BYTES,
    ROW,
    VERSION,
    folder_of,
    head_of,
    places,
    read_manifest,
    read_rows,
    shard_bytes,
    shard_name,
)
from fogzo_repro.data.workers import LOCK_SECONDS, in_order, worker_pool

SHARD_BYTES = 2**29  # of pixels in a shard, at most, but for an image that is larger
SPARE_BYTES = 2**26  # left free on the disk
FILTER = "bicubic"
FILE = [("bytes", "<u8"), ("modified", "<i8")]  # of an image's file; the latter in ns


def kept_size(width: int, height: int, side: int) -> tuple[int, int]:
    """Return width and height of an image whose shorter side is to be at most `side`.

    >>> kept_size(500, 375, 256), kept_size(300, 200, 256)
    ((341, 256), (300, 200))
    """
    short = min(width, height)
    if short <= side:
        return width, height
    return max(1, width * side // short), max(1, height * side // short)


def plan_tree(root: Path, names: Sequence[str], side: int, workers: int) -> np.ndarray:
    """Return a row for each image: its name and file, and where its pixels will be.

    Reads the files' heads. `root` holds train/, names are `wnid/file`, sorted, and a shorter side
    is `side` at most.

    Raises:
        UserError: naming a file that is no image.
    """
    with worker_pool(workers) as pool:
        paths = [root / "train" / name for name in names]
        found = np.array([*in_order(pool, _seen, paths, 256)], np.int64).reshape(-1, 4)
    encoded = np.array([os.fsencode(name) for name in names], np.bytes_)
    rows = np.zeros(len(names), [("name", encoded.dtype), *ROW, *FILE])
    rows["name"] = encoded
    rows["bytes"], rows["modified"] = found[:, 2:].T
    sizes = [kept_size(width, height, side) for width, height in found[:, :2].tolist()]
    kept = np.array(sizes, np.int64).reshape(-1, 2)
    rows["width"], rows["height"] = kept.T
    shard, offset = 0, HEAD_BYTES
    for index, size in enumerate((3 * kept.prod(1)).tolist()):
        if offset > HEAD_BYTES and offset + size > HEAD_BYTES + SHARD_BYTES:
            shard, offset = shard + 1, HEAD_BYTES
        rows[index]["shard"], rows[index]["offset"] = shard, offset
        offset += size
    return rows


def _seen(path: Path) -> tuple[int, int, int, int]:
    """Return width and height of an image, bytes and time of change of its file."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            return *image.size, *_file(path)
    except Exception as error:
        raise UserError(f"{path} cannot be read ({error}); fetch it again") from None


def _file(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def write_tree(
    root: Path, side: int, rows: np.ndarray, workers: int, classes: str | None
) -> Iterator[tuple[int, int]]:
    """Write the decoded tree; what an earlier call has written whole is checked and kept.

    A whole tree that has these images among others is checked, and mended, as it is. The rows are
    those of `plan_tree`; the list of classes is for the command that mends the tree, None for all.

    Yields:
        Shards done, and shards in all, after each.

    Raises:
        UserError: where the folder has other images, the disk is too small or does not take a
            file, and naming an image that cannot be decoded.
    """
    folder = folder_of(root, side)
    files.make_folder(folder, str(folder))
    versions = decoder_versions()
    plan = _plan(side, versions, rows)
    with files.locked(folder / "lock", str(folder), wait=LOCK_SECONDS):
        files.remove_unfinished(folder)
        tree = _whole_tree(folder)
        if tree is not None and tree[0]["plan"] != plan and _has(*tree, rows, versions):
            print(f"{folder} has these {len(rows):,} images among its {len(tree[1]):,}", flush=True)
            rows, plan, classes = tree[1], tree[0]["plan"], tree[0]["classes"]
        elif tree is None or tree[0]["plan"] != plan:
            _refuse_others(folder, plan)
        shards = [rows[rows["shard"] == shard] for shard in range(int(rows["shard"].max()) + 1)]
        _check_room(folder, side, len(rows), shards)
        with worker_pool(workers) as pool:
            write = partial(write_shard, root, side, plan)
            for count, _ in enumerate(in_order(pool, write, shards), 1):
                yield count, len(shards)
        file = io.BytesIO()
        np.lib.format.write_array(file, rows, allow_pickle=False)
        content = file.getvalue()
        files.write(folder / "images.npy", content)
        source = hashlib.sha256(b"\n".join(rows["name"].tolist())).hexdigest()[:16]
        manifest = {
            "version": VERSION, "side": side, "kept": "the whole image", "filter": FILTER,
            "classes": classes,
            "decoder": versions, "source": source, "count": len(rows),
            "shards": len(shards), "bytes": sum(map(shard_bytes, shards)), "plan": plan,
            "images": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        files.write(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _check_room(folder: Path, side: int, images: int, shards: Sequence[np.ndarray]) -> None:
    """Say what a tree takes, and how much of it is there; refuse a disk that is too small."""
    need = sum(map(shard_bytes, shards))
    there = sum(path.stat().st_size for path in folder.glob("*.pixels"))
    more, free = need - there + SPARE_BYTES, shutil.disk_usage(folder).free
    print(
        f"decoded at a shorter side of at most {side}: {images:,} images, "
        f"{need / 1e9:.3g} GB in {len(shards):,} files under {folder}, "
        f"{there / 1e9:.3g} GB of them are there",
        flush=True,
    )
    if more > free:
        raise UserError(
            f"{folder} needs {more / 1e9:.3g} GB more and its disk has "
            f"{free / 1e9:.3g} GB free; free some space, or give a smaller --decoded SIDE or a "
            "list of --classes"
        )


def _plan(side: int, versions: dict[str, str], rows: np.ndarray) -> str:
    made = json.dumps([VERSION, side, FILTER, versions])
    return hashlib.sha256(made.encode() + rows.tobytes()).hexdigest()


def _whole_tree(folder: Path) -> tuple[dict[str, Any], np.ndarray] | None:
    """Return manifest and rows of the tree that is there; None where either is not whole."""
    try:
        manifest = read_manifest(folder, "")
        return manifest, read_rows(folder, manifest, "")
    except UserError:
        return None


def _has(
    manifest: dict[str, Any], there: np.ndarray, rows: np.ndarray, versions: dict[str, str]
) -> bool:
    """Return whether a tree has these images, of the same files and by the same decoder."""
    found = there[places(there["name"], rows["name"])]
    same = ("name", "height", "width", *dict(FILE))
    return manifest["decoder"] == versions and all((found[k] == rows[k]).all() for k in same)


def _refuse_others(folder: Path, plan: str) -> None:
    """Refuse to go on beside shards of another plan, which somebody may need."""
    others = [path for path in folder.glob("*.pixels") if not _is_planned(path, plan)]
    if others:
        size = sum(path.stat().st_size for path in others)
        raise UserError(
            f"{folder} holds {len(others)} files ({size / 1e9:.3g} GB) of other images, classes or "
            "image files (times of change too, which only cp -a keeps), or by another decoder; "
            "delete the folder first, or give the --classes that it was written with"
        )


def write_shard(root: Path, side: int, plan: str, own: np.ndarray) -> None:
    """Write one shard whole or not at all, unless it is there and undamaged."""
    folder = folder_of(root, side)
    path = folder / shard_name(int(own["shard"][0]))
    if _is_whole(path, plan, own):
        return
    checksums = []
    with files.whole(path) as file:
        file.write(head_of(plan))
        for row in own:
            image = root / "train" / os.fsdecode(row["name"])
            pixels = _decoded(image, side)
            shape = row["height"], row["width"], 3
            if pixels.shape != shape or _file(image) != (row["bytes"], row["modified"]):
                raise UserError(
                    f"{image} has changed since its tree was begun; delete {folder} and run the "
                    "command again"
                )
            content = pixels.tobytes()
            checksums.append(zlib.crc32(content))
            file.write(content)
        file.write(np.array(checksums, "<u4").tobytes())


def _decoded(path: Path, side: int) -> np.ndarray:
    from PIL import Image

    try:
        pixels = read_pixels(path)
    except UnreadableImage as error:
        raise UserError(
            f"cannot decode {error}; fetch it again, or give --full --leave-out-bad"
        ) from None
    size = pixels.shape[1], pixels.shape[0]
    kept = kept_size(*size, side)
    if kept == size:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize(kept, Image.Resampling[FILTER.upper()]))


def _is_planned(path: Path, plan: str) -> bool:
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES) == head_of(plan)


def _is_whole(path: Path, plan: str, own: np.ndarray) -> bool:
    """Return whether a shard is there with the pixels that were written."""
    if not path.is_file() or path.stat().st_size != shard_bytes(own):
        return False
    content = np.memmap(path, np.uint8, "r")
    checksums = content[len(content) - 4 * len(own) :].view("<u4")
    if bytes(content[:HEAD_BYTES]) != head_of(plan):
        return False
    ends = own["offset"].astype(np.int64) + 3 * own["height"].astype(np.int64) * own["width"]
    return all(
        zlib.crc32(content[begin:end].data) == checksum
        for begin, end, checksum in zip(own["offset"], ends, checksums, strict=True)
    )


def decoder_versions() -> dict[str, str]:
    """Return what decides which pixels a JPEG becomes."""
    from PIL import Image, features

    return {
        "Pillow": Image.__version__,
        "libjpeg-turbo": str(features.version_feature("libjpeg_turbo")),
    }
