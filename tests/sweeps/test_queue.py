"""The queue: one bad cell does not stop the rest, and what is missing is all that is run."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from fogzo_repro import files
from fogzo_repro.config import RunConfig
from fogzo_repro.sweeps import queue
from fogzo_repro.sweeps.jobs import Cell, Job, collect, missing_jobs, plan_jobs
from fogzo_repro.sweeps.overview import Overview, progress_of
from fogzo_repro.sweeps.queue import Ending, Outcome, run_job, run_queue
from fogzo_repro.sweeps.status import known_runs
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.preemption import REQUEUE_STATUS, StopRequest
from tests.forked import finish, fork

Make = Callable[..., RunConfig]
CRASHING_SEED = 1
HANGING_SEED = 5
FULL_SEED = 1


def end_by_seed(config: RunConfig) -> Ending:
    """Stand in for runs that die, crash, diverge, fail, hang after some steps, and finish."""
    if config.seed == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if config.seed == 2:
        raise RuntimeError("no such kernel")
    others = {3: ("diverged", "step 7: loss nan"), 4: ("failed", "no data")}
    if config.seed != HANGING_SEED:
        return others.get(config.seed, ("finished", ""))
    folder = Path(config.output_root) / f"run-{config.seed}"
    folder.mkdir(parents=True)
    for step in (100, 200, 300):
        with open(folder / "timing.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "seconds": step * 1e-6}) + "\n")
        time.sleep(0.02)
    time.sleep(600)
    return "finished", ""


def start_a_process(config: RunConfig) -> Ending:
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    return "finished", ""


def save_when_asked(config: RunConfig) -> Ending:
    with StopRequest() as stop:
        while stop.received is None:
            time.sleep(0.01)
    return "stopped", ""


def leave_a_word(config: RunConfig) -> Ending:
    folder = Path(config.output_root)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "begun").touch()
    save_when_asked(config)
    (folder / "saved").touch()
    return "stopped", ""


def say_device(config: RunConfig) -> Ending:
    return "failed", os.environ["CUDA_VISIBLE_DEVICES"]


def crash_or_run(config: RunConfig) -> Ending:
    if config.seed == CRASHING_SEED:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_job(config)


def end_with_the_queue(config: RunConfig) -> Ending:
    """Stand in for a worker that a signal to all processes ends as it starts."""
    os.kill(os.getppid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGKILL)
    return "finished", ""


def held_the_first_time(config: RunConfig) -> Ending:
    """Stand in for a run that another process ends while this queue has others to run."""
    folder = Path(config.output_root)
    held = config.seed == 0 and not (folder / "asked").exists()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "asked").touch()
    return ("elsewhere", "another process has it") if held else ("finished", "")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not come"
        time.sleep(0.05)


def jobs_of(config: RunConfig, count: int) -> list[Job]:
    return [Job(replace(config, seed=s), f"run-{s}", 5, 15) for s in range(count)]


def seeds(jobs: list[Job]) -> list[int]:
    return sorted(job.config.seed for job in jobs)


def start(jobs: list[Job], folder: Path, **options: object) -> Outcome:
    overview = Overview("test", len(jobs), 0)
    settings: dict = {"workers": 2, "logs": folder / "logs", "overview": overview, **options}
    return run_queue(jobs, **settings)


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Workers that train need not import torch anew; elsewhere they are started as ever."""
    context = multiprocessing.get_context("fork")
    with monkeypatch.context() as patch:
        patch.setattr(queue.multiprocessing, "get_context", lambda method: context)
        yield
    for worker in multiprocessing.active_children():  # they hold our ends, so do not see us go
        worker.kill()


def run_on_a_full_disk(config: RunConfig) -> Ending:
    """Fail where the disk takes no more; the seed after it has room again."""
    room = 0 if config.seed == FULL_SEED else resource.RLIM_INFINITY
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    print("said into a log that may be full")
    return run_job(config)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_full_disk_fails_the_run_in_one_line_and_the_others_go_on(
    make_config: Make, tmp_path: Path
) -> None:
    jobs = plan_jobs([Cell(make_config(), (0, FULL_SEED, 2))])
    outcome = start(jobs, tmp_path, run=run_on_a_full_disk, workers=1)
    assert seeds(outcome.finished) == [0, 2]
    ((job, why),) = outcome.failed
    assert job.config.seed == FULL_SEED
    assert why.startswith("cannot write ") and "resolved.json: File too large" in why
    assert read_record(jobs[2].folder / "record.json")["status"] == "finished"


