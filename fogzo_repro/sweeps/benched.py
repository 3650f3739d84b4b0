"""How long a run takes on a card, and how much memory, by the benches (results/records/bench).

What was not measured itself is estimated and marked so: a LLaMA by the measured one of the nearest
size with its quantizer, by FLOP a token, 6 (N_non-embedding + V d) + 6 L d T; a quantizer that no
record has by 2-bit round; probes on a part of the batch that no record has by those on all of it.
Other networks are not scaled: unknown. The benches time training steps with data on the card. Where
photographs are decoded more slowly than that, by the record of the loader, a run takes as long as
its loader; evaluation comes on top. The memory of a step is known from them too; a LLaMA that was
not measured has the next larger one's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fogzo_repro.config import RunConfig, quantizer_label
from fogzo_repro.reporting.benches import Records
from fogzo_repro.sweeps.forecast import epoch_order

LOADERS = {"torchvision": "resnet18", "timm": "deit_tiny"}  # recipe.augmentation: bench's recipe
MNIST_STEPS = 1170  # of the MLP bench's runs
MNIST_JOBS = {0: "mnist_ste", 1: "mnist_fogzo_n1", 7960: "mnist_nspsa_n7960"}  # by probe pairs


@dataclass(frozen=True)
class Hours:
    """Hours of the training of one run on a card."""

    hours: float
    scaled: bool  # they are estimated from another network or quantizer
    loader: bool = False  # decoding the images takes that long, and not the steps
    shared: bool = False  # they are of runs that shared their card, and so too many


@dataclass(frozen=True)
class _Step:
    """Seconds of a step, and what each direction adds; None where FOGZO was not measured.

    `far` says how far from the run the measured network is: whether its quantizer is another, and
    the logarithm of the ratio of sizes.
    """

    ste: float
    direction: float | None
    far: tuple[bool, float] = (False, 0.0)


@dataclass(frozen=True)
class Peak:
    """Bytes that a run takes on a card at most, and whether estimated from another network's."""

    memory: float
    scaled: bool


def by_card(records: Records) -> dict[str, list[dict[str, Any]]]:
    """Return the bench records of training steps by card, those of processors left out."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in records.values():
        card = record["hardware"]
        if ("networks" in record or "jobs" in record) and "threads" not in card:
            found.setdefault(card, []).append(record)
    return found


def loader_rates(records: Records) -> dict[str, float]:
    """Return how many images a second a loader gives, by recipe of its bench.

    `resnet18` is from the files, `resnet18 decoded` from a decoded tree.
    """
    found: dict[str, float] = {}
    for record in records.values():
        for recipe, figures in record.get("recipes", {}).items():
            decoded = figures.get("ways", {}).get("decoded_device")
            for name, way in ((recipe, figures), (f"{recipe} decoded", decoded)):
                if way is not None:
                    found[name] = max(found.get(name, 0.0), way["images_per_s"])
    return found


def run_hours(
    config: RunConfig,
    steps: int,
    benches: list[dict[str, Any]],
    rates: Mapping[str, float] | None = None,
) -> Hours | None:
    """Return how long so many steps of a run take on the card of some benches; None if unknown.

    `rates` are those of `loader_rates`; without them the data are there at once.
    """
    found = _step_hours(config, steps, benches)
    if found is None or config.dataset.family != "imagenet":
        return found
    recipe = LOADERS.get(getattr(config.recipe, "augmentation", ""), "")
    if config.dataset.decoded is not None:
        recipe += " decoded"
    rate = (rates or {}).get(recipe)
    if rate is None:
        return found
    loading = epoch_order(config).seen(steps) / rate / 3600
    return found if loading <= found.hours else Hours(loading, False, loader=True)


def _step_hours(config: RunConfig, steps: int, benches: list[dict[str, Any]]) -> Hours | None:
    found: list[tuple[tuple[bool, float], Hours]] = []
    for record in benches:
        step = _mlp(config, record["jobs"]) if "jobs" in record else _network(config, record)
        if step is None:
            continue
        estimator = config.estimator
        directions = (1 - estimator.start_fraction) * estimator.n
        # A probe with its gradient is a pass forward and backward, as an STE step is.
        direction = 2 * step.ste if estimator.probe_gradients else step.direction
        if directions and direction is None:
            continue
        seconds = steps * (step.ste + directions * (direction or 0.0))
        hours = Hours(seconds / 3600, step.far > (False, 1e-6))
        found.append((step.far, hours))
    return min(found, key=lambda one: one[0])[1] if found else None


def peak_memory(config: RunConfig, benches: list[dict[str, Any]]) -> Peak | None:
    """Return what a run takes of a card's memory, by records of its network; None without any."""
    found: list[Peak] = []
    name = _measured_name(config, benches)
    for record in benches:
        measured = _measured(config, record, name)
        if measured is not None:
            figures, substituted = measured
            factor = _units_at_once(config) / figures["units_per_step"]
            memory = factor * 2**20 * figures["peak_memory_mb"]
            found.append(Peak(memory, substituted or factor != 1 or name != config.model.name))
    return min(found, key=lambda peak: (peak.scaled, -peak.memory), default=None)


