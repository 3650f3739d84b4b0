"""The figures of a step: a row of numbers on the device, which becomes a line of metrics.jsonl.

`ROW` names them, those of the estimate by the fields of `Estimate`. All that looks up a figure of a
row or a line by its name is in this file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from fogzo_repro.estimators import Estimate

ESTIMATE = tuple(field.name for field in fields(Estimate))
# The gradient norms are of what the optimizer is given, estimates included, before clipping.
ROW = ("loss", *ESTIMATE, "grad_norm_quantized", "grad_norm_other", "skipped", "failed")
MAX_BAD_STREAK = 10  # steps in a row with a probe that is not finite, before the run stops


def make_row(estimate: Estimate | None, finite: Tensor, **others: Tensor) -> Tensor:
    """Return the row of a step, shape (len(ROW),), in float32.

    Args:
        estimate: None where the step was not probed; its numbers are then 0.
        finite: whether loss and gradient are; else the guide is not, and there is no estimate.
        others: the numbers of `ROW` that are not the estimate's, 0-dim.
    """
    zero = torch.zeros((), device=finite.device)
    for name in ESTIMATE:
        value = zero if estimate is None else getattr(estimate, name)
        others[name] = torch.where(finite, value, zero)
    return torch.stack([others[name].float() for name in ROW])


def read_row(row: Sequence[float]) -> tuple[dict[str, float], str | None]:
    """Return the numbers of a row by their names, and why the run must stop, if it must."""
    values = dict(zip(ROW, row, strict=True))
    if not values.pop("failed"):
        return values, None
    if values["bad_probes"]:
        return values, f"{MAX_BAD_STREAK} steps in a row with a probe loss that is not finite"
    return values, f"loss {values['loss']:g} or a gradient, or its norm, is not finite"


def begin_line(
    step: int, lr: float, noise: float | None, null_level: float | None
) -> dict[str, Any]:
    """Return what a line has beside the numbers of its row; None is left out.

    Steps count from 1, the noise is 1 - beta, and the null level (`training.passes`) is measured at
    the first step that is probed.
    """
    told = {"step": step, "lr": lr, "noise": noise, "null_level": null_level}
    return {name: value for name, value in told.items() if value is not None}


def has_no_gradient(line: Mapping[str, Any]) -> bool:
    """Return whether the optimizer was given a gradient of zero for all quantized weights.

    Unless flat probes alone have made it so: the next ones may differ. A guide of zero does not
    count where the probes find a slope without it.
    """
    flat_alone = line["flat_probes"] and not line["dead_guides"]
    return line["grad_norm_quantized"] == 0 and not flat_alone


def course(line: Mapping[str, Any]) -> dict[str, float | None]:
    """Return what a line of metrics.jsonl adds to the record's history of the run.

    That is `step`, `loss` and `skipped`; `held_back`, the mean of 1 - h' over the quantized
    weights, where the loop has looked at it; and of a probed step `noise` (1 - beta), `flips` and
    `c_over_g`: |c| / ||eps g||, 1 where the loss changes along the guide as the STE's gradient
    says.
    """
    found = {name: line[name] for name in ("step", "loss", "skipped")}
    guide, coefficient = line.get("guide_norm"), line.get("coefficient")
    if guide or coefficient:  # both are 0 without probes, and where a step was skipped
        found["flips"] = line["flips"]
    if guide and coefficient is not None:  # None stood for a number that was not finite
        found["c_over_g"] = abs(coefficient) / guide
    if "held_back" in line:
        found["held_back"] = line["held_back"]
    if "noise" in line:
        found["noise"] = line["noise"]
    return found
