"""A run before its first step: all is decided and built here, nothing is started.

`needs_of` is the one formula for what a run takes: `dry_run=true` prints it, the dry run of a table
adds it up, and the check before the first step asks whether it fits the card.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import (
    FogzoConfig,
    HardwareConfig,
    RunConfig,
    UserError,
    added_files,
    build_part,
    result_fields,
    run_id,
    to_yaml,
)
from fogzo_repro.estimators import QuantizedWeight
from fogzo_repro.estimators.directions import BLOCK_NUMBERS
from fogzo_repro.estimators.fused import compile_fused
from fogzo_repro.estimators.protocol import Estimator, Probes
from fogzo_repro.estimators.schedule import noise_from_rho, rho_from_noise
from fogzo_repro.quantization.products import MOST_BITS, MULTIPLE
from fogzo_repro.quantization.replace import SharedInput
from fogzo_repro.terminal import aligned
from fogzo_repro.training.batched import BatchedProbes, supports_batched
from fogzo_repro.training.checkpoint import KEEP
from fogzo_repro.training.classification import InMemoryImages
from fogzo_repro.training.compilation import compile_network
from fogzo_repro.training.graph import can_capture
from fogzo_repro.training.machine import Machine, resolve_machine
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.optimizers import build_optimizer
from fogzo_repro.training.ranks import current_ranks, share_batchnorm
from fogzo_repro.training.shares import check_batch, check_normalised
from fogzo_repro.training.start import read_start
from fogzo_repro.training.step import TrainStep
from fogzo_repro.training.tasks import Task, build_task

# Blocks of directions that exist at once: the one before, the new one, and its share of the guide.
BLOCKS_ALIVE = 3
NUMBER = 4  # bytes: weights, directions and states are in float32


@dataclass(frozen=True)
class Needs:
    """What a run takes in bytes; activations and data come on top."""

    weights: int  # parameters and buffers
    gradients: int
    optimizer: int  # its state, from the first step on
    estimator: int  # directions, and the quantized weights kept while these are displaced
    disk: int  # checkpoints and snapshots

    @property
    def memory(self) -> int:
        """All but the disk."""
        return self.weights + self.gradients + self.first_step

    @property
    def first_step(self) -> int:
        """What a forward and backward pass before the first step does not show."""
        return self.optimizer + self.estimator


def needs_of(config: RunConfig, network: Network) -> Needs:
    """Return what a run takes; the network may be on the meta device, without memory.

    The optimizer keeps two numbers a parameter and a step count a tensor (AdamW), or one number a
    parameter (SGD with momentum).

    The estimator holds blocks of k of its n directions, of d numbers each: one block; where there
    are several, the one before it as well; and for a quantizer that rounds in rotated coordinates
    the block's other form. Beside them lies a copy of the d weights while they are displaced, and
    later what the blocks add up to; where there are several, its last value and its new one.
    """
    model, recipe = network.model, config.recipe
    trainable = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.nbytes for p in trainable)
    if recipe.optimizer == "adamw":
        optimizer = 2 * gradients + NUMBER * len(trainable)
    else:
        optimizer = gradients if recipe.momentum else 0
    n, d = config.estimator.n, network.perturbed
    k = min(n, max(1, BLOCK_NUMBERS // max(1, d)))
    several = n > k
    rotated = any(w.rotate is not QuantizedWeight.rotate for w in network.weights)
    blocks = (1 + several + rotated) * k
    if config.estimator.probe_gradients:
        blocks += 1  # the STE's gradient at the weights, beside the sum of those at the points
    stored = sum(t.nbytes for t in model.state_dict().values())
    return Needs(
        weights=sum(t.nbytes for t in [*model.parameters(), *model.buffers()]),
        gradients=gradients,
        optimizer=optimizer,
        estimator=NUMBER * d * (blocks + 1 + several) if n else 0,
        disk=KEEP * (stored + optimizer) + config.snapshots * stored,
    )


@dataclass(frozen=True)
class Plan:
    """A run before its first step: what is decided, and what is built."""

    config: RunConfig
    machine: Machine
    task: Task
    network: Network
    total_steps: int
    batched_probes: Callable[[Any], Probes] | None
    result: dict[str, Any]  # all that determines the numbers; the run id is its hash

    @property
    def run_id(self) -> str:
        """The run's name under output_root."""
        return run_id(self.config, self.result)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_root) / self.run_id

    def how_computed(self) -> dict[str, str]:
        """Return what was taken of ways whose numbers agree to rounding: for the record alone.

        `head`: the loss behind a LLaMA's head in the probes, in one `kernel` or in `chunks`.
        `head_gradients`: that loss with gradients, in chunks whose softmax is one `kernel` or not.
        `inputs`: quantized ones that several layers take, `shared` or by each layer by itself.
        """
        found, model, estimator = {}, self.network.model, self.config.estimator
        by_kernel = getattr(model, "head_by_kernel", None)
        if by_kernel is not None:
            found["head_gradients"] = "kernel" if by_kernel(self.machine.autocast) else "chunks"
            if estimator.n and not estimator.probe_gradients:
                found["head"] = found["head_gradients"]
        quantizers = [getattr(m, "input_quantizer", None) for m in model.modules()]
        if any(q is not None for q in quantizers):
            shared = any(isinstance(q, SharedInput) for q in quantizers)
            found["inputs"] = "shared" if shared else "by layer"
        return found

    def build_step(self) -> TrainStep:
        """Build the training step; compile the network where the machine does."""
        return build_step(
            self.config, self.machine, self.network, self.task.loss, self.batched_probes
        )


