"""What users' Python files raise, when they are read or in use: told with the file and the line."""

from __future__ import annotations

import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

from fogzo_repro.config.rules import ConfigError
from fogzo_repro.project import PACKAGE
from fogzo_repro.terminal import UserError, first_line, stderr

P = ParamSpec("P")
R = TypeVar("R")
OWN = "fogzo_parts"  # the package, in sys.modules alone, of the users' Python files


class PartError(ConfigError, ValueError):
    """What a user's Python file has raised, in one line with the file and the line number."""


@contextlib.contextmanager
def located(path: Path) -> Iterator[None]:
    """Say what a user's file raises in one line, with the line of the file that has led to it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if path.is_relative_to(PACKAGE):
            raise
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(path)]
        said = str(error)
        if isinstance(error, SyntaxError) and error.filename == str(path):
            lines, said = [error.lineno], error.msg
        if type(error) is not ValueError:  # that is how a part refuses a value
            said = f"{type(error).__name__}: {said}"
        place = f"{path}, line {lines[-1]}" if lines else str(path)
        raise PartError(f"{place}: {said}") from error


class PartFailed(UserError):
    """What a user's file has raised while it was used: its traceback, then a line that names it."""

    def tell(self) -> None:
        """Print both, on standard error."""
        traceback.print_exception(self.__cause__, file=stderr())
        super().tell()


def own_files_named(work: Callable[P, R]) -> Callable[P, R]:
    """Have a function name the users' files in what it raises while these are used.

    A plain function, which Slurm's launcher can pickle, and no context manager.

    Raises:
        PartFailed: in place of an error where a user's file is in use.
    """

    @wraps(work)
    def run(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return work(*arguments, **named)
        except (Exception, SystemExit) as error:
            ended = isinstance(error, SystemExit) and not place_in_own_file(error)
            if isinstance(error, UserError) or ended or not own_files():
                raise
            room = (
                isinstance(error, (OSError, MemoryError)) or "OutOfMemory" in type(error).__name__
            )
            remedy = "" if room else "; mend it and run the same command again"
            raise PartFailed(said_with_place(error) + remedy) from error

    return run


def own_files() -> list[str]:
    """Return the users' Python files that are in use."""
    modules = [module for name, module in sys.modules.items() if name.startswith(f"{OWN}.")]
    return sorted(file for module in modules if (file := module.__file__) is not None)


def said_with_place(error: BaseException) -> str:
    """Return an error in one line, with its place in a user's file, or all files in use."""
    kind, line = type(error).__name__, first_line(error)
    said = kind if line == f"{kind}()" else f"{kind}: {line}"
    if place := place_in_own_file(error):
        return place + said
    return said + (f" (parts of yours in use: {', '.join(own_files())})" if own_files() else "")


def place_in_own_file(error: BaseException) -> str:
    """Return the last place in a user's file that an error has come through; empty without one.

    Of code that was being compiled, and so not run, the compiler keeps the frames by itself.
    """
    own = own_files()
    frames = [*traceback.extract_tb(error.__traceback__), *(getattr(error, "real_stack", ()) or ())]
    places = [
        f"{frame.filename}, line {frame.lineno}: " for frame in frames if frame.filename in own
    ]
    return places[-1] if places else ""
