"""The `estimator` section."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar

from fogzo_repro.config.parts import EstimatorPart
from fogzo_repro.config.rules import ConfigError, choice, finite, require


@dataclass(frozen=True)
class SpsaConfig(EstimatorPart):
    """n-SPSA (PAPER 1)."""

    n: int
    start_fraction: float
    probe_fraction: float
    evaluator: str
    random_sign: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.n >= 1, f"estimator.n={self.n} must be at least 1; use estimator=ste for none")


@dataclass(frozen=True)
class FogzoConfig(SpsaConfig):
    """FOGZO (PAPER 1, Algorithm 1).

    The noise is given in one of three ways, and `noise` decides over `beta_min`.

    Attributes:
        beta_min: beta at the end of the schedule; after parsing it is 1 - noise.
        noise: 1 - beta_min.
        rho: the energy of the noise over the guide's, (1 - beta) d / beta, where d is the number
            of perturbed weights; the plan of a run turns it into `noise` once d is known.
        beta_schedule: `constant`, or `linear` from 1 to beta_min.
    """

    ONE_OF: ClassVar[tuple[str, ...]] = ("beta_min", "noise", "rho")

    beta_min: float | None
    noise: float | None
    rho: float | None
    beta_schedule: str

    def __post_init__(self) -> None:
        super().__post_init__()
        choice("estimator.beta_schedule", self.beta_schedule, ("constant", "linear"))
        if self.rho is not None:
            require(
                self.noise is None,
                f"estimator.rho={self.rho:g} and estimator.noise={self.noise} both say how much "
                "noise there is; give one of them and null for the other",
            )
            finite("estimator.rho", self.rho, 0)
            object.__setattr__(self, "beta_min", None)  # it is not known yet
        elif self.noise is not None:
            require(0 <= self.noise <= 1, f"estimator.noise={self.noise} is outside [0, 1]")
            object.__setattr__(self, "beta_min", complement(self.noise))
        else:
            beta = self.beta_min
            if beta is None:
                raise ConfigError("give one of estimator.beta_min, estimator.noise, estimator.rho")
            require(0 <= beta <= 1, f"estimator.beta_min={beta} is outside [0, 1]")
            object.__setattr__(self, "noise", complement(beta))


@dataclass(frozen=True)
class AveragedConfig(FogzoConfig):
    """The STE averaged over FOGZO's points, a control: FOGZO's settings."""

    probe_gradients: ClassVar[bool] = True


def complement(share: float) -> float:
    """Return 1 - share, exact in decimal: 1 - 0.999 is 0.001, not 0.0010000000000000009."""
    return float(1 - Decimal(repr(share)))
