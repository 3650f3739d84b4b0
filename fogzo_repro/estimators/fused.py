"""The estimators' elementwise work over all quantized weights, as functions of lists of tensors.

A deep network has some fifty quantized weights, and one kernel for each of them and each operation
would cost a tenth of a training step. `compile_fused` has these functions run through
torch.compile, which makes one kernel of a whole function for many weights. It changes results by
rounding at most.

Compiling takes time for each weight. So where the weights are those of blocks that are alike, a
function is compiled for one block and called for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor

from fogzo_repro.estimators.smoothing import SmoothingLaw, widest

Scale = Tensor | Callable[[Tensor], Tensor]
Function = TypeVar("Function", bound=Callable[..., Any])
_compiled: dict[str, Callable[..., Any]] = {}
_state = {"on": False}
LEAST_PART = 4  # weights
# Many weights a kernel: a launch costs as much as a small weight takes.
_OPTIONS: dict[str, Any] = {"combo_kernels": True}


def compile_fused(on: bool) -> None:
    """Turn compilation on or off for this process, and forget what was compiled."""
    _state["on"] = on
    _compiled.clear()


def _compilable(function: Function) -> Function:
    """Compile a function of lists over the weights, of other tensors and of numbers.

    It returns a list over the weights, a sum over them, or nothing.
    """

    @wraps(function)
    def call(*arguments: Any) -> Any:
        if not _state["on"]:
            return function(*arguments)
        if function.__name__ not in _compiled:
            _compiled[function.__name__] = torch.compile(function, dynamic=False, options=_OPTIONS)
        compiled = _compiled[function.__name__]
        lists = [a for a in arguments if isinstance(a, list)]
        shapes = [
            [getattr(item, "shape", None) for item in items] for items in zip(*lists, strict=True)
        ]
        found = [
            compiled(*(a[part] if isinstance(a, list) else a for a in arguments))
            for part in _alike(shapes)
        ]
        if isinstance(found[0], list):
            return [item for items in found for item in items]
        return None if found[0] is None else sum(found[1:], found[0])

    return call  # type: ignore[return-value]


def _alike(shapes: Sequence[Any]) -> list[slice]:
    """Return the parts of a list of weights: those of blocks that are alike, what is around them.

    A part for each block saves compiling and costs launching, so it is all or nothing: the blocks
    must make up three quarters of the weights, with at least LEAST_PART in each.

    >>> [(part.start, part.stop) for part in _alike("s" + 3 * "qkvo" + "h")]
    [(0, 1), (1, 5), (5, 9), (9, 13), (13, 14)]
    >>> [(part.start, part.stop) for part in _alike("abcabd")]
    [(0, 6)]
    """
    count = len(shapes)
    best = 0, 0, 0  # weights that need no compiling; of the first block, where it begins and ends
    for size in range(LEAST_PART, count // 2 + 1):
        equal = [a == b for a, b in zip(shapes, shapes[size:], strict=False)]
        first = 0
        for end in [k for k, same in enumerate([*equal, False]) if not same]:
            saved = (end - first) // size * size
            if saved > best[0]:
                best = saved, first, first + size
            first = end + 1
    saved, start, end = best
    size = end - start
    if 4 * (saved + size) < 3 * count or not saved:
        return [slice(0, count)]
    bounds = sorted({0, *range(start, end + saved + 1, size), count})
    return [slice(a, b) for a, b in pairwise(bounds)]


@_compilable
def alphas(parameters: Sequence[Tensor], scales: Sequence[Scale]) -> list[Tensor]:
    """Return the scale of each weight at its current value."""
    return [s(p) if callable(s) else s for p, s in zip(parameters, scales, strict=True)]


def unrotated(x: Tensor) -> Tensor:
    """Return x: a map for `rotated`."""
    return x


def rotated(tensors: Sequence[Tensor], maps: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """Return each tensor in the coordinates of its rounding, or back; types stay."""
    if all(f is unrotated for f in maps):  # nothing to compile
        return list(tensors)
    return _rotated(list(tensors), list(maps))


@_compilable
def _rotated(tensors: Sequence[Tensor], maps: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    return [f(t).to(t.dtype) for t, f in zip(tensors, maps, strict=True)]


@_compilable
def shape_(draws: Sequence[Tensor], laws: Sequence[SmoothingLaw]) -> None:
    """Make integers the directions u of each weight's law."""
    for t, law in zip(draws, laws, strict=True):
        law.shape_(t)


