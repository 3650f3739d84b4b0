"""Does a batch fit on the card? Asked before any work, for networks on photographs and on tokens.

A forward and backward pass at two small batches gives bytes(B) = fixed + slope * B. On top comes
what is not there before the first step, the optimizer's state and what the estimator holds (see
`plan.needs_of`). A batch that needs more than `SHARE` of the card is refused.

The passes run eagerly, since a compiled one takes a minute. That is an upper bound: eager autograd
keeps each operation's inputs, where the compiler fuses and recomputes. For llama_30m at 64 x 512 it
says 11.7 GB, and the compiled step of the bench peaks at 7.4 GB. So a network that will be compiled
is refused only after a compiled pass at the run's own batch was measured too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fogzo_repro.config import RunConfig, UserError, VisionRecipe
from fogzo_repro.data import Batch
from fogzo_repro.data.c4 import TokenBatch
from fogzo_repro.training.compilation import compile_network
from fogzo_repro.training.machine import Machine
from fogzo_repro.training.passes import Passes

SHARE = 0.92  # of the memory that is free; the rest is for fragmentation and kernels' work space
SMALL_BATCHES = (4, 8)
# Sequences: from 16 on the head's chunks have their full size, and memory grows by the rest alone.
SMALL_TOKEN_BATCHES = (16, 32)


@dataclass(frozen=True)
class Need:
    """Bytes that a pass over images or sequences takes: fixed + per_example * count."""

    fixed: float
    per_example: float

    def at(self, count: int) -> float:
        """Return the bytes that so many examples take."""
        return self.fixed + self.per_example * count

    def largest(self, available: float) -> int:
        """Return how many examples fit, a power of two; 0 for none."""
        count = int((available - self.fixed) / self.per_example)
        return 1 << (count.bit_length() - 1) if count > 0 else 0


def refuse_large_batch(
    config: RunConfig, need: Need, available: float, world_size: int, total_steps: int
) -> None:
    """Refuse a batch of which a rank's share needs more than the available bytes.

    Raises:
        UserError: naming batch, rate and, where given, steps that fit, by the linear scaling rule.
    """
    recipe = config.recipe
    at_once = pass_size(recipe, world_size)
    wanted = need.at(at_once)
    if wanted <= available:
        return
    largest = need.largest(available) * world_size
    if largest and recipe.accumulate:
        raise UserError(
            f"recipe.micro_batch_size={recipe.micro_batch_size} needs {wanted / 2**30:.1f} GiB and "
            f"{available / 2**30:.1f} GiB are free; the largest that fits: "
            f"recipe.micro_batch_size={largest // world_size}"
        )
    if largest == 0:
        raise UserError(
            f"model={config.model.name} needs {wanted / 2**30:.1f} GiB at recipe.global_batch_size="
            f"{recipe.global_batch_size} and does not fit {available / 2**30:.1f} GiB at any"
        )
    ratio = recipe.global_batch_size / largest
    overrides = [f"recipe.global_batch_size={largest}", f"recipe.lr={recipe.lr / ratio:g}"]
    if recipe.max_steps is not None:
        overrides.append(f"recipe.max_steps={round(total_steps * ratio)}")
    raise UserError(
        f"recipe.global_batch_size={recipe.global_batch_size} needs {wanted / 2**30:.1f} GiB a "
        f"card and {available / 2**30:.1f} GiB are free; the largest that fits, by the linear "
        f"scaling rule: {' '.join(overrides)}"
    )


def pass_size(recipe: Any, world_size: int) -> int:
    """Return the examples of one pass on one rank."""
    of_rank = recipe.global_batch_size // world_size
    return min(of_rank, recipe.micro_batch_size) if recipe.accumulate else of_rank


def measure_need(
    one_pass: Callable[[int], float], later: float, batches: tuple[int, int] = SMALL_BATCHES
) -> Need:
    """Measure what a batch takes, by a pass forward and backward over two small ones.

    `one_pass` gives its peak bytes; `later` are those that come with the first step.
    """
    few, more = batches
    one_pass(few)  # the first pass also sets up libraries
    low, high = one_pass(few), one_pass(more)
    per_example = max(1.0, (high - low) / (more - few))
    return Need(low - few * per_example + later, per_example)


def compiled_need(
    eager: Need, at_once: int, later: float, one_pass: Callable[[int], float]
) -> Need:
    """Measure what the run's own pass takes once it is compiled.

    The slope stays the eager one: a second compiled size would take another minute, and the batch
    that is proposed instead is then a cautious one. That pass has `at_once` examples.
    """
    try:
        one_pass(at_once)  # compiling and tuning take memory of their own
        measured = one_pass(at_once)
    except torch.OutOfMemoryError:
        return eager
    return Need(measured + later - at_once * eager.per_example, eager.per_example)


def artificial_batch(task: Any, count: int, device: torch.device) -> Batch | TokenBatch:
    """Return striped images, or sequences of the first token."""
    if task.unit == "tokens":
        shape = (count, task.context + 1)
        return TokenBatch(torch.zeros(shape, dtype=torch.int64, device=device))
    shape = task.model_arguments["image_shape"]
    pixels = torch.arange(count * math.prod(shape), device=device) % 256
    return Batch(
        pixels.view(count, *shape).to(torch.uint8),
        torch.zeros(count, dtype=torch.int64, device=device),
    )


def cuda_pass(
    task: Any, model: torch.nn.Module, device: torch.device, autocast: torch.dtype | None
) -> Callable[[int], float]:
    """Return what `measure_need` calls on a GPU: an artificial batch through loss and backward."""
    passes = Passes(model, task.loss, autocast=autocast)

    def peak(count: int) -> float:
        batch = artificial_batch(task, count, device)
        torch.cuda.reset_peak_memory_stats(device)
        with passes.buffers.held():
            passes.straight_through(batch, torch.Tensor.backward)
        passes.finish()
        model.zero_grad(set_to_none=True)
        return torch.cuda.max_memory_allocated(device)

    return peak


@contextmanager
def put_back(model: torch.nn.Module) -> Iterator[None]:
    """Leave a model as it was before passes on artificial batches.

    An activation's learned step starts from the first batch that it is trained on (`LsqInput`):
    that must not be stripes. The copy is on the CPU, so that it does not count as need.
    """
    saved = {k: v.detach().to("cpu", copy=True) for k, v in model.state_dict().items()}
    training = model.training
    try:
        yield
    finally:
        model.load_state_dict(saved)
        model.zero_grad(set_to_none=True)
        model.train(training)


def check_batch_fits(
    config: RunConfig,
    task: Any,
    model: torch.nn.Module,
    machine: Machine,
    world_size: int,
    total_steps: int,
    later: float,
) -> None:
    """Refuse a batch that does not fit on the GPU; do nothing elsewhere.

    `later` are the bytes that come with the first step, which the passes here do not show.

    Raises:
        UserError: see `refuse_large_batch`.
    """
    tokens = task.unit == "tokens"
    photographs = isinstance(config.recipe, VisionRecipe)
    if machine.device.type != "cuda" or not (photographs or tokens):
        return
    few, more = SMALL_TOKEN_BATCHES if tokens else SMALL_BATCHES
    if tokens:  # never more than the run itself takes
        more = max(2, min(more, pass_size(config.recipe, world_size)))
        few = more // 2
    one_pass = cuda_pass(task, model, machine.device, machine.autocast)
    with put_back(model):
        model.train()
        try:
            need = measure_need(one_pass, later, (few, more))
        except torch.OutOfMemoryError:
            raise UserError(_not_even(config, few, more, world_size)) from None
        free, _ = torch.cuda.mem_get_info(machine.device)
        available = SHARE * (free + torch.cuda.memory_reserved(machine.device))
        at_once = pass_size(config.recipe, world_size)
        if machine.compile and need.at(at_once) > available:
            compile_network(model)  # as the run will
            need = compiled_need(need, at_once, later, one_pass)
    torch.cuda.empty_cache()
    refuse_large_batch(config, need, available, world_size, total_steps)


def _not_even(config: RunConfig, few: int, more: int, world_size: int) -> str:
    """Say that not even the smallest pass fits, and what could."""
    recipe, batch = config.recipe, few * world_size
    if recipe.accumulate:
        smaller = f"recipe.micro_batch_size={few}"
    else:
        lr = recipe.lr * batch / recipe.global_batch_size
        smaller = f"recipe.global_batch_size={batch} recipe.lr={lr:g}"
    return (
        f"model={config.model.name}: not even a pass over {more} examples fits the card; try "
        f"{smaller} or less"
    )
