"""Learning rates equal the check values of RECIPES A and B.2."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fogzo_repro.training.schedules import learning_rate

RESNET: Any = SimpleNamespace(lr=0.1, schedule="step", step_epochs=30, step_factor=0.1)


def deit(lagged: bool) -> Any:
    return SimpleNamespace(
        lr=1e-3, schedule="epoch_cosine", warmup_epochs=5, warmup_lr=1e-6, min_lr=1e-5,
        lagged=lagged,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 0.1), (29, 0.1), (30, 0.01), (59, 0.01), (60, 0.001), (89, 0.001)],
    ids=lambda value: f"{value:g}",
)
def test_resnet_decays_tenfold_every_thirty_epochs(epoch: int, lr: float) -> None:
    for step in (epoch * 5005, epoch * 5005 + 5004):
        assert learning_rate(RESNET, step, 450_450, 5005) == pytest.approx(lr)


@pytest.mark.parametrize(
    ("epoch", "lr"),
    [(0, 1e-6), (1, 1e-6), (2, 2.008e-4), (5, 8.002e-4), (6, 9.993e-4), (150, 5.10e-4),
     (299, 1.011e-5)],
    ids=lambda value: f"{value:g}",
)  # fmt: skip
def test_deit_runs_one_epoch_late_as_upstream(epoch: int, lr: float) -> None:
    for step in (epoch * 1251, epoch * 1251 + 1250):
        assert learning_rate(deit(True), step, 375_300, 1251) == pytest.approx(lr, rel=1e-3)


def test_the_corrected_deit_schedule_is_the_late_one_an_epoch_earlier() -> None:
    for epoch in range(1, 299):
        late = learning_rate(deit(True), (epoch + 1) * 10, 3000, 10)
        assert learning_rate(deit(False), epoch * 10, 3000, 10) == late


def test_cosine_ends_one_step_before_zero() -> None:
    recipe: Any = SimpleNamespace(lr=2.0, schedule="cosine")
    assert learning_rate(recipe, 0, 10, 5) == 2.0
    assert learning_rate(recipe, 5, 10, 5) == pytest.approx(1.0)
    assert 0 < learning_rate(recipe, 9, 10, 5) < 0.05