def make_plan(config: RunConfig) -> Plan:
    """Decide everything about a run and build its network and data.

    Raises:
        UserError: where the data, the device or the batch are not as the run needs them.
    """
    machine = resolve_machine(config)
    ranks = current_ranks()
    task = build_task(config)
    batch = config.recipe.global_batch_size
    batches = task.batches(batch)
    check_batch(config, batches, task.examples, ranks)
    start = read_start(config)
    network = build_network(config, task.model_arguments, machine.device, start)
    build_estimator(config, machine.device)  # what is wrong in its file is said before a run
    if isinstance(config.estimator, FogzoConfig) and config.estimator.rho is not None:
        noise = noise_from_rho(config.estimator.rho, network.perturbed)
        config = replace(config, estimator=replace(config.estimator, noise=noise, rho=None))
    _check_network(config, machine, network)
    if machine.cuda_graph and not can_capture(network.model):
        machine = replace(machine, cuda_graph=False)
    if "image_shape" in task.model_arguments:
        shape = task.model_arguments["image_shape"]
        check_normalised(config, network.model, batches, shape, ranks)
    shares_batchnorm = config.hardware.sync_batchnorm and ranks.world_size > 1
    if shares_batchnorm:
        share_batchnorm(network.model)
    if machine.channels_last:
        network.model.to(memory_format=torch.channels_last)
    many = choose_batched_probes(config, machine, task, network)
    resolved = {
        "device": machine.device.type,
        "precision": str(machine.autocast or torch.float32).removeprefix("torch."),
        "world_size": ranks.world_size,
        "rank_batch": batch // ranks.world_size,
        "sync_batchnorm": shares_batchnorm,
        "evaluator": "batched" if many else "sequential",
        "data": task.fingerprint,
        "model_arguments": task.model_arguments,
        **({"corpus": task.corpus} if task.corpus else {}),
    }
    if network.exact_products and machine.autocast == torch.bfloat16:
        resolved["products"] = "float8"  # exact, where others round each operand to bf16
    if start is not None:
        resolved["start_from"] = start.digest
    if added := added_files(config):
        resolved["parts"] = added
    total = config.recipe.total_steps(batches.order.steps)
    result = json.loads(json.dumps(result_fields(config, resolved)))
    return Plan(config, machine, task, network, total, many, result)


def _check_network(config: RunConfig, machine: Machine, network: Network) -> None:
    """Refuse settings that the network, or the precision of the machine, cannot follow."""
    estimator = config.estimator
    if config.hardware.exact_products and not network.exact_products:
        raise UserError(
            f"hardware.exact_products=true: no linear layer of model={config.model.name} with "
            f"quantizer={config.quantizer.name} has weights and inputs of at most {MOST_BITS} bits "
            f"and widths that are multiples of {MULTIPLE}; leave it out"
        )
    if estimator.n:
        network.check_laws(f"estimator={estimator.name}")
    if estimator.probe_gradients and machine.autocast == torch.float16:
        raise UserError(
            f"estimator={estimator.name} takes gradients at its probes, which no scaler keeps from "
            "underflow in fp16; give hardware.precision=bf16 or fp32"
        )


def build_step(
    config: RunConfig,
    machine: Machine,
    network: Network,
    loss: Callable[[nn.Module, Any], Tensor],
    batched_probes: Callable[[Any], Probes] | None = None,
) -> TrainStep:
    """Build the step of this process; compile the network, in place, where the machine does.

    The loss takes model and batch; `batched_probes` stand in place of the sequential ones.
    """
    compile_fused(machine.compile)
    if machine.compile:
        compile_network(network.model)
    ranks = current_ranks()
    return TrainStep(
        network.model,
        loss,
        build_optimizer(config.recipe, network.model, capturable=machine.cuda_graph),
        build_estimator(config, machine.device),
        network.weights,
        seed=config.seed,
        pairs=config.estimator.n,
        batched_probes=batched_probes,
        start_fraction=config.estimator.start_fraction,
        probe_fraction=config.estimator.probe_fraction,
        random_sign=config.estimator.random_sign,
        probe_gradients=config.estimator.probe_gradients,
        autocast=machine.autocast,
        clip_norm=config.recipe.clip_norm,
        ranks=ranks,
        micro_batch=config.recipe.micro_batch_size if config.recipe.accumulate else None,
        examples=config.recipe.global_batch_size // ranks.world_size,
    )


