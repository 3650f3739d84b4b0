"""Two processes train as one: same weights, same losses (gloo, CPU, float64, SGD)."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import ranks_worker
import torch
from safetensors.torch import load_file

from fogzo_repro.config import UserError
from fogzo_repro.training.ranks import Ranks, current_ranks
from tests.forked import free_port


def fork_two(target: Callable[[int, int, Path], None], folder: Path) -> None:
    fork, port = multiprocessing.get_context("fork").Process, free_port()
    started = [fork(target=target, args=(rank, port, folder)) for rank in range(2)]
    for process in started:
        process.start()
    for process in started:
        process.join(timeout=300)
    assert [process.exitcode for process in started] == [0, 0]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("ranks")
    for build in ranks_worker.MODELS.values():
        build()  # imports timm and transformers, which the children inherit
    fork_two(ranks_worker.work, folder)
    return [load_file(folder / f"rank{rank}.safetensors") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ranks_worker.ESTIMATORS, ids=str)
@pytest.mark.parametrize("model", ranks_worker.MODELS, ids=str)
def test_two_processes_end_with_the_weights_of_one(
    two_ranks: list[dict[str, torch.Tensor]], model: str, estimator: str
) -> None:
    alone = ranks_worker.train(model, estimator, Ranks())
    torch.manual_seed(1)
    initial = dict(ranks_worker.MODELS[model]().double().named_parameters())
    moved = [(alone[f"weight/{name}"] - p).abs().max() for name, p in initial.items()]
    assert max(moved) > 1e-3
    for name, value in alone.items():
        for rank in two_ranks:
            other = rank[f"{model}/{estimator}/{name}"]
            assert torch.allclose(value.double(), other.double(), rtol=0, atol=1e-9), name


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ranks_worker.ESTIMATORS, ids=str)
@pytest.mark.parametrize("model", ranks_worker.MODELS, ids=str)
def test_adamw_in_float32_is_handed_the_same_gradients(
    two_ranks: list[dict[str, torch.Tensor]], model: str, estimator: str
) -> None:
    alone = ranks_worker.train(model, estimator, Ranks(), adamw=True)
    gradients = {k: v for k, v in alone.items() if k.startswith("gradient/")}
    # A probe's loss, about 2.3, is rounded to 3e-7 in float32, and an estimate is c v / epsilon:
    # its relative error is that of c, the half difference of two such losses.
    c = alone["coefficient"][0].abs().item()
    tolerance = 3e-5 + (1e-6 / c if c else 0)
    assert tolerance < 1e-3
    norm = torch.stack([g.norm() for g in gradients.values()]).norm()
    for rank in two_ranks:
        others = [rank[f"adamw/{model}/{estimator}/{name}"] for name in gradients]
        pairs = zip(gradients.values(), others, strict=True)
        assert torch.stack([(a - b).norm() for a, b in pairs]).norm() < tolerance * norm


@pytest.mark.slow
def test_ranks_hold_bitwise_equal_weights(two_ranks: list[dict[str, torch.Tensor]]) -> None:
    first, second = two_ranks
    assert first and all(torch.equal(first[name], second[name]) for name in first)


def test_ranks_notice_the_least_difference_of_their_weights(tmp_path: Path) -> None:
    fork_two(ranks_worker.drift, tmp_path)
    for rank in range(2):
        assert (tmp_path / f"agree{rank}").read_text() == str([True, False] * 3)


def test_processes_that_cannot_be_joined_are_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a cluster's job or a shell has left WORLD_SIZE behind, and nothing else."""
    for name, value in {"WORLD_SIZE": "2", "RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    current_ranks.cache_clear()
    with pytest.raises(UserError, match=r"cannot join the 2 processes .* or unset these"):
        current_ranks()
