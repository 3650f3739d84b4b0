"""A worker of the queue: one process that runs many cells, one after another.

Imports cost several seconds, a run of the shallow network about one; so a worker keeps its process.
It does not import torch before its environment is set.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from fogzo_repro.config import RunConfig, UserError

# How a job ended, and a line about it. `finished` and `diverged` leave a record; after `crashed`
# the process is not used again: an error on the device would spoil all that follows.
Ending = tuple[str, str]


def run_job(config: RunConfig) -> Ending:
    """Run one job to its end, or to its checkpoint after a signal."""
    from fogzo_repro.run import execute
    from fogzo_repro.training.preemption import Preempted

    try:
        record = execute(config, quiet=True)
        return record["status"], record["notes"]
    except Preempted:
        return "stopped", ""
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
    """Take jobs from the connection until there are none.

    Args:
        connection: gives a `RunConfig` or None, takes an `Ending`.
        log: takes all that the runs print.
        environment: variables to set before torch is imported.
        run: runs one job.
    """
    os.environ.update(environment)
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a") as file:  # also what a dying interpreter writes
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the queue passes a TERM on; a run handles both
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
            line = f"{type(error).__name__}: {error}".splitlines()[0]
            ending = ("crashed", f"{line}; traceback in {log}")
        sys.stdout.flush()
        connection.send(ending)
        if ending[0] in ("crashed", "stopped"):
            return