def _measured_name(config: RunConfig, benches: list[dict[str, Any]]) -> str:
    """Return the network's name; of a LLaMA that was not measured, the next larger one's."""
    flop = {
        name: figures.get("flop_per_token", 0.0)
        for record in benches
        if _is_of_kind(config, record)
        for name, quantizers in record["networks"].items()
        for figures in quantizers.values()
    }
    if config.model.name in flop or config.dataset.name != "c4":
        return config.model.name
    larger = [name for name in flop if flop[name] > flop_per_token(config.model)]
    return min(larger, key=lambda name: flop[name], default=config.model.name)


def _units_at_once(config: RunConfig) -> int:
    """Return how many images or tokens are in memory at a time."""
    recipe = config.recipe
    examples = recipe.micro_batch_size if recipe.accumulate else recipe.global_batch_size
    return int(examples or 1) * getattr(config.model, "context", 1)


def flop_per_token(model: Any) -> float:
    """Return the FLOP of a training token, as scripts/bench/steps.py counts them."""
    d, layers = model.width, model.layers
    non_embedding = layers * (4 * d * d + 3 * d * model.hidden + 2 * d) + d
    return 6 * (non_embedding + model.vocabulary * d) + 6 * layers * d * model.context


def _network(config: RunConfig, record: dict[str, Any]) -> _Step | None:
    """Return the step of a network by a record of scripts/bench/steps.py."""
    if config.dataset.name == "c4":
        return _language(config, record["networks"]) if _is_of_kind(config, record) else None
    found = _measured(config, record, config.model.name)
    if found is None:
        return None
    figures, substituted = found
    factor = config.recipe.global_batch_size / figures["units_per_step"]
    return _step(figures, config.estimator, (substituted, 0.0), factor)


def _is_of_kind(config: RunConfig, record: dict[str, Any]) -> bool:
    """Return whether a bench's networks are of the run's scale and kind."""
    kind = "language" if config.dataset.name == "c4" else "vision"
    return config.scale == "full" and record.get("bench") == kind


def _measured(
    config: RunConfig, record: dict[str, Any], name: str
) -> tuple[dict[str, Any], bool] | None:
    """Return the figures of a network for the run, and whether of another quantizer."""
    if not _is_of_kind(config, record):
        return None
    found = _of_quantizer(record["networks"].get(name, {}), config)
    if found is None or found[0].get("size") != getattr(config.dataset, "image_size", None):
        return None
    return found


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
    return _step(figures, config.estimator, far, ratio * tokens / figures["units_per_step"])


def _of_quantizer(
    measured: dict[str, Any], config: RunConfig
) -> tuple[dict[str, Any], bool] | None:
    """Return the figures of the run's quantizer, or of 2-bit round and that they stand in."""
    name = quantizer_label(asdict(config.quantizer))
    if name in measured:
        return measured[name], False
    return (measured["round-w2"], True) if "round-w2" in measured else None


def _step(figures: dict[str, Any], estimator: Any, far: tuple[bool, float], factor: float) -> _Step:
    """Return a step by measured figures, those of the part of the batch that the probes see."""
    ste = factor * figures["ste_ms"]["median"] / 1000
    if "fogzo_ms" not in figures:
        return _Step(ste, None, far)
    if estimator.probe_fraction < 1:
        part = figures.get("probe_fraction", {}).get(f"{estimator.probe_fraction:g}")
        figures, far = part or figures, (far[0] or part is None, far[1])
    return _Step(ste, factor * figures["fogzo_ms"]["median"] / 1000 - ste, far)


def _mlp(config: RunConfig, jobs: dict[str, Any]) -> _Step | None:
    if config.model.name != "mlp" or config.dataset.name != "mnist":
        return None
    ste = jobs["mnist_ste"]["seconds"] / MNIST_STEPS
    n = config.estimator.n
    job = MNIST_JOBS.get(n)
    if job not in jobs:  # many directions go at once: nothing to scale by
        return None
    return _Step(ste, (jobs[job]["seconds"] / MNIST_STEPS - ste) / max(1, n))
