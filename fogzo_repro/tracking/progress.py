"""Progress with an ETA: a live bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fogzo_repro.terminal import stderr

LINE_SECONDS = 15.0  # without a terminal: a line at most this often


class RunProgress:
    """Shows the steps of one run; a resumed one has taken `done` of them before."""

    def __init__(self, label: str, total: int, done: int, quiet: bool = False) -> None:
        self.label = label
        self.total = total
        self.first = done
        self.started = self.last_line = self.shown = time.monotonic()
        self.said: dict[str, Any] = {}
        self.console = Console(file=stderr(), quiet=quiet)
        self.bar: Progress | None = None
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
                TimeRemainingColumn(), TextColumn("{task.fields[said]}"),
                console=self.console, transient=True,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task(label, total=total, completed=done, said="")

    def update(self, step: int, said: dict[str, Any]) -> None:
        """Show that `step` steps are done; `said` are the numbers beside the bar."""
        self.said, self.shown = said, time.monotonic()
        text = "  ".join(f"{k} {v:.4g}" for k, v in said.items())
        if self.bar is not None:
            self.bar.update(self.task, completed=step, said=text)
        elif time.monotonic() - self.last_line > LINE_SECONDS:
            self.last_line = time.monotonic()
            rate = (step - self.first) / (self.last_line - self.started)
            eta = (self.total - step) / rate if rate else float("inf")
            parts = [self.label, f"step {step}/{self.total}", text, f"eta {clock(eta)}"]
            self.say("  ".join(filter(None, parts)))

    def tick(self, step: int) -> None:
        """Show a step without new numbers, at most once a second: cheap enough for every step."""
        if time.monotonic() - self.shown > 1:
            self.update(step, self.said)

    def say(self, line: str) -> None:
        """Print a line above the bar."""
        self.console.print(line, highlight=False, soft_wrap=True, markup=False)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()


def clock(seconds: float) -> str:
    """Return seconds as m:ss or h:mm:ss.

    >>> clock(75), clock(3725), clock(float("inf"))
    ('1:15', '1:02:05', 'unknown')
    """
    if seconds == float("inf"):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
