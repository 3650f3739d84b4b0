"""Invented records of the mini tables, with histories."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.results import read_paper
from fogzo_repro.tracking.records import write_record
from tests.reporting.conftest import make_record

PERTURBED, STEPS, BINS = 5_000_000, 2000, 40
RECIPE_LR = {"mini-resnet18": 0.2, "mini-deit-tiny": 0.0005, "mini-llama": 0.001}


def make_mini_record(
    table: str, row: str, column: str, seed: int, loss: float, **changes: Any
) -> dict[str, Any]:
    """Return a finished record of a mini table, with rho rising linearly to its last value."""
    record = make_record("STE", "-", seed, loss)
    noise = float(column.removeprefix("1-beta=")) if column.startswith("1-beta=") else None
    rate = float(column[3:]) if column.startswith("lr=") else RECIPE_LR[table]
    middle = [STEPS / BINS * (k + 0.5) for k in range(BINS)]
    history: dict[str, Any] = {"step": middle, "loss": [loss] * BINS, "skipped": [0.0] * BINS}
    estimator: dict[str, Any] = {"name": "ste"}
    if noise is not None:
        estimator = {"name": "fogzo", "n": 1, "noise": noise, "beta_min": 1 - noise}
        share = [noise * s / STEPS for s in middle]
        draw = random.Random(f"{column}{seed}{row}")
        noisy = [(1 + s * PERTURBED) ** 0.5 * draw.uniform(0.8, 1.2) for s in share]
        history |= {"noise": share, "flips": [100.0] * BINS, "c_over_g": noisy}
    last = {s: {"loss": loss, "top1": 90.0} for s in ("train", "test", "val")}
    settings = record["config"] | {"estimator": estimator, "recipe": {"lr": rate}}
    slug = f"{row}-{column}".replace(" ", "-").replace(",", "")
    return record | {
        "run_id": f"{slug}-s{seed}-aaaaaaaa", "table": table, "row": row, "column": column,
        "scale": "mini", "config": settings, "metrics": {"last": last, "best": {}},
        "history": history, "perturbed_weights": PERTURBED, "steps": STEPS,
    } | changes  # fmt: skip


def save_mini(results: Path, record: dict[str, Any]) -> None:
    """Write a record to the results folder."""
    folder = results / "records" / record["table"]
    folder.mkdir(parents=True, exist_ok=True)
    write_record(folder / f"{record['run_id']}.json", record)


def fill_mini(results: Path, table: str) -> None:
    """Every cell on five evaluation seeds, the tuned rows on the tuning seeds too."""
    draw = random.Random(0)
    for cell in read_paper(results / "paper" / f"{table}.csv"):
        row, column = cell["row"], cell["column"]
        centre = 0.05 if row.startswith("2-bit") else 0.08
        if column.startswith("1-beta="):
            centre += 0.02 * (float(column.removeprefix("1-beta=")) / 1e-7) ** 0.5 - 0.006
        if row.endswith("random sign"):
            centre = 1.9
        if column.startswith("lr="):
            centre += 0.01 * abs(float(column[3:]) / RECIPE_LR[table] - 1)
        if row == "Full precision":
            centre = 0.01
        tuned = row.endswith((" STE", "FOGZO"))
        for seed in [*range(5), *((100, 101, 102) if tuned else ())]:
            loss = centre * (1 + draw.gauss(0, 0.03))
            save_mini(results, make_mini_record(table, row, column, seed, loss))
