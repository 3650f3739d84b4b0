"""The training images of an ImageNet tree decoded once: imagenet/decoded-SIDE/.

A whole image is kept, its shorter side at most SIDE: larger ones are resized by Pillow's bicubic
filter, others stay as they are. `scripts/prepare_imagenet.py --decoded SIDE` writes the folder:

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
import shutil
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.augmentation import UnreadableImage, read_pixels
from fogzo_repro.data.imagenet import CHECK, Files

VERSION = 2
SHARD_BYTES = 2**29  # of pixels in a shard, at most, but for an image that is larger
HEAD_BYTES = 64
SPARE_BYTES = 2**26  # left free on the disk
FILTER = "bicubic"
ROW = [
    ("shard", "<u4"), ("offset", "<u8"), ("height", "<u4"), ("width", "<u4"),
]  # fmt: skip
FILE = [("bytes", "<u8"), ("modified", "<i8")]  # of an image's file; the latter in ns


def folder_of(root: Path, side: int) -> Path:
    """Return where the images of a tree lie, decoded."""
    return root / f"decoded-{side}"


def command(root: Path, side: int, classes: str | None = None) -> str:
    """Return the command that writes them, and mends them."""
    return f"{CHECK} {root} --decoded {side}" + (f" --classes {classes}" if classes else "")


# --- reading -------------------------------------------------------------------------------------


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
            self._shards[shard] = np.memmap(self.folder / shard_name(shard), np.uint8, "r")
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


def open_decoded(wanted: Files, side: int) -> DecodedFiles:
    """Return the training images of a run from the decoded tree beside them.

    Args:
        wanted: the images, as files.
        side: which decoded tree.

    Raises:
        UserError: where it is not there, is of other images, or a file of it is damaged.
    """
    root = wanted.folder.parent
    folder, remedy = folder_of(root, side), command(root, side)
    manifest = _manifest(folder, remedy)
    remedy = command(root, side, manifest["classes"])
    rows = _rows(folder, manifest, remedy)
    plan, shards = manifest["plan"], int(rows["shard"].max()) + 1
    checksums = np.concatenate(
        [_checksums(folder, plan, shard, rows, remedy) for shard in range(shards)]
    )
    place = _places(rows["name"], wanted.names)
    missing = np.flatnonzero(rows["name"][place] != wanted.names)
    if len(missing):
        raise UserError(
            f"{folder} has {len(wanted.names) - len(missing):,} of the {len(wanted.names):,} "
            f"training images, the first that is missing is "
            f"{os.fsdecode(wanted.names[missing[0]])}: it was decoded from another tree or list of "
            f"classes; delete it and run {command(root, side)}"
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


def _manifest(folder: Path, remedy: str) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}")
        return {"classes": None, **content}
    except FileNotFoundError:
        raise UserError(f"{path} is not there: no whole decoded tree; run {remedy}") from None
    except Exception as error:  # whatever may be wrong with a file
        raise UserError(f"{path} is not a manifest ({error}); run {remedy}") from None


def _rows(folder: Path, manifest: dict[str, Any], remedy: str) -> np.ndarray:
    path = folder / "images.npy"
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != manifest["images"]:
            raise ValueError("another checksum")
        return np.lib.format.read_array(io.BytesIO(content))
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}); run {remedy}") from None


def _places(names: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Return where the wanted names are among names, or would be."""
    order = np.argsort(names, kind="stable")
    return order[np.searchsorted(names, wanted, sorter=order).clip(max=len(names) - 1)]


def _checksums(folder: Path, plan: str, shard: int, rows: np.ndarray, remedy: str) -> np.ndarray:
    """Return the checksums of a shard's images, from its end.

    Raises:
        UserError: where the shard is not that of the plan.
    """
    path = folder / shard_name(shard)
    own = rows[rows["shard"] == shard]
    size = _shard_bytes(own)
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
            found = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 4 * len(own)))
            tail = file.read(4 * len(own))
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); run {remedy}") from None
    if head != _head(plan):
        raise UserError(f"{path} is of another manifest than the one beside it; run {remedy}")
    if found != size:
        raise UserError(f"{path} is damaged: it has {found:,} bytes, not {size:,}; run {remedy}")
    return np.frombuffer(tail, "<u4")


def _head(plan: str) -> bytes:
    return f"fogzo decoded {VERSION} {plan[:32]}".ljust(HEAD_BYTES - 1).encode() + b"\n"


def shard_name(shard: int) -> str:
    """Return the file name of a shard."""
    return f"{shard:05d}.pixels"


def _shard_bytes(own: np.ndarray) -> int:
    """Return the size of a shard of some images."""
    pixels = 3 * (own["height"].astype(np.int64) * own["width"]).sum()
    return HEAD_BYTES + int(pixels) + 4 * len(own)


