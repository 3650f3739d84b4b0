"""The smoothing laws of PAPER 1: mean, variance, density, and the identity that defines them."""

import itertools
import math

import pytest
import torch
from conftest import SIGN_SURROGATES
from formulas import DENSITIES, quantiles
from random_directions import random_directions
from scipy import integrate, stats
from torch import Tensor

from fogzo_repro.estimators import QuantizedWeight
from fogzo_repro.estimators.smoothing import LAWS, SmoothingLaw, smoothing_law
from fogzo_repro.quantization.functional import round_levels, round_range, sign_levels

EACH_LAW = pytest.mark.parametrize("key", LAWS, ids="-".join)
DRAWS = 200_000
LEVEL = 1e-6  # false alarm of each statistical test; the seeds are fixed

WIDTHS = {
    ("round", "identity"): 1 / (2 * math.sqrt(3)),
    ("sign", "hardtanh"): 1 / math.sqrt(3),
    ("sign", "tanh"): math.pi / math.sqrt(12),
    ("sign", "approxsign"): 1 / math.sqrt(6),
}


def sample(law: SmoothingLaw, like: Tensor, seed: int = 0) -> Tensor:
    """A direction of a weight that is shaped and typed as `like`."""
    weight = QuantizedWeight(like, torch.ones(()), law)
    return random_directions([weight], 1, seed)[0][0]


def density_mass(key: tuple[str, str], power: int) -> float:
    def integrand(u: float) -> float:
        return u**power * DENSITIES[key](u)

    pieces = [-30, -math.sqrt(6), -math.sqrt(3), 0, math.sqrt(3), math.sqrt(6), 30]
    parts = itertools.pairwise(pieces)
    return sum(integrate.quad(integrand, a, b, epsabs=1e-13)[0] for a, b in parts)


@EACH_LAW
def test_width_is_the_papers(key: tuple[str, str]) -> None:
    assert LAWS[key].epsilon_bar == pytest.approx(WIDTHS[key], rel=1e-15)


@EACH_LAW
def test_density_has_mass_one_mean_zero_variance_one(key: tuple[str, str]) -> None:
    moments = [density_mass(key, power) for power in (0, 1, 2)]
    assert moments == pytest.approx([1, 0, 1], abs=1e-10)


@EACH_LAW
def test_inverse_distribution_has_mean_zero_variance_one(key: tuple[str, str]) -> None:
    u = quantiles(LAWS[key])
    assert u.mean().item() == pytest.approx(0, abs=1e-9)
    assert u.square().mean().item() == pytest.approx(1, abs=1e-4)


@EACH_LAW
def test_draws_have_mean_zero_variance_one(key: tuple[str, str]) -> None:
    u = sample(LAWS[key], torch.empty(DRAWS)).double()
    bound = stats.norm.isf(LEVEL / 2) / math.sqrt(DRAWS)
    kurtosis = density_mass(key, 4)
    assert abs(u.mean().item()) < bound
    assert abs(u.square().mean().item() - 1) < bound * math.sqrt(kurtosis - 1)


@EACH_LAW
def test_draws_follow_the_density(key: tuple[str, str]) -> None:
    u = sample(LAWS[key], torch.empty(20_000), seed=1).double().sort().values
    pieces = [-math.sqrt(6), -math.sqrt(3), 0.0, math.sqrt(3), math.sqrt(6)]

    def distribution(x: float) -> float:
        inner = [p for p in pieces if -30 < p < x]
        edges = [-30.0, *inner, x]
        return sum(integrate.quad(DENSITIES[key], a, b)[0] for a, b in itertools.pairwise(edges))

    grid = torch.linspace(-2.5, 2.5, 51, dtype=torch.float64)
    empirical = torch.searchsorted(u, grid).double() / len(u)
    exact = torch.tensor([distribution(x) for x in grid.tolist()])
    # Dvoretzky-Kiefer-Wolfowitz: P(sup |F_n - F| > e) <= 2 exp(-2 n e^2)
    assert (empirical - exact).abs().max() < math.sqrt(math.log(2 / LEVEL) / (2 * len(u)))


@EACH_LAW
def test_draws_are_independent_of_their_neighbours(key: tuple[str, str]) -> None:
    u = sample(LAWS[key], torch.empty(DRAWS), seed=2).double()
    correlation = (u[1:] * u[:-1]).mean().item()
    assert abs(correlation) < stats.norm.isf(LEVEL / 2) / math.sqrt(DRAWS - 1)


