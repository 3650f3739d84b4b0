"""torchao's quantization-aware training: linear layers with a `weight_fake_quantizer`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.estimators import QuantizedWeight, SmoothingLaw


def torchao_weight(
    name: str, module: nn.Module, _scale: str, law: SmoothingLaw
) -> QuantizedWeight | None:
    """Return the weight of a torchao layer; None for another module or one in full precision.

    Its scales are one a row or one a group of a row's weights. They follow the weight or are
    learned, as the layer has it.

    Raises:
        ValueError: where the fake quantizer has no scale, as those of float8.
    """
    layer: Any = module
    quantizer: Any = getattr(module, "weight_fake_quantizer", None)
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
