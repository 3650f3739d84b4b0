"""Other people's quantizers, as the weights that an estimator perturbs.

    weights = quantized_weights(model)
    fogzo = FogzoStep(model, optimizer, weights)

Each adapter knows a package's modules by what they look like and imports nothing of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fogzo_repro.estimators import QuantizedWeight, SmoothingLaw, smoothing_law

__all__ = ["quantized_weights"]


def quantized_weights(
    model: nn.Module, *, scale: str = "scale", law: SmoothingLaw | None = None
) -> list[QuantizedWeight]:
    """Return the quantized weights of a model, with their scales and laws.

    Found are layers of brevitas, linear layers of torchao's quantization-aware training, weights
    with one parametrization of torch (`torch.nn.utils.parametrize`) that has a scale, and modules
    that have a `weight` and a scale.

    Args:
        model: its modules are looked at in turn; those without a quantizer are left out.
        scale: the name of the attribute with the distance of neighbouring levels, of a
            parametrization or a module; for sign half of it. A module may have the scale itself
            or have a child, its quantizer, that does.
        law: the smoothing law of quantizers that do not say which operator they are; of rounding
            with the identity STE where not given.

    Raises:
        ValueError: where no quantized weight is found, or of a quantizer without a law or of which
            it is not clear what it rounds, in one line with the layer.
    """
    chosen = law or smoothing_law("round", "identity")
    found: dict[int, QuantizedWeight] = {}  # a weight that layers share is listed once
    for name, module in model.named_modules():
        weight = _weight(name, module, scale, chosen)
        if weight is None:
            continue
        first = found.setdefault(id(weight.parameter), weight)
        if first is not weight and not torch.equal(first.epsilon(), weight.epsilon()):
            raise ValueError(
                f"{name}: another layer has this weight too, and rounds it by another scale; list "
                "the weights yourself as QuantizedWeight, this one with the scale that sets its "
                "noise"
            )
    if not found:
        raise ValueError(
            f"no quantized weight was found in a {type(model).__name__}: known are brevitas, "
            f"torchao's fake quantization, torch's parametrizations and modules with a weight and "
            f"a {scale}; name another attribute, scale=, or list the weights as QuantizedWeight"
        )
    return list(found.values())


def _weight(name: str, module: nn.Module, scale: str, law: SmoothingLaw) -> QuantizedWeight | None:
    """Return the quantized weight of a module itself; None where it has none."""
    if hasattr(module, "weight_quant") and callable(getattr(module, "quant_weight", None)):
        return brevitas_weight(name, module, law)
    if hasattr(module, "weight_fake_quantizer"):
        return torchao_weight(name, module, law)
    if parametrize.is_parametrized(module, "weight"):
        found = parametrized_weight(name, module, scale, law)
        if found is not None:
            return found
    return attribute_weight(name, module, scale, law)


def brevitas_weight(name: str, module: nn.Module, law: SmoothingLaw) -> QuantizedWeight | None:
    """Return the weight of a brevitas layer; None for one in full precision.

    The scale follows the weight or is learned, as the layer has it. One bit with clamping is
    sign with the hardtanh STE.

    Raises:
        ValueError: where the quantizer has no scale, or one bit without clamping.
    """
    layer: Any = module
    proxy: Any = module.weight_quant
    if not getattr(proxy, "is_quant_enabled", True):
        return None
    with torch.no_grad():
        quantized = layer.quant_weight()
    if getattr(quantized, "bit_width", None) is None:
        raise ValueError(f"{name}: its brevitas quantizer is not an integer one with a scale")
    if float(quantized.bit_width) == 1:
        if not hasattr(proxy.tensor_quant, "tensor_clamp_impl"):
            raise ValueError(
                f"{name}: one bit without clamping has the derivative 1 everywhere, and no noise "
                "smooths sign to that; use brevitas's ClampedBinaryQuant"
            )
        law = smoothing_law("sign", "hardtanh")

    def scale(weight: Tensor) -> Tensor:
        found = layer.quant_weight().scale.detach()
        return found if found.dim() == weight.dim() else found.squeeze()

    def levels(weight: Tensor) -> Tensor:
        quantized = proxy(weight)
        return (quantized.value / quantized.scale).round()

    return QuantizedWeight(layer.weight, scale, law, levels)


def torchao_weight(name: str, module: nn.Module, law: SmoothingLaw) -> QuantizedWeight | None:
    """Return the weight of a torchao layer; None for one in full precision.

    Its scales are one a row or one a group of a row's weights. They follow the weight or are
    learned, as the layer has it.

    Raises:
        ValueError: where the fake quantizer has no scale, as those of float8.
    """
    layer: Any = module
    quantizer: Any = module.weight_fake_quantizer
    if quantizer is None or not getattr(quantizer, "enabled", True):
        return None
    if not hasattr(quantizer, "scale"):
        raise ValueError(
            f"{name}: a {type(quantizer).__name__} of torchao keeps no scale; use an "
            "IntxFakeQuantizeConfig"
        )

    @torch.no_grad()
    def scale(weight: Tensor) -> Tensor:
        quantizer(weight)  # a scale that follows the weight is computed on the way
        found = quantizer.scale.detach().view(len(weight), -1)
        groups = found.shape[1]
        return found.repeat_interleave(weight.shape[1] // groups, 1) if groups > 1 else found

    def levels(weight: Tensor) -> Tensor:
        return (quantizer(weight) / scale(weight)).round()

    return QuantizedWeight(layer.weight, scale, law, levels)


def parametrized_weight(
    name: str, module: nn.Module, scale: str, law: SmoothingLaw
) -> QuantizedWeight | None:
    """Return a weight whose one parametrization has a scale; None for one without.

    Raises:
        ValueError: where it has several parametrizations, one of which is the quantizer.
    """
    chain: Any = module.parametrizations["weight"]  # type: ignore[index]
    if not any(hasattr(part, scale) for part in chain):
        return None
    if len(chain) > 1:
        raise ValueError(
            f"{name}: its weight has {len(chain)} parametrizations, so that what is rounded is not "
            "the parameter; list it yourself as a QuantizedWeight"
        )
    quantizer: Any = chain[0]

    def levels(weight: Tensor) -> Tensor:
        return (quantizer(weight) / getattr(quantizer, scale)).round()

    return QuantizedWeight(chain.original, _live(quantizer, scale), law, levels)


def attribute_weight(
    name: str, module: nn.Module, scale: str, law: SmoothingLaw
) -> QuantizedWeight | None:
    """Return the weight of a module that has a scale, or a child with one; None for another.

    A child that is called after inputs or outputs rounds these.

    Raises:
        ValueError: where it is not clear which of several children rounds the weight, or the weight
            is computed from what is trained.
    """
    owner = module if hasattr(module, scale) else _child_of_weight(name, module, scale)
    if owner is None or "weight" in module._buffers:
        return None
    weight = dict(module.named_parameters(recurse=False)).get("weight")
    if weight is not None:
        return QuantizedWeight(weight, _live(owner, scale), law)
    if not isinstance(getattr(module, "weight", None), Tensor):
        return None
    raise ValueError(
        f"{name}: its weight is computed from what is trained, as by pruning or weight norm; list "
        "what is trained yourself as a QuantizedWeight"
    )


def _child_of_weight(name: str, module: nn.Module, scale: str) -> nn.Module | None:
    with_scale = [key for key, part in module.named_children() if hasattr(part, scale)]
    found = [key for key in with_scale if key.startswith("w")] or [
        key for key in with_scale if not key.startswith(("act", "input", "output"))
    ]
    if len(found) > 1 and hasattr(module, "weight"):
        raise ValueError(
            f"{name}: {' and '.join(found)} have a {scale} each, and it is not clear which rounds "
            "the weight; call it weight_quantizer, or list the weights yourself as QuantizedWeight"
        )
    return getattr(module, found[0]) if found else None


def _live(owner: Any, scale: str) -> Any:
    """Return a scale that is read anew at each step: it may be learned, replaced or computed."""
    value = getattr(owner, scale)
    if not isinstance(value, Tensor):
        return value  # for `check_weights` to refuse by the layer's name
    return lambda weight: getattr(owner, scale).detach()
