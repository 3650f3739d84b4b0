"""The queue: works off jobs with several worker processes, and notices those that hang.

A job that fails, diverges, hangs or takes its process down does not stop the rest. One that another
process has is left to it, and tried once more when no other is left. A signal (INT, TERM, HUP), the
deadline or the end of the queue itself, however that comes, stops the workers at their checkpoints;
what was running goes on when the queue is started again.

A worker runs many jobs, one after another: imports cost several seconds, a run of the shallow
network about one. It does not import torch before its environment is set.

Whether a run is alive is judged from outside, by the lines that it adds to its timing.jsonl. They
come every FLUSH_STEPS steps, at the end of an epoch, and before a pause (an evaluation or a
checkpoint). So a run that takes its steps is silent for at most FLUSH_STEPS of them, and one that
hangs is noticed STEPS of its median step later.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import multiprocessing
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.config.own_errors import said_with_place
from fogzo_repro.files import InUse
from fogzo_repro.sweeps.jobs import Job
from fogzo_repro.sweeps.overview import Overview
from fogzo_repro.terminal import outlive_terminal
from fogzo_repro.tracking.metrics import read_metrics
from fogzo_repro.training.preemption import Preempted, StopRequest, hurry, why_elsewhere

POLL_SECONDS = 1.0
MOST_SECONDS = 10.0  # between two looks at the clock, of a process that runs
FLUSH_STEPS = 100  # training.loop's; not imported from there, which would import torch
STEPS = 50  # further steps without a line
LEAST_SECONDS = 60.0
PAUSE_SECONDS = 1800.0  # an evaluation or a checkpoint
START_SECONDS = 3600.0  # before the first line: reading data, compiling

# How a job ended, and a line about it. `finished` and `diverged` leave a record; one that is
# `elsewhere` is another process's. After `crashed` the process is not used again: an error on the
# device would spoil all that follows.
Ending = tuple[str, str]


def run_job(config: RunConfig, beside: int = 0) -> Ending:
    """Run one job to its end, or to its checkpoint after a signal; `beside` as for `execute`."""
    from fogzo_repro.run import execute

    try:
        record = execute(config, quiet=True, beside=beside)
        return record["status"], record["notes"]
    except Preempted:
        return "stopped", ""
    except InUse:
        return "elsewhere", why_elsewhere(config.force)
    except UserError as error:
        return "failed", " ".join(str(error).split())
    finally:
        gc.collect()  # a captured graph of this run must not be freed while the next one captures


def work(
    connection: Connection,
    log: Path,
    environment: dict[str, str],
    run: Callable[[RunConfig], Ending],
) -> None:
    """Take jobs from the connection, a `RunConfig` each, until it gives None; answer by `Ending`s.

    The environment is set before torch is imported; what the runs print goes into the log.
    """
    os.environ.update(environment)
    outlive_terminal("stdout", "stderr")
    with contextlib.suppress(OSError):  # without a log the runs go on
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a") as file:  # also what a dying interpreter writes
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    for number in (signal.SIGINT, signal.SIGHUP):  # a terminal's: the queue passes a TERM on
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_stop_with_the_queue, daemon=True).start()
    while True:
        try:
            config = connection.recv()
        except EOFError:  # the queue is gone
            return
        if config is None:
            return
        try:
            ending = run(config)
        except Exception as error:
            traceback.print_exc()
            ending = ("crashed", f"{said_with_place(error)}; traceback in {log}")
        sys.stdout.flush()
        with contextlib.suppress(BrokenPipeError):  # the queue is gone
            connection.send(ending)
        if ending[0] in ("crashed", "stopped"):
            hurry()
            return


def _stop_with_the_queue() -> None:
    """Stop the run of this worker once the queue is killed: the next one finds it locked else."""
    queue = multiprocessing.parent_process()
    assert queue is not None
    queue.join()
    os.kill(os.getpid(), signal.SIGTERM)


class AwakeClock:
    """Seconds that go on while this process runs.

    While a terminal or a scheduler has stopped it, it has stopped the workers too, and no run hangs
    for that.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.looked = time.monotonic()

    def now(self) -> float:
        """Return them; to be asked now and then."""
        before, self.looked = self.looked, time.monotonic()
        self.seconds += min(self.looked - before, MOST_SECONDS)
        return self.seconds


class HangWatch:
    """Watches one run, which is started `now` on the clock that `look` is given."""

    def __init__(self, folder: Path, now: float) -> None:
        self.path = folder / "timing.jsonl"
        self.size = self._size()
        self.changed = now
        self.has_begun = False

    def look(self, now: float) -> str | None:
        """Return why the run counts as hanging `now`, in seconds that only go forwards, or None."""
        size = self._size()
        if size > self.size:  # a resumed run first cuts the file, which is no sign of life
            self.changed, self.has_begun = now, True
        self.size = size
        silent = now - self.changed
        if silent <= LEAST_SECONDS:
            return None
        allowed = allowed_silence(self._lines()) if self.has_begun else START_SECONDS
        if silent <= allowed:
            return None
        return f"hangs: no metrics line for {silent:.0f} s, where {allowed:.0f} s are the limit"

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _lines(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.path)
        except (OSError, ValueError):  # not there, or damaged until the run cuts it
            return []


