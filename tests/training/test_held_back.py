"""How much the STE holds back: the mean of 1 - h' over the quantized weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.run import execute
from fogzo_repro.training.loop import LOOK_STEPS, held_back
from fogzo_repro.training.network import build_network
from tests.short_runs import train

ROUND = ["quantizer=round"]
FORMULAS = {  # of the weights in units of the scale: 1 - h'
    "round": (ROUND, lambda x: 0 * x),
    "clipped": ([*ROUND, "quantizer.clip_gradient=true"], lambda x: (x.abs() > 1.5).double()),
    "half step more": (
        [*ROUND, "quantizer.clip_gradient=half_step"],
        lambda x: (x.abs() > 2).double(),
    ),
    "integer, clipped": (
        [*ROUND, "quantizer.grid=integer", "quantizer.clip_gradient=true"],
        lambda x: ((x < -2) | (x > 1)).double(),
    ),
    "hardtanh": (
        ["quantizer=sign", "quantizer.surrogate=hardtanh"],
        lambda x: (x.abs() > 1).double(),
    ),
    "tanh": (["quantizer=sign"], lambda x: x.tanh() ** 2),
    "approxsign": (
        ["quantizer=sign", "quantizer.surrogate=approxsign"],
        lambda x: 1 - (2 - 2 * x.abs()).clamp(min=0),
    ),
    "lsq": (["quantizer=lsq"], lambda x: ((x < -2) | (x > 1)).double()),
    "quest": (["quantizer=quest"], lambda x: (x.abs() > 2).double()),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_it_is_the_mean_of_what_the_surrogate_keeps_from_the_gradient(name: str) -> None:
    overrides, formula = FORMULAS[name]
    config = compose_run("dataset=digits", "recipe=digits_mlp", "hardware=cpu", *overrides)
    network = build_network(config, {"image_shape": (1, 8, 8), "classes": 10}, torch.device("cpu"))
    modules = [m for m in network.model.modules() if getattr(m, "weight_quantizer", None)]
    for layer in modules:  # far enough out for every formula to have something to say
        layer.weight.data.mul_(2)
    units = [m.weight_quantizer.units(m.weight).detach() for m in modules]
    if name == "lsq":
        units = [m.weight.detach() / m.weight_quantizer.step.detach() for m in modules]
    expected = torch.cat([formula(x.double()).flatten() for x in units]).mean().item()
    assert held_back(network.weights)["held_back"] == pytest.approx(expected, abs=1e-6)
    assert (expected > 0.01) == (name != "round")


def test_a_network_without_quantized_weights_says_nothing() -> None:
    assert held_back([]) == {}


def test_a_run_looks_at_fixed_steps_and_at_the_last_one(tmp_path: Path) -> None:
    steps = LOOK_STEPS + 5
    folder = train(tmp_path, "quantizer=sign", "estimator=ste", f"recipe.max_steps={steps}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    looked = {line["step"]: line["held_back"] for line in lines if "held_back" in line}
    assert list(looked) == [LOOK_STEPS, steps] and all(0 < x < 1 for x in looked.values())
    record = json.loads((folder / "record.json").read_text())
    seen = [x for x in record["history"]["held_back"] if x is not None]
    assert seen == pytest.approx([looked[LOOK_STEPS], looked[steps]], rel=1e-4)


def test_looking_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=4", "hardware=cpu"]
    config = compose_run(*words, f"output_root={tmp_path / 'one'}")
    first = execute(config, quiet=True)
    monkeypatch.setattr("fogzo_repro.training.loop.held_back", lambda weights: {})
    second = execute(compose_run(*words, f"output_root={tmp_path / 'two'}"), quiet=True)
    assert first["metrics"] == second["metrics"]
    names = [
        f"{tmp_path}/{k}/{first['run_id']}/checkpoint-00000004.safetensors" for k in ("one", "two")
    ]
    assert Path(names[0]).read_bytes() == Path(names[1]).read_bytes()
