"""results/figures/figure-shallow: train loss against cost, and against 1 - beta (PAPER 2).

A line of panels for each reading that was run (reporting/readings.py): on the left train loss
against network evaluations per step, the STE pass counted as 3; on the right against 1 - beta at
the paper's learning rate, with rho = (1 - beta) d / beta on the upper axis. figure-shallow-accuracy
is the right one with the test accuracy. The STE stands there at the paper's rate, and at its chosen
one where that was run. Mean over the evaluation seeds with its 95% t interval. The CSV holds every
point, also those at other rates, which are not drawn.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.figures.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    MAGENTA,
    ORANGE,
    TEXT,
    VERMILION,
    canvas,
    draw_levels,
    draw_points,
    ends_of_interval,
    legend_inside,
    letter,
    rho_axis,
)
from fogzo_repro.reporting.results import TableResults
from fogzo_repro.reporting.tuning import chosen

RATE = "lr=0.032"  # the paper's
LOSS = "train loss (nats), 95% interval"
READINGS = {"half_integer": "half-integer grid", "integer": "integer grid"}  # default, earlier
MARKERS = "osD^vP"
HEIGHT, ACCURACY_HEIGHT = 3.0, 2.6  # inches, of a line of panels


@dataclass(frozen=True)
class Point:
    """One cell: its train loss in nats, or top-1 in percent, over n seeds, and the interval."""

    row: str
    column: str
    chosen: bool
    evaluations: int
    noise: float | None
    perturbed: int
    n: int
    mean: float
    low: float
    high: float


def write_shallow(stem: Path, found: TableResults) -> bool:
    """Write the figure as PNG and PDF and the CSV behind it; return False where nothing was run."""
    points = _points(found, "train", "loss")
    lines = _by_reading(points)
    if not lines:
        return False
    size = TEXT, HEIGHT * len(lines)
    with canvas(stem, points, size, (len(lines), 2), pdf=True) as (_, axes):
        for (title, shown), line in zip(lines.items(), axes, strict=True):
            _against_cost(line[0], shown)
            _against_noise(line[1], shown)
            line[1].set_ylabel(LOSS)
            line[0].set_title(title, loc="left", x=0.02)
        for panel, text in zip(axes.flat, "abcd", strict=False):
            letter(panel, text, -0.16, 1.03)
    return True


def write_accuracy(stem: Path, found: TableResults) -> bool:
    """Write the figure of the test accuracy and its CSV; return False where nothing was run."""
    points = _points(found, "test", "top1")
    lines = _by_reading(points)
    if not lines:
        return False
    size = COLUMN, ACCURACY_HEIGHT * len(lines)
    with canvas(stem, points, size, (len(lines), 1)) as (_, axes):
        for (title, shown), (panel,) in zip(lines.items(), axes, strict=True):
            _against_noise(panel, shown)
            panel.set_ylabel(f"test accuracy (%), 95% interval\n{title}")
    return True


def _points(found: TableResults, split: str, metric: str) -> list[Point]:
    points = []
    for cell in found.cells.values():
        summary, record = cell.summary(split, metric), cell.any_record
        if summary is None or record is None:
            continue
        points.append(
            Point(
                cell.row, cell.column, cell is chosen(found, cell.row),
                record["evaluations_per_step"]["total"], cell.noise,
                record["perturbed_weights"], summary.n, summary.mean, *ends_of_interval(summary),
            )
        )  # fmt: skip
    return points


def _by_reading(points: Sequence[Point]) -> dict[str, list[Point]]:
    """Return the points to draw by reading, its name taken out of their rows.

    Full precision has none and stands in all. What is at another rate than the paper's is left out,
    but for the STE's chosen one.
    """
    found = {}
    for grid, title in READINGS.items():
        end = f", {grid} grid"
        own = [replace(p, row=p.row.removesuffix(end)) for p in points if p.row.endswith(end)]
        if own:
            drawn = [p for p in own if "lr=" not in p.column or p.row == "STE"]
            found[title] = drawn + [p for p in points if p.row == "Full precision"]
    return found


def _draw_stes(axes: Any, points: Sequence[Point], name: str = f"STE, {RATE}") -> None:
    """Draw the STE at the paper's rate, and at its chosen one, as horizontal lines."""
    stes = [p for p in points if p.row == "STE"]
    draw_levels(axes, [p for p in stes if p.column == RATE], BLACK, name)
    for p in (p for p in stes if p.chosen and p.column != RATE):
        draw_levels(axes, [p], MAGENTA, f"STE, {p.column} (chosen)")


