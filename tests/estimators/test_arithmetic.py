"""The compiled arithmetic of the estimators gives what the eager one gives."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from conftest import quantize
from torch import nn

from fogzo_repro.estimators import fogzo
from fogzo_repro.estimators.arithmetic import compile_arithmetic


@pytest.fixture
def compiled() -> Iterator[None]:
    compile_arithmetic(True)
    yield
    compile_arithmetic(False)


def mean_magnitude(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().mean(1, keepdim=True)


def reverse(weight: torch.Tensor) -> torch.Tensor:
    return weight.flip(-1)


def estimate(quantizer: str) -> list[torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    first, *others = quantize(model, quantizer)
    # one whose scale is live and whose rounding is in other coordinates
    first = replace(first, scale=mean_magnitude, rotate=reverse, rotate_back=reverse)
    weights = [first, *others]
    x = torch.randn(16, 6)
    stream = torch.Generator().manual_seed(1)
    kept = []
    for beta in (torch.tensor(0.5), torch.tensor(0.9)):  # the second pass finds compiled code
        model.zero_grad()
        model(x).square().sum().backward()
        before = [w.parameter.detach().clone() for w in weights]
        mix = beta.sqrt(), (1 - beta).sqrt()
        found = fogzo(weights, lambda: model(x).square().sum(), beta=mix, generator=stream)
        assert all(torch.equal(w.parameter, b) for w, b in zip(weights, before, strict=True))
        kept += [w.parameter.grad.clone() for w in weights if w.parameter.grad is not None]
        kept += [found.coefficient, found.flips, found.guide_norm]
    return kept


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.slow
@pytest.mark.parametrize("quantizer", ["round2", "tanh"], ids=str)
def test_compiled_arithmetic_equals_eager(quantizer: str, request: pytest.FixtureRequest) -> None:
    eager = estimate(quantizer)
    request.getfixturevalue("compiled")
    for a, b in zip(eager, estimate(quantizer), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
