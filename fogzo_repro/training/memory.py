"""Does a batch fit on the card? Asked before any work, for networks on images.

A forward and backward pass at two small batches gives bytes(B) = fixed + slope * B; the passes run
eagerly, which takes more than the compiled network. On top come what is not there yet: the
optimizer's state and the estimator's copies, 2 numbers per perturbed weight (direction, saved
weight) and one for the estimate. A batch that needs more than `SHARE` of the card is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fogzo_repro.config import RunConfig, UserError, VisionRecipe
from fogzo_repro.data import Batch
from fogzo_repro.training.step import FrozenBuffers

SHARE = 0.92  # of the memory that is free; the rest is for fragmentation and kernels' work space
SMALL_BATCHES = (4, 8)
STATES = {"adamw": 2, "sgd": 1}  # numbers per parameter that the optimizer keeps
COPIES = 3  # numbers per perturbed weight that the estimator takes


@dataclass(frozen=True)
class Need:
    """Bytes that a batch takes: fixed + per_image * images."""

    fixed: float
    per_image: float

    def largest(self, available: float) -> int:
        """Return how many images fit, a power of two; 0 for none."""
        images = int((available - self.fixed) / self.per_image)
        return 1 << (images.bit_length() - 1) if images > 0 else 0


def refuse_large_batch(
    config: RunConfig, need: Need, available: float, world_size: int, total_steps: int
) -> None:
    """Refuse a batch that does not fit, with the overrides that do.

    Args:
        config: the run; its batch is shared by the ranks.
        need: what this rank takes.
        available: bytes that it can have.
        world_size: number of ranks.
        total_steps: of the run as it is configured.

    Raises:
        UserError: naming batch, rate and, where given, steps by the linear scaling rule.
    """
    recipe = config.recipe
    wanted = need.fixed + need.per_image * recipe.global_batch_size / world_size
    if wanted <= available:
        return
    images = need.largest(available) * world_size
    if images == 0:
        raise UserError(
            f"model={config.model.name} needs {wanted / 2**30:.1f} GiB at recipe.global_batch_size="
            f"{recipe.global_batch_size} and does not fit {available / 2**30:.1f} GiB at any"
        )
    ratio = recipe.global_batch_size / images
    overrides = [f"recipe.global_batch_size={images}", f"recipe.lr={recipe.lr / ratio:g}"]
    if recipe.max_steps is not None:
        overrides.append(f"recipe.max_steps={round(total_steps * ratio)}")
    raise UserError(
        f"recipe.global_batch_size={recipe.global_batch_size} needs {wanted / 2**30:.1f} GiB a "
        f"card and {available / 2**30:.1f} GiB are free; the largest that fits, by the linear "
        f"scaling rule: {' '.join(overrides)}"
    )


def measure_need(
    config: RunConfig, model: torch.nn.Module, perturbed: int, one_pass: Callable[[int], float]
) -> Need:
    """Measure what a batch takes.

    Args:
        config: decides the optimizer.
        model: its trainable parameters are counted.
        perturbed: d, the number of perturbed weights.
        one_pass: peak bytes of a forward and backward pass on this many images.
    """
    few, more = SMALL_BATCHES
    one_pass(few)  # the first pass also sets up libraries
    low, high = one_pass(few), one_pass(more)
    per_image = max(1.0, (high - low) / (more - few))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    probing = config.estimator.name != "ste"
    states = 4 * (STATES[config.recipe.optimizer] * parameters + COPIES * perturbed * probing)
    return Need(low - few * per_image + states, per_image)


def cuda_pass(
    task: Any, model: torch.nn.Module, device: torch.device, autocast: torch.dtype | None
) -> Callable[[int], float]:
    """Return what `measure_need` calls on a GPU: striped images through loss and backward."""
    shape = task.model_arguments["image_shape"]
    frozen = FrozenBuffers(model)

    def peak(images: int) -> float:
        pixels = torch.arange(images * math.prod(shape), device=device) % 256
        batch = Batch(
            pixels.view(images, *shape).to(torch.uint8),
            torch.zeros(images, dtype=torch.int64, device=device),
        )
        torch.cuda.reset_peak_memory_stats(device)
        with frozen.held(), torch.autocast(device.type, autocast, enabled=autocast is not None):
            task.loss(model, batch).backward()
        model.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device)

    return peak


def check_batch_fits(
    config: RunConfig, task: Any, network: Any, machine: Any, world_size: int, total_steps: int
) -> None:
    """Refuse a batch that does not fit on the GPU; do nothing elsewhere.

    Raises:
        UserError: see `refuse_large_batch`.
    """
    if machine.device.type != "cuda" or not isinstance(config.recipe, VisionRecipe):
        return
    training = network.model.training
    one_pass = cuda_pass(task, network.model.train(), machine.device, machine.autocast)
    need = measure_need(config, network.model, network.perturbed, one_pass)
    network.model.train(training)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(machine.device)
    available = SHARE * (free + torch.cuda.memory_reserved(machine.device))
    refuse_large_batch(config, need, available, world_size, total_steps)
