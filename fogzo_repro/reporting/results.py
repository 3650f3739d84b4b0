"""The results of a table: committed records, checked and grouped into cells."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro import METHOD_VERSION
from fogzo_repro.config import UserError
from fogzo_repro.project import shipped
from fogzo_repro.reporting.statistics import Summary, summarize
from fogzo_repro.tracking.records import read_runs

TUNING_SEEDS = (100, 101, 102)  # PAPER 4, "Verdicts": they choose, the other seeds report
FRESH_SEEDS = 2000  # from here on: seeds of which nothing was known when claims were written
SHARED = "shared its card"  # in the notes of a run that others ran beside, by their own commands
SETTINGS = ("model", "dataset", "quantizer", "estimator", "recipe")
SPLITS = ("train", "val", "test")
METRICS = ("loss", "top1", "perplexity")
LISTED = ("row", "column", "metric", "split", "value", "source")  # columns of paper/<table>.csv

Place = tuple[str, str]  # row, column


def scale_of(table: str) -> str:
    """Return the scale of the records that may stand in a table."""
    return "mini" if table.startswith("mini-") else "full"


@dataclass(frozen=True)
class CellResult:
    """The runs of one cell, by seed; empty where none was run."""

    row: str
    column: str
    runs: dict[int, dict[str, Any]]

    def values(self, split: str, metric: str, *, tuning: bool = False) -> dict[int, float]:
        """Return the last value of a metric by seed: of the evaluation or of the tuning seeds.

        A run that diverged has none. Of a cell that was run on fresh seeds these alone count: the
        others were looked at before.

        Raises:
            UserError: where a finished run lacks the metric.
        """
        found = {}
        for seed, record in self.finished(tuning=tuning).items():
            try:
                found[seed] = record["metrics"]["last"][split][metric]
            except KeyError:
                raise UserError(
                    f"the record {record['run_id']} lacks metrics.last.{split}.{metric}, which "
                    f"{self.row} | {self.column} reports; delete it and run the cell again"
                ) from None
        return found

    def summary(self, split: str, metric: str, *, tuning: bool = False) -> Summary | None:
        """Return mean and spread of `values`; None where there is none."""
        return summarize([*self.values(split, metric, tuning=tuning).values()])

    def tuning_losses(self) -> dict[int, float]:
        """Return the losses that settings are chosen by, on the tuning seeds.

        At scale mini a tuning run trains on a part of the training data and the loss is that on the
        rest; elsewhere it is the train loss.
        """
        records = [r for r in self.runs.values() if r["status"] == "finished"]
        split = "val" if records and records[0]["scale"] == "mini" else "train"
        return self.values(split, "loss", tuning=True)

    def diverged(self, *, tuning: bool = False) -> list[int]:
        """Return the seeds whose run diverged."""
        runs = self.reporting(tuning=tuning)
        return [seed for seed, run in runs.items() if run["status"] != "finished"]

    def finished(self, *, tuning: bool = False) -> dict[int, dict[str, Any]]:
        """Return the runs that count and did not diverge, by seed."""
        runs = self.reporting(tuning=tuning)
        return {seed: run for seed, run in runs.items() if run["status"] == "finished"}

    def reporting(self, *, tuning: bool = False) -> dict[int, dict[str, Any]]:
        """Return the runs that count, by seed: of the evaluation or of the tuning seeds."""
        runs = {s: r for s, r in sorted(self.runs.items()) if (s in TUNING_SEEDS) == tuning}
        return {s: r for s, r in runs.items() if s >= FRESH_SEEDS} or runs

    @property
    def any_record(self) -> dict[str, Any] | None:
        """A record of the cell, for what all its runs share."""
        return next(iter(self.runs.values()), None)

    @property
    def rate(self) -> float | None:
        """The learning rate; None where nothing was run."""
        return self.any_record["config"]["recipe"]["lr"] if self.any_record else None

    @property
    def noise(self) -> float | None:
        """1 - beta_min of FOGZO; None elsewhere, and where nothing was run."""
        return self.any_record["config"]["estimator"].get("noise") if self.any_record else None

    @property
    def rho(self) -> float | None:
        """(1 - beta) d / beta of FOGZO (PAPER 5); None likewise."""
        record, noise = self.any_record, self.noise
        if record is None or noise is None:
            return None
        return noise * record["perturbed_weights"] / (1 - noise) if noise < 1 else math.inf

    @property
    def held_back(self) -> float | None:
        """Mean of 1 - h' over the quantized weights, runs and steps; None where not logged."""
        histories = [run.get("history") or {} for run in self.reporting().values()]
        seen = [x for h in histories for x in h.get("held_back", []) if x is not None]
        return math.fsum(seen) / len(seen) if seen else None

    @property
    def hours(self) -> float | None:
        """Mean wall time of the finished runs that had a card to themselves; None without any."""
        runs = [r for r in self.runs.values() if r["status"] == "finished" and ran_alone(r)]
        return math.fsum(r["wall_seconds"] for r in runs) / len(runs) / 3600 if runs else None


