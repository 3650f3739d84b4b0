"""From the configuration to a quantized network and the weights that an estimator perturbs."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fnmatch import filter as matching
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import (
    RoundConfig,
    RunConfig,
    UserError,
    build_part,
    build_surrogate,
    did_you_mean,
    is_own,
)
from fogzo_repro.config.parts import BITS, FULL_PRECISION
from fogzo_repro.estimators import QuantizedWeight, SmoothingLaw, smoothing_law
from fogzo_repro.quantization import (
    Surrogate,
    quantize_layers,
    surrogate_slope,
    use_exact_products,
)
from fogzo_repro.quantization.functional import sign_levels
from fogzo_repro.quantization.products import has_products
from fogzo_repro.randomness import derive_seed
from fogzo_repro.training.start import Start


@dataclass(frozen=True)
class Network:
    """A quantized model and its quantized weights."""

    model: nn.Module
    weights: list[QuantizedWeight]
    exact_products: bool = False  # whether layers multiply in eight bits where autocast is on

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

    def check_laws(self, what: str) -> None:
        """Refuse what perturbs weights where the quantizer has no smoothing law.

        Raises:
            UserError: in one line that begins with `what`.
        """
        if any(w.law is NO_LAW for w in self.weights):
            raise UserError(
                f"{what} perturbs the weights, and their quantizer has no smoothing law that says "
                "by how much; give it one (docs/parts.md) or use estimator=ste"
            )


def build_network(
    config: RunConfig,
    model_arguments: dict[str, Any],
    device: torch.device,
    start: Start | None = None,
) -> Network:
    """Initialise the model, quantize it, move it to the device.

    It begins with the weights of `start`, by default with those from (seed, "initialisation").

    Raises:
        UserError: where a part cannot be built, or a setting names no layer of the model.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, 0, "initialisation"))
        try:
            model = build_part("model", config.model, config.parts_dir, **model_arguments)
        except ValueError as error:
            raise UserError(f"model={config.model.name}: {error}") from error
        except RuntimeError as error:
            asked = re.search(r"allocate (\d+) bytes", str(error))
            if asked is None and "overflow" not in str(error):
                raise
            size = (
                f"{int(asked[1]) / 2**20:,.0f} MiB" if asked else "more bytes than can be counted"
            )
            raise UserError(
                f"model={config.model.name} needs {size} for a single tensor, which this machine "
                "does not have; make the model smaller"
            ) from None
    _check_module(f"model={config.model.name}: build()", model)
    if start is not None:
        start.load_into(model)
    _check_first_last(config, model)
    layers = quantize_layers(
        model,
        lambda name, weight: _weight_quantizer(config, name, weight),
        lambda name, layer: _input_quantizer(config, name, layer),
    )
    _check_chosen_layers(config, list(layers))
    model.to(device)
    distinct: dict[int, Any] = {}  # a weight that layers share is perturbed once
    for layer in layers.values():
        if layer.weight_quantizer is not None:
            distinct.setdefault(id(layer.weight), layer)
    wanted = config.hardware.exact_products
    exact = wanted is not False and has_products(device)
    exact = exact and use_exact_products(layers.values(), everywhere=bool(wanted))
    return Network(model, [_perturbed_weight(layer) for layer in distinct.values()], exact)


EIGHT_BIT = RoundConfig(  # for the first and last layers beside quantizer=sign
    name="round", family="uniform", weight_bits=8, activation_bits=FULL_PRECISION,
    first_last="8bit", surrogate="identity", grid="integer", clip_gradient=False, scale_factor=1.0,
)  # fmt: skip
ROTATIONS = ("rotate", "rotate_back")  # of a quantizer that rounds in rotated coordinates


def _weight_quantizer(config: RunConfig, name: str, weight: Tensor) -> nn.Module | None:
    """Return the quantizer of one weight, or None for full precision."""
    section = _section(config, name)
    if section is None or section.weight_bits == FULL_PRECISION:
        return None
    try:
        given: dict[str, Any] = {"weight": weight, **_surrogate(section, config.parts_dir)}
        found = build_part("quantizer", section, config.parts_dir, **given)
    except ValueError as error:
        raise UserError(f"quantizer={section.name} on the weight of {name}: {error}") from error
    module = _check_module(
        f"quantizer={section.name}: build()",
        found,
        units="(weight)",
        levels="(units)",
        perturbation_scale="(weight)",
    )
    if is_own("quantizer", section, config.parts_dir):
        _check_shapes(f"quantizer={section.name}: {type(found).__name__}", module, weight)
    return module


