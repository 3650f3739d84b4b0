"""From the cells of a table to the runs that are missing.

torch is imported inside the functions: a worker sets its environment before it imports torch.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from fogzo_repro import files
from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.tracking.records import file_record, make_good

FAILURE = "failed.json"


@dataclass(frozen=True)
class Cell:
    """One cell of a table: a configuration, and the seeds it is run with."""

    config: RunConfig
    seeds: tuple[int, ...]

    @property
    def place(self) -> tuple[str, str]:
        """Its row and column."""
        return self.config.cell.row, self.config.cell.column


@dataclass(frozen=True)
class Job:
    """One run of a cell."""

    config: RunConfig  # with its seed
    run_id: str
    total_steps: int
    cost: int  # network evaluations in all, the STE pass counted as 3; orders the queue

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_root) / self.run_id

    def note_failure(self, why: str) -> None:
        """Leave in the run folder why the run failed, for `make status`."""
        cell = asdict(self.config.cell)
        noted = {**cell, "scale": self.config.scale, "seed": self.config.seed, "why": why}
        with contextlib.suppress(UserError):  # on a full disk: the others go on all the same
            files.make_folder(self.folder, f"output_root={self.config.output_root}")
            files.write(self.folder / FAILURE, json.dumps(noted) + "\n")

    def forget_failure(self) -> None:
        """Take the note away: the run is tried again."""
        with contextlib.suppress(OSError):
            (self.folder / FAILURE).unlink()


def device_here(device: str) -> str:
    """Return the kind of device that hardware.device takes on this machine, `cpu` or `cuda`."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu" if device == "cpu" else "cuda"


def plan_jobs(cells: Iterable[Cell]) -> list[Job]:
    """Resolve every run of every cell; the seed is the only thing that differs within a cell.

    Raises:
        UserError: where the data, the device or a batch are not as a cell needs them.
    """
    import torch

    from fogzo_repro.plan import evaluations_per_step, make_plan

    jobs = []
    for cell in cells:
        plan = make_plan(replace(cell.config, seed=cell.seeds[0]))
        per_step = evaluations_per_step(cell.config.estimator)["total"]
        for seed in cell.seeds:
            config = replace(cell.config, seed=seed)
            one = replace(plan, config=config, result={**plan.result, "seed": seed})
            jobs.append(Job(config, one.run_id, plan.total_steps, per_step * plan.total_steps))
        del plan
    torch.cuda.empty_cache()  # networks were built on a card, where a worker needs the room
    return jobs


def missing_jobs(jobs: Iterable[Job], records: Path) -> list[Job]:
    """Return the runs without a record, there or committed, the most expensive first, each once."""
    found: dict[str, Job] = {}
    for job in jobs:
        over = (job.folder / "record.json").is_file() or (
            records / job.config.cell.table / f"{job.run_id}.json"
        ).is_file()
        if job.config.force or not over:
            found.setdefault(job.run_id, job)
    return sorted(found.values(), key=lambda job: -job.cost)


def read_images(jobs: Iterable[Job]) -> None:
    """Read, and download, the images that runs hold in memory: else each run would fail by itself.

    Other data are looked at where jobs are planned.

    Raises:
        UserError: where they are missing or damaged.
    """
    from fogzo_repro.training.classification import InMemoryImages
    from fogzo_repro.training.tasks import build_task

    configs = {repr((c.data_dir, c.parts_dir, c.dataset)): c for c in (job.config for job in jobs)}
    for config in configs.values():
        task = build_task(config)
        if isinstance(task, InMemoryImages):
            task.dataset.checked()


def distinct(jobs: Iterable[Job]) -> tuple[list[Job], list[str]]:
    """Leave out the cells that are the same run as another, with the settings that were given.

    Returns:
        The jobs that are left, and a line for each cell that is not.
    """
    found: dict[str, Job] = {}
    said: dict[str, None] = {}
    for job in jobs:
        first = found.setdefault(job.run_id, job)
        if first is not job:
            one, other = job.config.cell, first.config.cell
            said[
                f"{one.row} | {one.column} is the same run as {other.row} | {other.column} at "
                f"scale={job.config.scale}; it is run and filed once"
            ] = None
    return list(found.values()), list(said)


def collect(jobs: Iterable[Job], records: Path) -> list[str]:
    """Copy the record of every run that is over to records/<table>/<run_id>.json.

    Returns:
        A line for each record that was not copied.
    """
    said = []
    for job in jobs:
        path = job.folder / "record.json"
        if path.is_file():
            line = file_record({**make_good(path), **asdict(job.config.cell)}, records)
            said += [line] if line else []
    return said
