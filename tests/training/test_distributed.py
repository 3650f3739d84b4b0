"""Two processes train as one: same weights, same losses (gloo, CPU, float64, SGD)."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_worker
import torch
from safetensors.torch import load_file

from fogzo_repro.training.distributed import Ranks

WORKER = Path(ranks_worker.__file__)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(WORKER.parents[2]),
    }  # fmt: skip
    started = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(folder)], env={**environment, "RANK": str(rank)}
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=300) for process in started] == [0, 0]
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("estimator", ranks_worker.ESTIMATORS, ids=str)
@pytest.mark.parametrize("model", ranks_worker.MODELS, ids=str)
def test_two_processes_end_with_the_weights_of_one(
    two_ranks: list[dict[str, torch.Tensor]], model: str, estimator: str
) -> None:
    alone = ranks_worker.train(model, ranks_worker.ESTIMATORS[estimator](), Ranks())
    torch.manual_seed(1)
    initial = dict(ranks_worker.MODELS[model]().double().named_parameters())
    moved = [(alone[f"weight/{name}"] - p).abs().max() for name, p in initial.items()]
    assert max(moved) > 1e-3
    for name, value in alone.items():
        for rank in two_ranks:
            other = rank[f"{model}/{estimator}/{name}"]
            assert torch.allclose(value.double(), other.double(), rtol=0, atol=1e-9), name


def test_ranks_hold_bitwise_equal_weights(two_ranks: list[dict[str, torch.Tensor]]) -> None:
    first, second = two_ranks
    assert first and all(torch.equal(first[name], second[name]) for name in first)
