"""The captured step: only where a GPU is."""

import threading

import pytest
import torch

from fogzo_repro import run
from fogzo_repro.composition import compose_run
from fogzo_repro.tracking.metrics import read_metrics
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

ESTIMATORS = {
    "ste": ["estimator=ste"],
    "fogzo": ["estimator=fogzo", "estimator.noise=1e-4"],
    "fogzo-later": ["estimator=fogzo", "estimator.start_fraction=0.5"],
    "averaged": ["estimator=ste_averaged", "estimator.noise=1e-4"],
    "fogzo-batched": ["estimator=fogzo", "estimator.n=20"],
    "corrects-after-the-update": ["estimator=cage", "estimator.strength=30"],
    "corrects-by-what-was-before": ["estimator=cage", "estimator.rule=before"],
    "nspsa-sequential": ["estimator=nspsa", "estimator.n=3", "estimator.evaluator=sequential"],
}


def execute(folder, *overrides):
    base = [
        f"output_root={folder}", "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=30",
        "hardware.compile=false",
    ]  # fmt: skip
    return run.execute(compose_run(*base, *overrides))


@pytest.mark.parametrize("overrides", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_captured_step_equals_eager_step_bit_for_bit(tmp_path, overrides, monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / "examples" / "rivals"))
    eager = execute(tmp_path / "eager", *overrides, "hardware.cuda_graph=false")
    graph = execute(tmp_path / "graph", *overrides, "hardware.cuda_graph=true")
    assert graph["capture_seconds"] > 0
    files = [tmp_path / kind / eager["run_id"] for kind in ("eager", "graph")]
    for name in ("metrics.jsonl", "checkpoint-00000030.safetensors"):
        assert files[0].joinpath(name).read_bytes() == files[1].joinpath(name).read_bytes(), name


def test_a_capture_goes_on_while_another_thread_allocates(tmp_path):
    """As the threads do that bring photographs to the card."""
    ended = threading.Event()

    def allocate():
        size = 1
        while not ended.is_set():
            torch.empty(size, pin_memory=True).cuda()
            size = 2 * size % (1 << 24) + 1

    thread = threading.Thread(target=allocate, daemon=True)
    thread.start()
    try:
        for seed in range(5):
            assert execute(tmp_path, f"seed={seed}")["capture_seconds"] > 0
    finally:
        ended.set()
        thread.join()


def test_captured_batched_evaluator_matches_the_sequential_one(tmp_path):
    common = ["estimator=nspsa", "estimator.n=20", "recipe.max_steps=1"]
    runs = [
        execute(tmp_path, *common, f"estimator.evaluator={kind}")
        for kind in ("batched", "sequential")
    ]
    losses = [r["metrics"]["last"]["train"]["loss"] for r in runs]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


DEEP = {
    "resnet": ["model=resnet18", "scale=mini", "dataset=mnist"],
    "deit": ["model=deit_tiny", "scale=mini", "dataset=mnist"],  # with drop-path
}


@pytest.mark.parametrize("overrides", DEEP.values(), ids=DEEP.keys())
def test_captured_step_of_a_deep_network_follows_the_eager_one(tmp_path, data_dir, overrides):
    """To the rounding of bf16 kernels that sum in any order; stale masks or weights are far off."""
    common = [
        *overrides, f"data_dir={data_dir}", "quantizer=round", "estimator=fogzo",
        "estimator.noise=1e-8", "estimator.beta_schedule=constant", "recipe.max_steps=12",
        "recipe.global_batch_size=128", "recipe.lr=1e-4", "hardware.compile=false",
    ]  # fmt: skip
    sides = []
    for graph in ("false", "true"):
        folder = tmp_path / graph
        given = [*common, f"output_root={folder}", f"hardware.cuda_graph={graph}"]
        config = compose_run(*given)
        metrics = read_metrics(folder / run.execute(config)["run_id"] / "metrics.jsonl")
        sides.append([line for line in metrics if "split" not in line])
    eager, captured = ([line["coefficient"] for line in side] for side in sides)
    size = max(map(abs, eager))
    assert size > 0
    assert captured == pytest.approx(eager, abs=0.2 * size)
    losses = [[line["loss"] for line in side] for side in sides]
    assert losses[1] == pytest.approx(losses[0], rel=5e-3)
