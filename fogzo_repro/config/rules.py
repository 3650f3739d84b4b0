"""The error of a setting, and the checks that the sections have in common."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable

from fogzo_repro.terminal import UserError


class ConfigError(UserError):
    """A setting that is unknown, missing, of the wrong type or against a rule."""


def require(rule: bool, message: str) -> None:
    """Raise a ConfigError unless the rule holds."""
    if not rule:
        raise ConfigError(message)


def check_given_once(words: Iterable[str]) -> None:
    """Refuse a setting with two values on a command line, of which the last one would win.

    >>> check_given_once(["seed=1", "recipe.lr=0.1", "seed=1"])
    """
    given: dict[str, str] = {}
    for word in words:
        key, _, value = word.lstrip("+").partition("=")
        first = given.setdefault(key, word)
        same = first.partition("=")[2] == value
        require(same, f"{first} and {word} are given together; give one")


def did_you_mean(name: str, known: Iterable[str], before: str = "") -> str:
    """Return the question after a name that is not known, or nothing where no known name is near.

    Of dotted names the parts are compared one by one: all of `estimator.` looks alike otherwise.
    `before` is put before the name that is proposed.

    >>> did_you_mean("betamin", ["n", "beta_min"], "estimator."), did_you_mean("betamin", ["n"])
    ('; did you mean estimator.beta_min?', '')
    >>> did_you_mean("estimater.n", ["estimator.n"]), did_you_mean("n", ["seed", "estimator.n"])
    ('; did you mean estimator.n?', '; did you mean estimator.n?')
    """
    near = _nearest(name, set(known))
    return f"; did you mean {before}{near}?" if near else ""


def _nearest(name: str, known: set[str]) -> str | None:
    section, _, key = name.rpartition(".")
    sections = {k.rpartition(".")[0] for k in known}
    if section and section not in sections:
        section = _nearest(section, sections - {""}) or section
    keys = [k.rpartition(".")[2] for k in known if k.rpartition(".")[0] == section]
    near = difflib.get_close_matches(key, sorted(keys), n=1, cutoff=0.6)
    if near:
        return f"{section}.{near[0]}".lstrip(".")
    elsewhere = [k for k in sorted(known) if k.rpartition(".")[2] == key]
    return elsewhere[0] if len(elsewhere) == 1 else None


def choice(key: str, value: object, options: tuple[object, ...], hint: str = "") -> None:
    """Refuse a value that is not among the options, with the list and a hint."""
    said = ", ".join(map(spelled, options))
    require(value in options, f"{key}={spelled(value)} is not an option; options: {said}{hint}")


def spelled(value: object) -> str:
    """Return a value as it is written in YAML and on the command line.

    >>> spelled(True), spelled(None), spelled("half_step"), spelled(0.5)
    ('true', 'null', 'half_step', '0.5')
    """
    words = {True: "true", False: "false", None: "null"}
    return words[value] if value is None or isinstance(value, bool) else str(value)


LARGEST = 2**31 - 1  # of a whole number: sizes of a network, probe pairs
MOST = 1000  # of what is made one by one before a run begins: layers, copies, processes


def finite(
    key: str, value: float | None, low: float, *, strict: bool = False, most: int = LARGEST
) -> None:
    """Refuse a number that is not finite or is below (or, if strict, at) a bound; null passes."""
    if value is None:
        return
    if isinstance(value, int):
        require(value <= most, f"{key}={value} must be at most {most}")
    require(math.isfinite(value), f"{key}={value} must be a finite number")
    good = value > low if strict else value >= low
    require(good, f"{key}={value} must be {'above' if strict else 'at least'} {low:g}")
