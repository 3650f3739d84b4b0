"""Weight quantizers and the layers that use them.

A quantizer is a module for one weight tensor. It has

* ``forward(weight)``: the quantized weight, with the surrogate's derivative in its backward pass;
* ``levels(units)``: the level (in units of the scale) that each latent weight rounds to;
* ``units(weight)``: the latent weight in units of the scale;
* ``perturbation_scale(weight)``: the alpha that enters epsilon = alpha * epsilon_bar,
  broadcastable to the weight (the level spacing; half of it for sign);
* ``smoothing``: the pair (operator, surrogate) that selects its smoothing law.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fogzo_repro.quantization.replace import QuantizedConv2d, QuantizedLinear, quantize_layers
from fogzo_repro.quantization.sign import build_sign
from fogzo_repro.quantization.uniform import build_round

__all__ = ["QuantizedConv2d", "QuantizedLinear", "build_quantizer", "quantize_layers"]

BUILDERS: dict[str, Callable[..., nn.Module]] = {"round": build_round, "sign": build_sign}


def build_quantizer(config: Any, weight: Tensor) -> nn.Module:
    """Build the quantizer of one weight tensor.

    Args:
        config: the `quantizer` section; an added quantizer's file has `build(weight, **options)`.
        weight: the initial weights, from which a fixed scale is taken.
    """
    if config.name in BUILDERS:
        return BUILDERS[config.name](config, weight)
    if not (Path(__file__).parent / f"{config.name}.py").is_file():
        raise ValueError(f"quantizer={config.name} has no file in fogzo_repro/quantization")
    module = import_module(f"fogzo_repro.quantization.{config.name}")
    return module.build(weight, bits=config.weight_bits, **config.options)
