"""The section of a paper's table for its cells at scale=mini, which never stand in its columns."""

from __future__ import annotations

from typing import Any

from fogzo_repro.reporting.markdown import NOT_RUN, grid, mean_sd
from fogzo_repro.reporting.results import TUNING_SEEDS, CellResult, TableResults, noise_ratio
from fogzo_repro.reporting.statistics import summarize

SMALLER = (
    "The same cells with `scale=mini`: vision on MNIST, language with `llama_mini` on the C4 "
    "sample. They show how well the estimators optimise and say nothing about the paper's numbers."
)
MINI_TITLES = (
    "row", "column", "scale", "network, data", "steps", "ρ", "train loss", "held out", "seeds",
)  # fmt: skip


def mini_grid(mini: TableResults) -> str:
    """Return a line for every cell with mini records, in Markdown."""
    lines = []
    for cell in mini.cells.values():
        record, ratio = cell.any_record, noise_ratio(cell)
        if record is None:
            continue
        tuning = all(seed in TUNING_SEEDS for seed in cell.runs)
        loss = summarize([*cell.values("train", "loss", tuning=tuning).values()])
        lost = len(cell.diverged(tuning=tuning))
        lines.append([
            cell.row, cell.column, record["scale"],
            f"{record['config']['model']['name']}, {record['config']['dataset']['name']}",
            str(max(r["steps"] for r in cell.runs.values())),
            "" if ratio is None else f"{ratio:.3g}",
            mean_sd(loss, 4) + (f", {lost} diverged" if lost else ""),
            _held_out(cell, tuning), "tuning" if tuning else "evaluation",
        ])  # fmt: skip
    return grid(MINI_TITLES, lines) if lines else NOT_RUN.capitalize() + "."


def _held_out(cell: CellResult, tuning: bool) -> str:
    """Return the held-out metric of a mini run under its own name: it may not be the paper's."""
    ended = [r for r in cell.runs.values() if r["status"] == "finished"]
    splits: dict[str, Any] = ended[0]["metrics"]["last"] if ended else {}
    for split in splits:
        for metric, unit in (("perplexity", "perplexity"), ("top1", "top-1 (%)")):
            if split != "train" and metric in splits[split]:
                summary = summarize([*cell.values(split, metric, tuning=tuning).values()])
                return f"{split} {unit} {mean_sd(summary, 2)}"
    return ""
