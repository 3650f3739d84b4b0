"""`quantizer=lsq`: learned step size quantization (Esser et al. 2020; RECIPES D.4).

    v_hat = s q,   q = round(clip(v/s, -Q_N, Q_P))

    d v_hat / d v = 1 where -Q_N <= v/s <= Q_P, else 0
    d v_hat / d s = q - v/s there, -Q_N below, Q_P above; times g = 1/sqrt(N Q_P)

N is the number of weights that share a step, or of features in one example of an activation: the
batch is not counted. s starts at 2 mean|v| / sqrt(Q_P), from the initial weights or from the first
batch that is trained on.

Signed grids have 2^b levels, -2^(b-1) .. 2^(b-1)-1 (`integer`) or those plus 1/2 (`half_integer`,
QuEST's code, with the same Q_P in g and in the start). Unsigned: 0 .. 2^b-1. One signed bit has
Q_P = 0, which divides by zero. It is v_hat = s/2 sign(v) here, on both grids: d v_hat / d s =
sign(v)/2 - v/s for |v| <= s/2 and sign(v)/2 outside, Q_P = 1 in g and in the start, so that s/2
begins at mean|v|, the best scale for a sign. Choice, see docs/choices.md.

A step never falls below a thousandth of its start: the forward pass clips it there, and its
gradient passes the clip, so that it can come back. AdamW moves a step by lr whatever the size of
its gradient, so that without a bound it crosses zero. Choice, see docs/choices.md.
"""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fogzo_repro.quantization.functional import round_range, with_surrogate_gradient
from fogzo_repro.quantization.products import CODES, Coded

FLOOR = 1e-3  # the least step in units of its start
NO_SIGNAL = 1e-6  # the least start of an activation's step: a first batch may be all zeros


class Grid(NamedTuple):
    """The levels low, low + 1, ..., high, the Q_P of g and of the start, 1 for half-integers."""

    low: float
    high: float
    q_p: int
    halves: int = 0


def grid(bits: int, half_integer: bool = False, unsigned: bool = False) -> Grid:
    """Return the levels of b bits; an unsigned grid is always the integers.

    >>> grid(2), grid(2, half_integer=True), grid(2, unsigned=True), grid(1)
    (Grid(low=-2, high=1, q_p=1, halves=0), Grid(low=-1.5, high=1.5, q_p=1, halves=1), \
Grid(low=0, high=3, q_p=3, halves=0), Grid(low=-0.5, high=0.5, q_p=1, halves=1))
    """
    if unsigned:
        return Grid(0, 2**bits - 1, 2**bits - 1)
    low, high = round_range(bits)
    if half_integer or bits == 1:
        return Grid(low + 0.5, high + 0.5, max(high, 1), halves=1)
    return Grid(low, high, high)


class Lsq(nn.Module):
    """A learned step and its grid.

    Args:
        levels: the grid.
        start: the step to begin with, a 0-dim tensor or one number a channel (axis 0); steps have
            no weight decay because they have fewer than two axes.
        bits: b, which decides whether `products` can take the levels.
    """

    start: Tensor
    basis = 1  # of `products`: no rotation

    def __init__(self, levels: Grid, start: Tensor, bits: int) -> None:
        super().__init__()
        self.grid = levels
        self.bits = bits
        self.step = nn.Parameter(start.clone())
        self.register_buffer("start", start)

    def levels(self, units: Tensor) -> Tensor:
        """Return the level that each element rounds to; ties go to even."""
        return nearest_level(units, self.grid)

    def step_of(self, v: Tensor) -> Tensor:
        """Return the step by which v is quantized, broadcastable to it."""
        raise NotImplementedError

    def live_step(self, count: int) -> Tensor:
        """Return s, clipped at its floor, with its gradient scaled by g; `count` is N."""
        scaled = self.step * (count * self.grid.q_p) ** -0.5
        return with_surrogate_gradient(self.step.clamp(min=FLOOR * self.start), scaled)

    def forward(self, v: Tensor) -> Tensor:
        """Return v_hat, with the derivatives of the head of this file."""
        return self._quantize(v, self.step_of(v))

    def coded(self, v: Tensor) -> Coded:
        """Return v_hat with its codes: the levels, doubled where they are half-integers."""
        step, factor = self.step_of(v), 1 + self.grid.halves
        with torch.no_grad():
            codes = (factor * nearest_level(_units(v, step), self.grid)).to(CODES)
            scale = (step / factor).float()
        return Coded(self._quantize(v, step), codes, scale)

    def _quantize(self, v: Tensor, step: Tensor) -> Tensor:
        # torch 2.11 compiles a Function whose forward ends in a cast to a gradient of zero.
        return _Quantize.apply(v, step, self.grid).to(v.dtype)


def nearest_level(units: Tensor, levels: Grid) -> Tensor:
    """Return the level that v/s rounds to; ties go to even."""
    offset = levels.halves / 2
    shifted = (units - offset).round()
    return shifted.clamp(levels.low - offset, levels.high - offset) + offset


class _Quantize(torch.autograd.Function):
    """v_hat of v (any shape) and s (broadcastable to v), with the derivatives written out.

    Derived by autograd they are the same, but compiled into more passes over memory.
    """

    @staticmethod
    def forward(ctx: Any, v: Tensor, step: Tensor, levels: Grid) -> Tensor:
        ctx.save_for_backward(v, step)
        ctx.levels = levels
        return step * nearest_level(_units(v, step), levels)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, Tensor, None]:
        v, step = ctx.saved_tensors
        units = _units_again(v, step)
        inside = (units >= ctx.levels.low) & (units <= ctx.levels.high)
        for_v = torch.where(inside, incoming, 0).to(v.dtype)
        slope = nearest_level(units, ctx.levels) - torch.where(inside, units, 0)
        return for_v, _sum_like(incoming * slope, step), None


