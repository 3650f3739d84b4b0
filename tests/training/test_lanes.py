"""Runs side by side against the same runs one by one."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro import training
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig
from fogzo_repro.data import Batch, ImageBatches, Images, mnist
from fogzo_repro.data import digits as digits_dataset
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.plan import build_step
from fogzo_repro.randomness import generator_for
from fogzo_repro.training.batched import losses_of_levels
from fogzo_repro.training.classification import evaluate_classifier
from fogzo_repro.training.lanes import Lanes
from fogzo_repro.training.machine import resolve_machine
from fogzo_repro.training.network import build_network
from fogzo_repro.training.row import ROW
from fogzo_repro.training.schedules import learning_rate

DIGITS = ["dataset=digits", "recipe=digits_mlp", "recipe.epochs=1"]
SEEDS = 0, 7
FOGZO = ["estimator=fogzo", "estimator.noise=1e-4"]
CELLS = {  # name: settings of each cell of a group
    "ste": [["estimator=ste"], ["estimator=ste", "recipe.lr=0.016"]],
    "full-precision": [["quantizer=none", "estimator=ste"]],
    "equal-cost": [["estimator=ste", "recipe.max_steps=49"]],
    "n1": [
        FOGZO,
        ["estimator=fogzo", "estimator.noise=0.1", "recipe.lr=0.008"],
        ["estimator=nspsa"],
        [*FOGZO, "estimator.random_sign=true"],
    ],
    "n10": [[*FOGZO, "estimator.n=10"], ["estimator=nspsa", "estimator.n=10"]],
    "n100": [[*FOGZO, "estimator.n=100", "recipe.max_steps=4"]],
    "half-integer": [[*FOGZO, "quantizer.grid=half_integer"]],
    "clipped": [[*FOGZO, "quantizer.clip_gradient=true"]],
    "spacings": [
        [*FOGZO, "quantizer.clip_gradient=half_step", f"quantizer.scale_factor={factor}"]
        for factor in (0.5, 3.0)
    ],
    "hardtanh": [[*FOGZO, "quantizer=sign", "quantizer.surrogate=hardtanh"]],
    "tanh": [[*FOGZO, "quantizer=sign", "quantizer.surrogate=tanh"]],
    "approxsign": [[*FOGZO, "quantizer=sign", "quantizer.surrogate=approxsign"]],
    "later": [[*FOGZO, "estimator.start_fraction=0.5", "estimator.beta_schedule=linear"]],
}
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def configured(*overrides: str, base: list[str] = DIGITS) -> RunConfig:
    return compose_run("hardware=cpu", *base, *overrides)


def digits(device: str = "cpu") -> Images:
    return digits_dataset.read().to(torch.device(device))


def alone(
    config: RunConfig, images: Images, dtype: torch.dtype
) -> Iterator[tuple[list[Tensor], dict[str, float]]]:
    """Yield weights and biases, and the row, after each step of a run by `TrainStep`."""
    device = images.train.labels.device
    shape = {"image_shape": images.shape, "classes": images.classes}
    network = build_network(config, shape, device)
    network.model.to(dtype).train()

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        pixels = (batch.pixels.to(dtype) / 255 - images.mean) / images.std
        return F.cross_entropy(model(pixels), batch.labels)

    machine = replace(resolve_machine(config), device=device)
    step = build_step(config, machine, network, loss)
    order = EpochOrder(len(images.train.labels), config.recipe.global_batch_size)
    batches = ImageBatches(order, 0, images.train)
    per_epoch = batches.order.steps
    total = config.recipe.max_steps or config.recipe.epochs * per_epoch
    model: Any = network.model
    for t in range(total):
        if t % per_epoch == 0:
            epoch = batches.epoch(generator_for(config.seed, t // per_epoch, "order"))
        lr = learning_rate(config.recipe, t, total, per_epoch)
        row = step(next(epoch), step.begin(t, total, lr))
        parameters = model.fc1.weight, model.fc2.weight, model.fc1.bias, model.fc2.bias
        yield [p.detach().clone() for p in parameters], dict(zip(ROW, row.tolist(), strict=True))


def of_lane(lanes: Lanes, s: int, c: int) -> list[Tensor]:
    first, second = lanes.layers
    biases = first.bias[s, c, :, 0], second.bias[s, c, :, 0]
    return [t.detach().clone() for t in (first.weight[s, c], second.weight[s, c], *biases)]


def levels(lanes: Lanes, s: int, c: int, weights: list[Tensor]) -> list[Tensor]:
    pairs = zip(lanes.layers, weights[:2], strict=True)
    return [x.quantizer.levels(w / x.quantizer.scale[s, c]) for x, w in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("cells", CELLS.values(), ids=CELLS.keys())
def test_a_lane_is_its_run_in_float64(cells: list[list[str]]) -> None:
    configs, images = [configured(*overrides) for overrides in cells], digits()
    lanes = Lanes(configs, SEEDS, images, torch.float64)
    lanes.run()
    assert not lanes.failed.any()
    for c, config in enumerate(configs):
        s = c % 2
        taken = list(alone(replace(config, seed=SEEDS[s]), images, torch.float64))
        for found, expected in zip(of_lane(lanes, s, c), taken[-1][0], strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        assert lanes.counts["steps"][s, c] == len(taken)
        for name in ("flat_probes", "dead_guides"):
            assert lanes.counts[name][s, c] == sum(row[name] for _, row in taken)


@pytest.mark.slow
def test_a_lane_on_mnist_is_its_run_in_float64(data_dir: Path) -> None:
    config = configured(*FOGZO, "recipe.max_steps=30", base=[])
    images = mnist.read(data_dir)
    part = Batch(*(t[:10_240] for t in images.train))  # 20 steps an epoch
    images = replace(images, train=part)
    lanes = Lanes([config], SEEDS, images, torch.float64)
    lanes.run()
    *_, (expected, row) = alone(replace(config, seed=SEEDS[1]), images, torch.float64)
    assert row["flips"] > 0
    for a, b in zip(of_lane(lanes, 1, 0), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def follows_until_a_level_differs(config: RunConfig, images: Images, compile: bool) -> int:
    """Assert that a float32 lane is its run to rounding; return after how many steps one flips."""
    lanes = Lanes([config], [config.seed], images, compile=compile)
    states: list[list[Tensor]] = []
    lanes.run(lambda done: states.append(of_lane(lanes, 0, 0)))
    for t, (found, (expected, _)) in enumerate(
        zip(states, alone(config, images, torch.float32), strict=True)
    ):
        pairs = zip(levels(lanes, 0, 0, found), levels(lanes, 0, 0, expected), strict=True)
        if not all(torch.equal(a, b) for a, b in pairs):
            return t
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    return len(states)


@pytest.mark.parametrize("n", [1, 10])
def test_a_lane_in_float32_is_its_run_until_rounding_flips_a_level(n: int) -> None:
    config = configured(*FOGZO, f"estimator.n={n}")
    assert follows_until_a_level_differs(config, digits(), compile=False) > 1


@CUDA
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("cell", ["ste", "n1", "n10", "half-integer", "tanh"])
def test_a_lane_on_a_card_is_its_run_until_rounding_flips_a_level(cell: str, compile: bool) -> None:
    config = configured(*CELLS[cell][0])
    assert follows_until_a_level_differs(config, digits("cuda"), compile) > 1


@CUDA
def test_a_step_on_a_card_does_not_wait_for_it() -> None:
    lanes = Lanes([configured(*FOGZO)], SEEDS, digits("cuda"))
    lanes.run()  # the first step of all sets up libraries
    torch.cuda.set_sync_debug_mode("error")
    try:
        lanes.step(0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_float32_changes_no_mean() -> None:
    """The exact product in float32, over many seeds, against float64, which is the run itself."""
    config, images = configured(*FOGZO), digits()
    losses = []
    for dtype in (torch.float32, torch.float64):
        lanes = Lanes([config], range(60), images, dtype)
        lanes.run()
        losses.append(lanes.evaluate(1000)["train"]["loss"][:, 0])
    difference = losses[0] - losses[1]
    error = difference.std() / len(difference) ** 0.5
    assert 0 < error < 0.02 and difference.mean().abs() < 4 * error


def test_metrics_are_those_of_the_run() -> None:
    config, images = configured(*FOGZO), digits()
    lanes = Lanes([config], SEEDS, images)
    lanes.run()
    found = lanes.evaluate(images_at_once=500)
    network = build_network(config, {"image_shape": images.shape, "classes": 10}, lanes.device)
    model: Any = network.model
    for s in range(len(SEEDS)):
        parameters = (model.fc1.weight, model.fc2.weight, model.fc1.bias, model.fc2.bias)
        with torch.no_grad():
            for p, value in zip(parameters, of_lane(lanes, s, 0), strict=True):
                p.copy_(value)
            for layer, x in zip((model.fc1, model.fc2), lanes.layers, strict=True):
                layer.weight_quantizer.scale.copy_(x.quantizer.scale[s, 0, 0, 0])
        for split in ("train", "test"):
            expected = evaluate_classifier(model, images, getattr(images, split))
            assert found[split]["loss"][s, 0].item() == pytest.approx(expected["loss"], rel=1e-5)
            assert found[split]["top1"][s, 0].item() == pytest.approx(expected["top1"])


def test_a_lane_that_diverges_keeps_its_last_good_weights_and_disturbs_no_other() -> None:
    good, bad, images = configured(*FOGZO), configured(*FOGZO, "recipe.lr=1e37"), digits()
    lanes, reference = (Lanes(cells, SEEDS, images) for cells in ([good, bad], [good]))
    states: list[list[Tensor]] = []
    lanes.run(lambda done: states.append(of_lane(lanes, 0, 1)))
    reference.run()
    assert lanes.failed.tolist() == [[False, True]] * 2
    last = int(lanes.counts["steps"][0, 1])
    assert 0 < last < 5
    assert all(map(torch.equal, states[-1], states[last - 1]))
    for s in range(len(SEEDS)):
        for a, b in zip(of_lane(lanes, s, 0), of_lane(reference, s, 0), strict=True):
            torch.testing.assert_close(a, b)


def test_a_lane_without_a_gradient_for_an_epoch_has_diverged() -> None:
    config = configured("estimator=ste", "quantizer.clip_gradient=true", "recipe.epochs=2")
    lanes = Lanes([config], SEEDS, digits())
    for x in lanes.layers:
        x.weight.detach()[1] = 100.0  # beyond the outer level, where the derivative is 0
    lanes.run()
    assert lanes.failed.flatten().tolist() == [False, True]
    assert lanes.counts["steps"].flatten().tolist() == [
        2 * lanes.steps_per_epoch,
        lanes.steps_per_epoch,
    ]


def test_a_probe_that_is_not_finite_leaves_the_ste_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, images = configured(*FOGZO, "recipe.max_steps=1"), digits()
    ste = Lanes([configured("estimator=ste", "recipe.max_steps=1")] * 2, [0], images)
    ste.run()  # as many lanes: with another number a product may round otherwise

    def losses(*arguments: Any) -> Tensor:
        return losses_of_levels(*arguments) * torch.tensor([[1.0], [math.inf]])

    monkeypatch.setattr(training.lanes, "losses_of_levels", losses)
    lanes = Lanes([config, config], [0], images)
    lanes.run()
    assert lanes.counts["bad_probes"].tolist() == [[0, 1]]
    assert all(map(torch.equal, of_lane(lanes, 0, 1), of_lane(ste, 0, 1)))
    assert not torch.equal(of_lane(lanes, 0, 0)[0], of_lane(ste, 0, 0)[0])