@pytest.mark.slow
def test_the_queue_works_without_a_place_for_its_logs(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file where the folder of logs should be")
    outcome = start(jobs_of(make_config(), 1), tmp_path, run=end_by_seed)
    assert seeds(outcome.finished) == [0]


@pytest.mark.slow
def test_the_cards_are_dealt_to_the_workers_in_turn(make_config: Make, tmp_path: Path) -> None:
    outcome = start(jobs_of(make_config(), 2), tmp_path, run=say_device, gpus=["3", "5"])
    assert sorted(why for _, why in outcome.failed) == ["3", "5"]


@pytest.mark.slow
def test_a_job_that_crashes_hangs_or_diverges_does_not_stop_the_rest(
    make_config: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from scripts.run_cells import conclude

    monkeypatch.setattr(queue, "LEAST_SECONDS", 1.0)
    monkeypatch.setattr(queue, "START_SECONDS", 300.0)
    jobs = jobs_of(make_config(), 7)
    outcome = start(jobs, tmp_path, run=end_by_seed)
    assert seeds(outcome.finished) == [0, 6] and not outcome.interrupted
    assert [(job.config.seed, why) for job, why in outcome.diverged] == [(3, "step 7: loss nan")]
    reasons = {job.config.seed: why for job, why in outcome.failed}
    assert reasons[HANGING_SEED].startswith("hangs: no metrics line for")
    assert sorted(reasons) == [1, 2, 4, HANGING_SEED]
    assert "status -9" in reasons[1] and reasons[4] == "no data"
    assert reasons[2].startswith("RuntimeError: no such kernel")
    assert conclude(outcome, len(jobs), Overview("test", len(jobs), 0)) == 1
    said = capsys.readouterr().err
    assert "2 finished, 1 diverged, 4 failed, 0 not run" in said
    assert "failed: STE | -, seed 5 (run-5): hangs" in said
    known = known_runs(tmp_path / "records", [tmp_path / "runs"])
    assert sorted(known) == [("miniature", "STE", "-", "full", seed) for seed in (1, 2, 4, 5)]


def test_a_run_may_start_processes_as_the_loaders_of_photographs_do(
    make_config: Make, tmp_path: Path
) -> None:
    outcome = start(jobs_of(make_config(), 1), tmp_path, run=start_a_process)
    assert seeds(outcome.finished) == [0]


@pytest.mark.slow
def test_the_deadline_stops_the_queue_as_a_signal_does(make_config: Make, tmp_path: Path) -> None:
    deadline = time.monotonic() + 1.0
    outcome = start(jobs_of(make_config(), 3), tmp_path, run=save_when_asked, deadline=deadline)
    assert outcome.interrupted
    assert not (outcome.finished or outcome.failed or outcome.diverged)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_signal_to_all_processes_fails_no_run_whose_worker_was_starting(
    make_config: Make, tmp_path: Path
) -> None:
    outcome = start(jobs_of(make_config(), 2), tmp_path, run=end_with_the_queue, workers=1)
    assert outcome.interrupted and not outcome.failed


@pytest.mark.slow
def test_a_closed_terminal_stops_the_queue_and_its_runs_at_their_checkpoints(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config()

    def run() -> int:
        os.setsid()
        outcome = start(jobs_of(config, 2), tmp_path, run=leave_a_word, workers=1)
        return 75 if outcome.interrupted and not outcome.failed else 1

    pid = fork(run)
    wait_for(Path(config.output_root) / "begun")
    os.killpg(pid, signal.SIGHUP)
    assert finish(pid) == 75
    assert (Path(config.output_root) / "saved").exists()


@pytest.mark.slow
def test_a_run_saves_and_leaves_where_its_queue_was_killed(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config()
    pid = fork(lambda: start(jobs_of(config, 1), tmp_path, run=leave_a_word) and 0)
    for word in ("begun", "saved"):
        wait_for(Path(config.output_root) / word)
        if word == "begun":
            os.kill(pid, signal.SIGKILL)
            assert finish(pid) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_run_that_another_process_has_is_left_to_it_and_not_noted_as_failed(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from scripts.run_cells import conclude

    jobs = plan_jobs([Cell(make_config("estimator=ste"), (0, 1))])
    jobs[0].folder.mkdir(parents=True)
    with files.locked(jobs[0].folder / "lock", "the run"):
        outcome = start(jobs, tmp_path, workers=1)
    assert (seeds(outcome.finished), outcome.failed) == ([1], [])
    assert [path.name for path in jobs[0].folder.iterdir()] == ["lock"]
    assert conclude(outcome, 2, Overview("test", 2, 0)) == REQUEUE_STATUS
    said = capsys.readouterr().err
    assert f"elsewhere: STE | -, seed 0 ({jobs[0].run_id}): another process has it; once" in said
    assert "1 finished, 0 diverged, 0 failed, 0 not run, 1 elsewhere" in said


@pytest.mark.usefixtures("forked")
def test_a_run_that_another_process_had_is_asked_for_again_at_the_end(
    make_config: Make, tmp_path: Path
) -> None:
    outcome = start(jobs_of(make_config(), 3), tmp_path, run=held_the_first_time, workers=1)
    assert [job.config.seed for job in outcome.finished] == [1, 2, 0]
    assert not outcome.elsewhere


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_miniature_table_with_a_crash_is_completed_by_a_second_queue(
    make_config: Make, tmp_path: Path
) -> None:
    cells = [Cell(make_config("quantizer=none", "estimator=ste"), (0, CRASHING_SEED))]
    jobs, records = plan_jobs(cells), tmp_path / "records"
    first = start(missing_jobs(jobs, records), tmp_path, run=crash_or_run)
    assert (seeds(first.finished), seeds([j for j, _ in first.failed])) == ([0], [1])

    left = missing_jobs(jobs, records)
    assert seeds(left) == [CRASHING_SEED]
    assert seeds(start(left, tmp_path).finished) == [CRASHING_SEED]
    assert read_record(left[0].folder / "record.json")["beside"] == 1  # of two workers
    assert missing_jobs(jobs, records) == []

    assert collect(jobs, records) == []
    filed = sorted((records / "miniature").glob("*.json"))
    assert [path.stem for path in filed] == sorted(job.run_id for job in jobs)
    assert {read_record(path)["row"] for path in filed} == {"STE"}
    assert progress_of(jobs[0]) == (5, "0:00")


@pytest.mark.parametrize(
    "line",
    ['{"step": 0, "seconds": 1.0}', '{"seconds": 1.0}', "[]", '{"step": 1e999, "seconds": 1e999}'],
    ids=str,
)
def test_times_that_tell_nothing_do_not_stop_the_overview(make_config: Make, line: str) -> None:
    (job,) = jobs_of(make_config(), 1)
    job.folder.mkdir(parents=True)
    (job.folder / "timing.jsonl").write_text(line + "\n")
    assert progress_of(job) == (0, "starting")
