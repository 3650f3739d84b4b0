"""Where the runs of a table stand, from records and run folders alone; needs no torch."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fogzo_repro import METHOD_VERSION, files
from fogzo_repro.config import RunConfig
from fogzo_repro.config.run import CellConfig
from fogzo_repro.sweeps.jobs import FAILURE, Cell
from fogzo_repro.sweeps.tables import Planned
from fogzo_repro.terminal import path_of, stderr
from fogzo_repro.tracking.records import REMEDY, split_seeds

# What reading and taking apart a file raises that is not there, half written or damaged.
DAMAGED = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, yaml.YAMLError,
)  # fmt: skip
OVER = ("done", "diverged")
STATES = (*OVER, "running", "interrupted", "failed", "stale", "missing")


class Run(NamedTuple):
    """A run by the labels of its cell and its seed."""

    table: str
    row: str
    column: str
    scale: str
    seed: int


def known_runs(
    records: Path, output_roots: Iterable[Path], device: str | None = None
) -> dict[Run, str]:
    """Return the state of every run that has left something; of a device, `cpu` or `cuda`, alone.

    What is committed comes before what is in run folders. Runs on another device are other runs.
    """
    return runs_in_folders(output_roots, device) | recorded_runs(records, device)


def runs_in_folders(output_roots: Iterable[Path], device: str | None = None) -> dict[Run, str]:
    """Return the state of every run that has left a folder, see `known_runs`."""
    found: dict[Run, str] = {}
    for root in output_roots:
        for path in sorted(root.glob("*/resolved.json")):
            if device is None or _device(path) in (None, device):
                found |= _of_folder(path.parent)
        for path in sorted(root.glob(f"*/{FAILURE}")):
            over = (path.parent / "record.json").exists()
            with contextlib.suppress(*DAMAGED):
                found |= {} if over else {_run(_read(path)): "failed"}
    return found


def recorded_runs(records: Path, device: str | None = None) -> dict[Run, str]:
    """Return the state of every run that has a committed record, see `known_runs`."""
    found: dict[Run, str] = {}
    for path in sorted(records.glob("*/*.json")):
        try:
            record = _read(path)
            # The benches' records are of no cell.
            if "row" in record and device in (None, record["resolved"]["device"]):
                runs = split_seeds(record) if "seeds" in record else [record]
                found |= {_run(run): _of_record(run) for run in runs}
        except DAMAGED as error:
            why = f"it lacks {error}" if isinstance(error, KeyError) else error
            print(f"left out: {path} is not a record ({why}); {REMEDY}", file=stderr())
    return found


def runs_of(label: CellConfig | Planned, scale: str, seeds: Iterable[int]) -> list[Run]:
    """Return the runs of a cell, as `known_runs` names them."""
    return [Run(label.table, label.row, label.column, scale, seed) for seed in seeds]


def absent_start(config: RunConfig) -> str | None:
    """Return the `recipe.start_from` of a run where it is not here; else None."""
    given = config.recipe.start_from
    return given if given is not None and not path_of("start_from", given).exists() else None


def absent_starts(cells: Iterable[Cell], known: Mapping[Run, str]) -> Counter[str]:
    """Count the missing runs of cells by their `recipe.start_from`, where it is not here."""
    starts: Counter[str] = Counter()
    for cell in cells:
        if start := absent_start(cell.config):
            runs = runs_of(cell.config.cell, cell.config.scale, cell.seeds)
            starts[start] += sum(known.get(run) not in OVER for run in runs)
    return +starts


def over_without_start(cells: Iterable[Cell], known: Mapping[Run, str]) -> list[Cell]:
    """Return the cells that are over and begin with a network that is not here.

    A run id needs its weights, so that such cells cannot be planned; nor need they be.
    """
    found = []
    for cell in cells:
        runs = runs_of(cell.config.cell, cell.config.scale, cell.seeds)
        over = not cell.config.force and all(known.get(run) in OVER for run in runs)
        found += [cell] if over and absent_start(cell.config) else []
    return found


def run_elsewhere(runs: Iterable[Run], records: Path, hardware: str, device: str) -> list[str]:
    """Say, in a line, how many of the runs that are missing here were recorded on the other device.

    `hardware` is the profile that was asked for, `device` the kind that it takes here.
    """
    elsewhere = recorded_runs(records, "cuda" if device == "cpu" else "cpu")
    count = sum(elsewhere.get(run) in OVER for run in runs)
    other, here = ("a GPU", "the CPU") if device == "cpu" else ("a CPU", "a GPU")
    remedy = "h200 or another card" if device == "cpu" else "cpu"
    said = (
        f"{count} of the missing runs have a record of {other}: on {here}, which "
        f"hardware={hardware} takes here, they are other runs and not filed beside it; "
        f"hardware={remedy} counts them as done"
    )
    return [said] if count else []


def recorded_otherwise(runs: Iterable[Run], known: Mapping[Run, str]) -> list[str]:
    """Say, in a line, how many of the runs that are missing have another run's record in place."""
    count = sum(known.get(run) in OVER for run in runs)
    said = (
        f"{count} of the missing runs have a record of other settings, or of other files of yours, "
        "under their row, column and seed, and are not filed beside it: delete that first"
    )
    return [said] if count else []


def _device(resolved: Path) -> str | None:
    """Return the kind of device of a run folder's resolved.json; None where it cannot be read."""
    try:
        return str(_read(resolved)["resolved"]["device"])
    except DAMAGED:
        return None


def _run(labels: dict[str, Any]) -> Run:
    return Run(*(labels[key] for key in Run._fields))


def _of_record(record: dict[str, Any]) -> str:
    if record["method_version"] != METHOD_VERSION:
        return "stale"
    if record["status"] not in ("finished", "diverged"):
        raise ValueError(f"status is {record['status']!r}")
    return "done" if record["status"] == "finished" else "diverged"


def _of_folder(folder: Path) -> dict[Run, str]:
    with contextlib.suppress(*DAMAGED):  # among them that the run is not over
        record = _read(folder / "record.json")
        return {_run(record): _of_record(record)}
    state = "running" if files.is_locked(folder / "lock") else "interrupted"
    if state == "interrupted" and (folder / FAILURE).exists():  # also where the disk took no text
        state = "failed"
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_bytes())
        return {_run({**settings["cell"], **settings}): state}
    except DAMAGED:  # it is being written, or the disk was full
        return {}


def _read(path: Path) -> dict[str, Any]:
    """Return what a file of JSON holds; raise one of DAMAGED where it is no object."""
    return dict(files.parse_json(path.read_bytes()))
