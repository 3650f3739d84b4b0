"""The `quantizer` section."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from fogzo_repro.config.parts import FIRST_LAST, FULL_PRECISION, Part, QuantizerPart
from fogzo_repro.config.rules import choice, finite, require


@dataclass(frozen=True)
class NoQuantizer(Part):
    """Full precision; the one part without a Python file."""


def _no_activations(name: str, bits: int) -> None:
    require(
        bits == FULL_PRECISION,
        f"quantizer.activation_bits={bits}: quantizer={name} takes its fixed scale from the "
        "initial weights and has none for activations; use quantizer=lsq or quantizer=quest",
    )


@dataclass(frozen=True)
class RoundConfig(QuantizerPart):
    """Fixed scale, rounding to 2^b levels (PAPER 4, "Grid of round")."""

    operator: ClassVar[str] = "round"

    surrogate: str
    grid: str
    clip_gradient: bool | str
    scale_factor: float

    def __post_init__(self) -> None:
        _no_activations("round", self.activation_bits)
        require(
            2 <= self.weight_bits <= 8,
            f"quantizer.weight_bits={self.weight_bits} is outside 2..8 for quantizer=round"
            + (" (for 1 bit use quantizer=sign)" if self.weight_bits == 1 else ""),
        )
        choice("quantizer.grid", self.grid, ("integer", "half_integer"))
        choice("quantizer.clip_gradient", self.clip_gradient, (False, True, "half_step"))
        finite("quantizer.scale_factor", self.scale_factor, 0, strict=True)
        choice("quantizer.first_last", self.first_last, FIRST_LAST)


@dataclass(frozen=True)
class SignConfig(Part):
    """Fixed scale, one bit (PAPER 1, "Smoothing law")."""

    operator: ClassVar[str] = "sign"
    weight_bits: ClassVar[int] = 1

    activation_bits: int
    surrogate: str
    first_last: str

    def __post_init__(self) -> None:
        _no_activations("sign", self.activation_bits)
        choice("quantizer.first_last", self.first_last, FIRST_LAST)


@dataclass(frozen=True)
class LsqConfig(QuantizerPart):
    """Learned step size (RECIPES D.4)."""

    learned_scales: ClassVar[bool] = True

    grid: str
    per_channel: bool
    unsigned_inputs: list[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("quantizer.grid", self.grid, ("integer", "half_integer"))
        require(
            not (self.per_channel and self.weight_bits == FULL_PRECISION),
            "quantizer.per_channel=true is a step for each output channel of a weight, and "
            "quantizer.weight_bits=16 leaves the weights alone; an activation has one step",
        )
        require(
            not (self.unsigned_inputs and self.activation_bits == FULL_PRECISION),
            f"quantizer.unsigned_inputs={self.unsigned_inputs} needs quantized activations, and "
            "quantizer.activation_bits=16 leaves them alone",
        )


@dataclass(frozen=True)
class QuestConfig(QuantizerPart):
    """QuEST (RECIPES D.1 to D.3)."""

    hadamard: str
    trust_width: float | None
    clip_scale: float

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("quantizer.hadamard", self.hadamard, ("full", "half", "none"))
        finite("quantizer.trust_width", self.trust_width, 0, strict=True)
        several = {self.weight_bits, self.activation_bits} - {1, FULL_PRECISION}
        require(
            self.trust_width is None or bool(several),
            f"quantizer.trust_width={self.trust_width} is the mask of 2 bits and more, and "
            f"quantizer.weight_bits={self.weight_bits} with quantizer.activation_bits="
            f"{self.activation_bits} has none; the mask of 1 bit is quantizer.clip_scale",
        )
        finite("quantizer.clip_scale", self.clip_scale, 0, strict=True)


def has_learned_scales(quantizer: Any) -> bool:
    """Return whether a quantizer says that it has parameters of its own, which are trained."""
    return getattr(quantizer, "learned_scales", False)


def quantizer_label(settings: Mapping[str, Any]) -> str:
    """Return the name that the benches give the quantizer of a `quantizer` section.

    >>> quantizer_label({"name": "sign"}), quantizer_label({"name": "lsq", "weight_bits": 2})
    ('sign-w1', 'lsq-w2')
    >>> quantizer_label({"name": "lsq", "weight_bits": 2, "activation_bits": 2})
    'lsq-w2a2'
    """
    if settings["name"] == "none":
        return "none"
    inputs = settings.get("activation_bits", FULL_PRECISION)
    label = f"{settings['name']}-w{settings.get('weight_bits', 1)}"
    return label if inputs == FULL_PRECISION else f"{label}a{inputs}"
