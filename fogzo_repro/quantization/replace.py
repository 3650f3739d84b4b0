"""Swap linear and convolution layers for their quantized counterparts, in place.

A quantized layer passes its weight through `weight_quantizer` and its input through
`input_quantizer`; either may be None, for full precision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro.quantization import products
from fogzo_repro.quantization.functional import autocast_dtype


class QuantizedLinear(nn.Linear):
    """A linear layer with quantized weight, quantized input or both.

    Attributes:
        place: among the layers that share an input's quantizer, see `SharedInput`.
        exact: whether the product in autocast's type is that of eight-bit codes, see `products`.
    """

    weight_quantizer: nn.Module | None
    input_quantizer: nn.Module | None
    place: int
    exact = False

    def forward(self, input: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if self.exact and autocast_dtype(input.device.type) == torch.bfloat16:
            quantizer: Any = self.weight_quantizer
            y = products.linear(_quantized(self, input, coded=True), quantizer.coded(self.weight))
            return y if self.bias is None else y + self.bias.to(y.dtype)
        x, weight = _operands(self, input)
        return F.linear(x, weight, self.bias)


class QuantizedConv2d(nn.Conv2d):
    """A convolution with quantized weight, quantized input or both."""

    weight_quantizer: nn.Module | None
    input_quantizer: nn.Module | None
    place: int

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C', H', W')."""
        x, weight = _operands(self, input)
        return self._conv_forward(x, weight, self.bias)


def _operands(layer: QuantizedLinear | QuantizedConv2d, input: Tensor) -> tuple[Tensor, Tensor]:
    x = input if layer.input_quantizer is None else _quantized(layer, input)
    quantizer, weight = layer.weight_quantizer, layer.weight
    return x, weight if quantizer is None else quantizer(weight)


def _quantized(
    layer: QuantizedLinear | QuantizedConv2d, input: Tensor, *, coded: bool = False
) -> Any:
    """Return a layer's quantized input, or that with its codes."""
    quantizer: Any = layer.input_quantizer
    quantize = quantizer.coded if coded else quantizer
    return quantize(input, layer.place) if isinstance(quantizer, SharedInput) else quantize(input)


class SharedInput(nn.Module):
    """The quantizer of an input that several layers of a block take, one after another.

    It quantizes for the first of them and keeps the result until the last has it. By itself the
    compiler finds equal work in the STE's forward pass alone: not in probes, where it does not
    look, nor in the backward pass, where the layers' gradients differ until they are added.

    The result serves the same tensor, unchanged, under the same modes of autograd and autocast; a
    layer that asks a second time begins another pass, and so does whoever comes after a backward
    pass through the result. Inside `torch.compile` a change of the tensor in place between two of
    the layers is not seen.

    Args:
        quantizer: of the input.
        layers: how many take it.
    """

    def __init__(self, quantizer: nn.Module, layers: int) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.layers = layers
        self.kept: tuple[Tensor, tuple[Any, ...], Any] | None = None
        self.taken: tuple[int, ...] = ()  # places of the layers that have what is kept

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy needs: what is kept belongs to a pass of this module."""
        return {**self.__dict__, "kept": None, "taken": ()}

    def forward(self, x: Tensor, place: int) -> Tensor:
        """Return the quantized x for the layer of a place, from 0."""
        found: Tensor = self._once(x, False, place)
        return found

    def coded(self, x: Tensor, place: int) -> products.Coded:
        """Return the quantized x with its codes for the layer of a place, from 0."""
        found: products.Coded = self._once(x, True, place)
        return found

    def _once(self, x: Tensor, coded: bool, place: int) -> Any:
        compiling = torch.compiler.is_compiling()
        quantizer: Any = self.quantizer.coded if coded else self.quantizer
        if not compiling and x.is_inference():  # it does not count its changes
            return quantizer(x)
        key = (
            coded,
            0 if compiling else x._version,  # the compiler cannot trace it
            x.requires_grad,
            torch.is_grad_enabled(),
            autocast_dtype(x.device.type),
        )
        kept = self.kept
        if kept is None or kept[0] is not x or kept[1] != key or place in self.taken:
            found = quantizer(x)
            kept = x, key, found
            self.kept, self.taken = kept, ()
            rows = found.rows if coded else found
            if not compiling and rows.grad_fn is not None:
                rows.register_hook(self._forget)  # backward frees the graph behind it
        self.taken = (*self.taken, place)
        if len(self.taken) == self.layers:
            self._forget()
        return kept[2]

    def _forget(self, _: Tensor | None = None) -> None:
        self.kept, self.taken = None, ()


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
            None; left out, all inputs stay in full precision. Where the model names layers of a
            block that take the same input, in `shared_inputs`, and their quantizers have equal
            `settings` and so learn nothing, one of these serves them all.

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
    for names in getattr(model, "shared_inputs", ()):
        _share(quantized, names)
    return quantized


def use_exact_products(layers: Iterable[nn.Module], everywhere: bool = False) -> bool:
    """Have linear layers multiply in eight bits where both operands can be written so.

    Args:
        layers: quantized ones, changed in place; on a device that `products.has_products`.
        everywhere: also where such a product is slower than one in bf16.

    Returns:
        Whether any does.
    """
    for layer in layers:
        if isinstance(layer, QuantizedLinear):
            layer.exact = _can_be_exact(layer) and (everywhere or _is_large(layer))
    return any(getattr(layer, "exact", False) for layer in layers)


def _can_be_exact(layer: QuantizedLinear) -> bool:
    """Return whether both operands have few bits and the same rotation, and fit the product."""
    of_input: Any = layer.input_quantizer
    quantizers = [getattr(of_input, "quantizer", of_input), layer.weight_quantizer]
    if not all(hasattr(q, "coded") and q.bits <= products.MOST_BITS for q in quantizers):
        return False
    features = layer.in_features, layer.out_features
    return quantizers[0].basis == quantizers[1].basis and not any(
        count % products.MULTIPLE for count in features
    )


def _is_large(layer: QuantizedLinear) -> bool:
    return layer.in_features >= products.LEAST_IN and layer.out_features >= products.LEAST_OUT


def _share(quantized: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Give layers of these names, in each block that has them all, one quantizer of inputs."""
    first = f".{names[0]}"
    for block in [n.removesuffix(first) for n in quantized if n.endswith(first)]:
        layers = [quantized[key] for key in (f"{block}.{n}" for n in names) if key in quantized]
        if len(layers) < len(names):
            continue
        settings = {getattr(layer.input_quantizer, "settings", None) for layer in layers}
        if len(settings) == 1 and None not in settings:
            shared = SharedInput(layers[0].input_quantizer, len(layers))
            for place, layer in enumerate(layers):
                layer.input_quantizer, layer.place = shared, place