def _check_shapes(what: str, quantizer: Any, weight: Tensor) -> None:
    """Refuse a user's quantizer whose results have another shape than its weight.

    It is asked as in an evaluation, which changes nothing. On the meta device, where a weight has
    no numbers, what cannot be asked is left to the run.
    """
    asked: dict[str, Callable[[Tensor], Any]] = {"forward(weight)": quantizer}
    if getattr(quantizer, "smoothing", None) is not None:  # else it trains by the STE alone
        asked["levels(units(weight))"] = lambda w: quantizer.levels(quantizer.units(w))
        asked["perturbation_scale(weight)"] = quantizer.perturbation_scale
    quantizer.eval()
    for method, ask in asked.items():
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                found = ask(weight)
        except Exception:
            if weight.is_meta:
                continue
            raise
        shape = tuple(found.shape) if isinstance(found, Tensor) else None
        fits = shape == weight.shape
        if method.startswith("perturbation_scale") and shape is not None:
            fits = _broadcasts(shape, weight.shape)
        if not fits:
            given = f"{type(found).__name__}" if shape is None else f"tensor of shape {shape}"
            raise UserError(
                f"{what}.{method} returned a {given}, which does not fit the weight's shape, "
                f"{tuple(weight.shape)}"
            )
    quantizer.train()


def _broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Return whether a tensor of one shape stands for one of another."""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(size in (1, wanted) for size, wanted in pairs)


def _input_quantizer(config: RunConfig, name: str, layer: nn.Module) -> nn.Module | None:
    """Return the quantizer of one layer's inputs, or None for full precision."""
    section = _section(config, name)
    if section is None or section.activation_bits == FULL_PRECISION:
        return None
    try:
        given: dict[str, Any] = {"layer": layer, "layer_name": name}
        found = build_part("quantizer", section, config.parts_dir, "build_input", **given)
    except ValueError as error:
        raise UserError(f"quantizer={section.name} on the inputs of {name}: {error}") from error
    return _check_module(f"quantizer={section.name}: build_input()", found)


def _check_module(what: str, found: Any, **methods: str) -> nn.Module:
    """Return what a part has built, if it is a module with these methods."""
    kind = type(found).__name__
    if not isinstance(found, nn.Module):
        raise UserError(f"{what} returned a {kind}, not a torch.nn.Module")
    for method, how in methods.items():
        if not callable(getattr(found, method, None)):
            raise UserError(f"{what} returned a {kind}, which has no {method}{how}")
    return found


def _surrogate(section: Any, parts_dir: str | None) -> dict[str, Surrogate]:
    """Return the surrogate that a quantizer names, in place of its name."""
    if not hasattr(section, "operator"):
        return {}
    found = build_surrogate(section.operator, section.surrogate, parts_dir)
    what = f"quantizer.surrogate={section.surrogate}: build()"
    if not (isinstance(found, tuple) and len(found) == 2 and callable(found[0])):
        raise UserError(
            f"{what} returned a {type(found).__name__}, not a Surrogate(h, law) with a function h"
        )
    surrogate = Surrogate(*found)
    _check_elementwise(f"{what} returned a Surrogate whose h", surrogate.h)
    law = _law(surrogate.law, f"{what} returned a Surrogate whose law")
    if law is not NO_LAW:
        grid = getattr(section, "grid", None)
        _check_expectation(f"{what} returned a Surrogate whose", surrogate.h, law, grid)
    return {"surrogate": surrogate}


