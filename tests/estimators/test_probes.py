"""Probes: displacing, restoring, counting; and the control with random signs."""

from collections.abc import Sequence

import pytest
import torch
from conftest import TinyNetwork, gradient
from random_directions import random_directions
from torch import Tensor, nn

from fogzo_repro.estimators import (
    Point,
    QuantizedWeight,
    RandomSign,
    SequentialProbes,
    directions,
    fogzo,
    nspsa,
    smoothing_law,
)
from fogzo_repro.estimators.protocol import ProbeLosses
from fogzo_repro.quantization.functional import sign_levels
from tests.random_directions import stream

LAW = smoothing_law("sign", "hardtanh")


def bits(weights: Sequence[QuantizedWeight]) -> list[Tensor]:
    return [w.parameter.detach().clone().view(torch.int64) for w in weights]


def test_restore_is_bitwise_and_keeps_the_storage(tiny: TinyNetwork) -> None:
    with torch.no_grad():
        tiny.weights[0].parameter[0, 0] = -0.0
    tiny.backward()
    before = bits(tiny.weights)
    places = [w.parameter.data_ptr() for w in tiny.weights]
    for step in range(20):
        tiny.backward()
        fogzo(tiny.weights, tiny.loss, beta=0.9, n=3, generator=stream(step))
    assert all(map(torch.equal, bits(tiny.weights), before))
    assert [w.parameter.data_ptr() for w in tiny.weights] == places


@pytest.mark.parametrize("failing_call", [1, 2, 4], ids=["plus", "minus", "second_pair"])
def test_restore_is_bitwise_when_the_loss_raises(tiny: TinyNetwork, failing_call: int) -> None:
    before, ste = bits(tiny.weights), tiny.backward()
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        if len(calls) == failing_call:
            raise RuntimeError("out of memory")
        return tiny.loss()

    with pytest.raises(RuntimeError, match="out of memory"):
        fogzo(tiny.weights, loss, beta=0.9, n=3, generator=stream(0))
    assert all(map(torch.equal, bits(tiny.weights), before))
    assert all(torch.equal(gradient(w), g) for w, g in zip(tiny.weights, ste, strict=True))


def test_probes_are_at_theta_plus_and_minus_epsilon_v(tiny: TinyNetwork) -> None:
    seen: list[list[Tensor]] = []

    def loss() -> Tensor:
        seen.append([w.parameter.detach().clone() for w in tiny.weights])
        return tiny.loss()

    along = random_directions(tiny.weights, 2)
    theta = [w.parameter.detach().clone() for w in tiny.weights]
    losses = SequentialProbes(loss)(Point(tiny.weights), along)
    assert len(losses.plus) == len(losses.minus) == 2
    for j in range(2):
        for side, sign in ((0, 1), (1, -1)):
            for w, x, v, found in zip(tiny.weights, theta, along, seen[2 * j + side], strict=True):
                assert torch.equal(found, x + sign * w.epsilon() * v[j])


def test_no_graph_is_built_by_the_probes(tiny: TinyNetwork) -> None:
    def loss() -> Tensor:
        value = tiny.loss()
        assert not value.requires_grad
        return value

    nspsa(tiny.weights, loss, n=2, generator=stream(0))


@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16], ids=str)
def test_difference_of_narrow_losses_is_taken_in_float32(
    tiny: TinyNetwork, narrow: torch.dtype
) -> None:
    here, along = Point(tiny.weights), random_directions(tiny.weights, 1)
    losses = SequentialProbes(lambda: tiny.loss().to(narrow))(here, along)
    assert losses.plus.dtype == torch.float32
    assert SequentialProbes(tiny.loss)(here, along).plus.dtype == torch.float64


def test_flips_are_counted_as_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([0.1, -0.5, 0.9, -0.2]))
    w = QuantizedWeight(parameter, torch.tensor(1.0), LAW, levels=sign_levels)
    # epsilon = 0.577: |0.1| and |-0.5| and |-0.2| are inside along (1, 1, 1, 1), one along the last
    along = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.5, 1.5, 0.5]])
    flat = SequentialProbes(lambda: torch.ones(()))
    assert flat(Point([w]), [along]).flips == 3 + 1
    blind = QuantizedWeight(nn.Parameter(parameter.detach().clone()), torch.tensor(1.0), LAW)
    assert flat(Point([w, blind]), [along, along]).flips == 4
    parameter.grad = torch.zeros(4)
    estimate = nspsa([w], n=2, generator=stream(0), probes=flat)
    [drawn] = random_directions([w], 2, 0)
    by_hand = (parameter.abs() < LAW.epsilon_bar * drawn.abs()).sum().item() / 2
    assert estimate.flips.item() == by_hand


