"""FOGZO at its ends, beta = 0 and beta = 1, its direction, and the odd cases of PAPER 4."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from conftest import TinyNetwork, gradient
from random_directions import random_directions
from torch import Tensor, nn

from fogzo_repro.estimators import Point, QuantizedWeight, directions, fogzo, nspsa, smoothing_law
from fogzo_repro.estimators.directions import random_signs
from fogzo_repro.estimators.fogzo import Fogzo, square_roots
from fogzo_repro.estimators.fused import total_norm
from fogzo_repro.estimators.protocol import ProbeLosses
from tests.random_directions import stream


def gradients(weights: Sequence[QuantizedWeight]) -> list[Tensor]:
    return [gradient(w).clone() for w in weights]


class Recorder:
    """Probes that keep the directions and answer with given losses."""

    def __init__(self, plus: float = 1.0, minus: float = 0.0) -> None:
        self.plus, self.minus = plus, minus
        self.seen: list[list[Tensor]] = []

    def __call__(self, here: Point, along: Sequence[Tensor]) -> ProbeLosses:
        self.seen.append([v.clone() for v in along])
        like = along[0].new_ones(len(along[0]))
        return ProbeLosses(like * self.plus, like * self.minus, torch.zeros(()))


def single(values: list[float], grad: list[float], scale: float = 0.5) -> list[QuantizedWeight]:
    parameter = nn.Parameter(torch.tensor(values))
    parameter.grad = torch.tensor(grad)
    return [QuantizedWeight(parameter, torch.tensor(scale), smoothing_law("round", "identity"))]


@pytest.mark.parametrize("n", [1, 7], ids=["one_pair", "several_blocks"])
@pytest.mark.parametrize("own_signs", [False, True], ids=["split_signs", "given_signs"])
def test_beta_zero_is_nspsa_bit_for_bit(
    tiny: TinyNetwork, monkeypatch: pytest.MonkeyPatch, n: int, own_signs: bool
) -> None:
    d = sum(w.parameter.numel() for w in tiny.weights)
    monkeypatch.setattr(directions, "BLOCK_NUMBERS", 3 * d)  # 7 pairs: blocks of 3, 3 and 1
    left, right = stream(4), stream(4)
    for _ in range(2):  # the second call continues both streams
        tiny.backward()
        spsa = nspsa(tiny.weights, tiny.loss, n=n, generator=left)
        expected = gradients(tiny.weights)
        tiny.backward()
        signs = stream(9) if own_signs else None
        guided = fogzo(tiny.weights, tiny.loss, beta=0.0, n=n, generator=right, signs=signs)
        assert all(map(torch.equal, gradients(tiny.weights), expected))
        assert torch.equal(guided.coefficient, spsa.coefficient)
        assert any(g.abs().max() > 0 for g in expected)


def test_beta_one_is_parallel_to_the_ste_for_one_scale() -> None:
    theta = torch.randn(40, generator=stream(0), dtype=torch.float64)
    weights = [QuantizedWeight(nn.Parameter(theta), torch.tensor(0.3).double(),
                               smoothing_law("round", "identity"))]  # fmt: skip
    g = torch.randn(40, generator=stream(1), dtype=torch.float64)
    weights[0].parameter.grad = g.clone()
    fogzo(weights, lambda: (weights[0].parameter ** 3).sum(), beta=1.0, n=3, generator=stream(2))
    found = gradient(weights[0])
    assert torch.allclose(found / found.norm(), torch.sign(found @ g) * g / g.norm())
    assert found.norm() > 0


def test_beta_one_is_parallel_to_the_ste_in_units_of_epsilon(tiny: TinyNetwork) -> None:
    epsilons = [w.epsilon() for w in tiny.weights]
    assert epsilons[0] != epsilons[1]

    def in_units(tensors: list[Tensor]) -> Tensor:
        return torch.cat([(e * t).flatten() for e, t in zip(epsilons, tensors, strict=True)])

    guide = in_units(tiny.backward())
    estimate = fogzo(tiny.weights, tiny.loss, beta=1.0, generator=stream(3))
    found = in_units(gradients(tiny.weights))
    assert estimate.coefficient != 0
    # G_l = c s g^_l / epsilon_l, so epsilon G = c s g^: neither tensor is weighted by its alpha
    expected = torch.sign(found @ guide) * estimate.coefficient.abs() * guide / guide.norm()
    assert torch.allclose(found, expected, rtol=1e-12)


def test_noise_of_one_billionth_survives_in_float32() -> None:
    assert square_roots(1 - 1e-9)[1] == pytest.approx(math.sqrt(1e-9), rel=1e-6)
    g = torch.tensor([1.0, -2.0, 3.0])
    weights = single([0.1, 0.2, 0.3], g.tolist())
    recorder, estimator = Recorder(), Fogzo(1, 1e-9, "constant", torch.device("cpu"))
    assert estimator.begin_step(0, 10)
    estimator(weights, recorder, stream(5), stream(6))
    [[v]] = recorder.seen
    assert v.dtype == torch.float32
    [u] = random_directions(weights, 1, 5)
    s = random_signs(1, torch.empty(()), stream(6))
    noise = v - s * math.sqrt(1 - 1e-9) * g / g.norm()  # float32 rounds v to 6e-8
    assert torch.allclose(noise, math.sqrt(1e-9) * u, atol=1e-7)
    assert noise.abs().max() > 1e-5


def test_direction_is_the_formula_with_the_guide_normalised_over_all_weights() -> None:
    weights = [*single([0.1, 0.2], [3.0, 0.0], scale=1.0), *single([0.3], [2.0], scale=2.0)]
    recorder = Recorder()
    fogzo(weights, beta=0.36, n=5, generator=stream(8), signs=stream(9), probes=recorder)
    u = random_directions(weights, 5, 8)
    s = random_signs(5, torch.empty(()), stream(9))
    assert set(s.tolist()) == {1.0, -1.0}
    guides = [torch.tensor([3.0, 0.0]) / 5, torch.tensor([4.0]) / 5]  # (1*3, 0, 2*2) over its norm
    for found, noise, guide in zip(recorder.seen[0], u, guides, strict=True):
        assert torch.allclose(found, 0.6 * s[:, None] * guide + 0.8 * noise, atol=1e-6)


def test_signs_are_balanced() -> None:
    # Binomial(100,000, 1/2), two-sided at 1e-6: 4.9 standard deviations of 158.
    plus = (random_signs(100_000, torch.empty(()), stream(1)) > 0).sum().item()
    assert abs(plus - 50_000) < 775


def test_zero_guide_gives_the_damped_noise_and_is_counted() -> None:
    weights, recorder = single([0.1, 0.2, 0.3], [0.0, 0.0, 0.0]), Recorder()
    estimate = fogzo(weights, beta=0.999, generator=stream(1), probes=recorder)
    [u] = random_directions(weights, 1)
    assert torch.equal(recorder.seen[0][0], u * math.sqrt(1 - 0.999))
    assert estimate.dead_guides == 1 and estimate.guide_norm == 0
    weights[0].parameter.grad = torch.tensor([0.0, 1e-12, 0.0])
    assert fogzo(weights, beta=0.9, generator=stream(1), probes=Recorder()).dead_guides == 0


@pytest.mark.parametrize("method", ["fogzo", "nspsa"])
def test_flat_probes_give_zero_and_are_counted(method: str) -> None:
    weights, flat = single([0.1, 0.2], [1.0, 2.0]), Recorder(0.7, 0.7)
    if method == "fogzo":
        estimate = fogzo(weights, beta=0.9, n=3, generator=stream(1), probes=flat)
    else:
        estimate = nspsa(weights, n=3, generator=stream(1), probes=flat)
    assert estimate.flat_probes == 3 and estimate.bad_probes == 0 and estimate.coefficient == 0
    assert torch.equal(gradient(weights[0]), torch.zeros(2))


@pytest.mark.parametrize("method", ["fogzo", "nspsa"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_probe_that_is_not_finite_leaves_the_ste_gradient_and_is_counted(
    method: str, bad: float
) -> None:
    weights, probes = single([0.1, 0.2], [1.0, 2.0]), Recorder(bad, 0.7)
    if method == "fogzo":
        estimate = fogzo(weights, beta=0.9, n=3, generator=stream(1), probes=probes)
    else:
        estimate = nspsa(weights, n=3, generator=stream(1), probes=probes)
    assert estimate.bad_probes == 3
    assert gradient(weights[0]).tolist() == [1.0, 2.0]


def test_one_bad_pair_among_many_leaves_the_ste_gradient() -> None:
    weights = single([0.1, 0.2], [1.0, 2.0])

    def once(here: Point, v: Sequence[Tensor]) -> ProbeLosses:
        plus = torch.arange(4.0)
        plus[2] = math.nan
        return ProbeLosses(plus, torch.zeros(4), torch.zeros(()))

    assert fogzo(weights, beta=0.9, n=4, generator=stream(1), probes=once).bad_probes == 1
    assert gradient(weights[0]).tolist() == [1.0, 2.0]


@pytest.mark.parametrize("method", ["fogzo", "nspsa"])
def test_what_is_logged_is_taken_over_all_blocks_of_directions(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directions, "BLOCK_NUMBERS", 3 * 2)  # 7 pairs: blocks of 3, 3 and 1
    c = torch.tensor([4.0, -1.0, 0.5, 0.0, 2.0, -3.0, 0.0])
    rest, sizes = list(c.split([3, 3, 1])), []

    def probes(here: Point, v: Sequence[Tensor]) -> ProbeLosses:
        sizes.append(len(v[0]))
        return ProbeLosses(1 + rest[0], 1 - rest.pop(0), torch.tensor(len(sizes)))

    weights = single([0.1, 0.2], [1.0, 2.0])
    if method == "fogzo":
        estimate = fogzo(weights, beta=0.9, n=7, generator=stream(1), probes=probes)
    else:
        estimate = nspsa(weights, n=7, generator=stream(1), probes=probes)
    assert sizes == [3, 3, 1]
    assert estimate.coefficient.item() == pytest.approx(c.square().mean().sqrt().item())
    assert estimate.flips.item() == pytest.approx((1 + 2 + 3) / 7)
    assert estimate.flat_probes == 2 and estimate.bad_probes == 0


def test_losses_at_both_points_decide_the_estimate(tiny: TinyNetwork) -> None:
    ste = tiny.backward()
    called = []

    def loss() -> Tensor:
        called.append(tiny.loss())
        return called[-1]

    estimate = fogzo(tiny.weights, loss, beta=0.9, generator=stream(0))
    assert len(called) == 2 and called[0] != called[1]
    assert torch.equal(estimate.coefficient, (called[0] - called[1]) / 2)
    assert estimate.flips > 0
    found = gradients(tiny.weights)
    assert not any(torch.equal(a, b) for a, b in zip(found, ste, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "n=0 must be at least 1"),
        ({"beta": 1.1}, r"beta=1.1 is outside \[0, 1\]"),
        ({"beta": math.nan}, "beta=nan is outside"),
        ({"loss": None}, "give a loss function or probes"),
    ],
    ids=["n_zero", "beta_above_one", "beta_nan", "no_loss"],
)
def test_wrong_argument_is_refused(
    tiny: TinyNetwork, arguments: dict[str, object], message: str
) -> None:
    given: dict[str, object] = {"loss": tiny.loss, "beta": 0.9, "generator": stream(0), **arguments}
    with pytest.raises(ValueError, match=message):
        fogzo(tiny.weights, given.pop("loss"), **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["fogzo", "nspsa"])
@pytest.mark.parametrize(
    ("returned", "said"),
    [(1.5, "a float;"), (None, "a NoneType;"), (torch.ones(3), r"a Tensor of shape \(3,\);")],
    ids=["float", "nothing", "many"],
)
def test_a_loss_that_is_no_tensor_with_one_element_is_refused(
    tiny: TinyNetwork, method: str, returned: Any, said: str
) -> None:
    tiny.backward()
    before = [w.parameter.detach().clone() for w in tiny.weights]
    function = {"fogzo": partial(fogzo, beta=0.9), "nspsa": nspsa}[method]
    with pytest.raises(TypeError, match=f"loss function returned {said} return the loss"):
        function(tiny.weights, lambda: returned, generator=stream(0))
    assert all(map(torch.equal, [w.parameter for w in tiny.weights], before))


@pytest.mark.parametrize("function", [partial(fogzo, beta=0.9), nspsa], ids=["fogzo", "nspsa"])
def test_no_weight_at_all_is_refused(tiny: TinyNetwork, function: Any) -> None:
    with pytest.raises(ValueError, match="the list of quantized weights is empty"):
        function([], tiny.loss, generator=stream(0))


def test_missing_gradient_is_refused(tiny: TinyNetwork) -> None:
    tiny.model.zero_grad()
    with pytest.raises(ValueError, match="a weight has no gradient"):
        fogzo(tiny.weights, tiny.loss, beta=0.9, generator=stream(0))


def test_tied_weight_listed_twice_is_refused(tiny: TinyNetwork) -> None:
    with pytest.raises(ValueError, match="list each parameter once"):
        nspsa([*tiny.weights, tiny.weights[0]], tiny.loss, generator=stream(0))


@pytest.mark.parametrize("size", [1e-44, 1e-36, 1e-24, 1e-3, 1e20, 1e34], ids=str)
def test_a_guide_of_any_size_gives_the_same_direction(size: float) -> None:
    """Squares of numbers above 1e19 or below 1e-23 are none in float32."""
    weights = [nn.Parameter(torch.randn(5, 4)), nn.Parameter(torch.randn(3))]
    shapes = [torch.randn(5, 4), torch.randn(3)]
    for weight, shape in zip(weights, shapes, strict=True):
        weight.grad = shape * size
    law = smoothing_law("round", "identity")
    here = Point([QuantizedWeight(w, torch.tensor(0.1), law) for w in weights])
    if size == 1e-44:  # its inverse is no number of float32
        assert here.guide_norm == here.inverse_norm == 0
        return
    exact = torch.cat([(0.1 * law.epsilon_bar * s).flatten() for s in shapes]).double()
    assert here.guide_norm.double() / size == pytest.approx(exact.norm().item(), rel=1e-6)
    unit = torch.cat(
        [
            (e * g * here.inverse_norm).flatten()
            for e, g in zip(here.epsilons, here.guides, strict=True)
        ]
    )
    assert torch.allclose(unit.double(), exact / exact.norm(), atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_a_guide_that_is_not_finite_has_no_finite_norm(bad: float) -> None:
    weight = nn.Parameter(torch.zeros(3))
    weight.grad = torch.tensor([1.0, bad, 2.0])
    here = Point([QuantizedWeight(weight, torch.tensor(0.1), smoothing_law("round", "identity"))])
    assert not here.guide_norm.isfinite()


def test_the_norm_of_many_numbers_is_exact() -> None:
    x = torch.randn(20_000_000, generator=torch.Generator().manual_seed(0))
    assert torch.equal(total_norm([x]), x.double().norm().float())
    assert torch.equal(total_norm([x[:0], x[:7], x[7:]]), x.double().norm().float())
