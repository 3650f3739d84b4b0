"""How worker processes end: with their parent, and not before."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from fogzo_repro.config import UserError

T = TypeVar("T")
U = TypeVar("U")
POLL_SECONDS = 0.5
LOCK_SECONDS = 10.0  # to wait for a folder's lock: workers of a killed process hold it for a moment


def outlive_signals() -> None:
    """Leave to the first process what a signal to all processes of a job means.

    A scheduler asks a job to stop by TERM to every process of it, a terminal by INT or HUP. The run
    then saves at the next step boundary, until when it needs its workers. One that is no longer
    needed is ended by TERM from its parent alone, so only that is heeded; torch's worker ends at
    any.
    """
    asking = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, asking)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def worker_pool(count: int, begin: Callable[[], object] = bool) -> Iterator[ProcessPoolExecutor]:
    """Have processes forked from this one: they end with it, and at once where it is interrupted.

    Args:
        count: how many.
        begin: is called in each at its start.

    Raises:
        UserError: where one of them was ended from outside.
    """
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(count, context, _begin, (os.getpid(), begin)) as pool:
        try:
            yield pool
        except BaseException as error:
            for worker in multiprocessing.active_children():  # else their work is waited for
                worker.kill()
            if isinstance(error, BrokenProcessPool):
                raise UserError(
                    "a worker was ended from outside, as where memory is short; run the same "
                    "command again, with fewer --workers"
                ) from None
            raise


def in_order(
    pool: ProcessPoolExecutor, do: Callable[[T], U], items: Sequence[T], together: int = 1
) -> Iterator[U]:
    """Yield what `do` returns for each item; a worker takes so many of them together.

    `pool.map` cancels what is left after an error or an interruption, and Python 3.11 tells in a
    traceback that a pool with cancelled work has lost its workers.
    """
    parts = (items[first : first + together] for first in range(0, len(items), together))
    waiting = [pool.submit(_do_each, do, part) for part in parts][::-1]
    while waiting:
        yield from waiting.pop().result()


def _do_each(do: Callable[[T], U], items: Sequence[T]) -> list[U]:
    return [do(item) for item in items]


def _begin(parent: int, begin: Callable[[], object]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the parent decides
    end_with(parent)
    begin()


def end_with(parent: int) -> None:
    """End this process soon after its parent, however that ends.

    Nothing may be left to write into a folder beside the next attempt. The parent's process id is
    from before this process was started.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
