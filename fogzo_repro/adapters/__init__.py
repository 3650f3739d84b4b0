"""Other people's quantizers, as the weights that an estimator perturbs.

    weights = quantized_weights(model)
    fogzo = FogzoStep(model, optimizer, weights)

Each adapter knows a package's modules by what they look like and imports nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from fogzo_repro.adapters.brevitas import brevitas_weight
from fogzo_repro.adapters.modules import attribute_weight, parametrized_weight
from fogzo_repro.adapters.torchao import torchao_weight
from fogzo_repro.estimators import QuantizedWeight, SmoothingLaw, smoothing_law

__all__ = ["quantized_weights"]

Adapter = Callable[[str, nn.Module, str, SmoothingLaw], QuantizedWeight | None]
ADAPTERS: tuple[Adapter, ...] = (
    brevitas_weight, torchao_weight, parametrized_weight, attribute_weight,
)  # fmt: skip


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
        ValueError: where no quantized weight is found, or of a quantizer without a law, in one line
            with the layer.
    """
    chosen = law or smoothing_law("round", "identity")
    found: dict[int, QuantizedWeight] = {}  # a weight that layers share is listed once
    for name, module in model.named_modules():
        for adapter in ADAPTERS:
            weight = adapter(name, module, scale, chosen)
            if weight is not None:
                found.setdefault(id(weight.parameter), weight)
                break
    if not found:
        raise ValueError(
            f"no quantized weight was found in a {type(model).__name__}: known are brevitas, "
            f"torchao's fake quantization, torch's parametrizations and modules with a weight and "
            f"a {scale}; name another attribute, scale=, or list the weights as QuantizedWeight"
        )
    return list(found.values())