def test_what_a_step_knows_of_its_weights_is_made_once() -> None:
    calls = []

    def counted(name: str, result: Tensor) -> Tensor:
        calls.append(name)
        return result

    parameter = nn.Parameter(torch.tensor([[0.1, -0.5], [0.9, -0.2]]))
    parameter.grad = torch.ones(2, 2)
    w = QuantizedWeight(
        parameter, lambda p: counted("scale", p.abs().mean()), LAW,
        rotate=lambda x: counted("guide", x.flip(-1)), rotate_back=lambda x: x.flip(-1),
    )  # fmt: skip
    fogzo([w], lambda: parameter.square().sum(), beta=0.9, n=3, generator=stream(0))
    assert sorted(calls) == ["guide", "scale"]


def test_guide_of_an_unrotated_weight_is_its_gradient_and_takes_no_memory(
    tiny: TinyNetwork,
) -> None:
    for w, guide in zip(tiny.weights, Point(tiny.weights).guides, strict=True):
        assert guide.data_ptr() == gradient(w).data_ptr()


def test_epsilon_follows_a_live_scale() -> None:
    step = nn.Parameter(torch.tensor(0.5))
    w = QuantizedWeight(nn.Parameter(torch.ones(3)), step, LAW)
    assert w.epsilon().item() == pytest.approx(0.5 * LAW.epsilon_bar)
    with torch.no_grad():
        step.fill_(-2.0)  # a learned step that has changed its sign still gives a distance
    assert w.epsilon().item() == pytest.approx(2 * LAW.epsilon_bar)
    of_weight = QuantizedWeight(nn.Parameter(torch.ones(3)), lambda p: 3 * p.mean(), LAW)
    assert of_weight.epsilon().item() == pytest.approx(3 * LAW.epsilon_bar)


def test_rotated_coordinates_are_the_same_estimator_of_the_rotated_weight() -> None:
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, generator=stream(1), dtype=torch.float64))
    start = torch.randn(3, 4, generator=stream(2), dtype=torch.float64)
    scale = torch.tensor([[0.3], [0.5], [0.2]], dtype=torch.float64)

    def loss_of(rotated: Tensor) -> Tensor:
        return (rotated.sin() * torch.arange(12.0).view(3, 4)).sum()

    plain = nn.Parameter(start @ rotation)
    loss_of(plain).backward()
    inner = [QuantizedWeight(plain, scale, LAW)]
    fogzo(inner, lambda: loss_of(plain), beta=0.7, n=3, generator=stream(3))

    theta = nn.Parameter(start.clone())
    loss_of(theta @ rotation).backward()
    outer = [QuantizedWeight(theta, scale, LAW, rotate=lambda x: x @ rotation,
                             rotate_back=lambda x: x @ rotation.T)]  # fmt: skip
    fogzo(outer, lambda: loss_of(theta @ rotation), beta=0.7, n=3, generator=stream(3))
    assert torch.allclose(gradient(outer[0]), gradient(inner[0]) @ rotation.T, rtol=1e-9)


def test_n_pairs_are_averaged(tiny: TinyNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    d = sum(w.parameter.numel() for w in tiny.weights)
    monkeypatch.setattr(directions, "BLOCK_NUMBERS", d)  # one pair a block: the draws of n = 1
    generator, singles = stream(5), []
    for _ in range(4):
        tiny.backward()
        nspsa(tiny.weights, tiny.loss, generator=generator)
        singles.append([gradient(w).clone() for w in tiny.weights])
    tiny.backward()
    nspsa(tiny.weights, tiny.loss, n=4, generator=stream(5))
    for w, found in zip(tiny.weights, zip(*singles, strict=True), strict=True):
        assert torch.allclose(gradient(w), torch.stack(found).mean(0), rtol=1e-12)


class OneSided:
    """Probes with L+ - L- = 0.5 always."""

    def __call__(self, here: Point, along: Sequence[Tensor]) -> ProbeLosses:
        k = len(along[0])
        return ProbeLosses(torch.full((k,), 1.5), torch.ones(k), torch.zeros(()))


def test_random_sign_keeps_the_size_of_c_and_balances_its_sign() -> None:
    nowhere = [torch.zeros(100_000, 1)]
    one = [QuantizedWeight(nn.Parameter(torch.zeros(1)), torch.ones(()), LAW)]
    losses = RandomSign(OneSided(), stream(2))(Point(one), nowhere)
    difference = losses.plus - losses.minus
    assert torch.equal(difference.abs(), torch.full((100_000,), 0.5))
    plus = (difference > 0).sum().item()
    assert abs(plus - 50_000) < 775  # Binomial(100,000, 1/2), two-sided at 1e-6


@pytest.mark.slow
def test_random_sign_is_independent_of_the_losses(tiny: TinyNetwork) -> None:
    here, along = Point(tiny.weights), random_directions(tiny.weights, 2000)
    plain = SequentialProbes(tiny.loss)(here, along)
    mixed = RandomSign(SequentialProbes(tiny.loss), stream(2))(here, along)
    moved = plain.plus != plain.minus
    same = ((mixed.plus > mixed.minus) == (plain.plus > plain.minus))[moved]
    n = len(same)
    assert n > 1000
    assert abs(same.sum().item() - n / 2) < 4.9 * (n / 4) ** 0.5  # binomial, 1e-6
    assert mixed.flips == plain.flips
