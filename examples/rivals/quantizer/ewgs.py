"""EWGS: element-wise gradient scaling (Lee, Kim, Ham, CVPR 2021, arXiv 2104.00903), weights alone.

    x = clip((w - l) / (u - l), 0, 1),   q = round(x (L - 1)) / (L - 1),   w_q = a (2q - 1) + c
    dL/dx = g (1 + delta sign(g) (x - q)),   g = dL/dq

L = 2^b levels. A gradient grows where its step carries x back across its own grid point and shrinks
where it carries x towards the next threshold; with delta = 0 this is the STE with derivative 0
beyond the outer levels. The rule is that of the authors' code (cvlab-yonsei/EWGS at 56c654c),
written anew.

With `learned_scales`, l, u and a are learned for each tensor as there: l and u start 3 standard
deviations from 0, and c = 0. The code multiplies the layer's output by |a|, here the weights are,
and a starts at mean|w| / mean|2q - 1|, where the code compares the layer's outputs on a batch. All
are trained by the recipe's optimizer; the code has another one for l and u. Without, the levels are
those of `quantizer=round` (of `quantizer=sign` at 1 bit): only the backward rule is EWGS's.

The code measures delta anew every few epochs. `measured_delta` is its rule; the training loop does
not call it, and a run has one delta from its settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.quantization.fixed import FixedScale
from fogzo_repro.quantization.functional import round_range


class Discretize(torch.autograd.Function):
    """q of x, both in [0, 1], with the backward rule of EWGS.

    It may be differentiated twice.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, levels: int, delta: float) -> Tensor:
        """Round x to the nearest of `levels` levels; ties go to even."""
        q = (x * (levels - 1)).round() / (levels - 1)
        ctx.save_for_backward(x - q)
        ctx.delta = delta
        return q

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        """Scale each element of the gradient."""
        (error,) = ctx.saved_tensors
        return g * (1 + ctx.delta * g.sign() * error), None, None


class Ewgs(nn.Module):
    """The quantizer of one weight.

    Args:
        weight: initial weights, any shape.
        bits: b, 1 to 8.
        delta: in units of x, which is 0 at l and 1 at u; at least 0, and below 2 (L - 1) no
            gradient changes its sign.
        learned: whether l, u and a are learned.
        half_integer: where they are not: the half-integer grid, at 2 bits and more.

    Raises:
        ValueError: where weights have no spread, or delta is out of range.
    """

    lower: Tensor
    upper: Tensor
    factor: Tensor

    def __init__(
        self, weight: Tensor, bits: int, delta: float, learned: bool, half_integer: bool = False
    ) -> None:
        super().__init__()
        self.count = 2**bits
        self.delta = delta
        self.learned = learned
        if not 0 <= delta < 2 * (self.count - 1):
            raise ValueError(
                f"quantizer.delta={delta} is outside [0, {2 * (self.count - 1)}), where gradients "
                "keep their signs"
            )
        alpha = FixedScale(weight).scale  # refuses weights without spread
        if learned:
            self.lower, self.upper = nn.Parameter(-3 * alpha), nn.Parameter(3 * alpha)
            with torch.no_grad():
                size = (2 * self.levels(self.units(weight)) / (self.count - 1) - 1).abs().mean()
                self.factor = nn.Parameter(weight.detach().abs().mean() / size)
        else:
            low, high = round_range(bits) if bits > 1 else (-1, 1)
            shift = 0.5 if half_integer and bits > 1 else 0.0
            self.register_buffer("lower", (low + shift) * alpha)
            self.register_buffer("upper", (high + shift) * alpha)

    def perturbation_scale(self, weight: Tensor) -> Tensor:
        """Return the distance between the latent weights of two levels."""
        return (self.upper - self.lower) / (self.count - 1)

    def units(self, weight: Tensor) -> Tensor:
        """Return x (L - 1), not clipped."""
        return (weight - self.lower) / self.perturbation_scale(weight)

    def levels(self, units: Tensor) -> Tensor:
        """Return q (L - 1), a whole number from 0 to L - 1."""
        return units.round().clamp(0, self.count - 1)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the quantized weight."""
        x = (weight - self.lower) / (self.upper - self.lower)
        # Beyond l and u nothing gets a gradient, on them all do; torch.clip differs by its version.
        x = torch.where((x >= 0) & (x <= 1), x, x.detach().clamp(0, 1))
        q = Discretize.apply(x, self.count, self.delta)
        if self.learned:
            return self.factor.abs() * (2 * q - 1)
        return self.lower + (self.upper - self.lower) * q


def measured_delta(batches: Sequence[tuple[Tensor, Tensor]], generator: torch.Generator) -> float:
    """Return the authors' delta: the mean of (Tr H / N) / (3 sd(g)) over batches, at least 0.

    H and g are the second and first derivatives of the loss by the quantized tensor q, N its
    elements. The trace is that of Hutchinson with up to 50 Rademacher vectors, fewer where one more
    changes the mean by less than a thousandth or the mean was negative.

    Args:
        batches: pairs (loss, q), with the graph that leads from q to the loss.
        generator: the stream of the vectors.
    """
    found = []
    for loss, q in batches:
        (g,) = torch.autograd.grad(loss, q, create_graph=True)
        mean = 0.0
        for k in range(50):
            z = torch.randint(0, 2, q.shape, generator=generator).to(q) * 2 - 1
            (hz,) = torch.autograd.grad(g, q, z, retain_graph=True)
            before, mean = mean, mean + (float((z * hz).sum()) - mean) / (k + 1)
            if abs(mean - before) / (before + 1e-6) < 1e-3:  # below 0 as soon as it is there
                break
        found.append(mean / q.numel() / (3 * float(g.detach().std())))
    return max(0.0, sum(found) / len(found))


def build(weight: Tensor, weight_bits: int, delta: float, learned_scales: bool, grid: str) -> Ewgs:
    """Build the quantizer of one weight."""
    return Ewgs(weight, weight_bits, delta, learned_scales, grid == "half_integer")
