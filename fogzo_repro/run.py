"""The composition root: builds the parts of one run, trains, writes the record.

A run folder holds config.yaml, resolved.json, metrics.jsonl, timing.jsonl, log.txt, the last two
checkpoints and, once the run is over, record.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fogzo_repro import METHOD_VERSION
from fogzo_repro.config import RunConfig, UserError, result_fields, run_id
from fogzo_repro.estimators.arithmetic import compile_arithmetic
from fogzo_repro.estimators.build import build_estimator
from fogzo_repro.estimators.protocol import Probes
from fogzo_repro.hardware import Machine, resolve_machine
from fogzo_repro.reporting.records import SCHEMA_VERSION, read_record, write_record
from fogzo_repro.tracking.environment import command_line, git_state, versions
from fogzo_repro.tracking.metrics import read_metrics
from fogzo_repro.tracking.progress import RunProgress
from fogzo_repro.training.batchnorm import share_batchnorm
from fogzo_repro.training.checkpoint import write_atomically
from fogzo_repro.training.distributed import current_ranks
from fogzo_repro.training.graph import CapturedStep
from fogzo_repro.training.loop import Diverged, Mirror, Plan, Training
from fogzo_repro.training.memory import check_batch_fits
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.optimizers import build_optimizer
from fogzo_repro.training.preemption import Preempted, StopRequest
from fogzo_repro.training.schedules import learning_rate
from fogzo_repro.training.step import TrainStep
from fogzo_repro.training.tasks import Task, build_task


@dataclass(frozen=True)
class Prepared:
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


def prepare(config: RunConfig) -> Prepared:
    """Decide everything about a run and build its network and data.

    Raises:
        UserError: where the data, the device or the batch are not as the run needs them.
    """
    machine = resolve_machine(config)
    ranks = current_ranks()
    task = build_task(config)
    batch = config.recipe.global_batch_size
    if batch % ranks.world_size:
        raise UserError(
            f"recipe.global_batch_size={batch} is not a multiple of the {ranks.world_size} "
            "processes; start another number of them"
        )
    steps_per_epoch = task.batches(batch).steps_per_epoch
    if steps_per_epoch == 0:
        raise UserError(
            f"recipe.global_batch_size={batch} exceeds the {task.examples} training examples of "
            f"dataset={config.dataset.name}"
        )
    network = build_network(config, task.model_arguments, machine.device)
    shares_batchnorm = config.hardware.sync_batchnorm and ranks.world_size > 1
    if shares_batchnorm:
        share_batchnorm(network.model)
    if machine.channels_last:
        network.model.to(memory_format=torch.channels_last)
    batched_probes = _batched_probes(config, machine, task, network)
    resolved = {
        "device": machine.device.type,
        "precision": str(machine.autocast or torch.float32).removeprefix("torch."),
        "world_size": ranks.world_size,
        "rank_batch": batch // ranks.world_size,
        "sync_batchnorm": shares_batchnorm,
        "evaluator": "batched" if batched_probes else "sequential",
        "data": task.fingerprint,
        "model_arguments": task.model_arguments,
    }
    total = config.recipe.max_steps or config.recipe.epochs * steps_per_epoch
    result = json.loads(json.dumps(result_fields(config, resolved)))
    return Prepared(config, machine, task, network, total, batched_probes, result)


def _batched_probes(
    config: RunConfig, machine: Machine, task: Task, network: Network
) -> Callable[[Any], Probes] | None:
    """Resolve estimator.evaluator: batched where it can be and there is more than one direction."""
    estimator: Any = config.estimator
    wanted = getattr(estimator, "evaluator", "sequential")
    if wanted == "sequential" or (wanted == "auto" and estimator.n == 1):
        return None
    found = None
    if machine.autocast is None:  # the batched evaluator computes in float32
        found = task.batched_probes(network.model, config.hardware.probe_memory_mb * 2**20)
    if found is None and wanted == "batched":
        raise UserError(
            "estimator.evaluator=batched runs model=mlp in float32 with quantizer=round or sign "
            "on all layers; use estimator.evaluator=sequential for anything else"
        )
    return found


def finished_record(prepared: Prepared) -> dict[str, Any] | None:
    """Return the record of this very run if it is over."""
    path = prepared.folder / "record.json"
    return read_record(path) if path.is_file() else None


def execute(config: RunConfig, *, quiet: bool = False) -> dict[str, Any]:
    """Run, or go on with, or skip one run; return its record.

    Raises:
        UserError: for what the user can mend.
        Preempted: after a signal, with the checkpoint written.
    """
    prepared, ranks = prepare(config), current_ranks()
    if not config.force:
        record = finished_record(prepared)
        if record is not None:
            if ranks.first and not quiet:
                said = f"{record['status']} before, skipped (force=true runs it again)"
                print(f"{prepared.run_id}: {said}")
            return record
    task, network, total = prepared.task, prepared.network, prepared.total_steps
    check_batch_fits(config, task, network, prepared.machine, ranks.world_size, total)
    ranks.meet()  # all have looked before the first rank writes
    with _run_folder(prepared) if ranks.first else contextlib.nullcontext():
        ranks.meet()
        return _train(prepared)


@contextlib.contextmanager
def _run_folder(prepared: Prepared) -> Iterator[None]:
    """Create and lock the run folder."""
    folder = prepared.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise UserError(
            f"output_root={prepared.config.output_root} is not writable ({error.strerror}); "
            "give output_root=<a folder of yours>"
        ) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"{folder} is being written by another process") from None
        if prepared.config.force:
            for path in folder.iterdir():
                if path.name != "lock":
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        _check_stored_config(prepared)
        yield


def _check_stored_config(prepared: Prepared) -> None:
    """Refuse a folder that another configuration has written; write ours."""
    path = prepared.folder / "resolved.json"
    ours = prepared.result
    if path.is_file():
        stored = json.loads(path.read_text())
        differing = sorted(k for k in {*stored, *ours} if stored.get(k) != ours.get(k))
        if differing:
            raise UserError(
                f"{prepared.folder} was written by another configuration; it differs in "
                f"{', '.join(differing)}; give another output_root= or force=true"
            )
    write_atomically(path, json.dumps(ours, indent=1).encode())
    text = OmegaConf.to_yaml(OmegaConf.create(asdict(prepared.config)))
    write_atomically(prepared.folder / "config.yaml", text.encode())


def _train(prepared: Prepared) -> dict[str, Any]:
    config, machine, folder = prepared.config, prepared.machine, prepared.folder
    task = prepared.task
    task.load(machine.device)
    step = _build_step(prepared)
    take = CapturedStep(step) if machine.cuda_graph else step
    total = prepared.total_steps
    batches = task.batches(config.recipe.global_batch_size)
    plan = Plan(
        seed=config.seed,
        total_steps=total,
        lr=lambda t, steps: learning_rate(config.recipe, t, steps, batches.steps_per_epoch),
        eval_every_epochs=config.recipe.eval_every_epochs,
        checkpoint_seconds=60 * config.checkpoint_minutes,
        snapshot_steps=frozenset(
            round(total * k / (config.snapshots - 1)) if config.snapshots > 1 else total
            for k in range(config.snapshots)
        ),
        folder=folder,
        label=prepared.run_id,
    )
    ranks = current_ranks()
    mirrors: list[Mirror] = []
    evaluate = partial(task.evaluate, prepared.network.model)
    training = Training(plan, step, take, batches, evaluate, mirrors)
    said = training.resume()
    if config.tracker.name == "wandb" and ranks.first:
        from fogzo_repro.tracking.wandb import WandbMirror

        settings = asdict(config)
        mirrors.append(
            WandbMirror(config.tracker, prepared.run_id, folder, settings, training.done)
        )
    if machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = datetime.now(UTC)
    progress = RunProgress(prepared.run_id, total, training.done, quiet=not ranks.first)
    log = _Log(folder / "log.txt" if ranks.first else Path(os.devnull), progress)
    log.say(f"{prepared.run_id}: {total} steps on {machine.card}")
    log.say(f"{prepared.run_id}: {prepared.network.described_parameters} parameters")
    for line in said:
        log.say(f"{prepared.run_id}: {line}")
    status, notes = "finished", ""
    try:
        with StopRequest() as stop:
            training.run(progress, stop)
    except Diverged as error:
        status, notes = "diverged", str(error)
    except Preempted as error:
        log.say(f"{prepared.run_id}: {error}; run the same command again to go on")
        raise
    finally:
        progress.close()
        for mirror in mirrors:
            mirror.finish()  # type: ignore[attr-defined]
    skipped = getattr(task, "skipped", 0)
    if skipped:
        notes = f"{notes} {skipped} unreadable images were replaced".lstrip()
    log.say(f"{prepared.run_id}: {status} {notes}".rstrip())
    if ranks.first:
        record = _record(prepared, training, status, notes, started)
        write_record(folder / "record.json", record)
    ranks.meet()
    return read_record(folder / "record.json")


class _Log:
    """log.txt and the terminal."""

    def __init__(self, path: Path, progress: RunProgress) -> None:
        self.path = path
        self.progress = progress

    def say(self, line: str) -> None:
        """Write a line to both."""
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with open(self.path, "a") as file:
            file.write(f"{stamp} {line}\n")
        self.progress.say(line)


def _build_step(prepared: Prepared) -> TrainStep:
    config, machine, network = prepared.config, prepared.machine, prepared.network
    compile_arithmetic(machine.compile)
    if machine.compile:
        network.model.compile(dynamic=False)  # in place: the parameters keep their names
    return TrainStep(
        network.model,
        prepared.task.loss,
        build_optimizer(config.recipe, network.model, capturable=machine.cuda_graph),
        build_estimator(config.estimator, machine.device),
        network.weights,
        seed=config.seed,
        batched_probes=prepared.batched_probes,
        probe_fraction=getattr(config.estimator, "probe_fraction", 1.0),
        random_sign=getattr(config.estimator, "random_sign", False),
        autocast=machine.autocast,
        clip_norm=config.recipe.clip_norm,
        ranks=current_ranks(),
        micro_batch=config.recipe.micro_batch_size if config.recipe.accumulate else None,
    )


def evaluations_per_step(estimator: Any) -> dict[str, int]:
    """Return network evaluations per probed step, under both countings of PAPER 2.

    `probes` counts the perturbed forward passes; `total` adds the STE pass as 3 forwards.
    """
    probes = 2 * getattr(estimator, "n", 0)
    return {"probes": probes, "total": probes + 3}


def _record(
    prepared: Prepared, training: Training, status: str, notes: str, started: datetime
) -> dict[str, Any]:
    wall = training.seconds()
    config, machine = prepared.config, prepared.machine
    evaluations = [line for line in read_metrics(training.metrics.path) if "split" in line]
    last = {e["split"]: {k: v for k, v in e.items() if k != "split"} for e in evaluations}
    last.setdefault("train", training.last_epoch_loss())
    split, metric, more = prepared.task.best_by
    candidates = [e for e in evaluations if e["split"] == split]
    best = (max if more else min)(candidates, key=lambda e: e[metric], default=None)
    on_gpu = machine.device.type == "cuda"
    return {
        "schema_version": SCHEMA_VERSION,
        "method_version": METHOD_VERSION,
        "run_id": prepared.run_id,
        **asdict(config.cell),
        "scale": config.scale,
        "status": status,
        "config": {k: v for k, v in asdict(config).items() if k not in ("data_dir", "output_root")},
        "resolved": prepared.result["resolved"],
        "command": command_line(),
        **git_state(),
        "versions": versions(),
        "hardware": machine.card,
        "seed": config.seed,
        "metrics": {"last": last, "best": {split: best} if best else {}},
        "perturbed_weights": prepared.network.perturbed,
        "evaluations_per_step": evaluations_per_step(config.estimator),
        "steps": training.done,
        f"{prepared.task.unit}_seen": training.done
        * config.recipe.global_batch_size
        * prepared.task.units_per_example,
        "wall_seconds": round(wall, 4),  # first to last step, evaluations and checkpoints included
        "capture_seconds": round(getattr(training.take, "capture_seconds", 0.0), 4),  # part of wall
        "gpu_hours": wall / 3600 if on_gpu else 0.0,
        "peak_memory_mb": machine.peak_memory_mb(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": notes,
    }


def describe(config: RunConfig) -> str:
    """Return what `dry_run=true` prints: the resolved run, and what it takes."""
    prepared = prepare(config)
    network, estimator = prepared.network, config.estimator
    d, total = network.perturbed, network.parameters
    evaluations = evaluations_per_step(estimator)
    states = {"adamw": 2, "sgd": 1 if config.recipe.momentum else 0}[config.recipe.optimizer]
    directions = getattr(estimator, "n", 0) and 2
    memory = 4 * (total * (2 + states) + d * directions)
    facts = {
        "run": prepared.run_id,
        "folder": prepared.folder,
        "device": prepared.machine.card,
        "precision": prepared.result["resolved"]["precision"],
        "steps": f"{prepared.total_steps} on {prepared.task.examples:,} training examples",
        "parameters": network.described_parameters,
        "d (perturbed weights)": f"{d:,}",
        "evaluations per step": f"{evaluations['probes']} probes; "
        f"{evaluations['total']} with the STE pass as 3 forwards",
        "evaluator": prepared.result["resolved"]["evaluator"],
        "memory": f"{memory / 2**20:,.1f} MiB for weights, gradients, optimizer and estimator; "
        "activations and data come on top",
    }
    noise = getattr(estimator, "noise", None)
    if noise is not None:
        ratio = noise * d / (1 - noise) if noise < 1 else math.inf
        facts["rho = (1-beta) d / beta"] = f"{ratio:.4g} at 1 - beta = {noise:g}"
    width = max(map(len, facts))
    text = OmegaConf.to_yaml(OmegaConf.create(asdict(config)))
    return text + "\n" + "\n".join(f"{k:<{width}}  {v}" for k, v in facts.items())
