"""The networks, before quantization."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import nn

from fogzo_repro.models.deit import build_deit
from fogzo_repro.models.llama import build_llama
from fogzo_repro.models.mlp import build_mlp
from fogzo_repro.models.resnet import build_resnet

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "mlp": build_mlp,
    "resnet18": build_resnet,
    "resnet50": build_resnet,
    "deit_tiny": build_deit,
    "deit_small": build_deit,
    "llama_9m": build_llama,
    "llama_20m": build_llama,
    "llama_30m": build_llama,
    "llama_200m": build_llama,
    "llama_300m": build_llama,
}


def build_model(config: Any, **arguments: Any) -> nn.Module:
    """Build a network in float32 on the CPU; draws from torch's global generator.

    Args:
        config: the `model` section; an added model's file has `build(**arguments, **options)`.
        arguments: what the task gives: `image_shape` (C, H, W) and `classes` for images.
    """
    if config.name in BUILDERS:
        return BUILDERS[config.name](config, **arguments)
    if not (Path(__file__).parent / f"{config.name}.py").is_file():
        raise ValueError(f"model={config.name} has no file in fogzo_repro/models")
    module = import_module(f"fogzo_repro.models.{config.name}")
    return module.build(**arguments, **config.options)
