"""The estimators' compiled elementwise functions give what the eager ones give."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import compiles, quantize
from torch import nn

from fogzo_repro.estimators import directions
from fogzo_repro.estimators.fogzo import algorithm_1
from fogzo_repro.estimators.fused import _alike, compile_fused
from fogzo_repro.estimators.probes import SequentialProbes


@pytest.fixture
def compiled() -> Iterator[None]:
    compile_fused(True)
    yield
    compile_fused(False)


def mean_magnitude(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().mean(1, keepdim=True)


def reverse(weight: torch.Tensor) -> torch.Tensor:
    return weight.flip(-1)


def estimate(quantizer: str, n: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    first, *others = quantize(model, quantizer)
    # one whose scale is live and whose rounding is in other coordinates
    first = replace(first, scale=mean_magnitude, rotate=reverse, rotate_back=reverse)
    weights = [first, *others]
    x = torch.randn(16, 6)
    probes = SequentialProbes(lambda: model(x).square().sum())
    streams = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    kept = []
    for beta in (torch.tensor(0.5), torch.tensor(0.9)):  # the second pass finds compiled code
        model.zero_grad()
        model(x).square().sum().backward()
        before = [w.parameter.detach().clone() for w in weights]
        found = algorithm_1(weights, probes, n, beta.sqrt(), (1 - beta).sqrt(), *streams)
        assert all(torch.equal(w.parameter, b) for w, b in zip(weights, before, strict=True))
        kept += [w.parameter.grad.clone() for w in weights if w.parameter.grad is not None]
        kept += [found.coefficient, found.flips, found.guide_norm]
    return kept


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["round2", "tanh"], ids=str)
def test_compiled_functions_equal_eager_ones(
    quantizer: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(directions, "BLOCK_NUMBERS", 2 * (6 * 5 + 5 * 4 + 4 * 3))
    eager = estimate(quantizer, n=5)  # blocks of 2, 2 and 1
    request.getfixturevalue("compiled")
    for a, b in zip(eager, estimate(quantizer, n=5), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("shapes", "bounds"),
    [
        ("s" + 3 * "qkvo" + "h", [0, 1, 5, 9, 13, 14]),
        (2 * "qqqqggd", [0, 7, 14]),
        (10 * "a", [0, 5, 10]),
        (3 * "ab", [0, 6]),  # no block of four
        ("uvwxyz" + 2 * "qkvo", [0, 14]),  # most are of no block
        ("", [0, 0]),
    ],
    ids=str,
)
def test_the_weights_of_blocks_that_are_alike_are_parts(shapes: str, bounds: list[int]) -> None:
    parts = _alike(shapes)
    assert [part.stop for part in parts] == bounds[1:]
    assert [part.start for part in parts] == bounds[:-1]