@dataclass(frozen=True)
class TableResults:
    """All cells of a table in its order, and why records were refused."""

    table: str
    cells: dict[Place, CellResult]
    refused: list[str]

    @property
    def rows(self) -> list[str]:
        """The labels of the rows."""
        return list(dict.fromkeys(row for row, _ in self.cells))

    @property
    def refused_section(self) -> list[str]:
        """What a page says of the refused records; empty where there are none."""
        by_reason: dict[str, list[str]] = {}
        for name, _, reason in (line.partition(": ") for line in self.refused):
            by_reason.setdefault(reason, []).append(name)
        lines = [
            f"- {names[0]}{f' and {len(names) - 1} more' * (len(names) > 1)}: {reason}"
            for reason, names in by_reason.items()
        ]
        return ["## Refused records", "\n".join(lines)] if lines else []

    def row(self, row: str) -> list[CellResult]:
        """Return the cells of a row."""
        return [cell for cell in self.cells.values() if cell.row == row]

    def tuned(self, row: str) -> list[CellResult]:
        """Return the cells of a row that have tuning runs, those that diverged included."""
        return [cell for cell in self.row(row) if cell.reporting(tuning=True)]


def evaluations(record: dict[str, Any], counting: str) -> float:
    """Return the evaluations of a run: probes begin late and see a part of the batch, if so set.

    Counted are `probes` alone, or in `total` the STE pass too, as 3 forward passes (PAPER 2).
    """
    per_step = record["evaluations_per_step"]
    share = probed_share(record["config"]["estimator"])
    of_probes = per_step[counting] - (3 if counting == "total" else 0)
    return (per_step[counting] - of_probes * (1 - share)) * record["steps"]


def probed_share(estimator: Mapping[str, Any]) -> float:
    """Return the share of all batches that an estimator's probes see, by its settings."""
    return (1 - estimator.get("start_fraction", 0.0)) * estimator.get("probe_fraction", 1.0)


def trained_on(found: TableResults) -> str:
    """Return `, on` the data of the runs, texts by their names; nothing without runs."""
    runs = [run for cell in found.cells.values() for run in cell.runs.values()]
    data = {run["resolved"].get("corpus") or run["config"]["dataset"]["name"] for run in runs}
    return f", on {' and '.join(sorted(data))}" if data else ""


def ran(results: TableResults) -> int:
    """Return how many cells have at least one run."""
    return sum(bool(c.runs) for c in results.cells.values())


def read_paper(path: Path, columns: Iterable[str] = LISTED) -> list[dict[str, str]]:
    """Return the lines of a file in results/paper, the suite's own where there is no such folder.

    Raises:
        UserError: where it is not there or lacks one of the columns, a line has other columns than
            the first, or names a metric or split that no record has.
    """
    path = shipped(path.parents[1], "paper") / path.name
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:  # spreadsheets write a BOM
            reader, lines = csv.DictReader(file), []
            if absent := sorted({*columns} - {*(reader.fieldnames or ())}):
                raise UserError(f"{path} has no column {', '.join(absent)}; restore it with git")
            for line in reader:
                if None in line or None in line.values():
                    raise UserError(
                        f"{path}, line {reader.line_num}: it has not as many values as the first "
                        "line has columns; restore it with git"
                    )
                for name, known in (("metric", METRICS), ("split", SPLITS)):
                    if line.get(name, known[0]) not in known:
                        raise UserError(
                            f"{path}, line {reader.line_num}: {name}={line[name]} is none of "
                            f"{', '.join(known)}; restore it with git"
                        )
                lines.append(line)
            return lines
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read {path} ({why}); restore it with git") from None


