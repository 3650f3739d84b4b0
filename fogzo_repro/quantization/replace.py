"""Swap linear and convolution layers for their quantized counterparts, in place."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class QuantizedLinear(nn.Linear):
    """A linear layer whose weight passes through `weight_quantizer`."""

    weight_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        return F.linear(input, self.weight_quantizer(self.weight), self.bias)


class QuantizedConv2d(nn.Conv2d):
    """A convolution whose weight passes through `weight_quantizer`."""

    weight_quantizer: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        return self._conv_forward(input, self.weight_quantizer(self.weight), self.bias)


COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
}


def quantize_layers(
    model: nn.Module, build: Callable[[str, Tensor], nn.Module | None]
) -> dict[str, nn.Module]:
    """Quantize the weights of a model's linear and convolution layers.

    A layer keeps its parameters, hooks and place; only its class changes, so optimizers and state
    dicts are not disturbed.

    Args:
        model: changed in place.
        build: given a layer's name and initial weight, returns its quantizer, or None to keep the
            layer in full precision.

    Returns:
        The quantized layers by name, in the order of `model.named_modules()`.
    """
    quantized = {}
    for name, layer in list(model.named_modules()):
        if type(layer) not in COUNTERPARTS:
            continue
        quantizer = build(name, layer.weight)
        if quantizer is None:
            continue
        layer.__class__ = COUNTERPARTS[type(layer)]
        layer.weight_quantizer = quantizer
        quantized[name] = layer
    return quantized
