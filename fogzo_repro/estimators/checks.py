"""Checks of what a user's training loop gives, for mistakes that would show nowhere else.

Each error is one line that names the argument or the layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fogzo_repro.estimators.protocol import NO_WEIGHTS, QuantizedWeight, check_shape
from fogzo_repro.estimators.schedule import RHO, noise_from_rho
from fogzo_repro.estimators.smoothing import SmoothingLaw

WRAPPERS = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


def check_kinds(model: Any, optimizer: Any) -> None:
    """Refuse a model or an optimizer that is none of torch's, and one of TorchScript.

    Raises:
        TypeError: in one line.
    """
    kinds = {"model": (model, nn.Module), "optimizer": (optimizer, torch.optim.Optimizer)}
    for name, (given, kind) in kinds.items():
        if not isinstance(given, kind):
            raise TypeError(f"the {name} is a {type(given).__name__}; give a torch {kind.__name__}")
    for prefix, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TypeError(
                f"{prefix or 'the model'} was made by torch.jit, which does not let its buffers be "
                "kept as they are; use torch.compile"
            )


def check_weights(
    weights: Sequence[QuantizedWeight], model: nn.Module, parameters: Iterable[Tensor] | None = None
) -> None:
    """Refuse quantized weights that could not be perturbed or trained as they are given.

    Args:
        weights: the quantized weights.
        model: that they belong to; errors give their names in it.
        parameters: those that the optimizer trains, where that is to be checked too.

    Raises:
        ValueError: in one line with the layer and the remedy.
    """
    if not weights:
        raise ValueError(NO_WEIGHTS)
    names = {id(p): plain_name(name) for name, p in model.named_parameters()}
    trained = None if parameters is None else {id(p) for p in parameters}
    places: list[tuple[int, int, int, str]] = []  # storage, first and last byte, name
    for index, weight in enumerate(weights):
        if not isinstance(weight, QuantizedWeight):
            raise ValueError(
                f"weights[{index}] is a {type(weight).__name__}; give a QuantizedWeight(parameter, "
                "scale, law)"
            )
        p = weight.parameter
        name = names.get(id(p))
        if name is None:
            raise ValueError(
                f"weights[{index}], of shape {tuple(p.shape)}, is not a parameter of the model; "
                "list the weights after the model has been moved, cast and wrapped"
            )
        _check_trainable(name, p)
        if trained is not None and id(p) not in trained:
            raise ValueError(f"{name} is not among the optimizer's parameters")
        if _overlaps_itself(p):
            raise ValueError(
                f"several elements of {name} share one place in memory, as in an expanded tensor, "
                "and would be perturbed as one; give the parameter memory of its own, .contiguous()"
            )
        _check_scale(name, weight)
        if not isinstance(weight.law, SmoothingLaw):
            raise ValueError(
                f"the law of {name} is a {type(weight.law).__name__}; give "
                "smoothing_law(operator, surrogate)"
            )
        first = p.data_ptr()
        places.append((p.untyped_storage().data_ptr(), first, first + p.nbytes, name))
    places.sort()
    for one, other in pairwise(places):
        if one[0] == other[0] and other[1] < one[2]:
            raise ValueError(
                f"{one[3]} and {other[3]} share memory; a tied weight is perturbed once: make them "
                "one parameter and list it once"
            )


@dataclass(frozen=True)
class Place:
    """Where the model keeps a weight, or the scale of one."""

    name: str  # for people
    own: Mapping[str, Tensor | None]  # the module's parameters or buffers
    key: str  # among them
    tensor: Tensor  # what is kept there
    is_weight: bool


def places_of(weights: Sequence[QuantizedWeight], model: nn.Module) -> list[Place]:
    """Return where the model keeps its quantized weights, and those scales that it keeps."""
    kept: dict[int, tuple[str, Mapping[str, Tensor | None], str]] = {}
    for prefix, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                kept.setdefault(id(tensor), (plain_name(f"{prefix}.{key}".lstrip(".")), own, key))
    places = []
    for weight in weights:
        name, own, key = kept[id(weight.parameter)]
        places.append(Place(name, own, key, weight.parameter, True))
        if isinstance(weight.scale, Tensor) and id(weight.scale) in kept:
            _, own, key = kept[id(weight.scale)]
            places.append(Place(f"the scale of {name}", own, key, weight.scale, False))
    return places


def check_places(places: Iterable[Place]) -> None:
    """Refuse weights and scales that are no longer what `check_weights` has seen.

    Cheap enough for every step: no value is read, so that nothing waits for the device.

    Raises:
        ValueError: in one line with the layer and the remedy.
    """
    for place in places:
        name, tensor = place.name, place.tensor
        if place.own.get(place.key) is not tensor:
            remedy = (
                "make a FogzoStep of its present weights and load this one's state_dict()"
                if place.is_weight
                else "list the weights anew, or give a function that computes it, "
                "scale=lambda weight: ..."
            )
            raise ValueError(
                f"the model has another tensor in place of {name} since FogzoStep was made, as "
                f"after .to(...) or load_state_dict(assign=True); {remedy}"
            )
        if place.is_weight:
            _check_trainable(name, tensor)


def _check_trainable(name: str, p: Tensor) -> None:
    if hasattr(p, "device_mesh"):
        raise ValueError(
            f"{name} is split over the processes, as FSDP does, and probes need whole weights; use "
            "DistributedDataParallel"
        )
    if p.is_meta:
        raise ValueError(
            f"{name} is on the meta device, without values; list the weights after the model has "
            "been given its own"
        )
    if p.dtype.itemsize < 4:
        raise ValueError(
            f"{name} is kept in {p.dtype}, in which a perturbation is lost to rounding; keep "
            "the latent weight in float32 and use torch.autocast for the passes"
        )
    if p.is_complex():
        raise ValueError(
            f"{name} is complex, and is perturbed along real numbers; make parameters of its real "
            "and its imaginary part"
        )
    if not p.requires_grad:
        raise ValueError(
            f"{name} does not require a gradient, and so has no STE gradient; leave it out of the "
            "weights"
        )


def _overlaps_itself(p: Tensor) -> bool:
    """Tell whether an axis steps within what the axes of smaller steps reach."""
    reached = 0
    for stride, size in sorted(zip(p.stride(), p.shape, strict=True)):
        if size > 1 and stride <= reached:
            return p.numel() > 0
        reached += stride * (size - 1)
    return False


def check_whole(name: str, value: Any, least: int) -> int:
    """Return an argument that must be a whole number, at least `least`.

    Raises:
        ValueError: where it is something else.
    """
    if not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number, at least {least}")
    return int(value)


def chosen_noise(rho: float | None, noise: float | None, beta: None, d: int) -> float:
    """Return the noise 1 - beta by the one argument of the three that was given, or by `RHO`.

    Raises:
        ValueError: in one line with the argument's name.
    """
    if beta is not None:
        raise ValueError(f"beta={beta}: give noise, which is 1 - beta, or rho")
    for name, value in {"rho": rho, "noise": noise}.items():
        if not (value is None or (isinstance(value, Real) and math.isfinite(value))):
            raise ValueError(f"{name}={value!r} must be a finite number")
    if rho is not None and noise is not None:
        raise ValueError("rho and noise say the same; give one of them")
    if noise is not None:
        if not 0 <= noise <= 1:
            raise ValueError(f"noise={noise} is outside [0, 1]")
        return noise
    if rho is not None and rho < 0:
        raise ValueError(f"rho={rho} must be at least 0")
    return noise_from_rho(RHO if rho is None else rho, d)


def check_replicas(weights: Sequence[QuantizedWeight], seed: int, step: int) -> None:
    """Refuse to go on where the processes hold different weights, or would draw other directions.

    Raises:
        RuntimeError: with the step.
    """
    sums = [w.parameter.detach().reshape(-1).view(torch.int32).sum() for w in weights]
    held = torch.stack([*sums, *torch.tensor([seed % 2**63, step], device=sums[0].device)])
    both = torch.stack([held, -held])
    dist.all_reduce(both, dist.ReduceOp.MAX)
    if not torch.equal(both[0], -both[1]):
        raise RuntimeError(
            f"step {step}: the processes hold different weights or seeds and do not train as one; "
            "start all with the same weights, seed and FogzoStep"
        )


def _check_scale(name: str, weight: QuantizedWeight) -> None:
    p, scale = weight.parameter, weight.scale
    if callable(scale):
        scale = scale(p.detach())
    elif isinstance(scale, Tensor) and scale.grad_fn is not None:
        raise ValueError(
            f"the scale of {name} was computed from something that is trained, and would stay as "
            "it is now; give a function of the weight that computes it, scale=lambda weight: ..."
        )
    if not isinstance(scale, Tensor):
        raise ValueError(
            f"the scale of {name} is a {type(scale).__name__}, not a tensor; give "
            "torch.tensor(...) on the weight's device"
        )
    scale = scale.detach()
    if scale.device != p.device:
        raise ValueError(f"the scale of {name} is on {scale.device}, the weight on {p.device}")
    check_shape(name, scale, p)
    if not bool((scale.isfinite() & (scale != 0)).all()):
        raise ValueError(
            f"the scale of {name} is zero or not finite somewhere, and epsilon is a multiple of "
            "it; set the scale from the weight before the first step"
        )


def plain_name(name: str) -> str:
    """Return a name in a model without the prefixes of `WRAPPERS`."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name
