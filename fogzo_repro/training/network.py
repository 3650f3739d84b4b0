"""From the configuration to a quantized network and the weights that an estimator perturbs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import RoundConfig, RunConfig
from fogzo_repro.estimators import QuantizedWeight, smoothing_law
from fogzo_repro.models import build_model
from fogzo_repro.quantization import build_quantizer, quantize_layers
from fogzo_repro.training.randomness import derive_seed


@dataclass(frozen=True)
class Network:
    """A quantized model and its quantized weights."""

    model: nn.Module
    weights: list[QuantizedWeight]

    @property
    def parameters(self) -> int:
        """Trainable parameters."""
        return sum(p.numel() for p in self.model.parameters() if p.requires_grad)

    @property
    def described_parameters(self) -> str:
        """The count in words; beside it, for a language model, that without its embeddings."""
        embeddings = getattr(self.model, "embedding_parameters", None)
        beside = f" ({self.parameters - embeddings:,} non-embedding)" if embeddings else ""
        return f"{self.parameters:,}{beside}"

    @property
    def perturbed(self) -> int:
        """d, the number of perturbed weights."""
        return sum(w.parameter.numel() for w in self.weights)


def build_network(
    config: RunConfig, model_arguments: dict[str, Any], device: torch.device
) -> Network:
    """Initialise the model from (seed, "initialisation"), quantize it, move it to the device."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 0, "initialisation"))
        model = build_model(config.model, **model_arguments)
    layers = quantize_layers(model, lambda name, weight: _quantizer(config, name, weight))
    model.to(device)
    distinct: dict[int, nn.Module] = {}  # a weight that layers share is perturbed once
    for layer in layers.values():
        distinct.setdefault(id(layer.weight), layer)
    return Network(model, [_perturbed_weight(layer) for layer in distinct.values()])


def _quantizer(config: RunConfig, name: str, weight: Tensor) -> nn.Module | None:
    """Return the quantizer of one layer, or None for full precision."""
    section: Any = config.quantizer
    if section.name == "none":
        return None
    if name in config.model.first_last:
        if section.first_last == "float":
            return None
        if section.first_last == "8bit":
            section = (
                replace(section, weight_bits=8)
                if hasattr(section, "weight_bits")
                else RoundConfig("round", 8, "identity", "integer", False, "8bit")
            )
    return build_quantizer(section, weight)


def _perturbed_weight(layer: Any) -> QuantizedWeight:
    quantizer = layer.weight_quantizer
    return QuantizedWeight(
        parameter=layer.weight,
        scale=quantizer.perturbation_scale,
        law=smoothing_law(*quantizer.smoothing),
        levels=lambda weight: quantizer.levels(quantizer.units(weight)),
    )
