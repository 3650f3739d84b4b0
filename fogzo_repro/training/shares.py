"""What each process, pass and probe gets of a batch, and whether that is enough to train on.

Refused before the first step: the odd batch is often the last one of an epoch, where a run would
end in an error, and again whenever it goes on.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.training.ranks import Ranks


def check_batch(config: RunConfig, batches: Any, examples: int, ranks: Ranks) -> None:
    """Check that batches can be formed of the training examples and shared out to the ranks.

    Raises:
        UserError: where they cannot.
    """
    batch = config.recipe.global_batch_size
    if batch % ranks.world_size:
        raise UserError(
            f"recipe.global_batch_size={batch} is not a multiple of the {ranks.world_size} "
            "processes; start another number of them"
        )
    if batches.order.steps == 0:
        raise UserError(
            f"recipe.global_batch_size={batch} exceeds the {examples} training examples of "
            f"dataset={config.dataset.name}"
        )
    share = batch // ranks.world_size
    if getattr(config.recipe, "mixes", False) and share % 2:
        raise UserError(
            f"recipe.global_batch_size={batch} gives each of {ranks.world_size} processes {share} "
            "images, and mixup pairs them within a process; start another number of them"
        )


def check_normalised(
    config: RunConfig, model: nn.Module, batches: Any, image_shape: tuple[int, ...], ranks: Ranks
) -> None:
    """Check that no BatchNorm gets a single value of each channel, which has no variance.

    The model is on its device, images are (C, H, W), and the ranks share each batch.

    Raises:
        UserError: where a pass or a probe has one image and a layer one place of it.
    """
    batch = config.recipe.global_batch_size
    share = batch // ranks.world_size
    smallest, setting = min(
        pass_sizes(config, share, f"recipe.global_batch_size={batch}")
        + pass_sizes(config, batches.order.last_share, "the last batch of an epoch")
    )
    if smallest > 1 or not normalises_one_place(model, image_shape):
        return
    raise UserError(
        f"a pass over one image, by {setting}, has one value of a channel in model="
        f"{config.model.name} at {image_shape[-1]} px, which its BatchNorm cannot normalise; give "
        "another recipe.global_batch_size, or recipe.drop_last=true"
    )


def pass_sizes(config: RunConfig, images: int, setting: str) -> list[tuple[int, str]]:
    """Return how many images the smallest passes over a batch have, and by which setting.

    These are the passes over the batch and, where they see a part of it, those of the probes.
    """
    recipe = config.recipe
    most = recipe.micro_batch_size if recipe.accumulate else None
    if most:
        setting = f"recipe.micro_batch_size={most}"

    def last(count: int) -> int:
        return count % most or most if most else count

    found = [(last(images), setting)]
    fraction = config.estimator.probe_fraction
    if fraction < 1:
        seen = max(1, round(fraction * images))
        found.append((last(seen), f"estimator.probe_fraction={fraction}"))
    return found


def normalises_one_place(model: nn.Module, image_shape: tuple[int, ...]) -> bool:
    """Return whether any BatchNorm of a network sees one place (H = W = 1) of each image."""
    model = copy.deepcopy(model).eval()  # a quantizer may take its scale from what it sees first
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    seen: list[int] = []

    def look(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(math.prod(inputs[0].shape[2:]))

    for layer in layers:
        layer.register_forward_pre_hook(look)
    if layers:
        example = next(model.parameters())
        with torch.no_grad():
            model(torch.zeros(1, *image_shape, device=example.device, dtype=example.dtype))
    return 1 in seen
