"""How long a run takes on a card, from the records of the benches (results/records/bench).

A LLaMA that was not measured itself is scaled from the measured one of the nearest size by FLOP a
token, 6 (N_non-embedding + V d) + 6 L d T, and marked so. Other networks are not scaled: unknown.
The benches time training steps with 2-bit round and data on the card; loading, evaluation and what
another quantizer takes come on top.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.config import RunConfig

MNIST_STEPS = 1170  # of the bench's runs


@dataclass(frozen=True)
class Hours:
    """Hours of one run on a card, and whether they are scaled from another network."""

    hours: float
    scaled: bool


@dataclass(frozen=True)
class _Step:
    """Seconds of a step, and what each direction adds."""

    ste: float
    direction: float
    scaled: bool = False


def read_benches(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the bench records by card, those of processors left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        card = record.get("device") or record.get("hardware") or ""
        if "threads" not in card and card != "cpu":
            found.setdefault(card, []).append(record)
    return found


def run_hours(config: RunConfig, steps: int, benches: list[dict[str, Any]]) -> Hours | None:
    """Return how long a run of so many steps takes on the card of these records, None: unknown."""
    for record in benches:
        for kind, read in (("sizes", _language), ("results", _vision), ("jobs", _mlp)):
            step = read(config, record[kind]) if kind in record else None
            if step is not None:
                estimator: Any = config.estimator
                share = 1 - getattr(estimator, "start_fraction", 0.0)
                directions = share * getattr(estimator, "n", 0)
                seconds = steps * (step.ste + directions * step.direction)
                return Hours(seconds / 3600, step.scaled)
    return None


def _language(config: RunConfig, sizes: dict[str, Any]) -> _Step | None:
    model: Any = config.model
    if config.dataset.name != "c4":
        return None
    measured = {k: v for k, v in sizes.items() if "fogzo" in v and "ste" in v}
    if not measured:
        return None
    name = f"{model.layers}/{model.width}/{model.heads} V={model.vocabulary}"
    wanted = flop_per_token(model)
    if name not in measured:
        name = min(measured, key=lambda k: abs(measured[k]["flop_per_token"] - wanted))
    figures = measured[name]
    ratio = wanted / figures["flop_per_token"]
    tokens = config.recipe.global_batch_size * model.context
    ste, fogzo = (ratio * tokens / figures[k]["tokens_per_s"] for k in ("ste", "fogzo"))
    return _Step(ste, fogzo - ste, scaled=abs(ratio - 1) > 1e-6)


def flop_per_token(model: Any) -> float:
    """Return the FLOP of a training token, as scripts/bench_steps.py counts them."""
    d, layers = model.width, model.layers
    non_embedding = layers * (4 * d * d + 3 * d * model.hidden + 2 * d) + d
    return 6 * (non_embedding + model.vocabulary * d) + 6 * layers * d * model.context


def _vision(config: RunConfig, results: dict[str, Any]) -> _Step | None:
    figures = results.get(config.model.name)
    size = getattr(config.dataset, "image_size", None)
    if figures is None or size != figures["size"] or config.scale != "full":
        return None
    batch = config.recipe.global_batch_size
    ste, fogzo = (batch / figures[f"{k}_images_per_s"] for k in ("ste", "fogzo"))
    return _Step(ste, fogzo - ste)


def _mlp(config: RunConfig, jobs: dict[str, Any]) -> _Step | None:
    if config.model.name != "mlp" or config.dataset.name != "mnist":
        return None
    ste = jobs["mnist_ste"]["seconds"] / MNIST_STEPS
    n = getattr(config.estimator, "n", 0)
    job = {0: "mnist_ste", 1: "mnist_fogzo_n1", 7960: "mnist_nspsa_n7960"}.get(n)
    if job not in jobs:  # many directions go at once: nothing to scale by
        return None
    return _Step(ste, (jobs[job]["seconds"] / MNIST_STEPS - ste) / max(1, n))
