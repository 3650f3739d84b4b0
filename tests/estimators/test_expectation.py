"""E[G] on linear and quadratic losses (PAPER 1), with a scale per tensor and per row.

In units of epsilon, E[v v'] = beta g^ g^' + (1 - beta) I. So with D = diag(epsilon)
E[G] = D^-1 (beta g^ g^' + (1 - beta) I) D grad, which for one epsilon is the paper's formula.
"""

from collections.abc import Sequence

import pytest
import torch
from convergence import assert_mean_is
from formulas import FormulaProbes
from scipy import stats
from torch import Tensor, nn

from fogzo_repro.estimators import QuantizedWeight, fogzo, nspsa, smoothing_law
from fogzo_repro.estimators.smoothing import LAWS

SHAPES = [(2, 3), (4,)]
D = 10
SCALES: dict[str, list[Tensor]] = {
    "one_scale": [torch.tensor(0.2), torch.tensor(0.2)],
    "per_tensor": [torch.tensor(0.2), torch.tensor(0.7)],
    "per_row": [torch.tensor([[0.2], [0.5]]), torch.tensor(0.3)],
}
EACH_SCALE = pytest.mark.parametrize("scales", SCALES.values(), ids=SCALES)


class Problem:
    """Weights, a loss with a known gradient, and a guide that is not that gradient."""

    def __init__(self, kind: str, scales: Sequence[Tensor], law_key: tuple[str, str]) -> None:
        generator = torch.Generator().manual_seed(7)

        def draw(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        law = smoothing_law(*law_key)
        self.weights = [
            QuantizedWeight(nn.Parameter(draw(*shape)), scale.double(), law)
            for shape, scale in zip(SHAPES, scales, strict=True)
        ]
        self.theta = torch.cat([w.parameter.detach().flatten() for w in self.weights])
        slope, root = draw(D), draw(D, D)
        matrix = root @ root.T / D if kind == "quadratic" else torch.zeros(D, D).double()
        self.gradient = slope + matrix @ self.theta
        self.probes = FormulaProbes(lambda x: x @ slope + (x @ matrix * x).sum(1) / 2)
        self.ste = self.gradient + draw(D)
        self.epsilon = torch.cat(
            [w.epsilon().expand_as(w.parameter).flatten() for w in self.weights]
        )

    def estimates(self, repeats: int, n: int, beta: float | None, seed: int = 0) -> Tensor:
        """Independent estimates (repeats, d), each of n pairs."""
        generator = torch.Generator().manual_seed(seed)
        found = []
        for _ in range(repeats):
            for w, g in zip(self.weights, self.ste.split([6, 4]), strict=True):
                w.parameter.grad = g.view_as(w.parameter).clone()
            if beta is None:
                nspsa(self.weights, n=n, generator=generator, probes=self.probes)
            else:
                fogzo(self.weights, beta=beta, n=n, generator=generator, probes=self.probes)
            grads = [w.parameter.grad for w in self.weights]
            found.append(torch.cat([g.flatten() for g in grads if g is not None]))
        return torch.stack(found)

    def expected(self, beta: float) -> Tensor:
        guide = self.epsilon * self.ste
        guide = guide / guide.norm()
        slope = self.epsilon * self.gradient
        return (beta * guide * (guide @ slope) + (1 - beta) * slope) / self.epsilon


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@EACH_SCALE
def test_mean_of_nspsa_is_the_gradient(kind: str, scales: list[Tensor]) -> None:
    problem = Problem(kind, scales, ("round", "identity"))
    assert_mean_is(problem.estimates(60, 2000, None), problem.gradient, resolution=0.02)


@pytest.mark.parametrize("key", LAWS, ids="-".join)
def test_mean_of_nspsa_is_the_gradient_under_every_law(key: tuple[str, str]) -> None:
    problem = Problem("quadratic", SCALES["per_row"], key)
    assert_mean_is(problem.estimates(60, 2000, None), problem.gradient, resolution=0.02)


@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("beta", [0.3, 0.9], ids=str)
@EACH_SCALE
def test_mean_of_fogzo_is_the_guided_part_and_the_rest(
    kind: str, beta: float, scales: list[Tensor]
) -> None:
    problem = Problem(kind, scales, ("sign", "tanh"))
    estimates = problem.estimates(60, 2000, beta)
    assert_mean_is(estimates, problem.expected(beta), resolution=0.02)


def test_mean_of_fogzo_for_one_scale_is_the_papers_formula() -> None:
    problem = Problem("quadratic", SCALES["one_scale"], ("round", "identity"))
    g = problem.ste / problem.ste.norm()
    papers = 0.9 * g * (g @ problem.gradient) + 0.1 * problem.gradient
    assert torch.allclose(problem.expected(0.9), papers)
    assert_mean_is(problem.estimates(60, 2000, 0.9, seed=1), papers, resolution=0.02)


@pytest.mark.parametrize("beta", [None, 0.9], ids=["nspsa", "fogzo"])
@pytest.mark.slow
def test_variance_falls_as_one_over_n(beta: float | None) -> None:
    problem = Problem("linear", SCALES["per_tensor"], ("round", "identity"))
    truth = problem.gradient if beta is None else problem.expected(beta)
    repeats, level = 800, 1e-6
    means, errors = [], []
    for n in (1, 8):
        squares = (problem.estimates(repeats, n, beta, seed=n) - truth).square().sum(1) * n
        means.append(squares.mean())
        errors.append(squares.std() / repeats**0.5)
    error = (errors[0] ** 2 + errors[1] ** 2).sqrt()
    assert error < 0.1 * means[0], "too noisy to tell 1/n from another power"
    assert abs(means[1] - means[0]) < stats.norm.isf(level / 2) * error
