"""The batched evaluator against the sequential one, on uint8 images."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import quantize
from random_directions import random_directions
from torch import Tensor, nn

from fogzo_repro.config import UserError
from fogzo_repro.data import Batch, Images, mnist
from fogzo_repro.estimators import Point, SequentialProbes, directions, fogzo, nspsa
from fogzo_repro.estimators.directions import BLOCK_NUMBERS
from fogzo_repro.estimators.protocol import ProbeLosses, Probes
from fogzo_repro.models.mlp import Mlp
from fogzo_repro.plan import BLOCKS_ALIVE, choose_batched_probes
from fogzo_repro.training.batched import BatchedProbes, supports_batched
from fogzo_repro.training.classification import InMemoryImages
from tests.live_bytes import peak_bytes

MIB = 2**20
DATASET = mnist.build(Path("not read"))
QUANTIZERS = ["round2", "round2_half", "round3", "round8", "hardtanh", "tanh", "approxsign"]


class Problem:
    """The 784-H-10 MLP and a batch whose pixels look like digits: mostly 0, strokes up to 255."""

    def __init__(
        self, quantizer: str, images: int = 48, hidden: int = 10, batch: Batch | None = None
    ) -> None:
        generator = torch.Generator().manual_seed(3)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = Mlp(784, hidden, 10)
        self.weights = quantize(self.model, quantizer)
        noise = torch.randint(0, 256, (images, 1, 28, 28), generator=generator)
        ink = torch.rand(images, 1, 28, 28, generator=generator) < 0.2
        pixels = (noise * ink).to(torch.uint8)
        labels = torch.randint(10, (images,), generator=generator)
        self.batch = batch or Batch(pixels, labels)
        self.images = Images(self.batch, self.batch, 0.1307, 0.3081, 10)

    def loss(self) -> Tensor:
        logits = self.model(self.images.normalize(self.batch.pixels))
        return F.cross_entropy(logits, self.batch.labels)

    def batched(self, budget: int = MIB) -> BatchedProbes:
        return BatchedProbes(self.model, self.images, self.batch, budget)

    def directions(self, k: int) -> list[Tensor]:
        return random_directions(self.weights, k)

    def estimate(self, probes: Probes, beta: float | None, n: int) -> tuple[list[Tensor], Any]:
        """The gradients written, and the estimate."""
        self.model.zero_grad()
        self.loss().backward()
        streams = [torch.Generator().manual_seed(seed) for seed in (5, 6)]
        if beta is None:
            said = nspsa(self.weights, n=n, generator=streams[0], probes=probes)
        else:
            said = fogzo(self.weights, beta=beta, n=n, generator=streams[0], signs=streams[1],
                         probes=probes)  # fmt: skip
        return [w.parameter.grad.clone() for w in self.weights], said  # type: ignore[union-attr]


def close(found: ProbeLosses, expected: ProbeLosses) -> bool:
    """Equal to float32 round-off: the losses are near 2.3, summed in another order."""
    return all(
        torch.allclose(a, b, rtol=0, atol=3e-6)
        for a, b in ((found.plus, expected.plus), (found.minus, expected.minus))
    )


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_losses_and_flips_equal_the_sequential_ones(quantizer: str) -> None:
    problem = Problem(quantizer)
    here, along = Point(problem.weights), problem.directions(12)
    sequential = SequentialProbes(problem.loss)(here, along)
    found = problem.batched()(here, along)
    assert close(found, sequential)
    assert torch.equal(found.flips, sequential.flips)
    assert found.flips > 0 and (found.plus != found.minus).all()
    assert found.plus.std() > 1e-3, "losses that do not vary would agree without a proof"


def test_losses_and_flips_equal_the_sequential_ones_on_mnist(data_dir: Path) -> None:
    batch = Batch(*(t[:512] for t in mnist.read(data_dir).train))
    problem = Problem("round2", batch=batch)
    here, along = Point(problem.weights), problem.directions(6)
    sequential = SequentialProbes(problem.loss)(here, along)
    found = problem.batched()(here, along)
    assert close(found, sequential)
    assert torch.equal(found.flips, sequential.flips)


@pytest.mark.parametrize("beta", [None, 0.9], ids=["nspsa", "fogzo"])
@pytest.mark.parametrize("quantizer", ["round2", "round2_half", "tanh"])
def test_gradient_equals_the_sequential_one(
    quantizer: str, beta: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "BLOCK_NUMBERS", 7940 * 5)  # 12 pairs in 3 blocks
    problem = Problem(quantizer)
    expected, said = problem.estimate(SequentialProbes(problem.loss), beta, 12)
    found, said_too = problem.estimate(problem.batched(), beta, 12)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).norm() < 1e-4 * b.norm()
    assert said_too.flips == said.flips
    assert torch.allclose(said_too.coefficient, said.coefficient, rtol=1e-3)


@pytest.mark.parametrize("quantizer", ["round2", "tanh"])
def test_memory_budget_changes_nothing_but_the_order_of_sums(quantizer: str) -> None:
    problem = Problem(quantizer)
    here, along = Point(problem.weights), problem.directions(11)
    reference = problem.batched(1)(here, along)
    chunks = set()
    for budget in (1, MIB // 2, MIB, 64 * MIB):
        probes = problem.batched(budget)
        chunks.add(probes.chunk)
        found = probes(here, along)
        assert close(found, reference)
        assert torch.equal(found.flips, reference.flips)
    assert len(chunks) == 4 and min(chunks) == 1


def test_directions_do_not_depend_on_the_budget() -> None:
    problem, seen = Problem("round2"), []

    class Keeping:
        def __init__(self, probes: Probes) -> None:
            self.probes = probes

        def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
            seen.append([v.clone() for v in directions])
            return self.probes(here, directions)

    for budget in (1, 64 * MIB):
        problem.estimate(Keeping(problem.batched(budget)), 0.9, 9)
    assert all(map(torch.equal, *seen))


def test_weights_are_bitwise_unchanged() -> None:
    problem = Problem("round2")
    before = {k: v.clone() for k, v in problem.model.state_dict().items()}
    problem.estimate(problem.batched(), 0.9, 9)
    assert all(torch.equal(v, before[k]) for k, v in problem.model.state_dict().items())


@pytest.mark.parametrize(
    ("quantizer", "images", "hidden"),
    [("round2", 512, 10), ("round2_half", 512, 1), ("tanh", 64, 10)],
    ids=["round", "narrow", "sign"],
)
@pytest.mark.parametrize("k", [8, 60], ids=str)
def test_peak_memory_is_within_the_budget_for_any_n(
    quantizer: str, images: int, hidden: int, k: int
) -> None:
    problem, budget = Problem(quantizer, images, hidden), 2 * MIB
    probes, along = problem.batched(budget), problem.directions(k)
    peak = peak_bytes(lambda: probes(Point(problem.weights), along))
    assert peak <= budget
    if k > probes.chunk:
        assert peak > budget / 8, "the measurement misses the chunks, or they are far too small"


def test_supported_models_are_the_mlp_with_round_or_sign() -> None:
    assert supports_batched(Problem("round2").model)
    assert supports_batched(Problem("tanh").model)
    assert not supports_batched(Mlp(4, 3, 2))  # in full precision
    assert not supports_batched(nn.Sequential(nn.Linear(4, 3)))


@pytest.mark.parametrize("model", [Mlp(784, 10, 10), nn.Linear(784, 10)], ids=["float", "linear"])
def test_unsupported_model_is_refused_with_the_list(model: nn.Module) -> None:
    task = InMemoryImages(DATASET)
    config: Any = SimpleNamespace(
        estimator=SimpleNamespace(evaluator="batched", n=7, probe_gradients=False),
        hardware=SimpleNamespace(probe_memory_mb=1),
    )
    network: Any = SimpleNamespace(model=model)
    machine: Any = SimpleNamespace(autocast=None)
    with pytest.raises(UserError, match="model=mlp in float32 with quantizer=round or sign"):
        choose_batched_probes(config, machine, task, network)
    config.estimator.evaluator = "auto"
    assert choose_batched_probes(config, machine, task, network) is None


def test_autocast_is_left_to_the_sequential_evaluator() -> None:
    problem = Problem("round2")
    config: Any = SimpleNamespace(
        estimator=SimpleNamespace(evaluator="auto", n=7, probe_gradients=False),
        hardware=SimpleNamespace(probe_memory_mb=1),
    )
    task, network = InMemoryImages(DATASET), SimpleNamespace(model=problem.model)
    for dtype, batched in ((None, True), (torch.bfloat16, False)):
        machine: Any = SimpleNamespace(autocast=dtype)
        found = choose_batched_probes(config, machine, task, network)  # type: ignore[arg-type]
        assert (found is not None) == batched


@pytest.mark.parametrize("beta", [None, 0.999], ids=["nspsa", "fogzo"])
@pytest.mark.slow
def test_directions_of_a_whole_estimate_take_what_the_budget_leaves_them(
    beta: float | None,
) -> None:
    problem = Problem("round2", images=16)
    probes = problem.batched(budget=1)  # chunks of one direction: what remains are the directions
    probes.chunk = 256
    peak = peak_bytes(lambda: problem.estimate(probes, beta, n=5000))  # three blocks
    assert 4 * BLOCK_NUMBERS < peak <= BLOCKS_ALIVE * 4 * BLOCK_NUMBERS + 32 * MIB
