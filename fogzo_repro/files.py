"""Files: written whole or not at all, extended by whole lines, locked where there are locks.

Every file that a run leaves goes through here. A reader never finds half of one, not after a kill
and not after a power cut; a full disk or a missing permission ends in one line that names the file.
What a file system cannot do at all, locks or syncing a folder, is no failure to write.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fogzo_repro.terminal import UserError

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space",
    errno.EIO: "see to the disk or network drive",
    errno.ESTALE: "see to the disk or network drive",
    errno.ENOENT: "put back its folder, which was removed or moved",
    errno.EACCES: "choose a place where you may write",
    errno.EPERM: "choose a place where you may write",
    errno.EFBIG: "allow larger files (ulimit -f, or the file system's own limit)",
    errno.EROFS: "choose a place where you may write",
    errno.EMFILE: "allow more open files (ulimit -n)",
}
LOCK_POLL_SECONDS = 0.1
OTHERS_OPEN = 256  # files that torch and Python may have open beside the locks of a group


class InUse(UserError):
    """Another process holds the lock."""


def cannot(what: str, error: OSError) -> UserError:
    """Return the error in one line: what cannot be done, as `write PATH`, why, and the remedy."""
    remedy = REMEDIES.get(error.errno or 0)
    then = f"; {remedy}, then run the same command again" if remedy else ""
    return UserError(f"cannot {what}: {error.strerror or error}{then}")


def unreadable(path: Path, error: OSError) -> UserError | None:
    """Return in one line that a file is there and cannot be read; None where it is not there.

    What is in it may be whole: nobody is to delete it for that.
    """
    return None if isinstance(error, FileNotFoundError) else _cannot_read(path, error)


@contextlib.contextmanager
def told_where_unreadable(folder: Path) -> Iterator[None]:
    """Have what cannot be read in a folder told in one line; writing tells of itself.

    Raises:
        UserError: for a file of the folder, or the folder.
    """
    try:
        yield
    except OSError as error:
        if error.filename and Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise _cannot_read(Path(os.fsdecode(error.filename)), error) from None
        raise


def _cannot_read(path: Path, error: OSError) -> UserError:
    return UserError(
        f"cannot read {path}: {error.strerror or error}; see that you can, then run the same "
        "command again"
    )


def make_folder(path: Path, given: str) -> None:
    """Make a folder that the user has `given`, as `output_root=PATH`, and those above it.

    Raises:
        UserError: where it cannot be made, or is there and takes no files.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise UserError(
            f"{given} is not writable ({error.strerror}); give a folder of yours"
        ) from None


@contextlib.contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """Give a new file to write, which takes the path's place once it is whole and on the disk.

    It is written under a temporary name of this process, so that two processes cannot mix theirs,
    and locked meanwhile: what is not was left behind, see `remove_unfinished`.

    Raises:
        UserError: where it cannot be written; what was there before stays.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            _lock(file.fileno(), fcntl.LOCK_EX)
            yield file
            file.flush()
            _sync(file.fileno())
            os.replace(temporary, path)  # while it is locked
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise cannot(f"write {path}", error) from None
        raise


def write(path: Path, content: bytes | str) -> None:
    """Write a file whole or not at all.

    Raises:
        UserError: where it cannot be written; what was there before stays.
    """
    with whole(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed processes have left of `whole`; where nothing has locks, all of it."""
    for path in folder.glob("*.[0-9]*.tmp"):
        if not is_locked(path):
            with contextlib.suppress(OSError):  # another user's, or gone
                path.unlink()


def append(path: Path, text: str, size: int | None = None) -> int:
    """Add whole lines to the end of a file, all or none of them; return its new size in bytes.

    `size` is what it has before, where the caller alone writes it.

    Raises:
        UserError: where they cannot be written, or the file has another size; it is as it was.
    """
    content = text.encode()
    try:
        with open(path, "ab", buffering=0) as file:
            found = file.seek(0, os.SEEK_END)
            if size is not None and found != size:
                raise UserError(
                    f"{path} has {found} bytes and not {size}: something else writes it or has put "
                    "another file in its place; end that, then run the same command again"
                )
            left = memoryview(content)
            try:
                while left:
                    left = left[file.write(left) :]
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(found)
                raise
    except OSError as error:
        raise cannot(f"write {path}", error) from None
    return found + len(content)


def cut(path: Path, size: int) -> None:
    """Keep the first `size` bytes of a file.

    Raises:
        UserError: where it cannot be changed.
    """
    try:
        os.truncate(path, size)
    except OSError as error:
        raise cannot(f"write {path}", error) from None


def sync(path: Path) -> None:
    """Bring what was appended to a file onto the disk: it survives a power cut from now on.

    Raises:
        UserError: where the disk does not take it.
    """
    try:
        with open(path, "rb") as file:
            _sync(file.fileno())
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot(f"write {path}", error) from None


def parse_json(text: bytes | str) -> Any:
    """Return what a JSON text says.

    Raises:
        ValueError: where it is none; nested too deeply counts so too.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def sha256_of(path: Path) -> str:
    """Return the checksum of what a file holds, however large."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def whole_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file that have their end; a last one may be half written."""
    with open(path, "rb") as file:
        yield from (line for line in file if line.endswith(b"\n"))


@contextlib.contextmanager
def locked(path: Path, what: str, wait: float = 1.0) -> Iterator[bool]:
    """Keep other processes out.

    Args:
        path: the lock's file; made where it is missing, and left behind.
        what: what is kept, for the message.
        wait: seconds before another process counts as holding it; whoever asks `is_locked` holds
            it for a moment.

    Yields:
        Whether the file system has locks. Where it has none, nothing keeps another process out.

    Raises:
        InUse: where another process holds the lock.
    """
    deadline = time.monotonic() + wait
    try:
        file = open(path, "ab")  # noqa: SIM115
    except OSError as error:
        raise cannot(f"write {path}", error) from None
    with file:
        while (found := _lock(file.fileno(), fcntl.LOCK_EX)) is False:
            if time.monotonic() > deadline:
                raise InUse(
                    f"{what} is being written by another process; once that has ended, run the "
                    "same command again"
                )
            time.sleep(LOCK_POLL_SECONDS)
        yield found is not None


def allow_open(count: int) -> None:
    """Let this process have so many files open beside others, as far as the system's limit goes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + OTHERS_OPEN
    if wanted > soft != resource.RLIM_INFINITY:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock; False where that cannot be known."""
    try:
        with open(path, "rb") as file:
            return _lock(file.fileno(), fcntl.LOCK_SH) is False
    except OSError:
        return False


def _lock(number: int, kind: int) -> bool | None:
    """Return whether the lock was got; None where the file system has no locks."""
    try:
        fcntl.flock(number, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _sync(number: int) -> None:
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _sync_folder(path: Path) -> None:
    """Bring a new name onto the disk; a folder that may not be read cannot be synced."""
    try:
        number = os.open(path, os.O_RDONLY)
    except PermissionError:
        return
    try:
        _sync(number)
    finally:
        os.close(number)
