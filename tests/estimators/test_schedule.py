"""beta over the steps of a run (PAPER 4, "beta schedule")."""

import math

import pytest
import torch

from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.schedule import noise_at, start_step

CPU = torch.device("cpu")


def betas(fogzo: Fogzo, total: int) -> list[float]:
    found = []
    for t in range(total):
        assert fogzo.begin_step(t, total)
        found.append(1 - fogzo.noise)
    return found


def test_linear_goes_from_one_at_the_first_step_to_beta_min_at_the_last() -> None:
    assert betas(Fogzo(1, 0.4, "linear", CPU), 5) == pytest.approx([1.0, 0.9, 0.8, 0.7, 0.6])


def test_constant_is_beta_min_throughout() -> None:
    assert betas(Fogzo(1, 0.25, "constant", CPU), 3) == [0.75] * 3


@pytest.mark.parametrize("noise", [1e-9, 0.1, 1 / 3], ids=str)
@pytest.mark.parametrize("total", [2, 3, 1170, 299_999], ids=str)
def test_last_linear_step_has_the_noise_exactly(noise: float, total: int) -> None:
    assert noise_at(total - 1, total, noise=noise, schedule="linear") == noise


def test_single_step_has_beta_one_when_linear_and_beta_min_when_constant() -> None:
    assert betas(Fogzo(1, 0.4, "linear", CPU), 1) == [1.0]
    assert betas(Fogzo(1, 0.4, "constant", CPU), 1) == [0.6]


def test_start_is_the_ceiling_of_the_decimal_product() -> None:
    for percent in range(101):
        for total in (1, 7, 10, 50, 100, 1170, 30_000):
            assert start_step(percent / 100, total) == -(-percent * total // 100)


def test_a_step_sets_square_roots_of_beta_and_noise() -> None:
    fogzo = Fogzo(1, 1e-9, "constant", CPU)
    fogzo.begin_step(3, 10)
    assert [fogzo.sqrt_beta.item(), fogzo.sqrt_noise.item()] == [
        math.sqrt(1 - 1e-9),
        math.sqrt(1e-9),
    ]