@pytest.mark.parametrize("surrogate", SIGN_SURROGATES)
def test_smoothed_sign_is_its_surrogate(surrogate: str) -> None:
    law = smoothing_law("sign", surrogate)
    x = torch.linspace(-2, 2, 81, dtype=torch.float64)
    u = quantiles(law, 200_001)
    smoothed = torch.stack([sign_levels(v + law.epsilon_bar * u).mean() for v in x])
    exact = SIGN_SURROGATES[surrogate].h(x)
    assert torch.allclose(smoothed, exact, atol=3e-5)  # a cell of the quadrature weighs 1e-5


ROUND_GRIDS = [(bits, half) for bits in range(2, 9) for half in (False, True)]


@pytest.mark.parametrize(
    ("bits", "half_integer"), ROUND_GRIDS, ids=lambda v: {True: "half", False: "integer"}.get(v, v)
)
def test_smoothed_round_is_the_identity_between_the_outer_levels(
    bits: int, half_integer: bool
) -> None:
    law = smoothing_law("round", "identity")
    low, high = (level + 0.5 * half_integer for level in round_range(bits))
    x = torch.linspace(low, high, 63, dtype=torch.float64)
    u = quantiles(law, 100_001)
    smoothed = round_levels(x[:, None] + law.epsilon_bar * u, bits, half_integer).mean(1)
    assert torch.allclose(smoothed, x, atol=3e-5)
    outside = torch.tensor([low - 3, high + 3], dtype=torch.float64)
    clipped = round_levels(outside[:, None] + law.epsilon_bar * u, bits, half_integer).mean(1)
    assert clipped.tolist() == [low, high]


def test_cpu_uniform_draws_multiples_of_two_to_the_minus_24() -> None:
    k = torch.empty(1_000_003).uniform_(generator=torch.Generator().manual_seed(3)) * 2.0**24
    assert torch.equal(k, k.round())
    assert k.min() >= 0 and k.max() <= 2**24 - 1
    assert (k.remainder(2) == 1).double().mean().item() == pytest.approx(0.5, abs=0.003)


class ChosenUniform(torch.Tensor):
    """A tensor whose `uniform_` gives chosen k / 2^24 instead of random ones."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.Tensor.uniform_:
            return args[0].copy_(torch.tensor(CHOSEN) / 2.0**24)
        return super().__torch_function__(func, types, args, kwargs or {})


CHOSEN = [0.0, 1.0, 2.0**23 - 1, 2.0**23, 2.0**24 - 2, 2.0**24 - 1]


@EACH_LAW
def test_extreme_draws_are_finite_and_symmetric(key: tuple[str, str]) -> None:
    law = LAWS[key]
    u = sample(law, torch.empty(len(CHOSEN)).as_subclass(ChosenUniform))
    u = u.as_subclass(torch.Tensor)
    t = 2 * (torch.tensor(CHOSEN, dtype=torch.float64) + 0.5) / 2**24 - 1
    assert u.isfinite().all()
    assert torch.equal(u, -u.flip(0))
    assert (u[1:] > u[:-1]).all() or key == ("sign", "approxsign")  # flat in float32 at the ends
    assert torch.allclose(u.double(), law.from_symmetric(t), rtol=1e-3, atol=2e-7)


def test_draw_before_the_law_is_exact_in_float32() -> None:
    seen = []
    keep = SmoothingLaw(1.0, 1.0, lambda t: seen.append(t.clone()) or t)  # type: ignore[func-returns-value]
    sample(keep, torch.empty(len(CHOSEN)).as_subclass(ChosenUniform))
    exact = [(2 * k + 1 - 2**24) / 2**24 for k in CHOSEN]  # an odd multiple of 2^-24
    assert seen[-1][0].tolist() == exact


@EACH_LAW
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_draw_is_the_same_in_every_type(key: tuple[str, str], dtype: torch.dtype) -> None:
    narrow, single = (
        sample(LAWS[key], torch.empty(4096, dtype=each), seed=5) for each in (dtype, torch.float32)
    )
    assert narrow.dtype == dtype
    rtol = 1e-4 if dtype == torch.float64 else torch.finfo(dtype).eps
    assert torch.allclose(narrow.double(), single.double(), rtol=rtol, atol=2e-7)


def test_unknown_pair_is_refused_with_the_list() -> None:
    with pytest.raises(ValueError, match=r"\(round, tanh\); known: \(round, identity\)"):
        smoothing_law("round", "tanh")
