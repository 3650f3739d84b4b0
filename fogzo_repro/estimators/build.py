"""From the `estimator` section to the object that the training loop calls."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.protocol import Estimator
from fogzo_repro.estimators.spsa import Nspsa
from fogzo_repro.estimators.ste import Ste

BUILDERS: dict[str, Callable[[Any, torch.device], Estimator]] = {
    "ste": lambda c, device: Ste(),
    "nspsa": lambda c, device: Nspsa(c.n, c.start_fraction),
    "fogzo": lambda c, device: Fogzo(c.n, c.noise, c.beta_schedule, c.start_fraction, device),
}


def build_estimator(config: Any, device: torch.device) -> Estimator:
    """Build the run's estimator; an added one's file has `build(device, **options)`."""
    if config.name in BUILDERS:
        return BUILDERS[config.name](config, device)
    if not (Path(__file__).parent / f"{config.name}.py").is_file():
        raise ValueError(f"estimator={config.name} has no file in fogzo_repro/estimators")
    module = import_module(f"fogzo_repro.estimators.{config.name}")
    return module.build(device, **config.options)
