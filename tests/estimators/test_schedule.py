"""beta over the steps of a run (PAPER 4, "beta schedule")."""

import math

import pytest
import torch

from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.schedule import start_step
from fogzo_repro.estimators.spsa import Nspsa
from fogzo_repro.estimators.ste import Ste

CPU = torch.device("cpu")


def betas(fogzo: Fogzo, total: int) -> list[float | None]:
    noises = [fogzo.noise_at(t, total) for t in range(total)]
    return [None if noise is None else 1 - noise for noise in noises]


def test_linear_goes_from_one_at_the_first_probed_step_to_beta_min_at_the_last() -> None:
    found = betas(Fogzo(1, 0.4, "linear", 0.0, CPU), 5)
    assert found == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


def test_linear_after_a_start_counts_from_there() -> None:
    found = betas(Fogzo(1, 0.3, "linear", 0.35, CPU), 10)  # t0 = ceil(3.5) = 4
    assert found[:4] == [None] * 4
    assert found[4:] == pytest.approx([1 - 0.3 * k / 5 for k in range(6)])


def test_constant_is_beta_min_from_the_start_on() -> None:
    assert betas(Fogzo(1, 0.25, "constant", 0.5, CPU), 4) == [None, None, 0.75, 0.75]


@pytest.mark.parametrize("noise", [1e-9, 0.1, 1 / 3], ids=str)
@pytest.mark.parametrize("total", [2, 3, 1170, 299_999], ids=str)
def test_last_linear_step_has_the_noise_exactly(noise: float, total: int) -> None:
    assert Fogzo(1, noise, "linear", 0.0, CPU).noise_at(total - 1, total) == noise


def test_single_step_has_beta_one_when_linear_and_beta_min_when_constant() -> None:
    assert betas(Fogzo(1, 0.4, "linear", 0.0, CPU), 1) == [1.0]
    assert betas(Fogzo(1, 0.4, "constant", 0.0, CPU), 1) == [0.6]


def test_start_is_the_ceiling_of_the_decimal_product() -> None:
    for percent in range(101):
        for total in (1, 7, 10, 50, 100, 1170, 30_000):
            assert start_step(percent / 100, total) == -(-percent * total // 100)


@pytest.mark.parametrize("start", [0.0, 0.07, 0.7, 1.0], ids=str)
def test_all_estimators_are_probed_from_the_same_step(start: float) -> None:
    spsa, fogzo = Nspsa(1, start), Fogzo(1, 0.1, "linear", start, CPU)
    first = start_step(start, 100)
    for step in range(100):
        assert spsa.prepare(step, 100) == fogzo.prepare(step, 100) == (step >= first)
        assert not Ste().prepare(step, 100)


def test_prepare_sets_square_roots_of_beta_and_noise() -> None:
    fogzo = Fogzo(1, 1e-9, "constant", 0.0, CPU)
    fogzo.prepare(3, 10)
    assert [fogzo.sqrt_beta.item(), fogzo.sqrt_noise.item()] == [
        math.sqrt(1 - 1e-9),
        math.sqrt(1e-9),
    ]
