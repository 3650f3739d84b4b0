"""What a cell takes, known before its data are there: parameters, steps, data, disk, memory."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from fogzo_repro.config import RunConfig, UserError, VisionRecipe

IMAGES = {  # training images, shape, classes
    "digits": (1437, (1, 28, 28), 10),
    "mnist": (60_000, (1, 28, 28), 10),
    "imagenet100": (128_117, (3, 224, 224), 100),  # a tenth of ImageNet-1K; the tree decides
    "imagenet1k": (1_281_167, (3, 224, 224), 1000),
}
ROUGH = ("imagenet100",)  # images are an estimate
DATA_GB = {
    "digits": 0.0,
    "mnist": 0.012,
    "imagenet100": 15.0,
    "imagenet1k": 150.0,
}  # ImageNet: about
KEPT_CHECKPOINTS = 2
SPARE = 1.02  # tokens to prepare, over those that are seen: a split holds whole documents
MINI_TOKENS = 1.2e6  # at scale=mini documents may repeat


@dataclass(frozen=True)
class Forecast:
    """What one run of a cell takes.

    Attributes:
        parameters: trainable, without a quantizer's steps.
        perturbed: d, the quantized weights that an estimator perturbs.
        steps: optimizer steps.
        rough: the steps rest on an estimate of the number of images.
        units: images or tokens seen.
        unit: which of them.
        memory: bytes of weights, gradients, optimizer and estimator; activations come on top.
        disk: bytes of the run folder, the last two checkpoints.
        data: bytes of the prepared data that all runs of the dataset share.
    """

    parameters: int
    perturbed: int
    steps: int
    rough: bool
    units: int
    unit: str
    memory: int
    disk: int
    data: float


def forecast(config: RunConfig) -> Forecast:
    """Forecast a run without its data and without memory for its weights."""
    parameters, perturbed = _count(config)
    recipe, model = config.recipe, config.model
    language = config.dataset.name == "c4"
    steps = recipe.max_steps or recipe.epochs * _steps_per_epoch(config)
    units = steps * recipe.global_batch_size * (model.context if language else 1)
    states = {"adamw": 2, "sgd": 1 if recipe.momentum else 0}[recipe.optimizer]
    probing = config.estimator.name != "ste"
    return Forecast(
        parameters,
        perturbed,
        steps,
        recipe.max_steps is None and config.dataset.name in ROUGH,
        units,
        "tokens" if language else "images",
        4 * (parameters * (2 + states) + 3 * perturbed * probing),
        KEPT_CHECKPOINTS * 4 * parameters * (1 + states),
        2.0 * units if language else 1e9 * DATA_GB[config.dataset.name],
    )


def _steps_per_epoch(config: RunConfig) -> int:
    images, batch = IMAGES[config.dataset.name][0], config.recipe.global_batch_size
    recipe = config.recipe
    if isinstance(recipe, VisionRecipe) and config.dataset.name.startswith("imagenet"):
        from fogzo_repro.data.photographs import EpochOrder

        return EpochOrder(
            images, batch, recipe.repeats, recipe.repeat_ranks, recipe.drop_last, 1
        ).steps
    drop_last = getattr(recipe, "drop_last", True)
    return images // batch if drop_last else -(-images // batch)


def _count(config: RunConfig) -> tuple[int, int]:
    """Return trainable parameters and d, from a network without memory."""
    import torch
    from torch import nn

    from fogzo_repro.models import build_model

    arguments: dict[str, Any] = {}
    if config.dataset.name != "c4":
        _, shape, classes = IMAGES[config.dataset.name]
        arguments = {"image_shape": shape, "classes": classes}
    with torch.device("meta"):
        model = build_model(config.model, **arguments)
    quantizer: Any = config.quantizer
    if quantizer.name == "none" or getattr(quantizer, "weight_bits", 1) == 16:
        spared = ["*"]
    else:
        spared = config.model.first_last if quantizer.first_last == "float" else []
    perturbed = sum(
        layer.weight.numel()
        for name, layer in model.named_modules()
        if type(layer) in (nn.Linear, nn.Conv2d) and not any(fnmatch(name, s) for s in spared)
    )
    return sum(p.numel() for p in model.parameters() if p.requires_grad), perturbed


def missing_here(config: RunConfig, needed: Forecast) -> list[str]:
    """Return what a run lacks on this machine: data, tokens, a card. Each in one line."""
    import torch

    said = []
    device = config.hardware.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        said.append(f"hardware={config.hardware.name}: no CUDA device is here")
    if device == "auto" and not torch.cuda.is_available():
        said.append("no GPU is here: hardware=auto would take the CPU")
    return said + _missing_data(config, needed)


def missing_disk(root: Path, needed: int) -> list[str]:
    """Return a line where the disk of output_root has not `needed` bytes left, else nothing."""
    place = root.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    said = f"{needed / 1e9:.3g} GB on the disk of output_root={root}: {free / 1e9:.3g} GB are free"
    return [said] if free < needed else []


def _missing_data(config: RunConfig, needed: Forecast) -> list[str]:
    name, data_dir = config.dataset.name, Path(config.data_dir)
    if name == "mnist":
        from fogzo_repro.data.mnist import FILES

        gone = [f for f in FILES if not (data_dir / "MNIST" / "raw" / f).is_file()]
        return [f"MNIST is not under {data_dir}; the first run downloads it"] if gone else []
    if name.startswith("imagenet"):
        tree = data_dir / "imagenet"
        check = f"python scripts/prepare_imagenet.py --root {tree}"
        if not (tree / "train").is_dir():
            return [f"{tree}/train is not there: get ImageNet from image-net.org, then {check}"]
        ready = (tree / "manifest.json").is_file()
        return [] if ready else [f"{tree} was not checked; run {check}"]
    if name == "c4":
        from fogzo_repro.data.c4 import MANIFEST, read_corpus

        manifest = data_dir / "c4" / MANIFEST
        if not manifest.is_file():
            tokens = SPARE * needed.units if config.scale == "full" else MINI_TOKENS
            return [
                f"{manifest} is not there; write it with python scripts/prepare_c4.py --source hub "
                f"--tokenizer NAME --out {manifest.parent} --tokens {tokens:.3g}"
            ]
        try:
            splits = read_corpus(data_dir).manifest["splits"]
        except UserError as error:
            return [str(error)]
        tokens = sum(shard["tokens"] for shard in splits.get("train", {}).get("shards", []))
        if tokens < needed.units and config.scale == "full":
            return [
                f"{data_dir}/c4 has {tokens / 1e9:.3g}B training tokens, {needed.units / 1e9:.3g}B "
                "are seen: documents would repeat; run scripts/prepare_c4.py with more --tokens"
            ]
    return []
