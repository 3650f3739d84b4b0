"""Learning rates: what the optimizer gets at step t of T, t = 0 .. T-1."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Position:
    """Where a run stands: step t of T, and how many steps an epoch has."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """The current epoch, from 0."""
        return self.step // self.steps_per_epoch

    @property
    def epochs(self) -> int:
        """Epochs in all: recipe.epochs, or what recipe.max_steps comes to."""
        return max(1, round(self.total_steps / self.steps_per_epoch))


def cosine(recipe: Any, at: Position) -> float:
    """Return lr (1 + cos(pi t / T)) / 2: lr at the first step, towards 0 after the last."""
    return recipe.lr * (1 + math.cos(math.pi * at.step / at.total_steps)) / 2


def constant(recipe: Any, at: Position) -> float:
    """Return lr."""
    return recipe.lr


def step_decay(recipe: Any, at: Position) -> float:
    """Return lr * step_factor^(epoch // step_epochs) (RECIPES A)."""
    return recipe.lr * recipe.step_factor ** (at.epoch // recipe.step_epochs)


def epoch_cosine(recipe: Any, at: Position) -> float:
    """Return DeiT's schedule: linear warm-up, then cosine, one value an epoch (RECIPES B.2).

    After the warm-up the cosine goes on at t / epochs, not from its beginning. `lagged`: upstream
    asks for the value of the epoch just finished, so epochs 0 and 1 both run at warmup_lr.
    """
    t = max(0, at.epoch - 1) if recipe.lagged else at.epoch
    if t < recipe.warmup_epochs:
        return recipe.warmup_lr + t * (recipe.lr - recipe.warmup_lr) / recipe.warmup_epochs
    factor = (1 + math.cos(math.pi * t / at.epochs)) / 2
    return recipe.min_lr + (recipe.lr - recipe.min_lr) * factor


def onecycle(recipe: Any, at: Position) -> float:
    """Return QuEST's OneCycle in closed form (RECIPES C.3): lr/100 up to lr, then down to lr/10.

    Both parts are half cosines. The warm-up takes W = floor(T / 10) steps and reaches lr at step
    W - 1; it is left out where W < 2.
    """
    warmup = max(1, at.total_steps // 10)
    if at.step < warmup - 1:
        return recipe.lr * _half_cosine(0.01, 1.0, at.step / (warmup - 1))
    after = (at.step - warmup + 1) / max(1, at.total_steps - warmup)
    return recipe.lr * _half_cosine(1.0, 0.1, after)


def _half_cosine(start: float, end: float, position: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * position))


SCHEDULES: dict[str, Callable[[Any, Position], float]] = {
    "cosine": cosine,
    "constant": constant,
    "step": step_decay,
    "epoch_cosine": epoch_cosine,
    "onecycle": onecycle,
}


def learning_rate(recipe: Any, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate at step t of T, t from 0; some schedules change once an epoch."""
    return SCHEDULES[recipe.schedule](recipe, Position(step, total_steps, steps_per_epoch))
