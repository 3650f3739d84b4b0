"""All passes of a step see the same function: shared layers at smoke width, masks, buffers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

from fogzo_repro import run
from fogzo_repro.composition import compose_run
from fogzo_repro.models.steered import DropPath, EndOfPrefix
from fogzo_repro.randomness import generator_for
from fogzo_repro.training.passes import DropPathMasks, Passes
from fogzo_repro.training.step import TrainStep

MODELS = {
    "resnet18": 20,
    "deit_tiny": 1,
}  # convolutions, the first in front of all quantized weights
FIRST = {"resnet18": "layer1", "deit_tiny": "blocks.0"}  # what takes the prefix


def build(model: str, *overrides: str) -> tuple[TrainStep, Any]:
    given = [
        f"model={model}", "scale=smoke", "quantizer=round", "estimator=fogzo",
        "estimator.noise=0.1", "estimator.beta_schedule=constant", *overrides,
    ]  # fmt: skip
    plan = run.make_plan(compose_run(*given))
    plan.task.load(plan.machine.device)
    step = plan.build_step()
    step.model.train()
    batches = plan.task.batches(plan.config.recipe.global_batch_size)
    return step, next(iter(batches.epoch(generator_for(0, 0, "order"))))


def take(step: TrainStep, batch: Any) -> list[float]:
    step.begin(3, 10, 0.1)
    return step(batch, True).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_sharing_the_prefix_changes_no_number(model: str) -> None:
    (shared, batch), (apart, _) = build(model), build(model)
    assert len(shared.passes.prefix.ends) == 1
    apart.passes.prefix.ends = []
    assert take(shared, batch) == take(apart, batch)
    pairs = zip(shared.model.state_dict().items(), apart.model.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in pairs)  # statistics of a stem's norm too


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_the_probes_take_the_prefix_of_their_own_step(model: str) -> None:
    step, batch = build(model)
    outputs: list[Tensor] = []
    step.model.get_submodule(FIRST[model]).register_forward_pre_hook(
        lambda layer, args: outputs.append(args[0])
    )
    take(step, batch)
    kept, plus, minus = outputs
    assert plus.data_ptr() == minus.data_ptr() == kept.data_ptr()
    take(step, batch)
    assert not torch.equal(outputs[3], kept)  # the next step has its own
    assert all(end.output is None and end.mode == "compute" for end in step.passes.prefix.ends)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize(
    "override",
    ["quantizer.first_last=quantized", "quantizer.first_last=8bit", "estimator.probe_fraction=0.5"],
    ids=str,
)
def test_nothing_is_shared_where_the_passes_differ_in_it(model: str, override: str) -> None:
    assert build(model, override)[0].passes.prefix.ends == []


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_a_compiled_probe_leaves_the_prefix_out(model: str) -> None:
    step, batch = build(model, *(["model.depth=2"] if model == "deit_tiny" else []))
    step.begin(3, 10, 0.1)
    passes = step.passes
    passes.masks.draw(len(batch[0]), passes.generator)
    (end,) = passes.prefix.ends
    assert isinstance(end, EndOfPrefix)
    convolutions = []

    def count(graph: Any, inputs: Any) -> Any:
        names = [str(node.target) for node in graph.graph.nodes]
        convolutions.append(sum("convolution" in name for name in names))
        return graph.forward

    backend = aot_autograd(fw_compiler=count, inference_compiler=count)
    compiled = torch.compile(step.model, backend=backend, dynamic=False)
    with torch.no_grad(), passes.buffers.held():
        compute = passes.loss(compiled, batch)
        with passes.prefix.kept():
            kept = passes.loss(compiled, batch)
        with passes.prefix.reused():
            reused = passes.loss(compiled, batch)
    assert reused == kept == compute
    assert convolutions == [MODELS[model], MODELS[model], MODELS[model] - 1]


def test_the_steps_of_inputs_start_without_another_trace() -> None:
    lsq = ["quantizer=lsq", "quantizer.activation_bits=2"]
    (fresh, batch), (started, _) = build("resnet18", *lsq), build("resnet18", *lsq)
    row = take(fresh, batch)
    pairs = zip(fresh.passes.learned_inputs, started.passes.learned_inputs, strict=True)
    for ours, theirs in pairs:
        assert ours.start > 0
        theirs.start.copy_(ours.start)
        theirs.step.data.copy_(ours.start)
        theirs.started = True
    assert take(started, batch) == row
    states = zip(fresh.model.state_dict().items(), started.model.state_dict().items(), strict=True)
    assert all(torch.equal(a, b) for (_, a), (_, b) in states)  # statistics of the norms too


def masked(drop_prob: float, examples: int) -> tuple[nn.Sequential, DropPathMasks]:
    model = nn.Sequential(DropPath(drop_prob), DropPath(0.0)).train()  # of rate 0: the identity
    masks = DropPathMasks(model, torch.device("cpu"))
    masks.draw(examples, torch.Generator().manual_seed(0))
    return model, masks


def test_a_branch_is_dropped_whole_with_its_probability_and_keeps_its_mean():
    model, _ = masked(0.25, 20_000)
    out = model(torch.ones(20_000, 3))
    assert torch.equal(out.unique(), torch.tensor([0, 1 / 0.75]))
    assert torch.equal(out[:, 0], out[:, 2])
    assert out.mean().item() == pytest.approx(1, abs=0.02)  # 5 sd: sqrt(1/3 / 20,000) = 0.004


def test_all_passes_of_a_step_see_one_draw_and_the_next_step_another():
    model, masks = masked(0.5, 64)
    x = torch.ones(64, 2)
    first = model(x)
    assert torch.equal(first, model(x))
    masks.draw(64, torch.Generator().manual_seed(1))
    assert not torch.equal(first, model(x))


def test_a_part_of_the_batch_gets_its_own_examples_masks():
    model, masks = masked(0.5, 64)
    whole = model(torch.ones(64, 2))
    masks.select(16, 8)
    assert torch.equal(model(torch.ones(8, 2)), whole[16:24])
    masks.select(0, 64)
    assert torch.equal(model(torch.ones(16, 2)), whole[:16])  # the probes' first part


def test_masks_keep_their_memory_so_that_a_captured_graph_reads_the_new_draw():
    model, masks = masked(0.5, 64)
    first = [layer.factors for layer in model]  # held, so that nothing else can lie there
    where = [factors.data_ptr() for factors in first]
    masks.draw(64, torch.Generator().manual_seed(1))
    assert [layer.factors.data_ptr() for layer in model] == where
    masks.draw(8, torch.Generator().manual_seed(2))  # the last batch of an epoch, taken eagerly
    assert not {layer.factors.data_ptr() for layer in model} & set(where)
    masks.draw(64, torch.Generator().manual_seed(3))
    assert [layer.factors.data_ptr() for layer in model] == where


@pytest.mark.parametrize(
    ("batch", "micro_batch", "eager"),
    [(64, None, True), (65, None, False), (64, 16, False), (50, 16, False), (8, 16, True)],
)
def test_a_step_is_eager_where_its_passes_are_small(batch, micro_batch, eager):
    model = nn.Linear(3, 1)
    passes = Passes(model, lambda m, b: m(b[0]).mean(), micro_batch=micro_batch, examples=128)
    passes.straight_through((torch.ones(batch, 3),), lambda loss: None)
    assert passes.eager == eager
