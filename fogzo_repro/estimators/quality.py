r"""How good is an estimator? Its moments against the smoothed gradient, measured without bias.

The smoothed gradient R is what n-SPSA estimates, R = E[G_nSPSA]: component i is the derivative in
theta_i of the loss averaged with q in coordinate i and p in the others (PAPER 1). On a quantized
loss it is not the gradient of the p-smoothed loss, unless p is Gaussian.

Every estimate with n probe pairs is the mean of n single ones, G_i = c_i v_i / eps. All vectors
here are in units of epsilon and in the coordinates of the rounding, eps G_i = c_i v_i, one flat
vector over all quantized weights: where scales differ, this is the inner product that the method's
own normalisation of the guide uses.

A squared norm that is taken from a noisy mean is too large by the noise. So it is averaged over
all pairs of different draws (i, j), that is over all splits into independent halves:

    ||E[G]||^2 = (||sum_i G_i||^2 - sum_i ||G_i||^2) / (N (N - 1))     unbiased

and may come out below zero where N is too small. R and G are drawn independently, so <E[G], R> is
unbiased as it stands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from fogzo_repro.estimators.protocol import Point, ProbeLosses, Probes, QuantizedWeight
from fogzo_repro.estimators.spsa import nspsa


@dataclass(frozen=True)
class SmoothedGradient:
    """The smoothed gradient of one batch.

    Attributes:
        mean: (d,), the mean of the draws: R and the noise of a finite number of pairs.
        square: ||R||^2, unbiased.
    """

    mean: Tensor
    square: float


@dataclass(frozen=True)
class Quality:
    """Moments of one estimator G on one batch; all may be averaged over batches.

    Attributes:
        square: ||E[G]||^2, unbiased.
        projection: <E[G], R>, unbiased.
        variance: E||G - E[G]||^2 at n = 1; at n it is this over n.
        length: E||G|| at each n, 0 for what takes no probes.
        alignment: E[<G, R> / ||G||] at each n; over ||R|| it is the cosine. 0 where G is zero.
    """

    square: float
    projection: float
    variance: float
    length: dict[int, float]
    alignment: dict[int, float]


class Recorder:
    """Probes that also keep the moments of the single estimates c_i v_i behind every pair.

    Args:
        probes: measure the losses.
        sizes: the n at which lengths and alignments are wanted.
        reference: (d,), the direction that alignments are taken to.
    """

    def __init__(
        self, probes: Probes, sizes: Sequence[int] = (), reference: Tensor | None = None
    ) -> None:
        self.probes = probes
        self.reference = reference
        self.count = 0
        self.total: Tensor | None = None
        self.squares = 0.0
        self.open: dict[int, Tensor | None] = dict.fromkeys(sizes)  # sums that are not full yet
        self.filled = dict.fromkeys(sizes, 0)
        self.lengths: dict[int, list[Tensor]] = {n: [] for n in sizes}
        self.alignments: dict[int, list[Tensor]] = {n: [] for n in sizes}

    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure k pairs and take their estimates in."""
        losses = self.probes(here, directions)
        rows = torch.cat([v.flatten(1) for v in directions], 1)
        rows *= ((losses.plus - losses.minus) / 2).to(rows.dtype).unsqueeze(1)
        total = rows.sum(0)
        self.total = total if self.total is None else self.total + total
        self.squares += rows.square().sum(1).double().sum().item()
        self.count += len(rows)
        for n in self.open:
            self._group(n, rows)
        return losses

    def _group(self, n: int, rows: Tensor) -> None:
        """Add rows to the sums of n; every full sum gives one length and one alignment."""
        before = self.open[n]
        if before is not None:
            missing = n - self.filled[n]
            group = before + rows[:missing].sum(0)
            if len(rows) < missing:
                self.open[n], self.filled[n] = group, self.filled[n] + len(rows)
                return
            self._close(n, group.unsqueeze(0))
            rows = rows[missing:]
        whole = len(rows) // n * n
        self._close(n, rows[:whole].view(-1, n, rows.shape[1]).sum(1) if n > 1 else rows)
        rest = rows[whole:]
        self.filled[n] = len(rest)
        self.open[n] = rest.sum(0) if len(rest) else None

    def _close(self, n: int, sums: Tensor) -> None:
        """Take in full sums (m, d) of n single estimates."""
        assert self.reference is not None
        norms = sums.norm(dim=1)
        cosines = sums @ self.reference / norms
        self.lengths[n].append(norms / n)
        self.alignments[n].append(torch.where(norms > 0, cosines, torch.zeros_like(cosines)))

    def square(self) -> float:
        """Return ||E[G]||^2 from all pairs of different draws."""
        assert self.total is not None
        return _square(self.total, self.squares, self.count)

    def mean(self) -> Tensor:
        """Return the mean estimate, (d,)."""
        assert self.total is not None
        return self.total / self.count


