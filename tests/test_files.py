"""Files are whole or not there, lines too, and a file system that cannot lock is no error."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fogzo_repro import files
from fogzo_repro.config import UserError
from tests.conftest import FSYNC


@pytest.fixture(autouse=True)
def _waits_for_the_disk(monkeypatch) -> None:
    monkeypatch.setattr(os, "fsync", FSYNC)


def fail(code: int):
    def call(*arguments, **named):
        raise OSError(code, os.strerror(code))

    return call


def test_a_file_that_cannot_be_finished_leaves_the_one_before(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "file"
    files.write(path, "before")
    monkeypatch.setattr(os, "fsync", fail(errno.ENOSPC))
    with pytest.raises(UserError, match="No space left on device; free some space, then"):
        files.write(path, "after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_any_error_while_writing_leaves_the_file_before(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files.write(path, "before")
    with pytest.raises(ZeroDivisionError), files.whole(path) as file:
        file.write(b"half")
        _ = 1 / 0
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_is_no_failed_write(tmp_path: Path, monkeypatch) -> None:
    real = os.fsync

    def as_on_cifs(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(number)

    monkeypatch.setattr(os, "fsync", as_on_cifs)
    files.write(tmp_path / "file", "content")
    files.sync(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "content"


def test_a_folder_on_a_failing_disk_is_a_failed_write(tmp_path: Path, monkeypatch) -> None:
    real = os.fsync

    def broken(number: int) -> None:
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        real(number)

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(
        UserError, match=r"cannot write .*file: Input/output error; see to the disk"
    ):
        files.write(tmp_path / "file", "content")


def test_lines_are_added_all_or_none_on_a_full_disk(tmp_path: Path) -> None:
    """The limit on a file's size lets the first bytes of the second text through."""
    path = tmp_path / "lines"
    code = (
        "import resource, sys, pathlib; from fogzo_repro import files\n"
        f"path = pathlib.Path({str(path)!r})\n"
        "files.append(path, 'first\\n')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "try: files.append(path, 'second, a long one\\n')\n"
        "except files.UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {path}: File too large; allow larger files")
    assert path.read_text() == "first\n"


def test_lines_are_not_added_to_a_file_that_another_has_written(tmp_path):
    path = tmp_path / "log"
    size = files.append(path, "first\n")
    assert files.append(path, "second\n", size) == path.stat().st_size
    with pytest.raises(UserError, match="has 13 bytes and not 6: something else writes it"):
        files.append(path, "third\n", size)
    assert path.read_text() == "first\nsecond\n"


def test_a_half_written_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthr")
    assert list(files.whole_lines(path)) == [b"one\n", b"two\n"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("a.json.123.tmp", "mine.tmp", "a.json"):
        (tmp_path / name).touch()
    with files.whole(tmp_path / "b.json"):  # another process is about to finish this one
        files.remove_unfinished(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"mine.tmp", "a.json", "b.json"}


def test_more_locks_than_the_soft_limit_on_open_files_can_be_held(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        said = r"open files; allow more open files \(ulimit -n\)"
        with contextlib.ExitStack() as stack, pytest.raises(UserError, match=said):
            for k in range(300):
                stack.enter_context(files.locked(tmp_path / f"{k}.lock", "a run"))
        files.allow_open(300)
        with contextlib.ExitStack() as stack:
            for k in range(300):
                stack.enter_context(files.locked(tmp_path / f"{k}.lock", "a run"))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_lock_keeps_others_out_and_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not files.is_locked(path)
    with files.locked(path, "the folder") as has_locks:
        assert has_locks
        assert files.is_locked(path)
        with (
            pytest.raises(UserError, match="the folder is being written by another process; once"),
            files.locked(path, "the folder", wait=0),
        ):
            pass
    assert not files.is_locked(path)


def test_somebody_who_only_looks_does_not_stop_a_run(tmp_path: Path) -> None:
    """`make status` holds a shared lock for a moment."""
    path = tmp_path / "lock"
    code = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_SH)\n"
        "print('held', flush=True); time.sleep(0.3)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with files.locked(path, "the folder", wait=20) as has_locks:
            assert has_locks


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], ids=os.strerror)
def test_a_file_system_without_locks_is_said_and_lets_pass(
    tmp_path: Path, monkeypatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", fail(code))
    with files.locked(tmp_path / "lock", "the folder") as has_locks:
        assert not has_locks
    assert not files.is_locked(tmp_path / "lock")


def test_a_folder_that_is_there_and_takes_no_files_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(UserError, match=r"--out DIR is not writable \(Permission denied\); give"):
        files.make_folder(tmp_path, "--out DIR")


def test_a_folder_that_cannot_be_made_is_named_as_it_was_given() -> None:
    with pytest.raises(UserError, match=r"^output_root=/proc/runs is not writable .*of yours$"):
        files.make_folder(Path("/proc/runs/a"), "output_root=/proc/runs")