def allowed_silence(lines: list[dict[str, Any]]) -> float:
    """Return how many seconds may pass after the last line.

    The median step is taken over the intervals between lines, but those that hold a pause or lost
    lines; the first one, which holds the compilation, counts only where there is no other.

    >>> allowed_silence([{"step": 100, "seconds": 300}, {"step": 200, "seconds": 400}])
    150.0
    """
    if not lines:
        return START_SECONDS
    if "pause" in lines[-1]:
        return PAUSE_SECONDS
    steps = [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(lines)
        if b["step"] > a["step"] and "pause" not in a and "lost_from" not in b
    ]
    last = lines[-1]
    median = statistics.median(steps) if steps else last["seconds"] / max(1, last["step"])
    return max(LEAST_SECONDS, (FLUSH_STEPS + STEPS) * median)


@dataclass
class Outcome:
    """How the jobs ended; those that are in no list were not run."""

    finished: list[Job] = field(default_factory=list)
    diverged: list[tuple[Job, str]] = field(default_factory=list)
    failed: list[tuple[Job, str]] = field(default_factory=list)
    elsewhere: list[tuple[Job, str]] = field(default_factory=list)
    interrupted: bool = False

    def with_those_of(self, other: Outcome) -> Outcome:
        """Return how the jobs of both ended."""
        return Outcome(
            self.finished + other.finished,
            self.diverged + other.diverged,
            self.failed + other.failed,
            self.elsewhere + other.elsewhere,
            self.interrupted or other.interrupted,
        )


@dataclass
class _Worker:
    process: SpawnProcess
    connection: Connection
    job: Job | None = None
    watch: HangWatch | None = None
    hangs: str | None = None  # why its process was killed

    def give(self, job: Job, now: float) -> None:
        """Hand over a job; that a process has died meanwhile shows when its answer is taken."""
        self.job, self.watch = job, HangWatch(job.folder, now)
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
    deadline: float = math.inf,
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
        run: one job in a worker.
    """
    waiting, outcome, crew = list(jobs), Outcome(), dict[int, _Worker]()
    stopping, again, clock = False, False, AwakeClock()
    on_a_card = -(-workers // max(1, len(gpus)))
    if run is run_job:
        run = partial(run_job, beside=on_a_card - 1)
    with StopRequest() as stop, overview:
        try:
            while (waiting and not stopping) or any(w.job for w in crew.values()):
                late = time.monotonic() > deadline
                if (stop.received or late) and not stopping:
                    stopping = outcome.interrupted = True
                    for worker in crew.values():  # save and leave; between runs: just leave
                        worker.process.terminate()
                for place in range(workers if waiting and not stopping else 0):
                    if place not in crew:
                        crew[place] = _start(place, workers, gpus, logs, run)
                    if waiting and crew[place].job is None:
                        crew[place].give(waiting.pop(0), clock.now())
                now = clock.now()
                running = [w.job for w in crew.values() if w.job]
                done = len(outcome.finished) + len(outcome.diverged)
                overview.show(done, running, len(waiting), len(outcome.failed))
                for worker in crew.values():
                    worker.kill_if_hanging(now)
                busy = {w.connection: place for place, w in crew.items() if w.job is not None}
                for connection in wait(list(busy), POLL_SECONDS):
                    # A signal to all processes ends a worker that is starting.
                    outcome.interrupted |= bool(stop.received)
                    place = busy[connection]  # type: ignore[index]
                    if not _settle(crew[place], outcome):
                        crew.pop(place).connection.close()
                if not (waiting or stopping or again or any(w.job for w in crew.values())):
                    again = True  # the other process may be done by now, or gone
                    waiting, outcome.elsewhere = [job for job, _ in outcome.elsewhere], []
        finally:
            outcome.interrupted |= bool(stop.received)
            for worker in crew.values():
                worker.connection.close()  # an idle worker leaves by itself
                if worker.job is not None:  # an error in the queue itself
                    worker.process.terminate()
    return outcome


def _start(
    place: int, workers: int, gpus: Sequence[str], logs: Path, run: Callable[[RunConfig], Ending]
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
    elif status == "elsewhere":
        outcome.elsewhere.append((job, said))
    else:
        job.note_failure(said)
        outcome.failed.append((job, said))
    return status in ("finished", "diverged", "failed", "elsewhere")
