"""E[G] of n-SPSA on a quantized loss: the closed form in q of PAPER 1.

For one weight at x (in units of alpha) and loss slope * alpha * level(x),
E[G] = slope / epsilon_bar * sum_k jump_k q((threshold_k - x) / epsilon_bar), and
q(w) = int_w^inf t p(t) dt.
"""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from convergence import assert_mean_is
from formulas import DENSITIES, FormulaProbes, quantiles
from scipy import integrate
from torch import Tensor, nn

from fogzo_repro.estimators import QuantizedWeight, nspsa
from fogzo_repro.estimators.smoothing import LAWS
from fogzo_repro.quantization.functional import round_levels, sign_levels

ALPHA, SLOPE = 0.37, -1.7
EACH_LAW = pytest.mark.parametrize("key", LAWS, ids="-".join)
E_TANH = math.pi / math.sqrt(12)


def q_uniform(w: Tensor) -> Tensor:
    return (3 - w.square()).clamp_min(0) / (4 * math.sqrt(3))


def q_logistic(w: Tensor) -> Tensor:
    x = E_TANH * w
    return (torch.logaddexp(x, -x) / E_TANH - w * x.tanh()) / 2


def q_triangular(w: Tensor) -> Tensor:
    w = w.abs().clamp_max(math.sqrt(6))
    return (math.sqrt(6) - math.sqrt(6) * w.square() / 2 + w**3 / 3) / 6


Q: dict[tuple[str, str], Callable[[Tensor], Tensor]] = {
    ("round", "identity"): q_uniform,
    ("sign", "hardtanh"): q_uniform,
    ("sign", "tanh"): q_logistic,
    ("sign", "approxsign"): q_triangular,
}


def levels(key: tuple[str, str], x: Tensor) -> Tensor:
    return round_levels(x, bits=2) if key[0] == "round" else sign_levels(x)


def closed_form(key: tuple[str, str], x: Tensor) -> Tensor:
    """E[G] for SLOPE, at x in units of alpha."""
    steps = [(-1.5, 1), (-0.5, 1), (0.5, 1)] if key[0] == "round" else [(0.0, 2)]
    width = LAWS[key].epsilon_bar
    parts = [jump * Q[key]((threshold - x) / width) for threshold, jump in steps]
    return SLOPE / width * torch.stack(parts).sum(0)


@EACH_LAW
def test_q_is_the_tail_integral_of_the_density(key: tuple[str, str]) -> None:
    for w in (-2.0, -0.7, 0.0, 0.4, 1.6, 2.3):
        edges = sorted({w, *(e for e in (0.0, math.sqrt(3), math.sqrt(6), 30.0) if e > w)})
        tail = sum(
            integrate.quad(lambda t: t * DENSITIES[key](t), a, b)[0]
            for a, b in itertools.pairwise(edges)
        )
        assert Q[key](torch.tensor(w, dtype=torch.float64)).item() == pytest.approx(tail, abs=1e-8)


@EACH_LAW
def test_closed_form_is_the_quadrature_of_the_estimator(key: tuple[str, str]) -> None:
    width, u = LAWS[key].epsilon_bar, quantiles(LAWS[key], 200_001)
    x = torch.linspace(-2.2, 1.4, 37, dtype=torch.float64)

    def level(v: Tensor) -> Tensor:
        return levels(key, v)

    values = [SLOPE * ((level(v + width * u) - level(v - width * u)) * u).mean() for v in x]
    found = torch.stack(values) / (2 * width)
    assert torch.allclose(found, closed_form(key, x), atol=3e-4)


def estimates(key: tuple[str, str], x: list[float], formula: Callable[[Tensor], Tensor]) -> Tensor:
    """120 independent n-SPSA estimates of 2,000 pairs each, for weights at alpha * x."""
    parameter = nn.Parameter(ALPHA * torch.tensor(x, dtype=torch.float64))
    weights = [QuantizedWeight(parameter, torch.tensor(ALPHA, dtype=torch.float64), LAWS[key])]
    generator, found = torch.Generator().manual_seed(11), []
    for _ in range(120):
        parameter.grad = torch.zeros_like(parameter)
        nspsa(weights, n=2000, generator=generator, probes=FormulaProbes(formula))
        found.append(parameter.grad)
    return torch.stack(found)


@EACH_LAW
@pytest.mark.parametrize("x", [-0.3, 0.05, 0.45], ids=str)
def test_mean_on_one_quantized_weight_is_the_closed_form(key: tuple[str, str], x: float) -> None:
    found = estimates(key, [x], lambda w: SLOPE * ALPHA * levels(key, w / ALPHA).squeeze(1))
    truth = closed_form(key, torch.tensor([x], dtype=torch.float64))
    assert_mean_is(found, truth, resolution=0.02)


def test_round_gives_six_t_one_minus_t_times_the_outer_slope() -> None:
    t = torch.linspace(0, 1, 21, dtype=torch.float64)  # from the level -1 to the level 0
    found = closed_form(("round", "identity"), t - 1)
    assert torch.allclose(found, SLOPE * 6 * t * (1 - t))
    assert found.abs().max() == pytest.approx(1.5 * abs(SLOPE))


@EACH_LAW
def test_other_coordinates_are_averaged_with_p(key: tuple[str, str]) -> None:
    x = [0.2, 0.4]

    def product(w: Tensor) -> Tensor:
        both = levels(key, w / ALPHA)
        return SLOPE * ALPHA * both[:, 0] * both[:, 1]

    def smoothed(v: float) -> float:  # with p, by quadrature
        u = quantiles(LAWS[key], 200_001)
        return levels(key, v + LAWS[key].epsilon_bar * u).mean().item()

    slope = closed_form(key, torch.tensor(x, dtype=torch.float64))
    truth = slope * torch.tensor([smoothed(x[1]), smoothed(x[0])], dtype=torch.float64)
    assert_mean_is(estimates(key, x, product), truth, resolution=0.05)
