"""Quantizers of weights and inputs, and the layers that use them.

A quantizer of a weight is a module for one tensor. It has

* ``forward(weight)``: the quantized weight, with the surrogate's derivative in its backward pass;
* ``levels(units)``: the level (in units of the scale) that each latent weight rounds to;
* ``units(weight)``: the latent weight in units of the scale;
* ``perturbation_scale(weight)``: the alpha that enters epsilon = alpha * epsilon_bar,
  broadcastable to the weight (the level spacing; half of it for sign);
* ``smoothing``: the pair (operator, surrogate) that selects its smoothing law;
* where it rounds in rotated coordinates, ``rotate`` and ``rotate_back``, orthonormal and inverse
  to each other, on a tensor whose last axes are the weight's; ``units`` are rotated then.

A quantizer of a layer's inputs is any module that maps them to their quantized values.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fogzo_repro.quantization.lsq import build_lsq, build_lsq_input
from fogzo_repro.quantization.quest import build_quest, build_quest_input
from fogzo_repro.quantization.replace import QuantizedConv2d, QuantizedLinear, quantize_layers
from fogzo_repro.quantization.sign import build_sign
from fogzo_repro.quantization.uniform import build_round

__all__ = [
    "QuantizedConv2d",
    "QuantizedLinear",
    "build_input_quantizer",
    "build_quantizer",
    "quantize_layers",
]

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "round": build_round,
    "sign": build_sign,
    "lsq": build_lsq,
    "quest": build_quest,
}
INPUT_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "lsq": build_lsq_input,
    "quest": build_quest_input,
}


def build_quantizer(config: Any, weight: Tensor) -> nn.Module:
    """Build the quantizer of one weight tensor.

    Args:
        config: the `quantizer` section; an added quantizer's file has
            `build(weight, bits=..., **options)`.
        weight: the initial weights, from which a fixed scale or a learned step is taken.

    Raises:
        ValueError: where the weight cannot be quantized so.
    """
    if config.name in BUILDERS:
        return BUILDERS[config.name](config, weight)
    return _added(config.name).build(weight, bits=config.weight_bits, **config.options)


def build_input_quantizer(config: Any, name: str, layer: nn.Module) -> nn.Module:
    """Build the quantizer of one layer's inputs.

    Args:
        config: the `quantizer` section; an added quantizer's file has
            `build_input(layer, bits=..., **options)`.
        name: the layer's name in the model.
        layer: the linear layer or convolution.

    Raises:
        ValueError: where the inputs cannot be quantized so.
    """
    if config.name in INPUT_BUILDERS:
        return INPUT_BUILDERS[config.name](config, name, layer)
    module = _added(config.name)
    if not hasattr(module, "build_input"):
        raise ValueError(
            f"quantizer.activation_bits={config.activation_bits} needs "
            f"build_input(layer, bits, ...) in quantization/{config.name}.py; give it or use 16"
        )
    return module.build_input(layer, bits=config.activation_bits, **config.options)


def _added(name: str) -> Any:
    """Import the file of an added quantizer."""
    if not (Path(__file__).parent / f"{name}.py").is_file():
        raise ValueError(f"quantizer={name} has no file in fogzo_repro/quantization")
    return import_module(f"fogzo_repro.quantization.{name}")
