"""What is told on the terminal: lines that never stop the work, and the one line of an error.

A terminal may be closed, a pipe's reader may leave, a redirected output may lie on a full disk:
no reason to end a run that trains well and writes log.txt beside its metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import math
import os
import sys
from collections.abc import Callable, Sequence
from functools import wraps
from io import TextIOWrapper
from multiprocessing import parent_process
from pathlib import Path
from types import FrameType
from typing import Any, ParamSpec, TextIO, cast

P = ParamSpec("P")
LOST = (OSError, ValueError, AttributeError)  # no room or no reader, closed, not there at all


class UserError(Exception):
    """Something the user can mend: one line that names the remedy; exit status 2."""

    def tell(self) -> None:
        """Print it as that one line, on standard error."""
        print("error:", " ".join(str(self).split()), file=stderr())


def of_a_file(error: OSError) -> UserError:
    """Return in one line what the system has refused to do with a file.

    Raises:
        OSError: the error itself, where it is of no file.
    """
    if isinstance(error, FileNotFoundError) and error.filename is None:  # by os.getcwd
        return UserError("the folder that this is started in was removed; go to one that is there")
    if error.filename is None:
        raise error
    path = os.fsdecode(error.filename)
    return UserError(
        f"cannot use {path}: {error.strerror}; see that you can, then run the same command again"
    )


def first_line(error: BaseException) -> str:
    r"""Return the first line of what an error says, or what it is where it says nothing.

    >>> first_line(OSError("no room:\nnone")), first_line(OSError())
    ('no room', 'OSError()')
    """
    try:
        said = str(error)
    except Exception:  # a class of somebody else's
        said = ""
    return next(iter(said.strip().splitlines()), f"{type(error).__name__}()").rstrip(" :")


def aligned(lines: Sequence[Sequence[str]], numbers: bool = False) -> list[str]:
    """Return lines of a table with their columns below each other.

    Columns of `numbers`, all but the first, are set to the right.

    >>> aligned([["run", "loss"], ["first", "0.1"]])
    ['run    loss', 'first  0.1']
    >>> aligned([["run", "loss"], ["first", "0.1"]], numbers=True)
    ['run    loss', 'first   0.1']
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    places = [str.rjust if numbers and k else str.ljust for k in range(len(widths))]
    return [
        "  ".join(put(text, n) for put, text, n in zip(places, line, widths, strict=True)).rstrip()
        for line in lines
    ]


def say_interrupted() -> int:
    """Say in one line that a second INT, or one before a run began, has ended a command.

    Returns:
        The exit status, as shells have it for a process that INT has ended.
    """
    print("interrupted: run the same command again to go on", file=stderr())
    return 130


def interrupt(number: int, frame: FrameType | None) -> None:
    """Handle INT: end the process at once while it imports something.

    Raised there, it could end in a page of torch's lines, be dropped in a callback of Python's, or
    leave half a module behind, which is then an error of its own.

    Raises:
        KeyboardInterrupt: at any other time.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            status = 130 if parent_process() else say_interrupted()
            os._exit(status)
        frame = frame.f_back
    raise KeyboardInterrupt


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of the description and says the defaults."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        if text and default not in (None, "", False, argparse.SUPPRESS) and action.option_strings:
            return f"{text} [{'%(default)s'}]"
        return text


def typed_path(text: str) -> Path:
    """Return the path that a user has typed, with `~` for a home folder.

    Raises:
        ValueError: where there is no such home folder, for a name that is too long for the file
            system, and for nothing, which would be the current folder, as after `--out=$UNSET`.
    """
    if not text.strip():
        raise ValueError("is empty; a dot stands for the current folder")
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise ValueError("names a home folder that is not there; ./~ begins a name with ~")
    try:
        os.lstat(path)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise ValueError("is longer than a name may be; give a shorter one") from None
    return Path(path)


def path_of(name: str, text: str) -> Path:
    """Return the path that a user has given under a name, see `typed_path`.

    Raises:
        UserError: with the name, where it is none.
    """
    try:
        return typed_path(text)
    except ValueError as error:
        raise UserError(f"{name}={text} {error}") from None


def path_argument(text: str) -> Path:
    """Return `typed_path` for argparse, which passes on the reason of its own errors alone."""
    try:
        return typed_path(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}") from None


def text_or_path(text: str) -> str:
    """Return a name or the path that it is, as a text, for argparse."""
    return str(path_argument(text))


def number(text: str) -> float:
    """Return a number of a command line, for argparse: nan and inf would be no limit to anything.

    >>> number("3.1e9")
    3100000000.0
    """
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a finite number, at least 0")
    return value


def whole_number(text: str) -> int:
    """Return a whole number of a command line, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 0")
    return value


