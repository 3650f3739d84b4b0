"""Modules of torch: a weight with a parametrization, or a module with a weight and a scale."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fogzo_repro.estimators import QuantizedWeight, SmoothingLaw


def parametrized_weight(
    name: str, module: nn.Module, scale: str, law: SmoothingLaw
) -> QuantizedWeight | None:
    """Return a weight whose one parametrization has a scale; None for another module.

    Raises:
        ValueError: where it has several parametrizations, one of which is the quantizer.
    """
    lists: Any = getattr(module, "parametrizations", {})
    chain: Any = lists["weight"] if hasattr(lists, "weight") else ()
    if not any(hasattr(part, scale) for part in chain):
        return None
    if len(chain) > 1:
        raise ValueError(
            f"{name}: its weight has {len(chain)} parametrizations, so that what is rounded is not "
            "the parameter; list it yourself as a QuantizedWeight"
        )
    quantizer: Any = chain[0]

    def levels(weight: Tensor) -> Tensor:
        return (quantizer(weight) / getattr(quantizer, scale)).round()

    return QuantizedWeight(chain.original, _live(quantizer, scale), law, levels)


def attribute_weight(
    _name: str, module: nn.Module, scale: str, law: SmoothingLaw
) -> QuantizedWeight | None:
    """Return the weight of a module that has a scale, or a child with one; None for another."""
    weight = module._parameters.get("weight")
    if weight is None:
        return None
    owners = [part for part in (module, *module.children()) if hasattr(part, scale)]
    return QuantizedWeight(weight, _live(owners[0], scale), law) if owners else None


def _live(owner: Any, scale: str) -> Any:
    """Return a scale that is read anew at each step: it may be learned, replaced or computed."""
    value = getattr(owner, scale)
    if not isinstance(value, Tensor):
        return value  # for `check_weights` to refuse by the layer's name
    return lambda weight: getattr(owner, scale).detach()
