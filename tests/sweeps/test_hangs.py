"""Hang detection: by lines of timing.jsonl, with room for flushes, pauses and compilation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fogzo_repro.sweeps import queue
from fogzo_repro.sweeps.queue import HangWatch, allowed_silence
from fogzo_repro.training import loop


def write(folder: Path, *lines: tuple[int, float], pause: str | None = None) -> None:
    with open(folder / "timing.jsonl", "a") as file:
        for step, seconds in lines:
            extra = {"pause": pause} if pause else {}
            file.write(json.dumps({"step": step, "seconds": seconds, **extra}) + "\n")


def test_the_flush_interval_is_the_loops() -> None:
    assert queue.FLUSH_STEPS == loop.FLUSH_STEPS


def test_a_run_with_slow_steps_may_be_silent_for_a_flush_and_50_steps() -> None:
    lines = [{"step": s, "seconds": 1000 + 2.0 * s} for s in (100, 200, 300)]
    assert allowed_silence(lines) == 150 * 2.0


def test_a_run_with_fast_steps_may_be_silent_for_a_minute() -> None:
    assert allowed_silence([{"step": 100, "seconds": 1}, {"step": 200, "seconds": 2}]) == 60


def test_an_evaluation_does_not_count_as_steps() -> None:
    lines = [
        {"step": 100, "seconds": 100.0},
        {"step": 200, "seconds": 200.0},
        {"step": 200, "seconds": 200.0, "pause": "evaluation"},
        {"step": 300, "seconds": 9000.0},
    ]
    assert allowed_silence(lines) == 150.0


def test_a_run_that_went_silent_hangs_and_a_slow_compilation_does_not(tmp_path: Path) -> None:
    watch = HangWatch(tmp_path, 0.0)
    assert watch.look(600.0) is None
    write(tmp_path, (100, 700.0))
    assert watch.look(700.0) is None
    write(tmp_path, (200, 800.0))
    assert watch.look(800.0) is None
    assert watch.look(949.0) is None
    assert "hangs: no metrics line for 151 s" in (watch.look(951.0) or "")


def test_a_run_that_never_begins_hangs(tmp_path: Path) -> None:
    assert "hangs" in (HangWatch(tmp_path, 0.0).look(3601.0) or "")


@pytest.mark.parametrize("pause", ["evaluation", "checkpoint"], ids=str)
def test_a_pause_may_take_longer(tmp_path: Path, pause: str) -> None:
    watch = HangWatch(tmp_path, 0.0)
    write(tmp_path, (100, 1.0), (200, 2.0))
    write(tmp_path, (200, 2.0), pause=pause)
    assert watch.look(2.0) is None
    assert watch.look(1000.0) is None
    assert watch.look(1900.0) is not None


def test_the_old_lines_of_a_resumed_run_are_no_sign_of_life(tmp_path: Path) -> None:
    write(tmp_path, (100, 1.0), (200, 2.0))
    watch = HangWatch(tmp_path, 0.0)
    (tmp_path / "timing.jsonl").write_text('{"step": 100, "seconds": 1.0}\n')
    assert watch.look(1.0) is None
    assert watch.look(600.0) is None, "it compiles"


def test_the_loop_announces_its_pauses(tmp_path: Path) -> None:
    from tests.short_runs import train

    folder = train(tmp_path, "estimator=ste")
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert [line.get("pause") for line in lines] == [None, "evaluation", "checkpoint"]


@pytest.mark.parametrize("tail", [bytes(50), bytes(50) + b"\n", b'{"step": 3'], ids=repr)
def test_a_damaged_file_does_not_stop_the_watch(tmp_path: Path, tail: bytes) -> None:
    """The queue looks at it before the run that is resumed has cut it."""
    watch = HangWatch(tmp_path, 0.0)
    write(tmp_path, (100, 100.0), (200, 200.0))
    with open(tmp_path / "timing.jsonl", "ab") as file:
        file.write(tail)
    assert watch.look(1.0) is None
    assert watch.look(100.0) is None
    assert (watch.look(10_000.0) or "").startswith("hangs")


def test_a_queue_that_was_stopped_with_its_runs_sees_no_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a terminal's Ctrl-Z and fg, or by a scheduler that suspends the job."""
    now = [1000.0]
    monkeypatch.setattr(queue.time, "monotonic", lambda: now[0])
    clock = queue.AwakeClock()
    watch = HangWatch(tmp_path, clock.now())
    write(tmp_path, (100, 1.0), (200, 2.0))
    assert watch.look(clock.now()) is None
    now[0] += 100_000
    assert watch.look(clock.now()) is None
    for _ in range(100):
        now[0] += 1
        found = watch.look(clock.now())
    assert (found or "").startswith("hangs")
