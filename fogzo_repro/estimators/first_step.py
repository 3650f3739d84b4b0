"""Checks of the first step of `FogzoStep`: is a loss the same when it is taken again?

Each finding is one line for a warning; an error where the estimate would be wrong for sure.
"""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.estimators.checks import plain_name
from fogzo_repro.estimators.replay import RecordedLoss

LARGE_FACTOR = 100  # more than a loss is multiplied by, less than a GradScaler begins with


def check_factors(losses: Sequence[RecordedLoss], inverse: Tensor | None) -> list[str]:
    """Return warnings about the factors by which losses were multiplied before backward.

    `inverse` is 1 over the GradScaler's scale, where one was given.

    Raises:
        ValueError: for a loss that a GradScaler has scaled while none was given.
    """
    factors = [float(loss.weight) for loss in losses]
    total = sum(factors)
    if inverse is None:
        if max(factors) > LARGE_FACTOR:
            raise ValueError(
                f"the loss was multiplied by {max(factors):g} before backward; give the GradScaler "
                "that has done it, scaler="
            )
    elif 0 < abs(total) * float(inverse) < LARGE_FACTOR**-2:
        return [
            f"scaler= is given, and the loss was multiplied by {total:g} before backward and not "
            f"by its scale, {1 / float(inverse):g}, by which the gradients are divided; call "
            "scaler.scale(loss).backward(), or leave out scaler="
        ]
    return []


def taken_again(
    losses: Sequence[RecordedLoss], again: Callable[[RecordedLoss], Tensor], model: nn.Module
) -> tuple[Tensor, list[str]]:
    """Take each loss of a step twice more at the same weights, by `again`.

    Returns:
        The difference of the two passes over all losses, which should be 0, and what there is to
        warn of: a loss that comes out otherwise, one of 16 bits, a module that counts its passes.
    """
    counts, null = _numbers(model), torch.zeros(())
    said: list[str] = []
    for index, loss in enumerate(losses):
        others = _states()
        one, two = again(loss), again(loss)
        null = null.to(one.device) + (one - two) * loss.weight
        drawn = [what for what, state in _states().items() if state != others[what]]
        of = f" of micro-batch {index + 1} of {len(losses)}" if len(losses) > 1 else ""
        said += _differing(f"the loss{of}", loss, one, two, drawn)
    narrow = next((loss.first.dtype for loss in losses if loss.first.dtype.itemsize < 4), None)
    if narrow is not None:
        said.append(
            f"the loss is a {narrow}, in which the difference of two losses is lost to rounding; "
            "compute it from the network's output in float32, .float()"
        )
    moved = {k: now for k, now in _numbers(model).items() if now != counts.get(k, now)}
    for name in [*moved][:1]:
        said.append(
            f"{name} went from {counts[name]} to {moved[name]} while the loss was taken again: "
            "what a module counts in Python is counted by each probe too, 2n + 1 times a step; "
            "lengthen what goes by it, such as the passes of a calibration"
        )
    return null, said


def _differing(
    what: str, loss: RecordedLoss, one: Tensor, two: Tensor, drawn: Sequence[str]
) -> list[str]:
    """Say where a loss that was taken again twice differs from itself, and what may be the cause.

    `drawn` are the random numbers that were drawn from meanwhile.
    """
    first, again = float(loss.first), float(one)
    coarse = loss.autocast or loss.first.dtype.itemsize < 4
    close = abs(first - again) <= (2e-3 if coarse else 1e-5) * max(1.0, abs(again))
    if torch.equal(one, two) and close:
        return []
    if drawn:
        why = f"it draws from {' and '.join(drawn)}"
    elif not torch.equal(one, two):
        why = "does it fetch a new batch, or draw from a generator of its own?"
    else:
        why = (
            "does it look up its batch in a variable that has changed since? Give the batch "
            "as arguments, loss(loss_fn, x, y); or does each pass move a range that it rounds "
            "by, as an observer's? Fix that range first"
        )
    so = f"so that probes measure something else than the weights' effect: {why}"
    if not all(map(math.isfinite, (first, again, float(two)))):
        so = (
            "which is not finite, and leaves the STE's gradient in place: look at the data, "
            "the learning rate and the start of the weights"
        )
    return [
        f"{what} was {first:.9g} in the backward pass, and taken again twice at the same weights "
        f"it is {again:.9g} and {float(two):.9g}, {so}"
    ]


def _numbers(model: nn.Module) -> dict[str, float]:
    """Return the numbers that modules keep as Python's, by their names."""
    return {
        plain_name(f"{prefix}.{name}".lstrip(".")): value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def _states() -> dict[str, Any]:
    """Return the states of the random numbers that are not torch's, by their names."""
    states: dict[str, Any] = {"Python's random": random.getstate()}
    if "numpy" in sys.modules:
        _, words, position, *_ = sys.modules["numpy"].random.get_state()
        states["numpy.random"] = words.tobytes(), position
    return states
