"""Invented records of the shallow figure, in a temporary folder, and what is made of records."""

from __future__ import annotations

import csv
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro import METHOD_VERSION
from fogzo_repro.reporting.results import read_paper
from fogzo_repro.reporting.tables import write_table
from fogzo_repro.tracking.records import write_record

ROOT = Path(__file__).resolve().parents[2]
TABLE = "figure-shallow"
Save = Callable[..., dict[str, Any]]


def page(results: Path, table: str = TABLE) -> str:
    """Write a table; return its page."""
    write_table(results, table)
    return (results / "tables" / f"{table}.md").read_text()


def line_of(text: str, start: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(start))


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def make_record(
    row: str, column: str, seed: int, loss: float, top1: float = 80.0, rate: float = 0.032,
    **changes: Any,
) -> dict[str, Any]:  # fmt: skip
    """Return a finished record with the settings that its labels name; `changes` replace fields."""
    given = dict(part.split("=") for part in column.split(", ") if "=" in part)
    n = int(match[1]) if (match := re.search(r"n=(\d+)", row)) else 0
    estimator: dict[str, Any] = {"name": "ste"}
    if row.startswith("n-SPSA"):
        estimator = {"name": "nspsa", "n": n}
    elif "FOGZO" in row + column:
        noise = float(given.get("1-beta", 1e-8))
        estimator = {"name": "fogzo", "n": n, "noise": noise, "beta_min": 1 - noise}
        parts = {"probe_fraction": "probes", "start_fraction": "start"}
        estimator |= {key: float(given[name]) for key, name in parts.items() if name in given}
    slug = re.sub(r"\W+", "-", f"{row}-{column}")
    record = {
        "schema_version": 1, "method_version": METHOD_VERSION, "run_id": f"{slug}-s{seed}-aaaaaaaa",
        "table": TABLE, "row": row, "column": column, "scale": "full", "status": "finished",
        "config": {
            "model": {"name": "mlp"}, "dataset": {"name": "mnist"}, "quantizer": {"name": "round"},
            "estimator": estimator, "recipe": {"lr": float(given.get("lr", rate))},
        },
        "resolved": {}, "command": "python", "commit": "0" * 40, "dirty": False, "versions": {},
        "hardware": "none", "seed": seed,
        "evaluations_per_step": {"probes": 2 * n, "total": 2 * n + 3}, "perturbed_weights": 7940,
        "steps": 1170, "wall_seconds": 1.5, "gpu_hours": 0.0, "peak_memory_mb": 1.0,
        "started": "", "ended": "", "notes": "",
    }  # fmt: skip
    last = {"train": {"loss": loss, "top1": top1}, "test": {"loss": loss, "top1": top1}}
    metrics = {"last": {}, "best": {}, **changes.pop("metrics", {"last": last})}
    return {**record, "metrics": metrics, **changes}


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """A results folder with the committed claims and cells, and no record."""
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "results" / "paper")
    return tmp_path / "results"


@pytest.fixture
def save(results: Path) -> Save:
    """Write a record made by `make_record` to the results folder."""

    def write(*arguments: Any, **changes: Any) -> dict[str, Any]:
        record = make_record(*arguments, **changes)
        folder = results / "records" / record["table"]
        folder.mkdir(parents=True, exist_ok=True)
        write_record(folder / f"{record['run_id']}.json", record)
        return record

    return write


@pytest.fixture
def full_table(results: Path, save: Save) -> Path:
    """Every cell on ten evaluation seeds, the tuned rows on the tuning seeds too."""
    draw = random.Random(0)
    for cell in read_paper(results / "paper" / f"{TABLE}.csv"):
        row, column = cell["row"], cell["column"]
        centre = draw.uniform(0.5, 1.5)
        tuned = row.startswith("STE") or (row.startswith("FOGZO") and "sign" not in row)
        for seed in [*range(10), *((100, 101, 102) if tuned and column != "1-beta=0" else ())]:
            save(row, column, seed, centre + draw.gauss(0, 0.04), 80 + draw.gauss(0, 1))
    return results
