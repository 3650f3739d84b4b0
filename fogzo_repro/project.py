"""Where the suite's own files are: at the top of a clone, or inside the package that was installed.

A build (setup.py) maps `configs/`, the paper's values and the benches under `results/`, and the
commands of `scripts/` into the package, so that `pip install` brings all that a run reads. What is
written goes elsewhere: runs to `output_root`, results to `results/` of the clone, or of the working
directory where the suite is installed.
"""

from __future__ import annotations

import shlex
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

from fogzo_repro.terminal import interrupt

PACKAGE = Path(__file__).resolve().parent
INSTALLED = (PACKAGE / "configs").is_dir()
TOP = PACKAGE if INSTALLED else PACKAGE.parent  # holds configs/, results/paper/ and scripts/
CONFIGS = TOP / "configs"


def working_folder() -> Path:
    """Return where results and the demo go: the clone, or the working directory if installed."""
    return Path() if INSTALLED else TOP


def shipped(results: Path, name: str) -> Path:
    """Return a folder, `paper` or `records/bench`, of results or, without one, of the suite's."""
    own = results / name
    return own if own.is_dir() else TOP / "results" / name


def script(name: str, *words: object) -> str:
    """Return the line that starts a command of scripts/ with these words, as a shell takes it.

    >>> script("prepare_imagenet", "--root", "my data").removeprefix("python ")
    "scripts/prepare_imagenet.py --root 'my data'"
    """
    start = ["-m", f"fogzo_repro.scripts.{name}"] if INSTALLED else [f"scripts/{name}.py"]
    return shlex.join(["python", *start, *map(str, words)])


def begin_command() -> None:
    """Do what comes before the imports of a command, which take seconds."""
    check_installed()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)


def check_installed() -> None:
    """End a command in one line where this Python has not the packages that the suite needs."""
    if find_spec("hydra") is None:
        print(
            f"error: {sys.executable} has not the packages of the suite: in the clone, make "
            "install and then source .venv/bin/activate; or pip install '.[suite]'",
            file=sys.stderr,
        )
        raise SystemExit(2)
