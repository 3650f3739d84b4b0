"""What a run takes, foretold by one formula, is what is there after a step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogzo_repro import plan, run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig
from fogzo_repro.config.identity import HOW_COMPUTED
from fogzo_repro.estimators import QuantizedWeight, directions, fogzo, nspsa, smoothing_law
from fogzo_repro.models import head_loss
from fogzo_repro.randomness import generator_for
from fogzo_repro.sweeps.forecast import forecast
from fogzo_repro.sweeps.smoke import write_invented_corpus
from fogzo_repro.training.network import Network
from fogzo_repro.training.optimizers import optimizer_tensors
from tests.live_bytes import LiveBytes
from tests.short_runs import smoke

CPU = torch.device("cpu")


def digits(*overrides: str) -> RunConfig:
    settings = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", *overrides]
    return compose_run(*settings)


CELLS = {
    "adamw": ["estimator=fogzo"],
    "momentum": ["estimator=nspsa", "recipe.optimizer=sgd", "recipe.momentum=0.9"],
    "sgd": ["estimator=ste", "recipe.optimizer=sgd", "recipe.momentum=0"],
    "learned-scales": ["estimator=fogzo", "quantizer=lsq", "estimator.n=3"],
}


def total(tensors: Any) -> int:
    return sum(t.nbytes for t in tensors)


@pytest.mark.slow
@pytest.mark.parametrize("overrides", CELLS.values(), ids=CELLS.keys())
def test_what_is_foretold_is_there_after_a_step(overrides: list[str]) -> None:
    config = digits(*overrides)
    planned = plan.make_plan(config)
    planned.task.load(CPU)
    step = planned.build_step()
    batch = next(iter(planned.task.batches(32).epoch(generator_for(0, 0, "order"))))
    step(batch, step.begin(0, 10, 0.1))
    needs, model = plan.needs_of(config, planned.network), planned.network.model
    assert needs.weights == total([*model.parameters(), *model.buffers()])
    assert needs.gradients == total(p.grad for p in model.parameters() if p.grad is not None)
    assert needs.optimizer == total(optimizer_tensors(step.optimizer, model).values())


ROTATIONS: dict[str, dict[str, Any]] = {
    "own coordinates": {},
    "rotated": {"rotate": lambda x: 1.0 * x, "rotate_back": lambda x: 1.0 * x},
}


@pytest.mark.parametrize("rotation", ROTATIONS)
@pytest.mark.parametrize(
    ("n", "block"), [(1, 9), (3, 9), (3, 1), (7, 3)], ids=["n1", "n3", "blocks-of-1", "blocks-of-3"]
)
@pytest.mark.parametrize("estimator", [fogzo, nspsa], ids=["fogzo", "nspsa"])
def test_the_estimator_holds_what_is_foretold(
    estimator: Any, n: int, block: int, rotation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many weights, so that what one of them takes for a moment does not count."""
    model = nn.Sequential(*[nn.Linear(30, 30, bias=False) for _ in range(50)])
    weights = [
        QuantizedWeight(
            p, torch.tensor(0.1), smoothing_law("round", "identity"), **ROTATIONS[rotation]
        )
        for p in model.parameters()
    ]
    network = Network(model, weights)
    for module in (directions, plan):
        monkeypatch.setattr(module, "BLOCK_NUMBERS", block * network.perturbed)
    for p in model.parameters():
        p.grad = torch.randn_like(p)

    def loss() -> Tensor:
        return torch.stack([p.detach()[0, 0] for p in model.parameters()]).sum()

    more: Any = {"beta": 0.9} if estimator is fogzo else {}
    with LiveBytes() as memory:
        for p in model.parameters():
            memory.add(p.data), memory.add(p.grad)
        before = memory.live
        estimator(weights, loss, n=n, generator=torch.Generator().manual_seed(0), **more)
    config: Any = SimpleNamespace(
        recipe=SimpleNamespace(optimizer="sgd", momentum=0.0),
        estimator=SimpleNamespace(n=n, probe_gradients=False), snapshots=0,
    )  # fmt: skip
    found = memory.peak - before
    foretold = plan.needs_of(config, network).estimator
    assert foretold == pytest.approx(found, rel=0.15)
    assert foretold > 0.94 * found


