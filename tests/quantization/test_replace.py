"""Swapping layers for their quantized counterparts."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from conftest import QUANTIZERS
from torch import nn

from fogzo_repro.quantization import quantize_layers
from fogzo_repro.quantization.replace import QuantizedConv2d, QuantizedLinear


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Sequential(nn.Flatten(), nn.Linear(4 * 3 * 3, 5), nn.Linear(5, 3, bias=False)),
    )


ROUND = QUANTIZERS["round2"]


def test_linear_and_convolution_layers_are_quantized_in_order(model: nn.Sequential) -> None:
    layers = quantize_layers(model, lambda name, w: ROUND(w))
    assert list(layers) == ["0", "2.1", "2.2"]
    assert [type(layer) for layer in layers.values()] == [
        QuantizedConv2d,
        QuantizedLinear,
        QuantizedLinear,
    ]
    assert all(dict(model.named_modules())[name] is layer for name, layer in layers.items())


def test_parameters_keep_their_identity_and_names(model: nn.Sequential) -> None:
    before = dict(model.named_parameters())
    keys = list(model.state_dict())
    quantize_layers(model, lambda name, w: ROUND(w))
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is p for name, p in before.items())
    scales = [f"{name}.weight_quantizer.scale" for name in ("0", "2.1", "2.2")]
    assert sorted(model.state_dict()) == sorted(keys + scales)


def test_layer_computes_with_the_quantized_weight(model: nn.Sequential) -> None:
    x = torch.randn(2, 2, 6, 6)
    conv: Any = model[0]
    layers: dict[str, Any] = quantize_layers(model, lambda name, w: ROUND(w))
    quantized = {name: layer.weight_quantizer(layer.weight) for name, layer in layers.items()}
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    y = F.conv2d(padded, quantized["0"], conv.bias, stride=2, groups=2).relu().flatten(1)
    y = F.linear(y, quantized["2.1"], layers["2.1"].bias)
    assert torch.allclose(model(x), F.linear(y, quantized["2.2"]), atol=1e-6)
    assert not torch.equal(quantized["0"], conv.weight)


def test_none_keeps_a_layer_in_full_precision(model: nn.Sequential) -> None:
    def build(name: str, weight: torch.Tensor) -> nn.Module | None:
        return None if name == "2.1" else ROUND(weight)

    assert list(quantize_layers(model, build)) == ["0", "2.2"]
    inner: Any = model[2]
    assert type(inner[1]) is nn.Linear


def test_build_sees_the_name_and_the_initial_weight(model: nn.Sequential) -> None:
    seen: dict[str, torch.Tensor] = {}

    def build(name: str, weight: torch.Tensor) -> nn.Module:
        seen[name] = weight
        return ROUND(weight)

    quantize_layers(model, build)
    assert all(model.get_parameter(f"{name}.weight") is w for name, w in seen.items())


@pytest.mark.parametrize(
    "make", [nn.LayerNorm, nn.Embedding, nn.Conv1d], ids=["norm", "embedding", "conv1d"]
)
def test_other_layers_are_left_alone(make: Callable[..., nn.Module]) -> None:
    arguments = {nn.LayerNorm: (4,), nn.Embedding: (4, 4), nn.Conv1d: (2, 2, 1)}[make]
    model = nn.Sequential(make(*arguments))
    assert quantize_layers(model, lambda name, w: ROUND(w)) == {}


def test_layers_are_not_quantized_twice(model: nn.Sequential) -> None:
    quantize_layers(model, lambda name, w: ROUND(w))
    assert quantize_layers(model, lambda name, w: ROUND(w)) == {}


def test_gradient_reaches_the_latent_weight_and_a_quantized_state_dict_reloads(
    model: nn.Sequential,
) -> None:
    x = torch.randn(2, 2, 6, 6)
    layers: dict[str, Any] = quantize_layers(model, lambda name, w: ROUND(w))
    model(x).square().sum().backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in layers.values())
    state = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(x)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.mul_(3)
    model.load_state_dict(state)
    assert torch.equal(model(x), expected)