# --- writing -------------------------------------------------------------------------------------


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

    Reads the files' heads.

    Args:
        root: holds train/.
        names: `wnid/file`, sorted.
        side: the longest that a shorter side may be.
        workers: processes.

    Raises:
        UserError: naming a file that is no image.
    """
    with ProcessPoolExecutor(workers) as pool:
        paths = (root / "train" / name for name in names)
        found = np.array([*pool.map(_seen, paths, chunksize=256)], np.int64).reshape(-1, 4)
    encoded = np.array([os.fsencode(name) for name in names], np.bytes_)
    rows = np.zeros(len(names), [("name", encoded.dtype), *ROW, *FILE])
    rows["name"] = encoded
    rows["bytes"], rows["modified"] = found[:, 2:].T
    kept = np.array([kept_size(w, h, side) for w, h in found[:, :2].tolist()], np.int64).reshape(
        -1, 2
    )
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
    root: Path, side: int, rows: np.ndarray, workers: int, classes: str | None = None
) -> Iterator[tuple[int, int]]:
    """Write the decoded tree; what an earlier call has written whole is checked and kept.

    A whole tree that has these images among others is checked, and mended, as it is.

    Args:
        root: holds train/.
        side: as in `plan_tree`.
        rows: of `plan_tree`.
        workers: processes.
        classes: the list that the images are of, for the command that mends the tree.

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
    with files.locked(folder / "lock", str(folder)):
        files.remove_unfinished(folder)
        tree = _whole_tree(folder)
        if tree is not None and tree[0]["plan"] != plan and _has(*tree, rows, versions):
            print(f"{folder} has these {len(rows):,} images among its {len(tree[1]):,}", flush=True)
            rows, plan, classes = tree[1], tree[0]["plan"], tree[0]["classes"]
        elif tree is None or tree[0]["plan"] != plan:
            _refuse_others(folder, plan)
        shards = [rows[rows["shard"] == shard] for shard in range(int(rows["shard"].max()) + 1)]
        there = sum(path.stat().st_size for path in folder.glob("*.pixels"))
        need = sum(map(_shard_bytes, shards))
        free = shutil.disk_usage(folder).free
        print(
            f"decoded at a shorter side of at most {side}: {len(rows):,} images, "
            f"{need / 1e9:.3g} GB in {len(shards):,} files under {folder}, "
            f"{there / 1e9:.3g} GB of them are there",
            flush=True,
        )
        if need - there + SPARE_BYTES > free:
            raise UserError(
                f"{folder} needs {(need - there) / 1e9:.3g} GB more and its disk has "
                f"{free / 1e9:.3g} GB free; free some space, or give a smaller --decoded SIDE or a "
                "list of --classes"
            )
        with ProcessPoolExecutor(workers, initializer=_end_with, initargs=(os.getpid(),)) as pool:
            write = partial(write_shard, root, side, plan)
            done = pool.map(write, repeat(folder), range(len(shards)), shards)
            for count, _ in enumerate(done, 1):
                yield count, len(shards)
        content = _as_npy(rows)
        files.write(folder / "images.npy", content)
        manifest = {
            "version": VERSION, "side": side, "kept": "the whole image", "filter": FILTER,
            "classes": classes,
            "decoder": versions, "source": _source(rows), "count": len(rows),
            "shards": len(shards), "bytes": need, "plan": plan,
            "images": hashlib.sha256(content).hexdigest(),
        }  # fmt: skip
        files.write(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _plan(side: int, versions: dict[str, str], rows: np.ndarray) -> str:
    made = json.dumps([VERSION, side, FILTER, versions])
    return hashlib.sha256(made.encode() + rows.tobytes()).hexdigest()


def _whole_tree(folder: Path) -> tuple[dict[str, Any], np.ndarray] | None:
    """Return manifest and rows of the tree that is there; None where either is not whole."""
    try:
        manifest = _manifest(folder, "")
        return manifest, _rows(folder, manifest, "")
    except UserError:
        return None


def _has(
    manifest: dict[str, Any], there: np.ndarray, rows: np.ndarray, versions: dict[str, str]
) -> bool:
    """Return whether a tree has these images, of the same files and by the same decoder."""
    found = there[_places(there["name"], rows["name"])]
    same = ("name", "height", "width", *dict(FILE))
    return manifest["decoder"] == versions and all((found[k] == rows[k]).all() for k in same)


def _refuse_others(folder: Path, plan: str) -> None:
    """Refuse to go on beside shards of another plan, which somebody may need."""
    others = [path for path in folder.glob("*.pixels") if not _is_planned(path, plan)]
    if others:
        size = sum(path.stat().st_size for path in others)
        raise UserError(
            f"{folder} holds {len(others)} files ({size / 1e9:.3g} GB) of other images, classes or "
            "image files, or by another decoder; delete the folder first, or give the --classes "
            "that it was written with"
        )


def _end_with(parent: int) -> None:
    """End this worker soon after its parent was killed."""
    import threading
    import time

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_shard(
    root: Path, side: int, plan: str, folder: Path, shard: int, own: np.ndarray
) -> None:
    """Write one shard whole or not at all, unless it is there and undamaged."""
    path = folder / shard_name(shard)
    if _is_whole(path, plan, own):
        return
    checksums = []
    with files.whole(path) as file:
        file.write(_head(plan))
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
        return file.read(HEAD_BYTES) == _head(plan)


def _is_whole(path: Path, plan: str, own: np.ndarray) -> bool:
    """Return whether a shard is there with the pixels that were written."""
    if not path.is_file() or path.stat().st_size != _shard_bytes(own):
        return False
    content = np.memmap(path, np.uint8, "r")
    checksums = content[len(content) - 4 * len(own) :].view("<u4")
    if bytes(content[:HEAD_BYTES]) != _head(plan):
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


def _source(rows: np.ndarray) -> str:
    return hashlib.sha256(b"\n".join(rows["name"].tolist())).hexdigest()[:16]


def _as_npy(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, rows, allow_pickle=False)
    return file.getvalue()