def build_estimator(config: RunConfig, device: torch.device) -> Estimator:
    """Build the estimator of a run from its Python file.

    Raises:
        UserError: where what is built there is no estimator.
    """
    found = build_part("estimator", config.estimator, config.parts_dir, device=device)
    for method, how in {"begin_step": "(step, total_steps)", "__call__": "(weights, ...)"}.items():
        if not callable(getattr(found, method, None)):
            raise UserError(
                f"estimator={config.estimator.name}: build() returned a {type(found).__name__}, "
                f"which has no {method}{how}"
            )
    return found


def batched_probes(
    task: Any, model: Any, hardware: HardwareConfig
) -> Callable[[Any], Probes] | None:
    """Return what measures many probe pairs of a batch at once; None where that cannot be."""
    if not (isinstance(task, InMemoryImages) and supports_batched(model)):
        return None
    if task.mix is not None or task.dataset.shape[0] > 1:
        return None
    budget = hardware.probe_memory_mb * 2**20 - BLOCKS_ALIVE * 4 * BLOCK_NUMBERS
    return lambda batch: BatchedProbes(model, task.images, batch, budget)


def choose_batched_probes(
    config: RunConfig, machine: Machine, task: Task, network: Network
) -> Callable[[Any], Probes] | None:
    """Resolve estimator.evaluator: batched where it can be and there is more than one direction.

    Raises:
        UserError: where it is asked for and cannot be.
    """
    estimator = config.estimator
    wanted = estimator.evaluator
    if wanted == "sequential" or (wanted == "auto" and estimator.n <= 1):
        return None
    if estimator.probe_gradients:  # the batched evaluator has losses alone
        return None
    found = None
    if machine.autocast is None:  # the batched evaluator computes in float32
        found = batched_probes(task, network.model, config.hardware)
    if found is None and wanted == "batched":
        raise UserError(
            "estimator.evaluator=batched runs model=mlp in float32 with quantizer=round or sign "
            "on all layers; use estimator.evaluator=sequential for anything else"
        )
    return found


def evaluations_per_step(estimator: Any) -> dict[str, int]:
    """Return network evaluations per probed step, under both countings of PAPER 2.

    `probes` counts the perturbed forward passes; `total` adds the STE pass as 3 forwards, as which
    a probe with its gradient counts too.
    """
    probes = 2 * estimator.n
    return {"probes": probes, "total": (3 if estimator.probe_gradients else 1) * probes + 3}


def describe(plan: Plan) -> str:
    """Return what `dry_run=true` prints: the resolved run, and what it takes."""
    config = plan.config  # with rho resolved
    network, estimator = plan.network, config.estimator
    d = network.perturbed
    evaluations, seen = evaluations_per_step(estimator), estimator.probe_fraction
    total: float = evaluations["total"]
    part = ""
    if seen < 1:
        total, part = round(3 + seen * (total - 3), 3), f" on {seen:g} of the batch"
    needs = needs_of(config, network)
    facts = {
        "run": plan.run_id,
        "folder": str(plan.folder),
        "device": plan.machine.card,
        "precision": plan.result["resolved"]["precision"],
        "steps": f"{plan.total_steps} on {plan.task.examples:,} training examples"
        + (f" of {plan.task.corpus}" if plan.task.corpus else ""),
        "parameters": network.described_parameters,
        "d (perturbed weights)": f"{d:,}",
        "evaluations per step": f"{evaluations['probes']} probes{part}; "
        f"{total} with the STE pass as 3 forwards",
        "evaluator": plan.result["resolved"]["evaluator"],
        "memory": f"{needs.memory / 2**20:,.1f} MiB for weights, gradients, optimizer and "
        "estimator; activations and data come on top",
        "disk": f"{needs.disk / 2**20:,.1f} MiB",
    }
    noise = getattr(estimator, "noise", None)
    if noise is not None:
        rho = rho_from_noise(noise, d)
        facts["rho = (1-beta) d / beta"] = f"{rho:.4g} at 1 - beta = {noise:g}"
    return "\n".join([to_yaml(config), *aligned([*facts.items()])])
