"""Signals that ask a run to leave: save at the next step boundary, then exit with REQUEUE_STATUS.

TERM, USR1, USR2 and INT, as job schedulers send them before they take a machine away. A second INT
ends the process at once.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

REQUEUE_STATUS = 75  # EX_TEMPFAIL: run the same command again, it goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)


class Preempted(Exception):
    """The run was asked to leave; its checkpoint is written."""


class StopRequest:
    """A context in which the signals set `received` instead of ending the process."""

    def __init__(self) -> None:
        self.received: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def __enter__(self) -> StopRequest:
        self._before = {s: signal.signal(s, self._handle) for s in SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
