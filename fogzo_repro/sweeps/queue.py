"""The queue: works off jobs with several worker processes.

A job that fails, diverges, hangs or takes its process down does not stop the rest. A signal (INT,
TERM) or the deadline stops the workers at their checkpoints; what was running goes on when the
queue is started again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

from fogzo_repro.config import RunConfig
from fogzo_repro.sweeps.cells import Job
from fogzo_repro.sweeps.hangs import HangWatch
from fogzo_repro.sweeps.overview import Overview, Running
from fogzo_repro.sweeps.worker import Ending, run_job, work
from fogzo_repro.training.preemption import StopRequest

POLL_SECONDS = 1.0


@dataclass
class Outcome:
    """How the jobs ended; those that are in no list were not run."""

    finished: list[Job] = field(default_factory=list)
    diverged: list[tuple[Job, str]] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    interrupted: bool = False


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Job | None = None
    started: float = 0.0
    watch: HangWatch | None = None
    hangs: str | None = None  # why its process was killed

    def give(self, job: Job) -> None:
        """Hand over a job; that a process has died meanwhile shows when its answer is taken."""
        self.job, self.started = job, time.monotonic()
        self.watch = HangWatch(job.folder, self.started)
        job.forget_failure()
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job.config)

    def take(self) -> Ending:
        """Return how the job ended; a process that died has ended it too."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            if self.hangs:
                return "hangs", self.hangs
            return "died", f"its process ended with status {self.process.exitcode}"

    def kill_if_hanging(self, now: float) -> None:
        """Kill the process of a job that shows no life; `take` says so."""
        if self.job is None or self.watch is None or self.hangs:
            return
        self.hangs = self.watch.look(now)
        if self.hangs:
            self.process.kill()


def run_queue(
    jobs: Sequence[Job],
    *,
    workers: int,
    gpus: Sequence[str] = (),
    logs: Path,
    overview: Overview,
    deadline: float | None = None,
    run: Callable[[RunConfig], Ending] = run_job,
) -> Outcome:
    """Run all jobs.

    Args:
        jobs: in the order in which they are started.
        workers: processes at a time.
        gpus: names for CUDA_VISIBLE_DEVICES, dealt to the workers in turn; none: as it is.
        logs: a folder for what the workers print.
        overview: shows how it goes.
        deadline: on time.monotonic's clock; then the queue stops as if by a signal.
        run: runs one job in a worker.
    """
    waiting, outcome, crew = list(jobs), Outcome(), dict[int, _Worker]()
    stopping = False
    with StopRequest() as stop, overview:
        try:
            while (waiting and not stopping) or any(w.job for w in crew.values()):
                late = deadline is not None and time.monotonic() > deadline
                if (stop.received or late) and not stopping:
                    stopping = outcome.interrupted = True
                    for worker in crew.values():  # save and leave; between runs: just leave
                        worker.process.terminate()
                for place in range(workers if waiting and not stopping else 0):
                    if place not in crew:
                        crew[place] = _start(place, workers, gpus, logs, run)
                    if waiting and crew[place].job is None:
                        crew[place].give(waiting.pop(0))
                now = time.monotonic()
                running = [Running(w.job, now - w.started) for w in crew.values() if w.job]
                done = len(outcome.finished) + len(outcome.diverged)
                overview.show(done, running, len(waiting), len(outcome.failed))
                for worker in crew.values():
                    worker.kill_if_hanging(now)
                for place in _ready(crew):
                    if not _settle(crew[place], outcome):
                        crew.pop(place).connection.close()
        finally:
            outcome.interrupted |= bool(stop.received)
            for worker in crew.values():
                worker.connection.close()  # an idle worker leaves by itself
                if worker.job is not None:  # an error in the queue itself
                    worker.process.terminate()
    return outcome


def _start(
    place: int,
    workers: int,
    gpus: Sequence[str],
    logs: Path,
    run: Callable[[RunConfig], Ending],
) -> _Worker:
    environment = {}
    if "OMP_NUM_THREADS" not in os.environ:  # share the cores instead of fighting for them
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // workers))
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    arguments = (theirs, logs / f"{place}.log", environment, run)
    # Not a daemon: those may not start processes, and a run on photographs starts its loaders.
    process = context.Process(target=work, args=arguments)
    process.start()
    theirs.close()  # so that the end of the process is the end of the connection
    return _Worker(process, ours)


def _ready(crew: dict[int, _Worker]) -> list[int]:
    """Wait a moment for workers that have something to say."""
    busy = {w.connection: place for place, w in crew.items() if w.job is not None}
    return [busy[c] for c in wait(list(busy), POLL_SECONDS)]  # type: ignore[index]


def _settle(worker: _Worker, outcome: Outcome) -> bool:
    """Book how a worker's job ended; return whether the worker takes another."""
    assert worker.job is not None
    job, (status, said) = worker.job, worker.take()
    worker.job = None
    if status == "finished":
        outcome.finished.append(job)
    elif status == "diverged":
        outcome.diverged.append((job, said))
    elif status == "stopped" or (status == "died" and outcome.interrupted):
        outcome.interrupted = True
    else:
        job.note_failure(said)
        outcome.failed.append((job, said))
    return status in ("finished", "diverged", "failed")
