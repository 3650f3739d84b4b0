"""Groups of lanes from their cells to their records, as `run` is for one run.

A group that is over leaves one record a cell; one that is interrupted leaves nothing and is trained
anew, which takes minutes. It trains in parts that keep to hardware.probe_memory_mb, beside the
images themselves.

Shapes: S seeds, C cells.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fogzo_repro import METHOD_VERSION, files
from fogzo_repro.config import RunConfig, UserError, published
from fogzo_repro.data import Images
from fogzo_repro.plan import evaluations_per_step
from fogzo_repro.sweeps.jobs import Job
from fogzo_repro.sweeps.lanes import LaneCell, groups
from fogzo_repro.sweeps.queue import Outcome
from fogzo_repro.tracking.environment import git_state, provenance
from fogzo_repro.tracking.progress import RunProgress
from fogzo_repro.tracking.records import SCHEMA_VERSION, file_record
from fogzo_repro.training.lanes import Lanes
from fogzo_repro.training.machine import Machine, resolve_machine
from fogzo_repro.training.preemption import Preempted, StopRequest, why_elsewhere
from fogzo_repro.training.tasks import build_task

MOST_IMAGES = 10_000  # of a pass of the evaluation
DEAD = "in a whole epoch no quantized weight had a gradient"
NOT_FINITE = "loss, gradient or ten probes in a row not finite; stopped before the update"


def train_lanes(
    cells: Iterable[LaneCell], records: Path, say: Callable[[str], None], deadline: float
) -> Outcome:
    """Train cells side by side and file their records, group after group.

    What is not over by the deadline, on the monotonic clock, is not filed.

    Raises:
        UserError: where a group does not fit the card.
    """
    outcome = Outcome()
    with StopRequest() as stop:

        def check() -> None:
            late = time.monotonic() > deadline
            if stop.received or late:
                raise Preempted(stop.received or "out of time")

        waiting, again = groups(cells), False
        held: list[list[LaneCell]] = []
        while waiting:
            group = waiting.pop(0)
            try:
                _book(group, _records_of(group, records, check, say), outcome)
            except Preempted:
                outcome.interrupted = True
                return outcome
            except files.InUse:
                held.append(group)
            if not (waiting or again):
                again = True  # the other process may be done by now, or gone
                waiting, held = held, []
    for cell in itertools.chain(*held):
        why = why_elsewhere(cell.config.force)
        outcome.elsewhere += [(job, why) for job in _jobs(cell)]
    return outcome


def _jobs(cell: LaneCell) -> list[Job]:
    """Return the runs of a cell."""
    configs = [replace(cell.config, seed=seed) for seed in cell.seeds]
    return [Job(config, cell.run_id, cell.total_steps, 0) for config in configs]


def _book(group: Sequence[LaneCell], found: Sequence[Mapping[str, Any]], outcome: Outcome) -> None:
    """Add to `outcome` how the runs of cells ended, by their records."""
    for cell, record in zip(group, found, strict=True):
        for job, status in zip(_jobs(cell), record["status"], strict=True):
            if status == "finished":
                outcome.finished.append(job)
            else:
                outcome.diverged.append((job, record["notes"][str(job.config.seed)]))


def _records_of(
    group: Sequence[LaneCell], records: Path, check: Callable[[], None], say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Return the record of each cell; train and file those that no other process has filed.

    Raises:
        InUse: where another process trains one of them.
    """
    found: dict[str, dict[str, Any]] = {}
    missing: list[LaneCell] = []
    files.allow_open(len(group))  # each cell has a lock
    with contextlib.ExitStack() as stack:
        for path in {_lock_of(cell): None for cell in group}:  # one for two cells of one run
            stack.enter_context(files.locked(path, path.stem))
        for cell in group:
            path = records / cell.config.cell.table / f"{cell.run_id}.json"
            if path.is_file() and not cell.config.force:
                found[cell.run_id] = files.parse_json(path.read_text())
            else:
                missing.append(cell)
        trained = train_group(missing, check) if missing else []
        for cell, record in zip(missing, trained, strict=True):
            found[cell.run_id] = record
            if line := file_record(record, records):
                say(f"not filed: {line}")
    return [found[cell.run_id] for cell in group]


