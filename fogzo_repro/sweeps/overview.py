"""The live overview of a queue: done, running with ETA, waiting, failed.

A terminal shows a table that is redrawn; elsewhere a line is printed now and then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fogzo_repro import files
from fogzo_repro.sweeps.jobs import Job
from fogzo_repro.terminal import stderr
from fogzo_repro.tracking.progress import LINE_SECONDS, clock

TAIL_BYTES = 200  # enough for the last line of timing.jsonl


class Overview:
    """Shows the state of the queue on stderr: of `total` jobs, of which some were over before.

    Without a terminal it is a line every so many seconds.
    """

    def __init__(self, label: str, total: int, over: int, every: float = LINE_SECONDS) -> None:
        self.label = label
        self.total = total
        self.over = over
        self.every = every
        self.console = Console(file=stderr())
        self.live = Live(console=self.console, auto_refresh=False, transient=True)
        self.started = self.last_line = time.monotonic()

    def __enter__(self) -> Overview:
        self.started = time.monotonic()
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.live.stop()

    def show(self, done: int, running: Sequence[Job], waiting: int, failed: int) -> None:
        """Show the state; `done` counts the jobs that ended since the queue was started."""
        now = time.monotonic()
        line = self.line(done, len(running), waiting, failed, now - self.started)
        if self.console.is_terminal:
            self.live.update(Group(Text(line), _table(running)), refresh=True)
        elif now - self.last_line > self.every:
            self.last_line = now
            self.say(line)

    def line(self, done: int, running: int, waiting: int, failed: int, seconds: float) -> str:
        """Return the state in one line; the ETA goes by the runs done so far."""
        ended = done + failed
        eta = clock(seconds / ended * (running + waiting)) if ended else "unknown"
        return (
            f"{self.label}: {self.over + done} of {self.total} done, {running} running, "
            f"{waiting} waiting, {failed} failed, {clock(seconds)} so far, eta {eta}"
        )

    def say(self, line: str) -> None:
        """Print a line that stays."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(running: Sequence[Job]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title in ("running", "step", "eta"):
        table.add_column(title)
    for job in running:
        cell = job.config.cell
        name = f"{cell.row} | {cell.column}, seed {job.config.seed}"
        step, eta = progress_of(job)
        table.add_row(Text(name), f"{step}/{job.total_steps}", eta)
    return table


def progress_of(job: Job) -> tuple[int, str]:
    """Return the step that a run has reached and its ETA, read from its timing.jsonl."""
    try:
        with open(job.folder / "timing.jsonl", "rb") as file:
            file.seek(max(0, file.seek(0, 2) - TAIL_BYTES))
            last = files.parse_json(file.read().splitlines()[-1])
        left = (job.total_steps - last["step"]) * last["seconds"] / last["step"]
        return last["step"], clock(left)
    # Not there yet, a line half written, or damaged until the run cuts it.
    except (OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return 0, "starting"
