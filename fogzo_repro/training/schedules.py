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


SCHEDULES: dict[str, Callable[[Any, Position], float]] = {
    "cosine": cosine,
    "constant": constant,
    "step": step_decay,
    "epoch_cosine": epoch_cosine,
}


def learning_rate(recipe: Any, step: int, total_steps: int, steps_per_epoch: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: the `recipe` section.
        step: t, from 0.
        total_steps: T.
        steps_per_epoch: decides the epoch for schedules that change once an epoch.
    """
    return SCHEDULES[recipe.schedule](recipe, Position(step, total_steps, steps_per_epoch))
