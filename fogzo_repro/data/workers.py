"""How worker processes end: with their parent, and not before."""

from __future__ import annotations

import os
import signal
import threading
import time

POLL_SECONDS = 0.5


def outlive_signals() -> None:
    """Leave to the first process what a signal to all processes of a job means.

    A scheduler asks a job to stop by TERM to every process of it, a terminal by INT. The run then
    saves at the next step boundary, until when it needs its workers. One that is no longer needed
    is ended by TERM from its parent alone, so only that is heeded; torch's worker ends at any.
    """
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


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
