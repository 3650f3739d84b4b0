"""Worker processes end with the process that needs them, however that ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.data.workers import in_order, worker_pool
from tests.forked import finish, fork

LONG = 100.0
SOON = 3.0


def stay(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(LONG)


def read_when_there(path: Path) -> str:
    deadline = time.monotonic() + 60
    while not (path.exists() and (text := path.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return text


def is_alive(pid: int) -> bool:
    """Return whether a process runs; one that has ended and that nobody waits for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=str)
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    place = tmp_path / "worker"

    def work() -> int:
        with worker_pool(2) as pool:
            list(pool.map(stay, [place]))
        return 0

    pid = fork(work)
    worker = int(read_when_there(place))
    sent = time.monotonic()
    os.kill(pid, number)
    assert finish(pid) != 0
    while is_alive(worker):
        assert time.monotonic() < sent + SOON
        time.sleep(0.01)


def test_a_worker_that_is_ended_from_outside_is_one_line() -> None:
    with pytest.raises(UserError, match="a worker was ended from outside"), worker_pool(1) as pool:
        list(pool.map(os._exit, [9]))


def fail(number: int) -> None:
    if number:
        raise UserError("the disk is full")


def test_an_error_of_one_of_many_tasks_is_told_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11 added a traceback from a thread of its own."""
    said: list[object] = []
    monkeypatch.setattr(threading, "excepthook", said.append)
    with pytest.raises(UserError, match="the disk is full"), worker_pool(1) as pool:
        list(in_order(pool, fail, range(100)))
    assert not said


@pytest.mark.parametrize("together", [1, 3, 100])
def test_what_workers_return_comes_in_order(together: int) -> None:
    with worker_pool(2) as pool:
        assert [*in_order(pool, abs, range(-10, 0), together)] == [*range(10, 0, -1)]
        assert not [*in_order(pool, abs, [], together)]


def test_a_terminals_int_to_all_processes_is_the_parents_alone(tmp_path: Path) -> None:
    """Each worker would end in a traceback."""
    said = tmp_path / "said"

    def work() -> None:
        with open(said, "w") as file:
            os.dup2(file.fileno(), 2)
        with worker_pool(1) as pool:
            running = pool.submit(stay, tmp_path / "worker")
            os.kill(int(read_when_there(tmp_path / "worker")), signal.SIGINT)
            time.sleep(0.2)
            os._exit(0 if running.running() else 1)

    pid = fork(work)
    assert finish(pid) == 0
    assert said.read_text() == ""
