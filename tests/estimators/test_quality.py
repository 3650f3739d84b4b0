"""Against closed forms on linear losses, where the smoothed gradient is the gradient itself.

Statistical tests repeat a measurement with independent streams and ask that its mean lies within
4 standard errors of the closed form: a false alarm once in 10,000.
"""

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from fogzo_repro.estimators import (
    Point,
    QuantizedWeight,
    SequentialProbes,
    fogzo,
    nspsa,
    smoothing_law,
)
from fogzo_repro.estimators.protocol import ProbeLosses
from fogzo_repro.estimators.quality import (
    Recorder,
    SmoothedGradient,
    estimator_quality,
    repeated_quality,
    smoothed_gradient,
    ste_quality,
)
from tests.random_directions import stream

KURTOSIS = 9 / 5  # E[u^4] of the uniform law with unit variance


class Linear:
    """L(theta) = a . theta over two weights with different scales; d = 12; all in float64."""

    def __init__(self, cosine: float = 0.5) -> None:
        g = torch.Generator().manual_seed(1)
        law = smoothing_law("round", "identity")
        shapes, scales = ((2, 4), (4,)), (0.5, 3.0)
        self.slopes = [torch.randn(s, generator=g, dtype=torch.float64) for s in shapes]
        self.weights = [
            QuantizedWeight(
                torch.zeros(s, dtype=torch.float64, requires_grad=True), torch.tensor(alpha), law
            )
            for s, alpha in zip(shapes, scales, strict=True)
        ]
        eps = [w.epsilon() for w in self.weights]
        self.a = self.flat(self.slopes)
        other = torch.randn(12, generator=g, dtype=torch.float64)
        other -= self.a * (other @ self.a) / self.a.square().sum()
        guide = 3 * (
            cosine * self.a / self.a.norm() + (1 - cosine**2) ** 0.5 * other / other.norm()
        )
        for w, part, e in zip(self.weights, guide.split([8, 4]), eps, strict=True):
            w.parameter.grad = part.view_as(w.parameter) / e
        self.guide = guide

    def probes(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure all k pairs at once: theta is 0, so L+ = eps v . a = -L-."""
        rise = torch.cat([v.flatten(1) for v in directions], 1) @ self.a
        return ProbeLosses(rise, -rise, torch.zeros(()))

    def flat(self, tensors: list[Tensor]) -> Tensor:
        """In units of epsilon."""
        parts = zip(self.weights, tensors, strict=True)
        return torch.cat([(w.epsilon() * t).flatten() for w, t in parts])

    def exact(self) -> SmoothedGradient:
        return SmoothedGradient(self.a, self.a.square().sum().item())


def z_score(values: list[float], truth: float) -> float:
    x = torch.tensor(values, dtype=torch.float64)
    return ((x.mean() - truth) / (x.std() / math.sqrt(len(x)))).item()


def repeat(measure: Callable[[int], float], times: int = 60) -> list[float]:
    return [measure(seed) for seed in range(times)]


def test_squared_norm_of_the_smoothed_gradient_is_unbiased_at_few_directions():
    case = Linear()
    truth = case.a.square().sum().item()
    found = repeat(lambda s: smoothed_gradient(case.weights, case.probes, 8, stream(s)).square, 400)
    assert abs(z_score(found, truth)) < 4
    plain = repeat(
        lambda s: (
            smoothed_gradient(case.weights, case.probes, 8, stream(s)).mean.square().sum().item()
        ),
        400,
    )
    assert z_score(plain, truth) > 10  # the noise that the all-pairs mean leaves out


def test_bias_of_nspsa_is_zero_with_a_noisy_reference():
    case = Linear()

    def bias(seed: int) -> float:
        reference = smoothed_gradient(case.weights, case.probes, 30, stream(2 * seed))
        quality = estimator_quality(
            case.weights, case.probes, reference, (1,),
            lambda p: nspsa(case.weights, n=30, generator=stream(2 * seed + 1), probes=p),
        )  # fmt: skip
        return quality.square - 2 * quality.projection + reference.square

    assert abs(z_score(repeat(bias, 200), 0.0)) < 4


@pytest.mark.parametrize("cosine", [-0.3, 0.0, 0.8], ids=["-0.3", "0", "0.8"])
def test_cosine_and_norm_ratio_of_a_known_ste_gradient_are_recovered(cosine):
    case = Linear(cosine)
    reference = smoothed_gradient(case.weights, case.probes, 100_000, stream(0))
    quality = ste_quality(case.weights, reference)
    norm = case.a.norm().item()
    assert math.sqrt(reference.square) == pytest.approx(norm, rel=0.02)  # 5 standard errors
    assert quality.alignment[0] / norm == pytest.approx(cosine, abs=0.02)
    assert quality.length[0] / norm == pytest.approx(3 / norm, rel=1e-6)
    assert quality.variance == 0


@pytest.mark.slow
def test_repeated_calls_and_the_pairs_of_one_call_measure_the_same():
    """Both are unbiased for the moments of n-SPSA with 3 pairs; they agree within their errors."""
    case = Linear()
    reference = case.exact()
    g = stream(1)

    def three(probes):
        return nspsa(case.weights, n=3, generator=g, probes=probes)

    pairs = estimator_quality(
        case.weights, case.probes, reference, (3,),
        lambda p: nspsa(case.weights, n=30_000, generator=stream(0), probes=p),
    )  # fmt: skip
    calls = repeated_quality(case.weights, reference, 3, 3000, lambda: three(case.probes))
    for a, b in (
        (pairs.square, calls.square),
        (pairs.variance, calls.variance),
        (pairs.length[3], calls.length[3]),
        (pairs.alignment[3], calls.alignment[3]),
        (pairs.projection, calls.projection),
    ):
        assert a == pytest.approx(b, rel=0.1)
    assert torch.equal(case.weights[0].gradient(), Linear().weights[0].gradient())


@pytest.mark.parametrize("beta", [0.0, 0.666, 0.9, 0.999], ids=lambda b: f"beta={b}")
def test_bias_and_variance_of_fogzo_match_the_closed_form(beta):
    case, noise = Linear(), 1 - beta
    reference, d = case.exact(), 12
    p2 = (case.guide @ case.a).square().item() / case.guide.square().sum().item()
    square = case.a.square().sum().item()
    # E[G] = beta g^ g^T a + (1 - beta) a
    mean2 = beta**2 * p2 + 2 * beta * noise * p2 + noise**2 * square
    bias2 = beta**2 * (square - p2)
    # E||G||^2 = E[(v . a)^2 ||v||^2] with v = sqrt(beta) s g^ + sqrt(1 - beta) u
    second = p2 * (beta**2 + beta * noise * d + 4 * beta * noise)
    second += square * (beta * noise + noise**2 * (d + KURTOSIS - 1))

    def measure(seed: int) -> tuple[float, float, float]:
        quality = estimator_quality(
            case.weights, case.probes, reference, (1,),
            lambda p: fogzo(case.weights, beta=beta, n=40, generator=stream(seed), probes=p),
        )  # fmt: skip
        bias = quality.square - 2 * quality.projection + square
        return quality.square, bias, quality.variance

    found = [measure(seed) for seed in range(100)]
    for values, truth in zip(zip(*found, strict=True), (mean2, bias2, second - mean2), strict=True):
        assert abs(z_score(list(values), truth)) < 4


def test_what_is_recorded_is_the_estimate_that_fogzo_writes():
    case = Linear()
    quality = estimator_quality(
        case.weights, case.probes, case.exact(), (8,),
        lambda p: fogzo(case.weights, beta=0.9, n=8, generator=stream(5), probes=p),
    )  # fmt: skip
    fogzo(case.weights, beta=0.9, n=8, generator=stream(5), probes=case.probes)
    estimate = case.flat([w.parameter.grad for w in case.weights])
    assert quality.length[8] == pytest.approx(estimate.norm().item(), rel=1e-9)
    projection = (estimate @ case.a).item()
    assert quality.projection == pytest.approx(projection, rel=1e-9)
    assert quality.alignment[8] == pytest.approx(projection / estimate.norm().item(), rel=1e-9)


@pytest.mark.parametrize("blocks", [(7,), (1,) * 7, (2, 5), (3, 1, 3)], ids=str)
def test_groups_do_not_depend_on_how_pairs_come_in_blocks(blocks):
    case = Linear()
    rows = torch.randn(7, 12, generator=stream(0), dtype=torch.float64)
    recorder = Recorder(case.probes, (1, 2, 3), case.a)
    for part in rows.split(list(blocks)):
        for n in (1, 2, 3):
            recorder._group(n, part)
    for n in (1, 2, 3):
        means = rows[: 7 // n * n].view(-1, n, 12).mean(1)
        assert torch.allclose(torch.cat(recorder.lengths[n]), means.norm(dim=1))
        expected = means @ case.a / means.norm(dim=1)
        assert torch.allclose(torch.cat(recorder.alignments[n]), expected)


def test_gradients_and_weights_are_left_as_they_were():
    case = Linear()
    before = [(w.parameter.detach().clone(), w.parameter.grad.clone()) for w in case.weights]
    reference = smoothed_gradient(case.weights, case.probes, 5, stream(0))
    estimator_quality(
        case.weights, case.probes, reference, (1,),
        lambda p: fogzo(case.weights, beta=0.5, n=5, generator=stream(1), probes=p),
    )  # fmt: skip
    for w, (theta, g) in zip(case.weights, before, strict=True):
        assert torch.equal(w.parameter.detach(), theta)
        assert torch.equal(w.parameter.grad, g)


def test_an_estimate_of_zero_counts_as_cosine_zero():
    case = Linear()
    flat = SequentialProbes(lambda: torch.ones((), dtype=torch.float64))
    quality = estimator_quality(
        case.weights, flat, case.exact(), (1, 2),
        lambda p: nspsa(case.weights, n=4, generator=stream(0), probes=p),
    )  # fmt: skip
    assert quality.alignment == {1: 0.0, 2: 0.0}
    assert quality.square == 0