def test_the_disk_is_that_of_the_checkpoints_and_snapshots(tmp_path: Path) -> None:
    """Beside the tensors: a line of JSON for each of a file's, and one for the file."""
    more = ["recipe.max_steps=3", "checkpoint_minutes=0", "snapshots=2", f"output_root={tmp_path}"]
    config = digits("estimator=fogzo", *more)
    folder = tmp_path / run.execute(config, quiet=True)["run_id"]
    files = [*folder.glob("*.safetensors"), *folder.glob("checkpoint-*.json")]
    assert len(files) == 2 + 2 + 2
    planned = plan.make_plan(config)
    needs = plan.needs_of(config, planned.network)
    assert needs.disk == pytest.approx(sum(f.stat().st_size for f in files), rel=0.05)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["estimator=ste"], "0 probes; 3 with"),
        (["estimator=fogzo"], "2 probes; 5 with"),
        (
            ["estimator=fogzo", "estimator.probe_fraction=0.25"],
            "2 probes on 0.25 of the batch; 3.5",
        ),
    ],
    ids=["ste", "fogzo", "part"],
)
def test_a_dry_run_counts_probes_by_the_part_of_the_batch_that_they_see(
    words: list[str], said: str
) -> None:
    lines = plan.describe(plan.make_plan(digits(*words))).splitlines()
    (line,) = (x for x in lines if x.startswith("evaluations per step"))
    assert said in line


@pytest.mark.slow
@pytest.mark.parametrize("overrides", CELLS.values(), ids=CELLS.keys())
def test_the_run_and_the_table_foretell_the_same(overrides: list[str]) -> None:
    config = digits(*overrides)
    foretold = forecast(config)
    planned = plan.make_plan(config)
    needs = plan.needs_of(config, planned.network)
    assert (foretold.memory, foretold.disk) == (needs.memory, needs.disk)
    said = next(x for x in plan.describe(planned).splitlines() if x.startswith("memory "))
    assert said.split()[1] == f"{needs.memory / 2**20:,.1f}"


def test_the_check_before_the_start_counts_what_comes_with_the_first_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(run, "check_batch_fits", lambda *given: asked.append(given))
    config = digits("estimator=fogzo", "recipe.max_steps=1", f"output_root={tmp_path}")
    run.execute(config, quiet=True)
    planned = plan.make_plan(config)
    needs = plan.needs_of(config, planned.network)
    assert asked[0][-1] == needs.optimizer + needs.estimator


QUEST = ["quantizer=quest", "quantizer.activation_bits=2"]


@pytest.mark.slow
def test_a_record_says_how_it_was_computed_and_keeps_its_id(tmp_path: Path) -> None:
    write_invented_corpus(tmp_path / "data")
    config = smoke(tmp_path, "llama_9m", "hardware=cpu", "estimator=fogzo", *QUEST)
    planned = plan.make_plan(config)
    record = run.execute(config, quiet=True)
    own = {key: record["resolved"][key] for key in HOW_COMPUTED}
    assert own == planned.how_computed() == {
        "head": "chunks", "head_gradients": "chunks", "inputs": "shared",
    }  # fmt: skip
    assert record["resolved"] == {**planned.result["resolved"], **own}
    assert record["run_id"] == planned.run_id  # the hash of a result without them
    assert own.keys().isdisjoint(planned.result["resolved"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["estimator=fogzo", "quantizer=round"], {"head": "kernel"}),
        (["estimator=ste", "quantizer=round"], {}),
        (["estimator=ste_averaged", "quantizer=round"], {}),
        (
            ["estimator=fogzo", "quantizer=lsq", "quantizer.activation_bits=2"],
            {"head": "kernel", "inputs": "by layer"},
        ),
    ],
    ids=["probes", "no probes", "gradients at the probes", "learned inputs"],
)
def test_the_heads_kernel_is_named_where_probes_take_it(
    words: list[str], said: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_invented_corpus(tmp_path / "data")
    monkeypatch.setattr(head_loss, "has_kernel", lambda device: True)
    planned = plan.make_plan(smoke(tmp_path, "llama_9m", "hardware=cpu", *words))
    in_bf16 = replace(planned.machine, autocast=torch.bfloat16)
    in_training = {"head_gradients": "kernel"}
    assert replace(planned, machine=in_bf16).how_computed() == said | in_training
    in_float32 = planned.how_computed()
    assert in_float32.get("head") in (None, "chunks")
    assert in_float32["head_gradients"] == "chunks"
