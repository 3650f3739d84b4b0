"""The `estimator` section."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from fogzo_repro.config.rules import choice, require


@dataclass(frozen=True)
class SteConfig:
    """Straight-through estimator."""

    name: str


@dataclass(frozen=True)
class SpsaConfig:
    """n-SPSA (PAPER 1)."""

    name: str
    n: int
    start_fraction: float
    probe_fraction: float
    evaluator: str
    random_sign: bool

    def __post_init__(self) -> None:
        require(self.n >= 1, f"estimator.n={self.n} must be at least 1; use estimator=ste for none")
        for key in ("start_fraction", "probe_fraction"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"estimator.{key}={value} is outside [0, 1]")
        require(self.probe_fraction > 0, "estimator.probe_fraction=0.0 must be above 0")
        choice("estimator.evaluator", self.evaluator, ("auto", "sequential", "batched"))


@dataclass(frozen=True)
class FogzoConfig(SpsaConfig):
    """FOGZO (PAPER 1, Algorithm 1). `noise` is 1 - beta_min; both are always set after parsing."""

    beta_min: float
    noise: float | None
    beta_schedule: str

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.beta_min <= 1, f"estimator.beta_min={self.beta_min} is outside [0, 1]")
        if self.noise is None:  # exact in decimal: 1 - 0.999 is 0.001, not 0.0010000000000000009
            object.__setattr__(self, "noise", float(1 - Decimal(repr(self.beta_min))))
        else:
            require(0 <= self.noise <= 1, f"estimator.noise={self.noise} is outside [0, 1]")
            object.__setattr__(self, "beta_min", float(1 - Decimal(repr(self.noise))))
        choice("estimator.beta_schedule", self.beta_schedule, ("constant", "linear"))


@dataclass(frozen=True)
class AddedEstimator:
    """An estimator that is one file in fogzo_repro/estimators and one YAML."""

    name: str
    options: dict[str, Any]
