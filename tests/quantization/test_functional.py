"""Levels and surrogates as properties over all finite inputs."""

import math

import pytest
import torch
from conftest import SIGN_SURROGATES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fogzo_repro.quantization.functional import (
    round_levels,
    round_range,
    sign_levels,
    with_surrogate_gradient,
)

UNITS = st.lists(
    st.one_of(
        st.floats(-300, 300, width=32),
        st.integers(-600, 600).map(lambda k: k / 2),  # levels and thresholds themselves
        st.floats(-(2.0**100), 2.0**100, width=32),
    ),
    min_size=1,
    max_size=30,
).map(torch.tensor)
BITS = st.integers(2, 8)
quick = settings(max_examples=60, deadline=None, derandomize=True)


def grid(bits: int, half_integer: bool) -> set[float]:
    return {
        k + 0.5 * half_integer for k in range(-(2 ** (bits - 1)), 2 ** (bits - 1))
    }  # PAPER 4, "Grid of round"


@quick
@given(UNITS, BITS, st.booleans())
def test_rounded_values_are_on_the_grid(x: Tensor, bits: int, half: bool) -> None:
    assert set(round_levels(x, bits, half).tolist()) <= grid(bits, half)


@quick
@given(BITS, st.booleans())
def test_every_level_is_its_own_rounding(bits: int, half: bool) -> None:
    levels = torch.tensor(sorted(grid(bits, half)))
    assert torch.equal(round_levels(levels, bits, half), levels)
    assert len(levels) == 2**bits
    assert round_range(bits) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


@quick
@given(UNITS, BITS, st.booleans())
def test_rounding_is_idempotent_and_monotone(x: Tensor, bits: int, half: bool) -> None:
    once = round_levels(x.sort().values, bits, half)
    assert torch.equal(round_levels(once, bits, half), once)
    assert (once.diff() >= 0).all()


@quick
@given(UNITS, BITS, st.booleans())
def test_rounding_goes_to_the_nearest_level(x: Tensor, bits: int, half: bool) -> None:
    levels = torch.tensor(sorted(grid(bits, half)), dtype=torch.float64)
    nearest = (x.double()[:, None] - levels).abs().min(1).values
    found = (x.double() - round_levels(x, bits, half)).abs()
    # (x - 1/2) is rounded to float32 before it is rounded to a level: one part in 2^23 near a tie
    assert (found <= nearest + x.double().abs() * 2**-23).all()


@quick
@given(UNITS)
def test_rounding_leaves_its_input_alone(x: Tensor) -> None:
    before = x.clone()
    round_levels(x, 2)
    round_levels(x, 2, half_integer=True)
    sign_levels(x)
    assert torch.equal(x, before)


@quick
@given(UNITS)
def test_sign_has_two_levels_and_is_monotone_and_idempotent(x: Tensor) -> None:
    levels = sign_levels(x.sort().values)
    assert set(levels.tolist()) <= {-1.0, 1.0}
    assert (levels.diff() >= 0).all()
    assert torch.equal(sign_levels(levels), levels)
    assert torch.equal(sign_levels(x) > 0, x >= 0)


def test_sign_of_zero_is_plus_one() -> None:
    assert sign_levels(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


DERIVATIVES = {  # PAPER 1 and RECIPES D.5
    "hardtanh": lambda x: 1.0 if abs(x) <= 1 else 0.0,
    "tanh": lambda x: 1 - math.tanh(x) ** 2,
    "approxsign": lambda x: max(0.0, 2 - 2 * abs(x)),
}


@quick
@given(st.floats(-3, 3))
@pytest.mark.parametrize("name", SIGN_SURROGATES)
def test_derivative_of_the_surrogate_is_the_closed_form(name: str, x: float) -> None:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    SIGN_SURROGATES[name].h(t).backward()
    assert t.grad is not None
    assert t.grad.item() == pytest.approx(DERIVATIVES[name](x), abs=1e-12)


@pytest.mark.parametrize("x", [-1.0, -0.0, 0.0, 1.0], ids=str)
@pytest.mark.parametrize("name", SIGN_SURROGATES)
def test_derivative_is_the_closed_form_at_the_kinks(name: str, x: float) -> None:
    t = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    SIGN_SURROGATES[name].h(t).backward()
    assert t.grad is not None
    assert t.grad.item() == pytest.approx(DERIVATIVES[name](x), abs=1e-15)


@quick
@given(st.floats(-2, 2))
def test_approx_sign_is_the_piecewise_polynomial(x: float) -> None:
    pieces = (
        -1.0 if x < -1 else 2 * x + x * x if x < 0 else 2 * x - x * x if x < 1 else 1.0
    )  # RECIPES D.5, Bi-Real Net
    found = SIGN_SURROGATES["approxsign"].h(torch.tensor(x, dtype=torch.float64)).item()
    assert found == pytest.approx(pieces, abs=1e-12)


@quick
@given(UNITS)
def test_surrogate_gives_the_gradient_and_not_the_value(x: Tensor) -> None:
    t = x.clone().requires_grad_()
    out = with_surrogate_gradient(sign_levels(t), 3 * t)
    out.sum().backward()
    assert torch.equal(out.detach(), sign_levels(x))
    assert t.grad is not None and torch.equal(t.grad, torch.full_like(x, 3.0))
    with torch.no_grad():
        assert torch.equal(with_surrogate_gradient(sign_levels(x), x), sign_levels(x))