def _units(v: Tensor, step: Tensor) -> Tensor:
    return v.to(torch.promote_types(v.dtype, torch.float32)) / step


def _units_again(v: Tensor, step: Tensor) -> Tensor:
    """Return v/s for the backward pass.

    (-v)/(-s) is v/s to the bit, and to the compiler another computation: it would else recognise
    the forward pass's v/s, and keep that in memory, in float32, from there to here.
    """
    return _units(-v, -step)


def _sum_like(x: Tensor, step: Tensor) -> Tensor:
    """Return x summed to the shape of the step.

    Of images over all but the channels first, of tokens over the features: the norm in front of the
    quantizer does the same, so that the compiler can do both in one pass over memory.
    """
    if step.dim() == 0 and x.dim() > 2:
        x = x.sum((0, 2, 3)) if x.dim() == 4 else x.sum(-1)
    return x.sum_to_size(step.shape) if step.dim() else x.sum()


class LsqWeight(Lsq):
    """The quantizer of one weight.

    Args:
        weight: initial weights, any shape.
        bits: b, 1 to 8.
        half_integer: the half-integer grid.
        per_channel: a step for each output channel, axis 0, instead of one for the tensor.
    """

    def __init__(
        self, weight: Tensor, bits: int, half_integer: bool = False, per_channel: bool = False
    ) -> None:
        levels = grid(bits, half_integer)
        magnitude = weight.detach().abs()
        mean = magnitude.flatten(1).mean(1) if per_channel else magnitude.mean()
        if not (weight.is_meta or (mean.isfinite() & (mean > 0)).all()):
            raise ValueError(
                "the step starts from the mean magnitude of the initial weights, and those of "
                f"shape {tuple(weight.shape)} have no spread; name the layer in model.first_last"
            )
        super().__init__(levels, 2 * mean / levels.q_p**0.5, bits)
        self.count = weight.numel() // mean.numel()
        self.shape = (-1, *[1] * (weight.dim() - 1)) if per_channel else ()
        # One bit is s/2 sign(v) with derivative 1 on |v| <= s/2: a hardtanh.
        self.smoothing = ("round", "identity") if bits > 1 else ("sign", "hardtanh")

    def step_of(self, v: Tensor) -> Tensor:
        """Return the live step, of the tensor or of each channel."""
        return self.live_step(self.count).view(self.shape)

    def units(self, weight: Tensor) -> Tensor:
        """Return the weight in units of its step."""
        return weight / self.step_of(weight)

    def perturbation_scale(self, weight: Tensor) -> Tensor:
        """Return the live step, broadcastable to the weight; s/2, half the distance, at 1 bit."""
        step = self.step_of(weight)
        return step if self.smoothing[0] == "round" else step / 2


class LsqInput(Lsq):
    """The quantizer of a layer's inputs: one step, from the first batch that is trained on.

    The start is averaged over ranks, so that it is the same on all, and is part of every
    checkpoint, so that a resumed run has no second one. Of an accumulated batch it is that of the
    first micro-batch. Until then a pass without gradients (a probe, an evaluation) takes the start
    that its own inputs would give and keeps nothing.

    Args:
        bits: b, 1 to 8.
        half_integer: the half-integer grid, where signed.
        unsigned: levels 0 .. 2^b-1, for inputs that follow a ReLU.
    """

    def __init__(self, bits: int, half_integer: bool = False, unsigned: bool = False) -> None:
        super().__init__(grid(bits, half_integer, unsigned), torch.zeros(()), bits)
        self.started = False  # start > 0, known without asking the device
        self.register_load_state_dict_post_hook(_note_start)

    def step_of(self, v: Tensor) -> Tensor:
        """Return the step, which starts with the first batch; axis 0 of v is the batch."""
        if not self.started:
            start = self._first_step(v)
            if not (self.training and torch.is_grad_enabled()):
                return start
            self._begin(start)
        return self.live_step(v[0].numel())

    def _first_step(self, v: Tensor) -> Tensor:
        mean = v.detach().abs().mean(dtype=self.step.dtype)
        return (2 * mean / self.grid.q_p**0.5).clamp(min=NO_SIGNAL)

    @torch.no_grad()
    def _begin(self, start: Tensor) -> None:
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(start)
            start = start / dist.get_world_size()
        self.start.copy_(start)
        self.step.copy_(start)
        self.started = True


def _note_start(quantizer: nn.Module, keys: object) -> None:
    assert isinstance(quantizer, LsqInput)
    quantizer.started = bool(quantizer.start > 0)


def build(weight: Tensor, weight_bits: int, grid: str, per_channel: bool) -> LsqWeight:
    """Build the quantizer of one weight."""
    return LsqWeight(weight, weight_bits, grid == "half_integer", per_channel)


def build_input(
    layer_name: str, activation_bits: int, grid: str, unsigned_inputs: list[str]
) -> LsqInput:
    """Build the quantizer of a layer's inputs, unsigned where the layer's name is chosen."""
    unsigned = any(fnmatch(layer_name, pattern) for pattern in unsigned_inputs)
    return LsqInput(activation_bits, grid == "half_integer", unsigned)
