"""What a cell takes, known before its data are there, and what it lacks here.

How long it takes, and its memory with the activations, is known from what was measured: see
`benched` and `recorded`.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fogzo_repro.config import RunConfig, UserError, VisionRecipe
from fogzo_repro.data import c4
from fogzo_repro.data.imagenet import CLASSES, IMAGES, check_command
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.plan import build_estimator, needs_of
from fogzo_repro.project import script
from fogzo_repro.training.classification import InMemoryImages
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.tasks import build_task

PHOTOGRAPHS = {  # training images, shape, classes
    "imagenet100": (128_117, (3, 224, 224), 100),  # a tenth of ImageNet-1K; the tree decides
    "imagenet1k": (IMAGES["train"], (3, 224, 224), CLASSES),
}
ROUGH = ("imagenet100",)  # images are an estimate
DATA_GB = {"imagenet100": 15.0, "imagenet1k": 150.0}  # about
SPARE = 1.02  # tokens to prepare, over those that are seen: a split holds whole documents
SMALL_TEXT = 1e8  # tokens that a mini passes several times (docs/data.md)
NO_GPU = "no GPU is here"


@dataclass(frozen=True)
class Forecast:
    """What one run of a cell takes."""

    parameters: int  # trainable, the steps that a quantizer learns among them
    perturbed: int  # d, the quantized weights that an estimator perturbs
    steps: int  # of the optimizer
    rough: bool  # the steps rest on an estimate of the number of images
    units: int  # images or tokens seen
    unit: str  # which of them
    memory: int  # bytes of weights, gradients, optimizer, estimator; activations come on top
    disk: int  # bytes of the run folder, checkpoints and snapshots
    data: float  # bytes of the prepared data that all runs of the dataset share


def forecast(config: RunConfig, networks: dict[str, Network] | None = None) -> Forecast:
    """Forecast a run without its data and without memory for its weights.

    `networks` are those of the forecasts before: most cells of a table share one.
    """
    build_estimator(config, torch.device("cpu"))  # what is wrong in its file is said here too
    made_of = config.model, config.dataset, config.quantizer, config.hardware, config.parts_dir
    networks, key = {} if networks is None else networks, repr(made_of)
    network = networks.get(key) or _network_without_memory(config)
    networks[key] = network
    needs = needs_of(config, network)
    recipe, language = config.recipe, config.dataset.name == "c4"
    if language:
        steps = recipe.max_steps
        if steps is None:  # an epoch of a text, which has to be there
            batches = build_task(config).batches(recipe.global_batch_size)
            steps = recipe.total_steps(batches.order.steps)
        units = steps * recipe.global_batch_size * config.model.context
    else:
        order = epoch_order(config)
        steps = recipe.total_steps(order.steps)
        units = order.seen(steps)
    return Forecast(
        network.parameters,
        network.perturbed,
        steps,
        recipe.max_steps is None and config.dataset.name in ROUGH,
        units,
        "tokens" if language else "images",
        needs.memory,
        needs.disk,
        2 * _tokens_to_prepare(config, units) if language else _bytes_of_images(config),
    )


def _tokens_to_prepare(config: RunConfig, units: float) -> float:
    """Return how many tokens to prepare for a run that sees so many."""
    return SPARE * (units if config.scale == "full" else min(units, SMALL_TEXT))


def _bytes_of_images(config: RunConfig) -> float:
    if config.dataset.name in DATA_GB:
        return 1e9 * DATA_GB[config.dataset.name]
    images, shape, _ = _images(config)
    return float(images * math.prod(shape))


def _images(config: RunConfig) -> tuple[int, tuple[int, int, int], int]:
    """Return training images, shape and classes; those of ImageNet without looking at its tree."""
    if config.dataset.name in PHOTOGRAPHS:
        return PHOTOGRAPHS[config.dataset.name]
    task = build_task(config)
    return task.examples, task.model_arguments["image_shape"], task.model_arguments["classes"]


def epoch_order(config: RunConfig) -> EpochOrder:
    """Return how the images of an epoch are cut into batches."""
    images, recipe = _images(config)[0], config.recipe
    order = EpochOrder(images, recipe.global_batch_size, getattr(recipe, "drop_last", True))
    if isinstance(recipe, VisionRecipe):
        order = replace(order, repeats=recipe.repeats, sampler_ranks=recipe.repeat_ranks)
    return order


def _network_without_memory(config: RunConfig) -> Network:
    """Return the quantized network on the meta device: shapes without numbers."""
    arguments: dict[str, Any] = {}
    if config.dataset.name != "c4":
        _, shape, classes = _images(config)
        arguments = {"image_shape": shape, "classes": classes}
    meta = torch.device("meta")
    with meta:
        return build_network(config, arguments, meta)


def missing_here(config: RunConfig, needed: Forecast) -> list[str]:
    """Return what a run lacks on this machine: data, tokens, a card. Each in one line."""
    said, device = _missing_data(config, needed), config.hardware.device
    if device != "cpu" and not torch.cuda.is_available():
        auto = f"{NO_GPU}: hardware=auto would take the CPU"
        given = f"hardware={config.hardware.name}: no CUDA device is here"
        said.insert(0, auto if device == "auto" else given)
    return said


def missing_disk(root: Path, needed: int) -> list[str]:
    """Return a line where the disk of output_root has not `needed` bytes left, else nothing."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    gigabytes = plain(needed / 1e9), plain(free / 1e9)
    said = f"{gigabytes[0]} GB on the disk of output_root={root}: {gigabytes[1]} GB are free"
    return [said] if free < needed else []


def plain(value: float) -> str:
    """Return a number with two digits at least, never as a power of ten where it is large.

    >>> plain(0.0123), plain(1.234), plain(1234.5)
    ('0.012', '1.2', '1234')
    """
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _missing_data(config: RunConfig, needed: Forecast) -> list[str]:
    name, data_dir = config.dataset.name, Path(config.data_dir)
    if name.startswith("imagenet"):
        tree = data_dir / "imagenet"
        check = check_command(tree)
        if not (tree / "train").is_dir():
            return [f"{tree}/train is not there: get ImageNet from image-net.org, then {check}"]
        if not (tree / "manifest.json").is_file():
            return [f"{tree} was not checked; run {check}"]
        try:
            build_task(config)
        except UserError as error:  # of a class, or of the decoded tree
            return [str(error)]
        return []
    if name == "c4":
        manifest = data_dir / "c4" / c4.MANIFEST
        if not manifest.is_file():
            tokens = f"{_tokens_to_prepare(config, needed.units):.3g}"
            command = c4.prepare_command(manifest.parent, tokens)
            line = f"{manifest} is not there; write it with {command}"
            mini = " --held-out 0.005; the recorded runs had another text (docs/data.md)"
            return [line + mini * (config.scale == "mini")]
        try:
            splits = c4.build(data_dir).manifest["splits"]
        except UserError as error:
            return [str(error)]
        tokens = sum(shard["tokens"] for shard in splits.get("train", {}).get("shards", []))
        if tokens < needed.units and config.scale == "full":
            return [
                f"{data_dir}/c4 has {tokens / 1e9:.3g}B training tokens, {needed.units / 1e9:.3g}B "
                f"are seen: documents would repeat; run {script('prepare_c4')} with more --tokens"
            ]
        return []
    task = build_task(config)
    if isinstance(task, InMemoryImages) and not task.dataset.is_there():
        return [f"dataset={name} is not under {data_dir}; the first run downloads it"]
    return []
