"""What a step does with numbers that are not finite, and under a loss scale (PAPER 4)."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient
from step_rig import EACH, ESTIMATORS, PROBED, Loss, Pair, Rig, cross_entropy, fogzo, same
from torch import Tensor, nn

from fogzo_repro.estimators.protocol import Estimator
from fogzo_repro.estimators.ste import Ste
from fogzo_repro.training.row import MAX_BAD_STREAK


def not_finite_loss(model: nn.Module, batch: Pair) -> Tensor:
    return cross_entropy(model, batch) * math.nan


def not_finite_gradient(model: nn.Module, batch: Pair) -> Tensor:
    first: Any = model
    return cross_entropy(model, batch) + (0 * first.first.weight.sum()).abs().sqrt()  # 0 * inf


@EACH
@pytest.mark.parametrize("sgd", [True, False], ids=["sgd", "adamw"])
@pytest.mark.parametrize("loss", [not_finite_loss, not_finite_gradient], ids=["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(name: str, loss: Loss, sgd: bool) -> None:
    bad = [False]

    def sometimes(model: nn.Module, batch: Pair) -> Tensor:
        return (loss if bad[0] else cross_entropy)(model, batch)

    rig = Rig(ESTIMATORS[name](), sometimes, sgd, clip_norm=1.0)
    assert rig.take(0)["failed"] == 0
    before, bad[0] = rig.parameters(), True
    row = rig.take(1)
    assert row["failed"] == 1 and row["skipped"] == 1
    assert row["bad_probes"] == 0 and row["coefficient"] == 0  # no estimate rests on a NaN guide
    assert same(rig.parameters(), before)
    bad[0] = False  # once failed, later steps of the unfetched rows move nothing either
    assert rig.take(2)["failed"] == 1
    assert same(rig.parameters(), before)


def probes_fail_while(failing: list[bool]) -> Loss:
    def loss(model: Any, batch: Pair) -> Tensor:
        value, first = cross_entropy(model, batch), model.norm.track_running_stats
        return value if first or not failing[0] else value * math.nan

    return loss


@PROBED
def test_bad_probe_takes_the_ste_gradient(name: str) -> None:
    ste, rig = Rig(Ste()), Rig(ESTIMATORS[name](), probes_fail_while([True]))
    ste.take()
    row = rig.take()
    assert row["bad_probes"] == 1 and row["failed"] == 0 and row["skipped"] == 0
    assert same(rig.parameters(), ste.parameters())


def test_ten_bad_probes_in_a_row_stop_the_run_and_a_good_one_starts_again() -> None:
    failing = [True]
    rig = Rig(fogzo(), probes_fail_while(failing))
    assert MAX_BAD_STREAK == 10
    for t in range(9):
        assert rig.take(t)["failed"] == 0
    failing[0] = False
    assert rig.take(9)["failed"] == 0
    failing[0] = True
    for t in range(10, 19):
        before = rig.parameters()
        assert rig.take(t)["failed"] == 0
        assert not same(rig.parameters(), before)
    before = rig.parameters()
    row = rig.take(19)
    assert row["failed"] == 1 and row["bad_probes"] == 1
    assert same(rig.parameters(), before)


class Overflow(Estimator):
    """An estimate that is not finite although every probe was."""

    n = 1

    def begin_step(self, step: int, total_steps: int) -> bool:
        return True

    def __call__(self, weights: Any, probes: Any, generator: Any, signs: Any) -> Any:
        said = fogzo_once(weights, probes, generator, signs)
        gradient(weights[0]).fill_(math.inf)
        return said


def fogzo_once(weights: Any, probes: Any, generator: Any, signs: Any) -> Any:
    estimator = fogzo()
    estimator.begin_step(0, 10)
    return estimator(weights, probes, generator, signs)


def test_estimate_that_is_not_finite_stops_before_the_update() -> None:
    rig = Rig(Overflow())
    before = rig.parameters()
    assert rig.take()["failed"] == 1
    assert same(rig.parameters(), before)


def scaler(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


def test_guide_and_estimate_do_not_depend_on_the_loss_scale() -> None:
    plain = Rig(fogzo())
    expected = plain.take()
    for scale in (2.0**4, 2.0**16):  # powers of two: float32 gradients scale without rounding
        rig = Rig(fogzo())
        rig.step.scaler = scaler(scale)
        assert rig.take() == expected
        assert same(rig.parameters(), plain.parameters())


@EACH
def test_step_whose_scaled_gradient_overflows_is_skipped(name: str) -> None:
    rig = Rig(ESTIMATORS[name](), lambda model, batch: 100 * cross_entropy(model, batch), sgd=False)
    rig.take(0)
    before = rig.parameters()
    state = copy.deepcopy(rig.step.optimizer.state_dict()["state"])
    for t in range(1, MAX_BAD_STREAK + 3):
        rig.step.scaler = scaler(2.0**127)
        row = rig.take(t)
        assert row["skipped"] == 1 and row["failed"] == 0, "a lower scale mends this"
        assert row["bad_probes"] == 0 and row["coefficient"] == 0
    assert same(rig.parameters(), before)
    for key, values in rig.step.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[k], state[key][k]) for k in values)
    assert rig.step.scaler.get_scale() == 2.0**126
    rig.step.scaler = scaler(2.0**10)
    assert rig.take(20)["skipped"] == 0
    assert not same(rig.parameters(), before)


@PROBED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_step_measures_its_losses_in_float32(name: str, dtype: torch.dtype) -> None:
    losses: list[Tensor] = []

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch.x)
        assert logits.dtype == dtype
        losses.append(F.cross_entropy(logits.float(), batch.y))
        return losses[-1]

    rig = Rig(ESTIMATORS[name](), loss, autocast=dtype)
    assert rig.step.scaler.is_enabled() == (dtype == torch.float16)
    before = rig.parameters()
    row = rig.take()
    assert row["skipped"] == row["failed"] == 0 and row["coefficient"] != 0
    assert all(value.dtype == torch.float32 for value in losses)
    assert not same(rig.parameters(), before)
    single = Rig(ESTIMATORS[name]()).take()
    assert row["guide_norm"] == pytest.approx(single["guide_norm"], rel=0.1)


def test_loss_that_is_not_finite_stops_under_the_scaler_too() -> None:
    rig = Rig(fogzo(), not_finite_loss)
    rig.step.scaler = scaler(2.0**4)
    before = rig.parameters()
    assert rig.take()["failed"] == 1
    assert same(rig.parameters(), before)
