"""From the configuration and a network to the training step of a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import RunConfig
from fogzo_repro.estimators.arithmetic import compile_arithmetic
from fogzo_repro.estimators.build import build_estimator
from fogzo_repro.estimators.protocol import Probes
from fogzo_repro.hardware import Machine
from fogzo_repro.training.distributed import current_ranks
from fogzo_repro.training.network import Network
from fogzo_repro.training.optimizers import build_optimizer
from fogzo_repro.training.step import TrainStep


def build_step(
    config: RunConfig,
    machine: Machine,
    network: Network,
    loss: Callable[[nn.Module, Any], Tensor],
    batched_probes: Callable[[Any], Probes] | None = None,
) -> TrainStep:
    """Build the step of this process; compile the network, in place, where the machine does.

    Args:
        config: of the run.
        machine: what it computes on.
        network: on that machine's device.
        loss: (model, batch) -> 0-dim loss in float32.
        batched_probes: batch -> probes, in place of the sequential ones.
    """
    compile_arithmetic(machine.compile)
    if machine.compile:
        torch.compiler.reset()  # the graphs of earlier runs in this process count against a limit
        network.model.compile(dynamic=False)  # in place: the parameters keep their names
    return TrainStep(
        network.model,
        loss,
        build_optimizer(config.recipe, network.model, capturable=machine.cuda_graph),
        build_estimator(config.estimator, machine.device),
        network.weights,
        seed=config.seed,
        batched_probes=batched_probes,
        probe_fraction=getattr(config.estimator, "probe_fraction", 1.0),
        random_sign=getattr(config.estimator, "random_sign", False),
        autocast=machine.autocast,
        clip_norm=config.recipe.clip_norm,
        ranks=current_ranks(),
        micro_batch=config.recipe.micro_batch_size if config.recipe.accumulate else None,
    )
