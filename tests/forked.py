"""The real entry point in a forked child: what a new process does, without importing torch anew."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import sklearn.datasets  # noqa: F401  children inherit what is imported here
import torch._dynamo  # noqa: F401

import fogzo_repro.run  # noqa: F401
from fogzo_repro import __main__ as cli


def start(arguments: list[str], stderr: Path, before: Callable[[], None] | None = None) -> int:
    """Fork a child that runs `python -m fogzo_repro` with these arguments; return its pid."""
    pid = os.fork()
    if pid:
        return pid
    status = 70  # anything that escapes below
    try:
        with open(stderr, "a") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.stdout = sys.stderr
        sys.argv = ["fogzo_repro/__main__.py", *arguments]
        if before:
            before()
        status = cli.main()
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    finally:
        sys.stderr.flush()
        os._exit(status)


def finish(pid: int) -> int:
    """Wait for a child; return its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