def _against_cost(axes: Any, points: Sequence[Point]) -> None:
    import matplotlib

    def cost(point: Point) -> int:
        return point.evaluations

    _draw_stes(axes, points, "_")  # the star names it
    full = [p for p in points if p.row == "Full precision"]
    draw_levels(axes, full, GREY, "full precision")
    paper = [p for p in points if (p.row, p.column) == ("STE", RATE)]
    star = {"color": BLACK, "marker": "*", "markersize": 6, "linestyle": "--", "linewidth": 0.9}
    draw_points(axes, paper, cost, label=f"STE, {RATE}", **star)
    spsa = [p for p in points if p.row.startswith("n-SPSA")]
    draw_points(axes, spsa, cost, color=VERMILION, marker="x", markersize=4.5, label="n-SPSA")
    fogzo = [p for p in points if p.row.startswith("FOGZO") and "sign" not in p.row and p.noise]
    noises = sorted({p.noise for p in fogzo if p.noise}, reverse=True)
    for index, noise in enumerate(noises):
        color = matplotlib.colormaps["viridis"](0.05 + 0.75 * index / max(1, len(noises) - 1))
        look = {"color": color, "marker": MARKERS[index % len(MARKERS)], "label": _beta(noise)}
        draw_points(axes, [p for p in fogzo if p.noise == noise], cost, **look)
    axes.set_xscale("log")
    axes.set_xlabel("network evaluations per step")
    axes.set_ylabel(LOSS)
    axes.set_ylim(top=1.15 * axes.get_ylim()[1])  # room for the names
    legend_inside(axes)


def _beta(noise: float) -> str:
    exponent = round(math.log10(noise))
    if noise < 1e-3 and math.isclose(noise, 10.0**exponent):
        return rf"FOGZO $1-\beta=10^{{{exponent}}}$"
    return rf"FOGZO $\beta={1 - noise:.6g}$"


def _against_noise(axes: Any, points: Sequence[Point]) -> None:
    _draw_stes(axes, points)
    rows = {
        "FOGZO n=1": (BLUE, "o", r"FOGZO $n=1$"),
        "FOGZO n=10": (ORANGE, "s", r"FOGZO $n=10$"),
        "FOGZO n=100": (GREEN, "D", r"FOGZO $n=100$"),
        "FOGZO n=1, random sign": (GREY, "x", r"$n=1$, random sign"),
    }
    swept = [p for p in points if p.noise is not None]
    noises = [p.noise for p in swept if p.noise]
    if not noises:
        return
    edge = min(noises) / 10  # where beta = 1 stands on the logarithmic axis
    for row, (color, marker, label) in rows.items():
        along = sorted((p for p in swept if p.row == row), key=lambda p: p.noise or 0.0)
        positive, zero = [p for p in along if p.noise], [p for p in along if not p.noise]
        draw_points(axes, positive, lambda p: p.noise, color=color, marker=marker, label=label)
        draw_points(
            axes, zero, lambda p: edge, color=color, marker=marker, markerfacecolor="white",
            linestyle="none", label=r"$n=1$, $\beta=1$, the guide alone",
        )  # fmt: skip
    axes.set_xscale("log")
    _noise_ticks(axes, edge, max(noises), swept[0].perturbed)
    legend_inside(axes)


def _noise_ticks(axes: Any, edge: float, top: float, perturbed: int) -> None:
    """Label the axis of 1 - beta, with 0 at the edge, and rho above it."""
    from matplotlib.ticker import NullLocator

    powers = range(round(math.log10(edge)) + 1, math.ceil(math.log10(top)) + 1)
    axes.set_xlim(edge / 2, 10.0 ** math.ceil(math.log10(top)))
    axes.set_xticks([edge, *(10.0**k for k in powers)], ["0", *(f"$10^{{{k}}}$" for k in powers)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(r"$1-\beta$")
    rho_axis(axes, 2 * edge, 0.5, perturbed)
