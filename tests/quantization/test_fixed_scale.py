"""`round` and `sign` with a fixed scale, as modules."""

import math
from typing import Any

import pytest
import torch
from conftest import QUANTIZERS, SIGN_SURROGATES
from torch import Tensor

from fogzo_repro.quantization.functional import Surrogate
from fogzo_repro.quantization.sign import Sign
from fogzo_repro.quantization.uniform import Round

EACH = pytest.mark.parametrize("name", QUANTIZERS)


def initial(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.07


def derivative(quantizer: Any, weight: Tensor) -> Tensor:
    w = weight.clone().requires_grad_()
    quantizer(w).sum().backward()
    assert w.grad is not None
    return w.grad


@EACH
def test_scale_is_the_deviation_of_the_initial_weights_for_good(name: str) -> None:
    weight = initial(8, 5)
    quantizer: Any = QUANTIZERS[name](weight)
    deviation = ((weight - weight.mean()).square().sum() / (weight.numel() - 1)).sqrt()
    assert torch.allclose(quantizer.scale, deviation)
    assert torch.equal(quantizer.perturbation_scale(weight * 5), quantizer.scale)
    quantizer(weight * 5)
    assert torch.allclose(quantizer.scale, deviation)
    assert list(quantizer.state_dict()) == ["scale"] and not list(quantizer.parameters())


@EACH
def test_output_is_the_scale_times_the_level(name: str) -> None:
    weight = initial(40, 5)
    quantizer: Any = QUANTIZERS[name](weight)
    levels = quantizer.levels(weight / quantizer.scale)
    assert torch.equal(quantizer(weight), quantizer.scale * levels)
    assert len(levels.unique()) > 1


@EACH
def test_output_is_the_same_with_and_without_gradients(name: str) -> None:
    weight = initial(40, 5, seed=1)
    quantizer = QUANTIZERS[name](weight)
    with torch.no_grad():
        silent = quantizer(weight)
    assert torch.equal(quantizer(weight.clone().requires_grad_()).detach(), silent)


@EACH
def test_perturbation_scale_is_the_spacing_or_half_of_it_for_sign(name: str) -> None:
    weight = initial(8, 5)
    quantizer: Any = QUANTIZERS[name](weight)
    values = quantizer(torch.arange(-300, 301) / 2.0 * quantizer.scale).unique()
    spacing = values.diff()
    alpha = quantizer.perturbation_scale(weight)
    share = 0.5 if quantizer.smoothing[0] == "sign" else 1.0
    assert torch.allclose(share * spacing, alpha.expand_as(spacing), rtol=1e-4)


def test_derivative_of_round_is_one_everywhere() -> None:
    quantizer = Round(initial(8, 5), bits=2)
    weight = torch.linspace(-5, 5, 101) * quantizer.scale
    assert torch.equal(derivative(quantizer, weight), torch.ones(101))


@pytest.mark.parametrize(
    ("clip", "beyond"), [(True, 0.0), ("half_step", 0.5)], ids=["outer-level", "half-step"]
)
@pytest.mark.parametrize("half", [False, True], ids=["integer", "half_integer"])
def test_clipped_derivative_of_round_is_one_up_to_the_outer_levels_or_half_a_step_more(
    half: bool, clip: bool | str, beyond: float
) -> None:
    quantizer = Round(initial(8, 5), bits=2, half_integer=half, clip_gradient=clip)
    units = torch.linspace(-5, 5, 102)
    low, high = (-1.5 - beyond, 1.5 + beyond) if half else (-2.0 - beyond, 1.0 + beyond)
    found = derivative(quantizer, units * quantizer.scale)
    assert torch.allclose(found, ((units > low) & (units < high)).float())


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0], ids=str)
def test_levels_are_as_many_deviations_apart_as_the_factor_says(factor: float) -> None:
    weight = initial(40, 5)
    plain, scaled = Round(weight, bits=3), Round(weight, bits=3, factor=factor)
    assert torch.equal(scaled.perturbation_scale(weight), factor * plain.scale)
    spacing = scaled(torch.arange(-300, 301) / 4.0 * scaled.scale).unique().diff()
    assert torch.allclose(spacing, factor * weight.std().expand_as(spacing), rtol=1e-5)


def test_derivative_of_round_with_another_surrogate_is_that_surrogates() -> None:
    steep = Surrogate(lambda x: x + torch.sin(2 * math.pi * x) / 10)
    quantizer = Round(initial(8, 5), 2, steep, factor=1.5)
    units = torch.linspace(-3, 3, 41)
    expected = 1 + 2 * math.pi * torch.cos(2 * math.pi * units) / 10
    found = derivative(quantizer, units * quantizer.scale)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("surrogate", "closed"),
    [
        ("hardtanh", lambda x: (x.abs() <= 1).float()),
        ("tanh", lambda x: 1 - x.tanh().square()),
        ("approxsign", lambda x: (2 - 2 * x.abs()).clamp_min(0)),
    ],
    ids=["hardtanh", "tanh", "approxsign"],
)
def test_derivative_of_sign_is_that_of_the_surrogate_in_units_of_the_scale(
    surrogate: str, closed: Any
) -> None:
    quantizer = Sign(initial(8, 5), SIGN_SURROGATES[surrogate])
    units = torch.linspace(-2.01, 2.03, 102)
    found = derivative(quantizer, units * quantizer.scale)
    assert torch.allclose(found, closed(units), atol=1e-5)


@EACH
@pytest.mark.filterwarnings("ignore:std")  # torch's own, of a single weight
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1.7, -1e-3], ids=str)
@pytest.mark.parametrize("count", [1, 70, 7840], ids=str)
def test_weights_without_spread_are_refused(name: str, value: float, count: int) -> None:
    with pytest.raises(ValueError, match="no spread"):
        QUANTIZERS[name](torch.full((count, 1), value))


@EACH
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_weights_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    with pytest.raises(ValueError, match="no spread"):
        QUANTIZERS[name](torch.tensor([0.1, bad, 0.3]))
