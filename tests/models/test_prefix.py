"""The layers that a step's passes share, at smoke width on the digits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

from fogzo_repro import run
from fogzo_repro.__main__ import CONFIGS
from fogzo_repro.config import parse_config
from fogzo_repro.models.prefix import EndOfPrefix
from fogzo_repro.randomness import generator_for
from fogzo_repro.training.step import TrainStep

MODELS = {
    "resnet18": 20,
    "deit_tiny": 1,
}  # convolutions, the first in front of all quantized weights
FIRST = {"resnet18": "layer1", "deit_tiny": "blocks"}  # what takes the prefix


def build(model: str, *overrides: str) -> tuple[TrainStep, Any]:
    given = [
        f"model={model}", "scale=smoke", "quantizer=round", "estimator=fogzo",
        "estimator.noise=0.1", "estimator.beta_schedule=constant", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base=None):
        prepared = run.make_plan(parse_config(compose("config", given)))
    prepared.task.load(prepared.machine.device)
    step = prepared.build_step()
    step.model.train()
    batches = prepared.task.batches(prepared.config.recipe.global_batch_size)
    return step, next(iter(batches.epoch(generator_for(0, 0, "order"))))


def take(step: TrainStep, batch: Any) -> list[float]:
    step.prepare(3, 10, 0.1)
    return step(batch, True).tolist()


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_sharing_the_prefix_changes_no_number(model: str) -> None:
    (shared, batch), (apart, _) = build(model), build(model)
    assert len(shared.prefix.ends) == 1
    apart.prefix.ends = []
    assert take(shared, batch) == take(apart, batch)
    pairs = zip(shared.model.state_dict().items(), apart.model.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)  # statistics of a stem's norm too


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_probes_take_the_prefix_of_their_own_step(model: str) -> None:
    step, batch = build(model)
    outputs: list[Tensor] = []
    getattr(step.model, FIRST[model]).register_forward_pre_hook(
        lambda layer, args: outputs.append(args[0])
    )
    take(step, batch)
    kept, plus, minus = outputs
    assert plus.data_ptr() == minus.data_ptr() == kept.data_ptr()
    take(step, batch)
    assert not torch.equal(outputs[3], kept)  # the next step has its own
    assert all(end.output is None and end.mode == "compute" for end in step.prefix.ends)


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize(
    "override",
    ["quantizer.first_last=quantized", "quantizer.first_last=8bit", "estimator.probe_fraction=0.5"],
    ids=str,
)
def test_nothing_is_shared_where_the_passes_differ_in_it(model: str, override: str) -> None:
    assert build(model, override)[0].prefix.ends == []


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_compiled_probe_leaves_the_prefix_out(model: str) -> None:
    step, batch = build(model, *(["model.depth=2"] if model == "deit_tiny" else []))
    step.prepare(3, 10, 0.1)
    step._draw_masks(batch)
    (end,) = step.prefix.ends
    assert isinstance(end, EndOfPrefix)
    convolutions = []

    def count(graph: Any, inputs: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes]
        convolutions.append(sum("convolution" in name for name in names))
        return graph.forward

    backend = aot_autograd(fw_compiler=count, inference_compiler=count)
    compiled = torch.compile(step.model, backend=backend, dynamic=False)
    with torch.no_grad(), step.frozen.held():
        compute = step.loss(compiled, batch)
        with step.prefix.kept():
            kept = step.loss(compiled, batch)
        with step.prefix.reused():
            reused = step.loss(compiled, batch)
    assert reused == kept == compute
    assert convolutions == [MODELS[model], MODELS[model], MODELS[model] - 1]
