"""Signals that ask a run to leave: save what is there, then exit with REQUEUE_STATUS.

TERM, USR1, USR2 and INT, as job schedulers send them before they take a machine away, and HUP, of a
terminal that is closed; nohup has it ignored, and then it stays so. A step, a compilation or a save
under way is finished; a wait for data ends at once, an evaluation with the batch under way. A
second INT ends the process at once.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import signal
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:  # whoever waits for signals alone does not wait for torch
    from fogzo_repro.training.ranks import Ranks

REQUEUE_STATUS = 75  # EX_TEMPFAIL: run the same command again, it goes on
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP)

T = TypeVar("T")


class Preempted(Exception):
    """The run was asked to leave; its checkpoint is written."""


class EvaluationStopped(Exception):
    """A process of the run was asked to leave in the midst of an evaluation; raised in all."""


class _Asked(Exception):
    """A signal has come while the run was waiting."""


class StopRequest:
    """A context in which the signals set `received` instead of ending the process."""

    active: StopRequest | None = None

    def __init__(self) -> None:
        self.received: str | None = None
        self._waits = False
        self._before: dict[signal.Signals, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received:
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name
        if self._waits:
            self._waits = False
            raise _Asked

    @contextlib.contextmanager
    def _waiting(self) -> Iterator[None]:
        """Let a signal, also one that has come before, end what is waited for in here."""
        try:
            self._waits = True
            if self.received:
                raise _Asked
            yield
        finally:
            self._waits = False

    def __enter__(self) -> StopRequest:
        self._outer, StopRequest.active = StopRequest.active, self
        nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        heard = [s for s in SIGNALS if not (s == signal.SIGHUP and nohup)]
        self._before = {s: signal.signal(s, self._handle) for s in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        StopRequest.active = self._outer


def how_to_go_on(force: bool) -> str:
    """Return what a user is to do with what was interrupted, with or without force=true."""
    without = " without force=true, which would begin anew," if force else ""
    return f"run the same command again{without} to go on"


def why_elsewhere(force: bool) -> str:
    """Return why a run is left to another process, and what a user is to do."""
    return f"another process has it; once that has ended, {how_to_go_on(force)}"


def hurry() -> None:
    """Let this process end without its last garbage collection, which takes seconds with torch.

    Libraries complain at exit of objects that are still alive: standard error leads nowhere by
    then, when all that there was to say has been said.
    """
    gc.freeze()
    atexit.register(lambda: os.dup2(os.open(os.devnull, os.O_WRONLY), 2))


def until_asked(batches: Iterable[T]) -> Iterator[T | None]:
    """Yield what is waited for; None, and nothing after it, where a signal asks to leave."""
    source = iter(batches)
    while True:
        stop = StopRequest.active
        try:
            with stop._waiting() if stop else contextlib.nullcontext():
                batch = next(source)
        except StopIteration:
            return
        except _Asked:
            yield None
            return
        yield batch


def evaluated(batches: Iterable[T], ranks: Ranks) -> Iterator[T]:
    """Yield the batches of an evaluation.

    Raises:
        UserError: at their end, in all processes, where one of them could not read its batches.
        EvaluationStopped: so too, where one of them was asked to leave.
    """
    asked = False
    with ranks.together():
        for batch in until_asked(batches):
            if batch is None:
                asked = True
            else:
                yield batch
    if ranks.any(asked):
        raise EvaluationStopped