def smoothed_gradient(
    weights: Sequence[QuantizedWeight], probes: Probes, n: int, generator: torch.Generator
) -> SmoothedGradient:
    """Estimate the smoothed gradient with n probe pairs.

    Args:
        weights: the quantized weights; they and their `.grad` are left unchanged.
        probes: measure the losses of one batch.
        n: number of pairs, at least 2; ||R||^2 is known to about sqrt(2 d) / n of itself where the
            loss is close to linear.
        generator: the stream of the directions.
    """
    recorder = Recorder(probes)
    with _gradients_kept(weights):
        nspsa(weights, n=n, generator=generator, probes=recorder)
    return SmoothedGradient(recorder.mean(), recorder.square())


def estimator_quality(
    weights: Sequence[QuantizedWeight],
    probes: Probes,
    reference: SmoothedGradient,
    sizes: Sequence[int],
    estimate: Callable[[Probes], object],
) -> Quality:
    """Measure an estimator.

    Args:
        weights: the quantized weights; `.grad` holds the STE gradient. All left unchanged.
        probes: measure the losses of one batch.
        reference: the smoothed gradient of that batch, from other draws.
        sizes: the n at which lengths and alignments are wanted.
        estimate: calls the estimator with the probes that it is given and many pairs, such as
            `lambda probes: fogzo(weights, beta=0.9, n=400, generator=generator, probes=probes)`.
    """
    recorder = Recorder(probes, sizes, reference.mean)
    with _gradients_kept(weights):
        estimate(recorder)
    square = recorder.square()
    return Quality(
        square=square,
        projection=torch.dot(recorder.mean().double(), reference.mean.double()).item(),
        variance=recorder.squares / recorder.count - square,
        length={n: _mean(values) for n, values in recorder.lengths.items()},
        alignment={n: _mean(values) for n, values in recorder.alignments.items()},
    )


def repeated_quality(
    weights: Sequence[QuantizedWeight],
    reference: SmoothedGradient,
    pairs: int,
    calls: int,
    estimate: Callable[[], object],
) -> Quality:
    """Measure an estimator of any form by what it writes into `.grad` in many calls.

    Args:
        weights: the quantized weights; `.grad` holds the STE gradient. All left unchanged.
        reference: the smoothed gradient of that batch, from other draws.
        pairs: the probe pairs of one call, 0 for what only looks at the STE gradient.
        calls: how often it is called, at least 2.
        estimate: calls the estimator.

    Returns:
        Moments as those of `estimator_quality`, at n = pairs alone.
    """
    epsilons = [w.epsilon() for w in weights]
    total, squares, lengths, alignments = None, 0.0, [], []
    for _ in range(calls):
        with _gradients_kept(weights):
            estimate()
            # in the weights' coordinates, as the directions that probes are given
            moves = [e * w.gradient() for e, w in zip(epsilons, weights, strict=True)]
        g = torch.cat([move.flatten() for move in moves]).double()
        total = g if total is None else total + g
        norm, along = g.norm(), torch.dot(g, reference.mean.double())
        squares += g.square().sum().item()
        lengths.append(norm.view(1))
        alignments.append(torch.where(norm > 0, along / norm, 0.0).view(1))
    assert total is not None
    square = _square(total, squares, calls)
    return Quality(
        square=square,
        projection=torch.dot(total / calls, reference.mean.double()).item(),
        variance=(squares / calls - square) * max(1, pairs),
        length={pairs: _mean(lengths)},
        alignment={pairs: _mean(alignments)},
    )


def ste_quality(weights: Sequence[QuantizedWeight], reference: SmoothedGradient) -> Quality:
    """Measure the STE gradient in `.grad`, which is one vector: its variance is 0."""
    return repeated_quality(weights, reference, 0, 2, lambda: None)


@contextmanager
def _gradients_kept(weights: Sequence[QuantizedWeight]) -> Iterator[None]:
    """Put `.grad` back afterwards: estimators write theirs there."""
    saved = [w.parameter.grad.clone() for w in weights if w.parameter.grad is not None]
    try:
        yield
    finally:
        for w, value in zip(weights, saved, strict=True):
            assert w.parameter.grad is not None
            w.parameter.grad.copy_(value)


def _square(total: Tensor, squares: float, count: int) -> float:
    """Return ||E[G]||^2, unbiased, from the sums of `count` draws and of their squared norms."""
    return (total.double().square().sum().item() - squares) / (count * (count - 1))


def _mean(values: list[Tensor]) -> float:
    return torch.cat(values).double().mean().item()
