"""Two cards train as one: what test_ranks.py has on the CPU, and what only cards can show."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest
import ranks_worker
import torch
from safetensors.torch import load_file
from torch.multiprocessing.spawn import spawn

from fogzo_repro.tracking.metrics import read_metrics
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.ranks import Ranks
from tests.forked import ROOT, free_port, torchrun

pytestmark = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")

FOGZO = ["estimator=fogzo", "estimator.noise=1e-4"]


@pytest.fixture(scope="module")
def two_cards(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("cards")
    spawn(ranks_worker.work, args=(free_port(), folder, True), nprocs=2)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("estimator", ranks_worker.ESTIMATORS, ids=str)
@pytest.mark.parametrize("model", ranks_worker.MODELS, ids=str)
def test_two_cards_end_with_the_weights_of_one(
    two_cards: list[dict[str, torch.Tensor]], model: str, estimator: str
) -> None:
    alone = ranks_worker.train(model, estimator, Ranks(), device=torch.device("cuda", 0))
    for name, value in alone.items():
        for card in two_cards:
            other = card[f"{model}/{estimator}/{name}"]
            assert torch.allclose(value.double().cpu(), other.double(), rtol=0, atol=1e-9), name


def train(folder: Path, *overrides: str) -> Path:
    """Train on two cards by the command line; return the run folder."""
    process = start([f"output_root={folder}", *overrides])
    said = process.communicate()[0]
    assert process.returncode == 0, said
    assert "destroy_process_group" not in said  # the communicator is closed before the end
    return next(folder.glob("*/record.json")).parent


def start(overrides: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        torchrun("-m", "fogzo_repro", *overrides),
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("estimator", [["estimator=ste"], FOGZO], ids=["ste", "fogzo"])
def test_captured_step_of_two_cards_equals_the_eager_one_bit_for_bit(
    tmp_path: Path, estimator: list[str]
) -> None:
    common = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=30", *estimator]
    eager = train(tmp_path / "eager", *common, "hardware.cuda_graph=false")
    graph = train(tmp_path / "graph", *common)
    assert read_record(graph / "record.json")["capture_seconds"] > 0
    for name in ("metrics.jsonl", "checkpoint-00000030.safetensors"):
        assert (eager / name).read_bytes() == (graph / name).read_bytes(), name


@pytest.mark.parametrize("shared", ["false", "true"], ids=["own batchnorm", "shared batchnorm"])
def test_compiled_network_trains_on_two_cards(tmp_path: Path, data_dir: Path, shared: str) -> None:
    folder = train(
        tmp_path, "model=resnet18", "model.width=16", "scale=mini", "dataset=mnist",
        "recipe.max_steps=20",
        "recipe.global_batch_size=512", "recipe.lr=0.2", "estimator=fogzo", f"data_dir={data_dir}",
        f"hardware.sync_batchnorm={shared}",
    )  # fmt: skip
    steps = [line for line in read_metrics(folder / "metrics.jsonl") if "split" not in line]
    assert len(steps) == 20
    assert steps[-1]["loss"] < steps[0]["loss"]
    captured = read_record(folder / "record.json")["capture_seconds"] > 0
    assert captured == (shared == "false")


def test_cards_hold_the_same_weights_bit_for_bit(tmp_path: Path) -> None:
    """The bench looks at that for compiled networks, captured and not."""
    command = torchrun(
        "-m", "scripts.bench.cards", "--networks=resnet18", "--steps=2", "--warm-up=1",
        f"--out={tmp_path / 'cards.json'}",
    )  # fmt: skip
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert process.returncode == 0, process.stdout + process.stderr


def test_stopped_cards_go_on(tmp_path: Path) -> None:
    given = [
        "dataset=digits", "recipe=digits_mlp", *FOGZO, f"output_root={tmp_path}",
        "recipe.max_steps=1000000", "checkpoint_minutes=0.02",
    ]  # fmt: skip
    for go, wanted in enumerate(("run the same command again to go on", "resumed after step")):
        process = start(given)
        deadline, before = time.monotonic() + 120, set(tmp_path.glob("*/checkpoint-*.json"))
        while set(tmp_path.glob("*/checkpoint-*.json")) <= before:
            assert time.monotonic() < deadline, go
            time.sleep(0.1)
        process.terminate()
        assert wanted in process.communicate(timeout=60)[0]