def total_norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all tensors together, which float64 takes: no square over- or underflows.

    In float32 a CPU's norm of many numbers is too low. It is not compiled: that would take seconds
    of a run's start, and hardly shorten a step.

    >>> total_norm([torch.tensor([3e-30]), torch.tensor([4e-30])])
    tensor(5.0000e-30)
    >>> total_norm([torch.tensor([3e30]), torch.tensor([4e30])])
    tensor(5.0000e+30)
    """
    norms = torch._foreach_norm(tensors, 2, dtype=torch.float64)
    return torch.stack(norms).norm().to(widest(tensors[0].dtype))


@_compilable
def mix_(
    draws: Sequence[Tensor],
    laws: Sequence[SmoothingLaw],
    epsilons: Sequence[Tensor],
    gradients: Sequence[Tensor],
    inverse_norm: Tensor,
    along: Tensor,
    across: Tensor | float,
) -> None:
    """Make integers (k, *shape) the directions across * u + along_k * g^.

    u is of each weight's law and g^ = eps * g * inverse_norm.
    """
    for t, law, e, g in zip(draws, laws, epsilons, gradients, strict=True):
        law.shape_(t).mul_(across).add_(outer(along, e * g * inverse_norm))


@_compilable
def displace_(
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
    epsilons: Sequence[Tensor],
    directions: Sequence[Tensor],
) -> None:
    """Put saved + eps * v into each parameter."""
    for p, theta, e, v in zip(parameters, saved, epsilons, directions, strict=True):
        p.copy_(theta + e * v)


@_compilable
def cross_(
    parameters: Sequence[Tensor],
    saved: Sequence[Tensor],
    epsilons: Sequence[Tensor],
    directions: Sequence[Tensor],
    levels: Sequence[Callable[[Tensor], Tensor] | None],
) -> Tensor:
    """Put saved - eps * v into each parameter; return how many levels differ from the other side.

    A weight whose levels are not known counts for none.
    """
    flips = saved[0].new_zeros(())
    for p, theta, e, v, level in zip(parameters, saved, epsilons, directions, levels, strict=True):
        offset = e * v
        p.copy_(theta - offset)
        if level is not None:
            flips = flips + (level(theta + offset) != level(theta - offset)).sum()
    return flips


def _weighted(
    coefficients: Tensor,
    epsilons: Sequence[Tensor],
    directions: Sequence[Tensor],
    earlier: Sequence[Tensor] | None,
) -> list[Tensor]:
    """Return sum_k c_k v_k / eps for each weight, plus what is there from earlier."""
    sums = [_weighted_sum(coefficients, v) / e for e, v in zip(epsilons, directions, strict=True)]
    return sums if earlier is None else [a + b for a, b in zip(earlier, sums, strict=True)]


weighted = _compilable(_weighted)


@_compilable
def replace_(
    gradients: Sequence[Tensor],
    coefficients: Tensor,
    epsilons: Sequence[Tensor],
    directions: Sequence[Tensor],
    earlier: Sequence[Tensor] | None,
    bad: Tensor,
) -> None:
    """Put what `weighted` returns into each gradient unless any probe was bad.

    Where epsilon is 0, as that of a learned scale that has become 0, no probe has moved the weight:
    it keeps its gradient.
    """
    values = _weighted(coefficients, epsilons, directions, earlier)
    for g, e, value in zip(gradients, epsilons, values, strict=True):
        g.copy_(torch.where((bad > 0) | (e == 0), g, value))


def outer(a: Tensor, b: Tensor) -> Tensor:
    """Return a_k b for a of shape (k,), shaped (k, *b.shape)."""
    return a.view(-1, *([1] * b.dim())) * b


def _weighted_sum(a: Tensor, v: Tensor) -> Tensor:
    """Return sum_k a_k v_k."""
    return v[0] * a[0] if len(a) == 1 else torch.tensordot(a.to(v.dtype), v, dims=1)
