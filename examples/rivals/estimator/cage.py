"""CAGE: a pull towards the grid beside the STE's gradient (Tabesh et al. 2025, arXiv 2510.18784).

    e = x - Q(x),   lambda_t = 0 up to a share s of the steps, then lambda (r - s) / (1 - s)

r = t / T, t from 1. `rule` says where e stands:

* `after`: after the optimizer's update, x <- x - lr lambda_t e, with the e of the updated weights.
  So it is coded in the fork that was read (Keivin98/ECO-CAGE-QCRI at 7d64ce3); the official code
  was not at hand.
* `before`: the same with the e of the weights before the update, as notes on the paper have it.
* `coupled`: lambda_t e is added to the STE's gradient, and so passes the optimizer's scaling.

The first two act behind Adam's scaling: the gradient sees the pull weighted by Adam's sqrt(v). lr
is that of the update; the fork takes the next step's. An error beyond the outer levels pulls too,
although the STE's gradient may be 0 there. Weights alone are pulled, not scales, norms or biases.
With lambda = 0 this is the STE.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fogzo_repro.estimators import QuantizedWeight

RULES = ("after", "before", "coupled")
RAMPS = ("linear_ramp", "constant")


def strength_at(step: int, total_steps: int, strength: float, silent: float, ramp: str) -> float:
    """Return lambda_t at a step, counted from 0.

    >>> [round(strength_at(t - 1, 1000, 10, 0.8, "linear_ramp"), 9) for t in (800, 801, 900, 1000)]
    [0.0, 0.05, 5.0, 10.0]
    """
    r = (step + 1) / total_steps
    if r <= silent:
        return 0.0
    return strength if ramp == "constant" else strength * (r - silent) / (1 - silent)


class Cage:
    """CAGE in the training loop.

    Args:
        strength: lambda; lr lambda must stay below 1.
        silent: s, the share of the steps before the pull begins.
        ramp: `linear_ramp` or `constant`.
        rule: `after`, `before` or `coupled`.
        device: where the weights are.
    """

    def __init__(
        self, strength: float, silent: float, ramp: str, rule: str, device: torch.device
    ) -> None:
        self.schedule = (strength, silent, ramp)
        self.rule = rule
        self.now = torch.zeros((), dtype=torch.float64, device=device)  # lambda_t
        self.errors: list[Tensor] = []

    def begin_step(self, step: int, total_steps: int) -> bool:
        """Set lambda_t; return whether there is a pull."""
        strength = strength_at(step, total_steps, *self.schedule)
        self.now.fill_(strength)
        return strength > 0

    def __call__(
        self,
        weights: Sequence[QuantizedWeight],
        probes: object,
        generator: torch.Generator,
        signs: torch.Generator,
    ) -> None:
        """Note the errors before the update, or add them to the gradient."""
        self.errors = [] if self.rule == "after" else [error(w) for w in weights]
        if self.rule == "coupled":
            for w, e in zip(weights, self.errors, strict=True):
                w.gradient().add_(self.now * e)

    def after_update(self, weights: Sequence[QuantizedWeight], lr: Tensor) -> None:
        """Pull the updated weights; lr is 0 where the update was skipped."""
        if self.rule != "coupled":
            errors = self.errors or [error(w) for w in weights]
            for w, e in zip(weights, errors, strict=True):
                w.parameter.sub_(lr * self.now * e)


def error(w: QuantizedWeight) -> Tensor:
    """Return x - Q(x)."""
    assert w.quantized is not None
    return w.parameter - w.quantized(w.parameter)


def build(strength: float, silent: float, ramp: str, rule: str, device: torch.device) -> Cage:
    """Build the estimator of a run."""
    for key, value, options in (("ramp", ramp, RAMPS), ("rule", rule, RULES)):
        if value not in options:
            raise ValueError(f"estimator.{key}={value}; options: {', '.join(options)}")
    if strength < 0 or not 0 <= silent < 1:
        raise ValueError("estimator.strength is at least 0, estimator.silent is in [0, 1)")
    return Cage(strength, silent, ramp, rule, device)
