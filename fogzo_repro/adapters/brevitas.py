"""Layers of brevitas: `quant_weight()` gives the quantized weight with its scale."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.estimators import QuantizedWeight, SmoothingLaw, smoothing_law


def brevitas_weight(
    name: str, module: nn.Module, _scale: str, law: SmoothingLaw
) -> QuantizedWeight | None:
    """Return the weight of a brevitas layer; None for another module or one in full precision.

    The scale follows the weight or is learned, as the layer has it. One bit with clamping is
    sign with the hardtanh STE.

    Raises:
        ValueError: where the quantizer has no scale, or one bit without clamping.
    """
    layer: Any = module
    proxy: Any = getattr(module, "weight_quant", None)
    if proxy is None or not callable(getattr(module, "quant_weight", None)):
        return None
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
