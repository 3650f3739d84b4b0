"""How long a run takes on a card, from the records of the benches (results/records/bench).

A network or quantizer that was not measured itself is estimated and marked so: a LLaMA by the
measured one of the nearest size with its quantizer, by FLOP a token, 6 (N_non-embedding + V d) +
6 L d T; a quantizer that no record has by 2-bit round. Other networks are not scaled: unknown. The
benches time training steps with data on the card; loading and evaluation come on top.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.config import RunConfig, quantizer_label

MNIST_STEPS = 1170  # of the MLP bench's runs


@dataclass(frozen=True)
class Hours:
    """Hours of one run on a card, whether scaled from another network, and the bench's file."""

    hours: float
    scaled: bool
    file: str = ""


@dataclass(frozen=True)
class _Step:
    """Seconds of a step, and what each direction adds; None where FOGZO was not measured.

    `far` says how far from the run the measured network is: whether its quantizer is another, and
    the logarithm of the ratio of sizes.
    """

    ste: float
    direction: float | None
    far: tuple[bool, float] = (False, 0.0)


def read_benches(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the bench records of training steps by card, those of processors left out.

    Each has its file's name in `file`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        card = record["hardware"]
        if ("networks" in record or "jobs" in record) and "threads" not in card:
            found.setdefault(card, []).append({**record, "file": path.name})
    return found


def run_hours(config: RunConfig, steps: int, benches: list[dict[str, Any]]) -> Hours | None:
    """Return how long a run of so many steps takes on the card of these records, None: unknown."""
    found: list[tuple[tuple[bool, float], Hours]] = []
    for record in benches:
        step = _mlp(config, record["jobs"]) if "jobs" in record else _network(config, record)
        if step is None:
            continue
        estimator: Any = config.estimator
        directions = (1 - getattr(estimator, "start_fraction", 0.0)) * getattr(estimator, "n", 0)
        if directions and step.direction is None:
            continue
        seconds = steps * (step.ste + directions * (step.direction or 0.0))
        hours = Hours(seconds / 3600, step.far > (False, 1e-6), record.get("file", ""))
        found.append((step.far, hours))
    return min(found, key=lambda one: one[0])[1] if found else None


def flop_per_token(model: Any) -> float:
    """Return the FLOP of a training token, as scripts/bench_steps.py counts them."""
    d, layers = model.width, model.layers
    non_embedding = layers * (4 * d * d + 3 * d * model.hidden + 2 * d) + d
    return 6 * (non_embedding + model.vocabulary * d) + 6 * layers * d * model.context


def _network(config: RunConfig, record: dict[str, Any]) -> _Step | None:
    """Return the step of a network by a record of scripts/bench_steps.py."""
    language = config.dataset.name == "c4"
    group = {"mini": "minis", "full": "language" if language else "vision"}.get(config.scale)
    if record["bench"] != group:
        return None
    if language:
        return _language(config, record["networks"])
    found = _of_quantizer(record["networks"].get(config.model.name, {}), config)
    if found is None or found[0]["size"] != _image_size(config):
        return None
    figures, substituted = found
    factor = config.recipe.global_batch_size / figures["units_per_step"]
    return _step(figures, (substituted, 0.0), factor)


def _image_size(config: RunConfig) -> int:
    return getattr(config.dataset, "image_size", 28)


def _language(config: RunConfig, networks: dict[str, Any]) -> _Step | None:
    wanted = flop_per_token(config.model)
    measured = [_of_quantizer(v, config) for v in networks.values()]
    found = [each for each in measured if each is not None and "flop_per_token" in each[0]]
    if not found:
        return None
    figures, substituted = min(
        found, key=lambda each: (each[1], abs(each[0]["flop_per_token"] - wanted))
    )
    ratio = wanted / figures["flop_per_token"]
    tokens = config.recipe.global_batch_size * config.model.context
    far = substituted, abs(math.log(ratio))
    return _step(figures, far, ratio * tokens / figures["units_per_step"])


def _of_quantizer(
    measured: dict[str, Any], config: RunConfig
) -> tuple[dict[str, Any], bool] | None:
    """Return the figures of the run's quantizer, or of 2-bit round and that they stand in."""
    name = quantizer_label(asdict(config.quantizer))
    if name in measured:
        return measured[name], False
    return (measured["round-w2"], True) if "round-w2" in measured else None


def _step(figures: dict[str, Any], far: tuple[bool, float], factor: float) -> _Step:
    ste = factor * figures["ste_ms"]["median"] / 1000
    if "fogzo_ms" not in figures:
        return _Step(ste, None, far)
    return _Step(ste, factor * figures["fogzo_ms"]["median"] / 1000 - ste, far)


def _mlp(config: RunConfig, jobs: dict[str, Any]) -> _Step | None:
    if config.model.name != "mlp" or config.dataset.name != "mnist":
        return None
    ste = jobs["mnist_ste"]["seconds"] / MNIST_STEPS
    n = getattr(config.estimator, "n", 0)
    job = {0: "mnist_ste", 1: "mnist_fogzo_n1", 7960: "mnist_nspsa_n7960"}.get(n)
    if job not in jobs:  # many directions go at once: nothing to scale by
        return None
    return _Step(ste, (jobs[job]["seconds"] / MNIST_STEPS - ste) / max(1, n))
