"""Swap linear and convolution layers for their quantized counterparts, in place.

A quantized layer passes its weight through `weight_quantizer` and its input through
`input_quantizer`; either may be None, for full precision.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class QuantizedLinear(nn.Linear):
    """A linear layer with quantized weight, quantized input or both."""

    weight_quantizer: nn.Module | None
    input_quantizer: nn.Module | None

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        x, weight = _operands(self, input)
        return F.linear(x, weight, self.bias)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantized weight, quantized input or both."""

    weight_quantizer: nn.Module | None
    input_quantizer: nn.Module | None

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        x, weight = _operands(self, input)
        return self._conv_forward(x, weight, self.bias)


def _operands(layer: QuantizedLinear | QuantizedConv2d, input: Tensor) -> tuple[Tensor, Tensor]:
    x = input if layer.input_quantizer is None else layer.input_quantizer(input)
    weight = layer.weight
    return x, weight if layer.weight_quantizer is None else layer.weight_quantizer(weight)


COUNTERPARTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: QuantizedLinear,
    nn.Conv2d: QuantizedConv2d,
}


def quantize_layers(
    model: nn.Module,
    build: Callable[[str, Tensor], nn.Module | None],
    build_input: Callable[[str, nn.Module], nn.Module | None] | None = None,
) -> dict[str, nn.Module]:
    """Quantize the weights, and the inputs, of a model's linear and convolution layers.

    A layer keeps its parameters, hooks and place; only its class changes, so optimizers and state
    dicts are not disturbed.

    Args:
        model: changed in place.
        build: given a layer's name and initial weight, returns its quantizer, or None to keep the
            weight in full precision.
        build_input: given a layer's name and the layer, returns the quantizer of its inputs, or
            None; left out, all inputs stay in full precision.

    Returns:
        The quantized layers by name, in the order of `model.named_modules()`.
    """
    quantized = {}
    for name, layer in list(model.named_modules()):
        if type(layer) not in COUNTERPARTS:
            continue
        quantizer = build(name, layer.weight)
        input_quantizer = build_input(name, layer) if build_input else None
        if quantizer is None and input_quantizer is None:
            continue
        layer.__class__ = COUNTERPARTS[type(layer)]
        layer.weight_quantizer = quantizer
        layer.input_quantizer = input_quantizer
        quantized[name] = layer
    return quantized
