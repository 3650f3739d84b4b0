"""What would go wrong without a word in somebody's loop, said in one line that names the layer."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.estimators.protocol import NO_WEIGHTS, QuantizedWeight, check_shape
from fogzo_repro.estimators.replay import RecordedLoss
from fogzo_repro.estimators.smoothing import SmoothingLaw

LARGE_FACTOR = 100  # no loss of its own has it, and a GradScaler begins with more
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
    names = {id(p): _plain(name) for name, p in model.named_parameters()}
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
    """Where the model keeps a weight, or the scale of one.

    Attributes:
        name: for people.
        own: the module's parameters or buffers.
        key: among them.
        tensor: what is kept there.
        is_weight: whether it is a weight.
    """

    name: str
    own: Mapping[str, Tensor | None]
    key: str
    tensor: Tensor
    is_weight: bool


def places_of(weights: Sequence[QuantizedWeight], model: nn.Module) -> list[Place]:
    """Return where the model keeps its quantized weights, and those scales that it keeps."""
    kept: dict[int, tuple[str, Mapping[str, Tensor | None], str]] = {}
    for prefix, module in model.named_modules():
        for own in (module._parameters, module._buffers):
            for key, tensor in own.items():
                kept.setdefault(id(tensor), (_plain(f"{prefix}.{key}".lstrip(".")), own, key))
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

    A step affords it: no value is looked at.

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


def check_number(name: str, value: Any) -> None:
    """Refuse an argument that is no finite number.

    Raises:
        ValueError: in one line with the argument's name.
    """
    if not isinstance(value, Real) or not math.isfinite(value):
        raise ValueError(f"{name}={value!r} must be a finite number")


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


def _plain(name: str) -> str:
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def check_losses(
    losses: Sequence[RecordedLoss],
    again: Callable[[RecordedLoss], Tensor],
    inverse: Tensor | None,
    model: nn.Module,
) -> Tensor:
    """Take each loss twice more at the same weights, and warn where it does not come out the same.

    So it does where a module counts its passes in Python, which nothing undoes.

    Args:
        losses: of a step, after their backward passes.
        again: takes one of them again.
        inverse: of the scale of the GradScaler, where one is known.
        model: whose modules run.

    Returns:
        The difference of the two passes over all losses, which should be 0.

    Raises:
        ValueError: where backward was not called, or of a loss that a GradScaler had scaled while
            none is known.
    """
    factors = [float(weight_of(loss)) for loss in losses]
    total = sum(factors)
    if inverse is None and max(factors) > LARGE_FACTOR:
        raise ValueError(
            f"the loss was multiplied by {max(factors):g} before backward; give the GradScaler "
            "that has done it, scaler="
        )
    if inverse is not None and 0 < abs(total) * float(inverse) < LARGE_FACTOR**-2:
        warnings.warn(
            f"scaler= is given, and the loss was multiplied by {total:g} before backward and not "
            f"by its scale, {1 / float(inverse):g}, by which the gradients are divided; call "
            "scaler.scale(loss).backward(), or leave out scaler=",
            RuntimeWarning,
            stacklevel=4,
        )
    counts = _numbers(model)
    null = torch.zeros(())
    for index, loss in enumerate(losses):
        others = _states()
        one, two = again(loss), again(loss)
        null = null.to(one.device) + (one - two) * weight_of(loss)
        changed = [what for what, state in _states().items() if state != others[what]]
        coarse = loss.autocast or loss.first.dtype.itemsize < 4
        values = [float(value) for value in (loss.first, one, two)]
        close = abs(values[0] - values[1]) <= (2e-3 if coarse else 1e-5) * max(1.0, abs(values[1]))
        if torch.equal(one, two) and close:
            continue
        if changed:
            why = f"it draws from {' and '.join(changed)}"
        elif not torch.equal(one, two):
            why = "does it fetch a new batch, or draw from a generator of its own?"
        else:
            why = (
                "does it look up its batch in a variable that has changed since? Give the batch "
                "as arguments, loss(loss_fn, x, y); or does each pass move a range that it rounds "
                "by, as an observer's? Fix that range first"
            )
        so = f"so that probes measure something else than the weights' effect: {why}"
        if not all(map(math.isfinite, values)):
            so = (
                "which is not finite, and leaves the STE's gradient in place: look at the data, "
                "the learning rate and the start of the weights"
            )
        of = f" of micro-batch {index + 1} of {len(losses)}" if len(losses) > 1 else ""
        warnings.warn(
            f"the loss{of} was {values[0]:.9g} in the backward pass, and taken again twice at the "
            f"same weights it is {values[1]:.9g} and {values[2]:.9g}, {so}",
            RuntimeWarning,
            stacklevel=4,
        )
    narrow = next((loss.first.dtype for loss in losses if loss.first.dtype.itemsize < 4), None)
    if narrow is not None:
        warnings.warn(
            f"the loss is a {narrow}, in which the difference of two losses is lost to rounding; "
            "compute it from the network's output in float32, .float()",
            RuntimeWarning,
            stacklevel=4,
        )
    for name, now in _numbers(model).items():
        if now != counts.get(name, now):
            warnings.warn(
                f"{name} went from {counts[name]} to {now} while the loss was taken again: what a "
                "module counts in Python is counted by each probe too, 2n + 1 times a step; "
                "lengthen what goes by it, such as the passes of a calibration",
                RuntimeWarning,
                stacklevel=4,
            )
            break
    return null


def weight_of(loss: RecordedLoss) -> Tensor:
    """Return the factor with which a loss took part in backward, without asking the device.

    Raises:
        ValueError: where backward was not called.
    """
    if loss.weight is None:
        raise ValueError(
            "backward was not called on a loss of this step; call loss.backward(), or "
            "FogzoStep.losses.clear() where the batch is skipped"
        )
    return loss.weight


def _numbers(model: nn.Module) -> dict[str, float]:
    """Return the numbers that modules keep as Python's, by their names."""
    return {
        _plain(f"{prefix}.{name}".lstrip(".")): value
        for prefix, module in model.named_modules()
        for name, value in vars(module).items()
        if type(value) in (int, float)
    }


def _states() -> dict[str, Any]:
    """Return the states of the random numbers that are not torch's, by their names."""
    states: dict[str, Any] = {"Python's random": random.getstate()}
    if "numpy" in sys.modules:
        _, words, position, *_ = sys.modules["numpy"].random.get_state()
        states["numpy.random"] = words.tobytes(), position
    return states
