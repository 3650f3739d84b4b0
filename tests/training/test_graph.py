"""The captured step: only where a GPU is."""

import pytest
import torch
from hydra import compose, initialize_config_dir

from fogzo_repro import run
from fogzo_repro.__main__ import CONFIGS
from fogzo_repro.config import parse_config

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ESTIMATORS = {
    "ste": ["estimator=ste"],
    "fogzo": ["estimator=fogzo", "estimator.noise=1e-4"],
    "fogzo-later": ["estimator=fogzo", "estimator.start_fraction=0.5"],
    "fogzo-batched": ["estimator=fogzo", "estimator.n=20"],
    "nspsa-sequential": ["estimator=nspsa", "estimator.n=3", "estimator.evaluator=sequential"],
}


def execute(folder, *overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        base = [
            f"output_root={folder}", "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=30",
            "hardware.compile=false",
        ]  # fmt: skip
        return run.execute(parse_config(compose("config", [*base, *overrides])))


@pytest.mark.parametrize("overrides", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_captured_step_equals_eager_step_bit_for_bit(tmp_path, overrides):
    eager = execute(tmp_path / "eager", *overrides, "hardware.cuda_graph=false")
    graph = execute(tmp_path / "graph", *overrides, "hardware.cuda_graph=true")
    assert graph["capture_seconds"] > 0
    files = [tmp_path / kind / eager["run_id"] for kind in ("eager", "graph")]
    for name in ("metrics.jsonl", "checkpoint-00000030.safetensors"):
        assert files[0].joinpath(name).read_bytes() == files[1].joinpath(name).read_bytes(), name


def test_captured_batched_evaluator_matches_the_sequential_one(tmp_path):
    common = ["estimator=nspsa", "estimator.n=20", "recipe.max_steps=1"]
    runs = [
        execute(tmp_path, *common, f"estimator.evaluator={kind}")
        for kind in ("batched", "sequential")
    ]
    losses = [r["metrics"]["last"]["train"]["loss"] for r in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