@cache  # once for all layers
def _check_expectation(
    what: str, h: Callable[[Tensor], Tensor], law: SmoothingLaw, grid: str | None
) -> None:
    """Warn of a law that is not the one of h, by its mean over 10,000 quantiles.

    It may be meant: then the STE is that of another noise than the probes'. `grid` is that of
    rounding, far from the outer levels, and None of the sign.
    """
    half = 0.5 * (grid == "half_integer")
    exact: Any = {"dtype": torch.float64, "device": "cpu"}  # a network may be built on meta
    t = torch.arange(-9_999, 10_000, 2, **exact) / 10_000
    x = torch.linspace(-1.2, 1.2, 25, **exact)
    moved = x[:, None] + law.epsilon_bar * law.from_symmetric(t)
    levels = sign_levels(moved) if grid is None else (moved - half).round() + half
    off = (h(x.clone()) - levels.mean(1)).abs()
    if off[worst := int(off.argmax())] > 0.01:
        operator, at = "sign" if grid is None else f"round, grid={grid}", f"{x[worst]:.1f}"
        warnings.warn(
            f"{what} law is not that of its h: h({at}) is {h(x)[worst]:.3f}, and the mean of "
            f"{operator} at {at} + epsilon_bar u is {levels.mean(1)[worst]:.3f}, so that the STE "
            "is that of another noise than the probes'; give the law for which they are equal",
            RuntimeWarning,
            stacklevel=2,
        )


def _check_elementwise(what: str, function: Callable[[Tensor], Any]) -> None:
    """Refuse what does not give a tensor of the shape of what it gets."""
    x = torch.linspace(-0.9, 0.9, 5)
    try:
        y = function(x.clone())
    except Exception as error:
        raise UserError(f"{what} fails: {type(error).__name__}: {error}") from error
    if not (isinstance(y, Tensor) and y.shape == x.shape):
        raise UserError(f"{what} turns 5 numbers into {y!r}, not into a tensor of 5 numbers")


def _section(config: RunConfig, name: str) -> Any | None:
    """Return the quantizer settings that hold for a layer, or None for full precision."""
    section: Any = config.quantizer
    if section.name == "none":
        return None
    if name in config.model.first_last:
        if section.first_last == "float":
            return None
        if section.first_last == "8bit":
            if section.name == "sign":
                return EIGHT_BIT
            on = [key for key in BITS if getattr(section, key) != FULL_PRECISION]
            return replace(section, **dict.fromkeys(on, 8))
    return section


def _check_first_last(config: RunConfig, model: nn.Module) -> None:
    """Refuse a name that is no layer: it would be quantized although it was to be spared."""
    layers = [n for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    for name in config.model.first_last:
        if name not in layers:
            raise UserError(
                f"model.first_last: {name} is not a linear layer or convolution of the model"
                f"{did_you_mean(name, layers)}"
            )


def _check_chosen_layers(config: RunConfig, names: list[str]) -> None:
    for pattern in getattr(config.quantizer, "unsigned_inputs", ()):
        if not matching(names, pattern):
            raise UserError(
                f"quantizer.unsigned_inputs: {pattern} matches no quantized layer; they are "
                f"{', '.join(names)}"
            )


def _perturbed_weight(layer: Any) -> QuantizedWeight:
    quantizer = layer.weight_quantizer
    rotations = {k: getattr(quantizer, k) for k in ROTATIONS if hasattr(quantizer, k)}
    return QuantizedWeight(
        parameter=layer.weight,
        scale=quantizer.perturbation_scale,
        law=_law(getattr(quantizer, "smoothing", None), f"{type(quantizer).__name__}.smoothing"),
        levels=lambda weight: quantizer.levels(quantizer.units(weight)),
        quantized=getattr(quantizer, "quantized", quantizer),
        slope=lambda weight: surrogate_slope(quantizer, weight),
        **rotations,
    )


def _law(smoothing: Any, what: str) -> SmoothingLaw:
    """Return the law that a quantizer gives, or names by (operator, surrogate)."""
    if smoothing is None:
        return NO_LAW
    if isinstance(smoothing, SmoothingLaw):
        _check_elementwise(f"{what} has a transform that", smoothing.from_symmetric)
        return smoothing
    try:
        return smoothing_law(*smoothing)
    except (TypeError, ValueError) as error:
        known = f": {error}" if isinstance(error, ValueError) else ""
        raise UserError(
            f"{what} is {smoothing!r}, neither a SmoothingLaw nor the (operator, surrogate) of one"
            f"{known}"
        ) from None


NO_LAW = SmoothingLaw(math.nan, math.nan, lambda t: t.fill_(math.nan))  # for the STE alone
