"""The queue: works off jobs with several worker processes.

A job that fails, diverges or takes its process down does not stop the rest. A signal (INT, TERM)
stops the workers at their checkpoints; what was running goes on when the queue is started again.
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

    def give(self, job: Job) -> None:
        """Hand over a job; that a process has died meanwhile shows when its answer is taken."""
        self.job, self.started = job, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self.connection.send(job.config)

    def take(self) -> Ending:
        """Return how the job ended; a process that died has ended it too."""
        try:
            return self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            return "died", f"its process ended with status {self.process.exitcode}"


def run_queue(
    jobs: Sequence[Job],
    *,
    workers: int,
    gpus: Sequence[str] = (),
    logs: Path,
    overview: Overview,
    run: Callable[[RunConfig], Ending] = run_job,
) -> Outcome:
    """Run all jobs.

    Args:
        jobs: in the order in which they are started.
        workers: processes at a time.
        gpus: names for CUDA_VISIBLE_DEVICES, dealt to the workers in turn; none: as it is.
        logs: a folder for what the workers print.
        overview: shows how it goes.
        run: runs one job in a worker.
    """
    waiting, outcome, crew = list(jobs), Outcome(), dict[int, _Worker]()
    told = False
    with StopRequest() as stop, overview:
        try:
            while (waiting and not stop.received) or any(w.job for w in crew.values()):
                if stop.received and not told:
                    told = outcome.interrupted = True
                    for worker in crew.values():  # save and leave; between runs: just leave
                        worker.process.terminate()
                for place in range(workers if waiting and not stop.received else 0):
                    if place not in crew:
                        crew[place] = _start(place, workers, gpus, logs, run)
                    if waiting and crew[place].job is None:
                        crew[place].give(waiting.pop(0))
                now = time.monotonic()
                running = [Running(w.job, now - w.started) for w in crew.values() if w.job]
                done = len(outcome.finished) + len(outcome.diverged)
                overview.show(done, running, len(waiting), len(outcome.failed))
                for place in _ready(crew):
                    if not _settle(crew[place], outcome):
                        crew.pop(place).connection.close()
        finally:
            outcome.interrupted |= bool(stop.received)
            for worker in crew.values():
                worker.connection.close()  # an idle worker leaves by itself
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
    process = context.Process(target=work, args=arguments, daemon=True)
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
        outcome.failed.append((job, said))
    return status in ("finished", "diverged", "failed")
