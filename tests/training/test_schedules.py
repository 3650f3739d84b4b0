"""Learning rates equal the check values of RECIPES A, B.2 and C.3; what LLaMA has beside them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.config import ConfigError, build_part, result_fields
from fogzo_repro.training.optimizers import build_optimizer
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


TABLE = {0: 1.2e-5, 286: 1.863e-4, 572: 6.068e-4, 1143: 1.2e-3, 5722: 7.536e-4, 11443: 1.2e-4}
RUNS = {  # RECIPES C.1 and C.3: overrides -> sequences, peak lr, steps
    "30m": (["model=llama_30m"], 64, 1.5e-4, 91_552),
    "30m-128": (["model=llama_30m", "recipe.global_batch_size=128"], 128, 3e-4, 45_776),
    "30m-256": (["model=llama_30m", "recipe.global_batch_size=256"], 256, 6e-4, 22_888),
    "30m-quest": (["model=llama_30m", "recipe=llama_quest"], 512, 1.2e-3, 11_444),
    "200m-quest": (["model=llama_200m", "recipe=llama_quest"], 512, 6e-4, 38_146),
    "300m-quest": (["model=llama_300m", "recipe=llama_quest"], 512, 3e-4, 76_293),
    "200m": (["model=llama_200m"], 64, 7.5e-5, 305_175),
    "9m": (["model=llama_9m"], 64, 1.5e-4, 27_465),
}


EVALUATIONS = {  # QuEST's 200 steps of 512 sequences (RECIPES C.5), at least ten a run
    "30m": (["model=llama_30m"], 1_600),
    "30m-128": (["model=llama_30m", "recipe.global_batch_size=128"], 800),
    "30m-quest": (["model=llama_30m", "recipe=llama_quest"], 200),
    "30m-short": (["model=llama_30m", "recipe.max_steps=50"], 5),
    "chosen": (["model=llama_9m", "eval_every_steps=50"], 50),
    "off": (["model=llama_9m", "eval_every_steps=null"], None),
    "mlp": ([], None),
}


def onecycle(step, total):
    recipe = SimpleNamespace(schedule="onecycle", lr=1.0)
    return learning_rate(recipe, step, total, steps_per_epoch=1)


@pytest.mark.parametrize(("step", "lr"), TABLE.items(), ids=map(str, TABLE))
def test_onecycle_has_the_tabulated_rates(step, lr):
    assert 1.2e-3 * onecycle(step, 11_444) == pytest.approx(lr, rel=5e-4)


def test_onecycle_equals_torch_at_every_step():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=200, pct_start=20 / 200, anneal_strategy="cos",
        cycle_momentum=False, div_factor=100, final_div_factor=0.1,
    )  # fmt: skip
    for step in range(200):
        assert onecycle(step, 200) == pytest.approx(reference.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        if step < 199:
            reference.step()


@pytest.mark.parametrize(("overrides", "steps"), EVALUATIONS.values(), ids=EVALUATIONS)
def test_evaluations_come_at_quests_interval_in_tokens(overrides, steps):
    assert compose_run(*overrides).eval_every_steps == steps


def test_the_interval_of_evaluations_is_not_part_of_the_identity():
    often, seldom = (compose_run("model=llama_9m", f"eval_every_steps={n}") for n in (1, 1000))
    assert result_fields(often, {}) == result_fields(seldom, {})


@pytest.mark.parametrize("total", [1, 2, 9, 19], ids=str)
def test_onecycle_without_room_for_a_warmup_begins_at_the_peak(total):
    assert onecycle(0, total) == 1
    assert total == 1 or onecycle(total - 1, total) == pytest.approx(0.1)


@pytest.mark.parametrize(("overrides", "batch", "lr", "steps"), RUNS.values(), ids=RUNS)
def test_batch_rate_and_length_go_together(overrides, batch, lr, steps):
    recipe = compose_run(*overrides).recipe
    assert recipe.global_batch_size == batch
    assert recipe.lr == pytest.approx(lr, rel=1e-12)
    assert recipe.max_steps == steps


def test_a_rate_of_ones_own_is_not_scaled():
    overrides = ["model=llama_30m", "recipe.global_batch_size=32", "recipe.lr=0.1"]
    assert compose_run(*overrides).recipe.lr == 0.1


@pytest.mark.slow
def test_weight_decay_is_on_the_linears_of_the_blocks_alone():
    section = compose_run("model=llama_9m", "scale=smoke")
    model = build_part("model", section.model, None)
    optimizer = build_optimizer(section.recipe, model, capturable=False)
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert decays[parameter] == (0.1 if "_proj" in name else 0.0), name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["recipe=c4_llama"], "'model.tokens' not found.*give recipe.lr"),
        (["model=llama_9m", "dataset=mnist"], "model=llama_9m does not go with dataset=mnist"),
        (["dataset=c4"], "model=mlp does not go with dataset=c4"),
        (["model=llama_9m", "model.heads=5"], "model.width=384 is not a multiple"),
        (["model=llama_9m", "recipe.accumulate=true"], "needs recipe.micro_batch_size"),
        (["model=llama_9m", "recipe=llama_quest", "recipe.micro_batch_size=7"], "does not divide"),
        (["model=llama_9m", "dataset.validation=test"], "options: heldout, tuning, c4"),
    ],
    ids=["recipe-alone", "mnist", "mlp", "heads", "no-micro-batch", "odd-micro-batch", "split"],
)
def test_settings_that_do_not_go_together_are_refused(overrides, message):
    with pytest.raises(ConfigError, match=message):
        compose_run(*overrides)
