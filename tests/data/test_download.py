"""Downloads into an empty folder: one process downloads, the others wait, half of it is nothing."""

from __future__ import annotations

import os
import time
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.data.download import PREFIX, download
from tests.forked import finish, fork


def is_there(data_dir: Path) -> bool:
    return (data_dir / "set" / "b").is_file()


def fetch(folder: Path) -> None:
    """Write two files, slowly; leave a line for each call."""
    (folder / "set").mkdir()
    (folder / "set" / "a").write_text("a")
    with open(folder.parent / "calls", "a") as calls:
        calls.write(f"{os.getpid()}\n")
    time.sleep(0.3)
    (folder / "set" / "b").write_text("b")


def test_of_several_processes_one_downloads_and_all_find_the_files(tmp_path: Path) -> None:
    data_dir, pids = tmp_path / "data", []
    for _ in range(4):
        pids.append(fork(lambda: download("SET", data_dir, lambda: is_there(data_dir), fetch)))
    assert [finish(pid) for pid in pids] == [0] * 4
    assert len((data_dir / "calls").read_text().splitlines()) == 1
    assert not list(data_dir.glob(f"{PREFIX}*"))


def test_what_is_there_is_not_downloaded_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "b").touch()
    tmp_path.chmod(0o500)
    download("SET", tmp_path, lambda: is_there(tmp_path), fetch)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_killed_download_leaves_nothing_that_counts_and_the_next_one_clears_it(
    tmp_path: Path,
) -> None:
    slow = partial(
        download, "SET", tmp_path, lambda: is_there(tmp_path), lambda f: (fetch(f), time.sleep(60))
    )
    pid = fork(slow)
    while not list(tmp_path.glob(f"{PREFIX}*/set/b")):
        time.sleep(0.01)
    os.kill(pid, 9)
    finish(pid)
    assert not (tmp_path / "set").exists()
    download("SET", tmp_path, lambda: is_there(tmp_path), fetch)
    assert is_there(tmp_path) and not list(tmp_path.glob(f"{PREFIX}*"))


def test_without_locks_what_another_process_has_begun_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fogzo_repro.data.download.locked", lambda *_, **__: nullcontext(False))
    begun = tmp_path / f"{PREFIX}of-another"
    begun.mkdir()
    download("SET", tmp_path, lambda: is_there(tmp_path), fetch)
    assert is_there(tmp_path) and begun.is_dir()


def test_a_download_that_fails_is_one_line_with_the_remedy(tmp_path: Path) -> None:
    def offline(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("no network\nat all")

    with pytest.raises(UserError, match=r"SET is not under data_dir=.* \(no network\); give data"):
        download("SET", tmp_path, lambda: False, offline)
    assert not list(tmp_path.glob(f"{PREFIX}*"))


def test_a_folder_that_cannot_be_made_is_one_line() -> None:
    with pytest.raises(UserError, match="data_dir=/proc/data is not writable"):
        download("SET", Path("/proc/data"), lambda: False, fetch)
