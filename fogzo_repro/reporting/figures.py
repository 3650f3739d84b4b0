"""results/figures/figure-shallow: train loss against cost, and against 1 - beta (PAPER 2).

(a) train loss against network evaluations per step, the STE pass counted as 3; (b) train loss
against 1 - beta, with rho = (1 - beta) d / beta on the upper axis. figure-shallow-accuracy is (b)
with the test accuracy. Mean over the evaluation seeds with its 95% t interval. The CSV holds every
point and is what is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    TEXT,
    VERMILION,
    canvas,
    rho_axis,
)
from fogzo_repro.reporting.results import CellResult, TableResults
from fogzo_repro.reporting.statistics import summarize

STE = ("STE", "lr=0.032")
FULL_PRECISION = ("Full precision", "-")
MARKERS = "osD^vP"
HEIGHT, ACCURACY_HEIGHT = 3.0, 2.6  # inches
UNKNOWN_HALF = 0.0  # one seed has no interval; it is drawn without a bar


@dataclass(frozen=True)
class Point:
    """One cell: its train loss in nats, or top-1 in percent, over n seeds, and the interval."""

    row: str
    column: str
    evaluations: int
    noise: float | None
    perturbed: int
    n: int
    mean: float
    low: float
    high: float


def write_figure(results: Path, found: TableResults) -> bool:
    """Write the figure as PNG and PDF and the CSV behind it; return False where nothing was run."""
    points = _points(found, "train", "loss")
    if not points:
        return False
    stem = results / "figures" / found.table
    with canvas(stem, points, (TEXT, HEIGHT), (1, 2), pdf=True) as (_, axes):
        _against_cost(axes[0][0], points)
        _against_noise(axes[0][1], points)
        for panel, letter in zip(axes[0], "ab", strict=True):
            panel.text(-0.16, 1.03, f"({letter})", transform=panel.transAxes, fontweight="bold")
    return True


def write_accuracy(results: Path, found: TableResults) -> bool:
    """Write the figure of the test accuracy and its CSV; return False where nothing was run."""
    points = _points(found, "test", "top1")
    if not points:
        return False
    stem = results / "figures" / f"{found.table}-accuracy"
    with canvas(stem, points, (COLUMN, ACCURACY_HEIGHT)) as (_, axes):
        _against_noise(axes[0][0], points)
        axes[0][0].set_ylabel("test accuracy (%)")
    return True


def _points(found: TableResults, split: str, metric: str) -> list[Point]:
    points = (_point(cell, split, metric) for cell in found.cells.values())
    return [p for p in points if p is not None]


def _point(cell: CellResult, split: str, metric: str) -> Point | None:
    summary, record = summarize([*cell.values(split, metric).values()]), cell.any_record
    if summary is None or record is None:
        return None
    half = UNKNOWN_HALF if math.isnan(summary.half) else summary.half
    return Point(
        cell.row, cell.column, record["evaluations_per_step"]["total"],
        record["config"]["estimator"].get("noise"), record["perturbed_weights"],
        summary.n, summary.mean, summary.mean - half, summary.mean + half,
    )  # fmt: skip


def _curve(
    axes: Any, points: Sequence[Point], x: Callable[[Point], float | None], **look: Any
) -> None:
    """Draw points with their intervals, joined by a line."""
    if not points:
        return
    bars = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    look = {"capsize": 1.5, "elinewidth": 0.7, **look}
    axes.errorbar([x(p) for p in points], [p.mean for p in points], yerr=bars, **look)


def _at(points: Sequence[Point], place: tuple[str, str]) -> list[Point]:
    return [p for p in points if (p.row, p.column) == place]


def _level(axes: Any, points: Sequence[Point], color: str, label: str) -> None:
    """Draw a cell as a horizontal line with its interval as a band."""
    for p in points:
        axes.axhspan(p.low, p.high, color=color, alpha=0.15, linewidth=0)
        axes.axhline(p.mean, color=color, linestyle="--", linewidth=0.9, label=label, zorder=1)


def _against_cost(axes: Any, points: Sequence[Point]) -> None:
    import matplotlib

    _level(axes, _at(points, STE), BLACK, "STE")
    _level(axes, _at(points, FULL_PRECISION), GREY, "full precision")
    _curve(axes, _at(points, STE), lambda p: p.evaluations, color=BLACK, marker="*", markersize=6)
    spsa = [p for p in points if p.row.startswith("n-SPSA")]
    _curve(
        axes, spsa, lambda p: p.evaluations, color=VERMILION, marker="x", markersize=4.5,
        label="n-SPSA",
    )  # fmt: skip
    fogzo = [p for p in points if p.row.startswith("FOGZO") and "sign" not in p.row and p.noise]
    noises = sorted({p.noise for p in fogzo if p.noise}, reverse=True)
    for index, noise in enumerate(noises):
        color = matplotlib.colormaps["viridis"](0.05 + 0.75 * index / max(1, len(noises) - 1))
        look = {"color": color, "marker": MARKERS[index % len(MARKERS)], "label": _beta(noise)}
        _curve(axes, [p for p in fogzo if p.noise == noise], lambda p: p.evaluations, **look)
    axes.set_xscale("log")
    axes.set_xlabel("network evaluations per step")
    axes.set_ylabel("train loss (nats)")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best", handlelength=1.8, labelspacing=0.25)


def _beta(noise: float) -> str:
    exponent = round(math.log10(noise))
    if noise < 1e-3 and math.isclose(noise, 10.0**exponent):
        return rf"FOGZO $1-\beta=10^{{{exponent}}}$"
    return rf"FOGZO $\beta={1 - noise:.6g}$"


def _against_noise(axes: Any, points: Sequence[Point]) -> None:
    _level(axes, _at(points, STE), BLACK, "STE")
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
        _curve(axes, positive, lambda p: p.noise, color=color, marker=marker, label=label)
        _curve(
            axes, zero, lambda p: edge, color=color, marker=marker, markerfacecolor="white",
            linestyle="none",
        )  # fmt: skip
    axes.set_xscale("log")
    _noise_ticks(axes, edge, max(noises), swept[0].perturbed)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best", handlelength=1.8, labelspacing=0.25)


def _noise_ticks(axes: Any, edge: float, top: float, perturbed: int) -> None:
    """Label the axis of 1 - beta, with 0 at the edge, and rho above it."""
    from matplotlib.ticker import NullLocator

    powers = range(round(math.log10(edge)) + 1, math.ceil(math.log10(top)) + 1)
    axes.set_xlim(edge / 2, 10.0 ** math.ceil(math.log10(top)))
    axes.set_xticks([edge, *(10.0**k for k in powers)], ["0", *(f"$10^{{{k}}}$" for k in powers)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(r"$1-\beta$")
    rho_axis(axes, 2 * edge, 0.5, perturbed)