def read_results(results: Path, table: str) -> TableResults:
    """Read records/<table>/, with the cells that paper/<table>.csv lists.

    Raises:
        UserError: for a damaged record, an unknown cell, two records of one cell and seed, or runs
            of one cell that differ in more than the seed.
    """
    listed = [(e["row"], e["column"]) for e in read_paper(results / "paper" / f"{table}.csv")]
    recorded = read_recorded(results, table)
    for place, cell in recorded.cells.items():
        if place not in listed:
            run = next(iter(cell.runs.values()))["run_id"]
            raise UserError(
                f"the record {run} is of the unknown cell {place[0]} | {place[1]}; delete it or "
                f"add the cell to paper/{table}.csv"
            )
    cells = {place: recorded.cells.get(place, CellResult(*place, {})) for place in listed}
    return replace(recorded, cells=cells)


def read_recorded(results: Path, table: str) -> TableResults:
    """Read records/<table>/ of a table whose cells are listed nowhere but in there.

    Raises:
        UserError: as `read_results`, but that no cell is unknown.
    """
    found = TableResults(table, {}, [])
    for path in sorted((results / "records" / table).glob("*.json")):
        runs = read_runs(path)
        if reason := _refusal(runs[0], table):
            found.refused.append(f"{path.name}: {reason}")
            continue
        place = (runs[0]["row"], runs[0]["column"])
        cell = found.cells.setdefault(place, CellResult(*place, {}))
        for record in runs:
            _add(cell, record, path)
    _check_same_data(found)
    return found


def _check_same_data(found: TableResults) -> None:
    """Refuse a table whose runs on one dataset, or of a row that starts trained, had other ones."""
    first: dict[str, tuple[str, str]] = {}
    for cell in found.cells.values():
        for record in cell.runs.values():
            resolved, dataset = record.get("resolved", {}), record["config"]["dataset"]["name"]
            data, network = (resolved.get("data") or "").split(",")[0], resolved.get("start_from")
            had = {f"data of {dataset}": data, f"start_from of {cell.row}": network}
            for what, value in had.items():
                if not value:
                    continue
                name, other = first.setdefault(what, (record["run_id"], value))
                if value != other:
                    raise UserError(
                        f"{found.table}: {name} and {record['run_id']} had different {what} "
                        f"({other} and {value}) and are no comparison; delete the records of one"
                    )


def _refusal(record: dict[str, Any], table: str) -> str | None:
    if record["table"] != table:
        return f"of the table {record['table']}"
    if record["method_version"] != METHOD_VERSION:
        return f"stale, method_version {record['method_version']} and not {METHOD_VERSION}"
    if record["dirty"] is not False or not record["commit"]:
        return "not from a clean commit; commit its files and give its command again"
    if record["scale"] != scale_of(table):
        return f"scale {record['scale']}"
    dataset = record["config"]["dataset"]
    if dataset.get("allow_partial"):
        return "dataset.allow_partial=true: a part of the data"
    if dataset["name"] == "imagenet100" and dataset.get("classes") != "imagenet100":
        return f"dataset.classes={dataset.get('classes')}: other classes"
    return None


def _differ(first: dict[str, Any], other: dict[str, Any], section: str) -> bool:
    """Return whether two runs differ in a setting that both name, the way of computing aside."""
    one, two = first["config"][section], other["config"][section]
    return any(one[key] != two[key] for key in one.keys() & two.keys() if key != "evaluator")


def _add(cell: CellResult, record: dict[str, Any], path: Path) -> None:
    seed, first = record["seed"], cell.any_record
    where = f"{cell.row} | {cell.column}"
    if seed in cell.runs:
        raise UserError(
            f"two records of {where}, seed {seed}: {cell.runs[seed]['run_id']} and "
            f"{record['run_id']}; delete one"
        )
    if first is not None:
        differing = [section for section in SETTINGS if _differ(first, record, section)]
        if differing:
            raise UserError(
                f"{path}: runs of {where} differ in {', '.join(differing)}; delete those that are "
                "not the cell's"
            )
    cell.runs[seed] = record


def ran_alone(record: Mapping[str, Any]) -> bool:
    """Tell whether a record's run had a card to itself, so that its time counts.

    A record says how many runs its queue had beside it, an earlier one by its command alone.

    >>> ran_alone({"command": "python scripts/run_cells.py minis --workers 2"})
    False
    """
    if SHARED in record.get("notes", "") or record.get("resolved", {}).get("evaluator") == "lanes":
        return False
    workers = re.search(r"--workers[ =](\d+)", record["command"])
    return not record.get("beside", workers is not None and int(workers[1]) > 1)
