"""Where the runs of a table stand, from records and run folders alone; needs no torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from fogzo_repro import METHOD_VERSION, files
from fogzo_repro.config import RunConfig
from fogzo_repro.config.hardware import CellConfig
from fogzo_repro.sweeps.jobs import FAILURE, Cell
from fogzo_repro.sweeps.tables import Planned
from fogzo_repro.terminal import path_of, stderr
from fogzo_repro.tracking.records import split_seeds

Run = tuple[str, str, str, str, int]  # table, row, column, scale, seed
OVER = ("done", "diverged")
STATES = (*OVER, "running", "interrupted", "failed", "stale", "missing")


def known_runs(
    records: Path, output_roots: Iterable[Path], device: str | None = None
) -> dict[Run, str]:
    """Return the state of every run that has left something.

    Args:
        records: the folder of committed records.
        output_roots: folders of run folders; what is committed comes first.
        device: `cpu` or `cuda`: leave out the records and folders of runs on the other, which are
            other runs, with whatever settings.
    """
    found: dict[Run, str] = {}
    for root in output_roots:
        for path in sorted(root.glob("*/resolved.json")):
            if device is None or _device(path) in (None, device):
                found |= _of_folder(path.parent)
        for path in sorted(root.glob(f"*/{FAILURE}")):
            if noted := _read(path):
                found[_run(noted, noted["scale"])] = "failed"
    for path in sorted(records.glob("*/*.json")):
        if record := _read(path, tell=True):  # the benches' records are of no cell
            if device is not None and record["resolved"]["device"] != device:
                continue
            for run in split_seeds(record) if "seeds" in record else [record]:
                found[_run(run, run["scale"])] = _of_record(run)
    return found


def count_states(runs: Iterable[Run], known: dict[Run, str]) -> Counter[str]:
    """Count runs by state; one that has left nothing is missing."""
    return Counter(known.get(run, "missing") for run in runs)


def runs_of(label: CellConfig | Planned, scale: str, seeds: Iterable[int]) -> list[Run]:
    """Return the runs of a cell, as `known_runs` names them."""
    return [(label.table, label.row, label.column, scale, seed) for seed in seeds]


def absent_start(config: RunConfig) -> str | None:
    """Return the `recipe.start_from` of a run where it is not here; else None."""
    given = config.recipe.start_from
    return given if given is not None and not path_of("start_from", given).exists() else None


def over_without_start(cells: Iterable[Cell], records: Path, device: str) -> list[Cell]:
    """Return the cells that are over and begin with a network that is not here.

    A run id needs its weights, so that such cells cannot be planned; nor need they be.

    Args:
        cells: of tables.
        records: the folder of committed records.
        device: the kind that the runs take here, `cpu` or `cuda`.
    """
    lacking = [c for c in cells if absent_start(c.config) and not c.config.force]
    known = known_runs(records, [], device) if lacking else {}

    def is_over(cell: Cell) -> bool:
        runs = runs_of(cell.config.cell, cell.config.scale, cell.seeds)
        return all(known.get(run) in OVER for run in runs)

    return [cell for cell in lacking if is_over(cell)]


def run_elsewhere(runs: Iterable[Run], records: Path, hardware: str, device: str) -> list[str]:
    """Say, in a line, how many of some runs have the record of a run on another kind of device.

    Args:
        runs: that are missing on this one.
        records: the folder of committed records.
        hardware: the profile that was asked for.
        device: the kind that it takes here, `cpu` or `cuda`.
    """
    elsewhere = known_runs(records, [], "cuda" if device == "cpu" else "cpu")
    count = sum(elsewhere.get(run) in OVER for run in runs)
    other, here = ("a GPU", "the CPU") if device == "cpu" else ("a CPU", "a GPU")
    remedy = "h200 or another card" if device == "cpu" else "cpu"
    said = (
        f"{count} of the missing runs have a record of {other}: on {here}, which "
        f"hardware={hardware} takes here, they are other runs and not filed beside it; "
        f"hardware={remedy} counts them as done"
    )
    return [said] if count else []


def _device(resolved: Path) -> str | None:
    """Return the kind of device of a run folder's resolved.json; None where it cannot be read."""
    try:
        return str(files.parse_json(resolved.read_bytes())["resolved"]["device"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _run(labels: dict[str, Any], scale: str) -> Run:
    return (labels["table"], labels["row"], labels["column"], scale, labels["seed"])


def _of_record(record: dict[str, Any]) -> str:
    if record["method_version"] != METHOD_VERSION:
        return "stale"
    return "done" if record["status"] == "finished" else record["status"]


def _of_folder(folder: Path) -> dict[Run, str]:
    if record := _read(folder / "record.json"):
        return {_run(record, record["scale"]): _of_record(record)}
    try:
        settings = yaml.safe_load((folder / "config.yaml").read_text())
    # It is being written, or the disk was full.
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(settings, dict) or "cell" not in settings:
        return {}
    state = "running" if files.is_locked(folder / "lock") else "interrupted"
    if state == "interrupted" and (folder / FAILURE).exists():  # also where the disk took no text
        state = "failed"
    return {_run({**settings["cell"], "seed": settings["seed"]}, settings["scale"]): state}


def _read(path: Path, tell: bool = False) -> dict[str, Any]:
    """Return what a JSON file holds; nothing where it is no whole record or note, and say so."""
    try:
        content = files.parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        if tell:
            print(f"left out: {path} is not a record ({error})", file=stderr())
        return {}
    return content if isinstance(content, dict) and "row" in content else {}
