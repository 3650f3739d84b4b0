"""results/figures/<table>-sweeps: quality against 1 - beta with rho, and against FOGZO's start.

From the sweeps of Tables 1 to 4, on the tuning seeds: (a) train loss against 1 - beta_min, (b)
against the share of the training before FOGZO begins. The band is the STE at the learning rate that
its own sweep chose. Mean ± sd.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fogzo_repro.reporting.figures.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    canvas,
    draw_levels,
    draw_points,
    ends_of_sd,
    legend_inside,
    letter,
    noise_axis,
)
from fogzo_repro.reporting.results import CellResult, TableResults
from fogzo_repro.reporting.tuning import chosen

HEIGHT = 3.9  # inches
NOISE, START, STE = "1-beta", "start", "lr"  # how the columns of the three sweeps begin


@dataclass(frozen=True)
class Point:
    """A cell of a sweep: train loss in nats over n tuning seeds."""

    row: str
    column: str
    sweep: str
    value: float
    perturbed: int
    n: int
    mean: float
    low: float
    high: float
    chosen: bool


def write_sweeps(stem: Path, found: TableResults) -> bool:
    """Write <stem>.png and .csv; return False where no cell of FOGZO's sweeps was run."""
    cells = [c for c in found.cells.values() if ": " in c.row]  # "network: method" is a sweep
    points = [p for p in (_point(found, cell) for cell in cells) if p is not None]
    fogzo = [p for p in points if p.sweep != STE]
    if not fogzo:
        return False
    with canvas(stem, points, (COLUMN, HEIGHT), (2, 1)) as (figure, axes):
        above, below = axes[:, 0]
        for panel, sweep, text in ((above, NOISE, "a"), (below, START, "b")):
            along = sorted((p for p in fogzo if p.sweep == sweep), key=lambda p: p.value)
            for ste in (p for p in points if p.sweep == STE and p.chosen):
                draw_levels(panel, [ste], BLACK, f"STE, {ste.column}")
            draw_points(panel, along, lambda p: p.value, color=BLUE, marker="o", label="FOGZO")
            legend_inside(panel)
            panel.set_ylabel("train loss (nats)")
            letter(panel, text, -0.2, 1.06)
        above.set_xlabel(r"$1-\beta_{\min}$")
        if noises := [p.value for p in fogzo if p.sweep == NOISE and p.value]:
            noise_axis(above, noises, fogzo[0].perturbed)
        below.set_xlabel("share of the training before FOGZO begins")
        below.sharey(above)
        figure.suptitle(fogzo[0].row.split(":")[0], fontsize=8)
    return True


def _point(found: TableResults, cell: CellResult) -> Point | None:
    summary = cell.summary("train", "loss", tuning=True)
    sweep, _, value = cell.column.partition("=")
    record = cell.any_record
    if summary is None or record is None or sweep not in (NOISE, START, STE):
        return None
    return Point(
        cell.row, cell.column, sweep, float(value), record["perturbed_weights"],
        summary.n, summary.mean, *ends_of_sd(summary), cell is chosen(found, cell.row),
    )  # fmt: skip
