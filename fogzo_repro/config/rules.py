"""The error of a setting, and the checks that the sections have in common."""

from __future__ import annotations

import math

from fogzo_repro.terminal import UserError


class ConfigError(UserError):
    """A setting that is unknown, missing, of the wrong type or against a rule."""


def require(rule: bool, message: str) -> None:
    """Raise a ConfigError unless the rule holds."""
    if not rule:
        raise ConfigError(message)


def choice(key: str, value: str, options: tuple[str, ...]) -> None:
    """Refuse a value that is not among the options, with the list."""
    require(value in options, f"{key}={value} is not an option; options: {', '.join(options)}")


def finite(key: str, value: float | None, low: float, *, strict: bool = False) -> None:
    """Refuse a number that is not finite or is below (or, if strict, at) a bound; null passes."""
    if value is None:
        return
    good = math.isfinite(value) and (value > low if strict else value >= low)
    require(good, f"{key}={value} must be {'above' if strict else 'at least'} {low:g}")