def _lock_of(cell: LaneCell) -> Path:
    """Return the file that whoever makes the record of a cell has locked; its folder is made."""
    folder = Path(cell.config.output_root) / "lanes"
    files.make_folder(folder, f"output_root={cell.config.output_root}")
    return folder / f"{cell.run_id}.lock"


def train_group(
    group: Sequence[LaneCell], check: Callable[[], None] = lambda: None
) -> list[dict[str, Any]]:
    """Train the lanes of a group; return a record for each cell.

    `check` is called after each step and each pass of the evaluation, and may raise.

    Raises:
        UserError: where the group does not fit the card.
    """
    config, seeds, total = group[0].config, group[0].seeds, group[0].total_steps
    machine, task = resolve_machine(config), build_task(config)
    on_gpu = machine.device.type == "cuda"
    task.load(machine.device)
    images: Any = task.images  # type: ignore[attr-defined]
    budget = config.hardware.probe_memory_mb * 2**20
    per_epoch = len(images.train.labels) // config.recipe.global_batch_size
    need = memory_of(config, math.prod(images.shape), images.classes, per_epoch, on_gpu)
    pieces = list(parts(len(group), len(seeds), budget, *need))
    label = f"{len(group)} cells x {len(seeds)} seeds side by side, {config.estimator.name}"
    progress = RunProgress(label, total * len(pieces), 0)
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(machine.device)
    started, begun, code = datetime.now(UTC), time.monotonic(), git_state()
    columns: dict[str, torch.Tensor] = {}

    def tick(done: int) -> None:
        progress.tick(done)
        check()

    try:
        for number, (some_cells, some_seeds) in enumerate(pieces):
            configs = [cell.config for cell in group[some_cells]]
            trained = _columns(configs, seeds[some_seeds], images, machine, total * number, tick)
            for name, values in trained.items():
                whole = columns.setdefault(name, values.new_zeros(len(seeds), len(group)))
                whole[some_seeds, some_cells] = values
    except torch.OutOfMemoryError:
        raise UserError(
            f"the card has no room for hardware.probe_memory_mb={budget // 2**20} of runs side by "
            f"side; give hardware.probe_memory_mb={budget // 2**21}"
        ) from None
    finally:
        progress.close()
    seconds = time.monotonic() - begun
    shared = {
        **provenance(code, machine.card),
        "lanes": len(group) * len(seeds),
        "perturbed_weights": group[0].perturbed,
        "evaluations_per_step": evaluations_per_step(config.estimator),
        "steps": total,
        "images_seen": total * config.recipe.global_batch_size,
        "wall_seconds": round(seconds, 4),
        "gpu_hours": seconds / 3600 / len(group) if on_gpu else 0.0,
        "peak_memory_mb": machine.peak_memory_mb(),
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return [
        {**_of_cell(cell, {k: v[:, c].tolist() for k, v in columns.items()}), **shared}
        for c, cell in enumerate(group)
    ]


def memory_of(
    config: RunConfig, inputs: int, classes: int, steps_per_epoch: int, on_gpu: bool
) -> tuple[int, int]:
    """Return the bytes that a seed takes, and those that each of its lanes takes beside it.

    On a GPU some memory comes on top, the same whatever the lanes; what takes it is not known.
    `inputs` are the pixels of an image.
    """
    n = config.estimator.n
    batch, hidden = config.recipe.global_batch_size, config.model.hidden
    exact = 2 if on_gpu else 4  # bytes of a level and a pixel; all else has 4
    perturbed = hidden * (inputs + classes)
    # The batch as inputs and as pixels, the order of an epoch, directions and how they are made.
    seed = batch * (inputs * (4 + exact) + 4 * steps_per_epoch) + n * perturbed * (4 + 4)
    # Weights, two moments and gradients stay; quantizing or updating takes as much again.
    lane = 4 * 10 * (perturbed + hidden + classes)
    lane += 4 * batch * (4 * hidden + 5 * classes)  # activations of the STE pass, with gradients
    lane += n * perturbed * (2 * exact + 4 * 4)  # levels of both sides, v and what it is made of
    lane += n * 4 * batch * (2 * hidden + 3 * classes)  # activations of the probes
    return seed, lane


def parts(
    cells: int, seeds: int, budget: int, seed: int, lane: int
) -> Iterator[tuple[slice, slice]]:
    """Yield which cells and seeds train at once, so that `budget` bytes hold them.

    `seed` and `lane` are the bytes of `memory_of`; at least one lane trains whatever it takes.
    """
    cells_at_once = max(1, min(cells, (budget - seed) // lane))
    seeds_at_once = max(1, budget // (seed + cells_at_once * lane))
    for c in range(0, cells, cells_at_once):
        for s in range(0, seeds, seeds_at_once):
            yield slice(c, c + cells_at_once), slice(s, s + seeds_at_once)


def _columns(
    configs: Sequence[RunConfig],
    seeds: Sequence[int],
    images: Images,
    machine: Machine,
    before: int,
    tick: Callable[[int], None],
) -> dict[str, torch.Tensor]:
    """Train lanes; return what records say of each, (S, C) on the CPU.

    `before` are the steps of the group's earlier parts, `tick` is told how many of all are done.
    """
    hardware, model = configs[0].hardware, configs[0].model
    compiles = machine.device.type == "cuda" and hardware.compile is not False
    torch.cuda.empty_cache()  # what earlier parts have left in pieces
    lanes = Lanes(configs, seeds, images, compile=compiles)
    lanes.run(lambda done: tick(before + done))
    activations = lanes.failed.numel() * (2 * model.hidden + 3 * images.classes)
    per_image = 4 * (activations + 3 * math.prod(images.shape))
    at_once = hardware.probe_memory_mb * 2**20 // per_image
    done = before + lanes.total_steps
    metrics = lanes.evaluate(max(1, min(MOST_IMAGES, at_once)), lambda: tick(done))
    found = {f"{split}/{k}": v for split, values in metrics.items() for k, v in values.items()}
    dead = lanes.dead_steps >= lanes.steps_per_epoch
    found |= {**lanes.counts, "failed": lanes.failed, "dead": dead}
    return {name: values.cpu() for name, values in found.items()}


def _of_cell(cell: LaneCell, columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Return what the record of a cell says of it; each column has a value for each seed."""
    failed = columns["failed"]
    metrics: dict[str, dict[str, list[float | None]]] = {"train": {}, "test": {}}
    for split in metrics:
        for metric in ("loss", "top1"):
            values = zip(columns[f"{split}/{metric}"], failed, strict=True)
            metrics[split][metric] = [None if bad else round(x, 6) for x, bad in values]
    notes = {
        str(seed): f"after step {steps}: {DEAD if dead else NOT_FINITE}"
        for seed, bad, steps, dead in zip(
            cell.seeds, failed, columns["steps"], columns["dead"], strict=True
        )
        if bad
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "method_version": METHOD_VERSION,
        "run_id": cell.run_id,
        **asdict(cell.config.cell),
        "scale": cell.config.scale,
        "seeds": list(cell.seeds),
        "status": ["diverged" if bad else "finished" for bad in failed],
        "config": {k: v for k, v in published(cell.config).items() if k != "seed"},
        "resolved": cell.result["resolved"],
        "metrics": metrics,
        "counts": {k: sum(columns[k]) for k in ("flat_probes", "bad_probes", "dead_guides")},
        "notes": notes,
    }