def at_least_one(text: str) -> int:
    """Return a whole number above 0 of a command line, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be at least 1")
    return value


def command_parser(documentation: str | None, name: str | None = None) -> argparse.ArgumentParser:
    """Return a parser whose --help shows a command's whole documentation, examples included.

    It is that of the command's module; the name is given where it is not the file's.
    """
    parser = argparse.ArgumentParser(name, description=documentation, formatter_class=_Help)
    for kind, read in ((Path, path_argument), (float, number), (int, whole_number)):
        parser.register("type", kind, read)  # what `type=Path` and so on stand for
    return parser


def one_line_errors(command: Callable[P, int | None]) -> Callable[P, int]:
    """Have a command print an error that the user can mend in one line.

    What it prints is its result: that this cannot be written is such an error, see `output_status`.

    Returns:
        What gives the exit status: the command's own, 0 where it has none; 2 after an error, 130
        where INT has ended it.
    """

    @wraps(command)
    def run(*arguments: P.args, **named: P.kwargs) -> int:
        outlive_terminal("stdout", "stderr")
        try:
            return (command(*arguments, **named) or 0) or output_status()
        except UserError as error:
            error.tell()
            return 2
        except OSError as error:
            of_a_file(error).tell()
            return 2
        except KeyboardInterrupt:
            return say_interrupted()

    return run


def output_status() -> int:
    """Return 2, and say why, where standard output has not taken all that was printed, else 0.

    That the reader of a pipe has left is no error: it has seen enough.
    """
    sys.stdout.flush()
    lost = getattr(sys.stdout, "lost", None)
    if not isinstance(lost, OSError) or isinstance(lost, BrokenPipeError):
        return 0
    UserError(f"cannot write to standard output: {lost.strerror}").tell()
    return 2


class Unfailing:
    """A text stream that drops what cannot be written; `lost` is why, the first time."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        """Write a text, or drop it."""
        try:
            self.stream.write(text)
        except LOST as error:
            self.lost = self.lost or error
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed; at its end the interpreter takes a failure for an error."""
        try:
            self.stream.flush()
        except LOST as error:
            self.lost = self.lost or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def stderr() -> TextIO:
    """Return the standard error to tell something on; what it cannot take is dropped."""
    return cast(TextIO, Unfailing(sys.stderr))


def outlive_terminal(*names: str) -> None:
    """Let the work go on where nobody can be told any more.

    A command that was started with closed streams gets them on the null device: the next file that
    is opened would otherwise take their number, and with it what any library prints. A character
    that the terminal does not know is replaced by a question mark. Failures of the named streams,
    `stdout` and `stderr`, are passed over from now on.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    for name in names:
        stream = getattr(sys, name)
        if stream is None:
            number = {"stdout": 1, "stderr": 2}[name]
            stream = open(number, "w", closefd=False)  # noqa: SIM115
        if not isinstance(stream, Unfailing):
            if isinstance(stream, TextIOWrapper):
                with contextlib.suppress(*LOST):
                    stream.reconfigure(errors="replace")
            setattr(sys, name, Unfailing(stream))
