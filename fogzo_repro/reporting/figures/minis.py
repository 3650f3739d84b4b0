"""Figures of the mini tables: FOGZO's noise, and its gain against how much the STE holds back.

`<table>-noise`: loss held out for choosing against 1 - beta_min, a panel for each quantizer with a
noise sweep; beside it the STE at the recipe's rate and at the one that it chose. Mean ± sd over the
tuning seeds. `gain`: over all networks and quantizers, FOGZO's gain in held-out loss against the
STE's mean 1 - h' (PAPER 6, H1), with its 95% t interval.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fogzo_repro.reporting.figures.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    GREY,
    MAGENTA,
    ORANGE,
    VERMILION,
    canvas,
    draw_levels,
    draw_points,
    ends_of_sd,
    legend_below,
    legend_inside,
    noise_axis,
)
from fogzo_repro.reporting.hypotheses import STE, gains
from fogzo_repro.reporting.minis import SWEEP, TITLES, choices, held_out, network
from fogzo_repro.reporting.results import CellResult, TableResults
from fogzo_repro.reporting.statistics import summarize

PANEL_HEIGHT, GAIN_HEIGHT = 2.1, 3.0  # inches
RECIPE, CHOSEN = "the recipe's rate", "its chosen rate"
COLORS = dict(zip(TITLES, (BLUE, ORANGE, VERMILION), strict=True))
MARKERS = "osD^v<>P"


@dataclass(frozen=True)
class Tuned:
    """A tuning cell: its loss on what was held out for choosing, in nats, over n seeds."""

    quantizer: str
    method: str
    noise: float | None
    rate: float | None
    perturbed: int
    n: int
    mean: float
    low: float
    high: float


def write_noise(stem: Path, found: TableResults) -> bool:
    """Write <stem>.png and .csv; return False where no two noises were tried."""
    cells = found.cells.values()
    best = [choice.cell for choice in choices(found) if choice.side == STE]
    recipe = next((c.rate for c in cells if c.runs and c.row.endswith("FOGZO, noise")), None)
    points = [point for cell in cells for point in _tuned(cell, recipe, cell in best)]
    noises = Counter(p.quantizer for p in points if p.method == "FOGZO")
    swept = [quantizer for quantizer, count in noises.items() if count > 1]
    if not swept:
        return False
    points = [p for p in points if p.quantizer in swept]
    height = PANEL_HEIGHT * len(swept)
    with canvas(stem, points, (COLUMN, height), (len(swept), 1)) as (_, axes):
        for quantizer, (panel,) in zip(swept, axes, strict=True):
            shown = [p for p in points if p.quantizer == quantizer]
            stes = {p.rate: p for p in shown if p.method != "FOGZO"}  # the chosen one stands last
            for rate, p in stes.items():
                chosen = p.method.endswith(CHOSEN)
                label = f"STE, lr={rate:g}" + " (chosen)" * chosen
                draw_levels(panel, [p], MAGENTA if chosen else BLACK, label)
            along = sorted((p for p in shown if p.method == "FOGZO"), key=lambda p: p.noise or 0.0)
            label = f"FOGZO, lr={along[0].rate:g}"
            draw_points(panel, along, lambda p: p.noise, color=BLUE, marker="o", label=label)
            noise_axis(panel, [p.noise for p in along if p.noise], along[0].perturbed)
            panel.set_ylabel(f"held-out loss (nats)\n{quantizer}")
            legend_inside(panel)
        axes[-1][0].set_xlabel(r"$1-\beta_{\min}$")
    return True


def _tuned(cell: CellResult, recipe: float | None, is_best: bool) -> list[Tuned]:
    """Return the points of a cell: the STE's at the recipe's rate may be its chosen one too."""
    named, record = SWEEP.fullmatch(cell.row), cell.any_record
    summary = summarize([*cell.tuning_losses().values()])
    if named is None or record is None or summary is None:
        return []
    quantizer, side, what = named.groups()
    methods = ["FOGZO"] * ((side, what) == ("FOGZO", "noise"))
    if side == STE:
        methods = [f"STE, {RECIPE}"] * (cell.rate == recipe) + [f"STE, {CHOSEN}"] * is_best
    loss = summary.n, summary.mean, *ends_of_sd(summary)
    place = cell.noise, cell.rate, record["perturbed_weights"], *loss
    return [Tuned(quantizer, method, *place) for method in methods]


@dataclass(frozen=True)
class Gain:
    """A quantizer of a network: how much the STE holds back, and FOGZO's gain over n seeds."""

    table: str
    quantizer: str
    held_back: float
    n: int
    mean: float
    low: float
    high: float


def write_gain(stem: Path, tables: Sequence[TableResults]) -> bool:
    """Write <stem>.png and .csv; return False where no STE was looked at."""
    points = [point for found in tables for point in _gains(found)]
    if not points:
        return False
    with canvas(stem, points, (COLUMN, GAIN_HEIGHT)) as (figure, axes):
        panel = axes[0][0]
        panel.axhline(0, color=GREY, linewidth=0.8, zorder=0)
        looks = gain_looks(points)
        for p in points:
            look = {"color": COLORS[p.table], "marker": looks[p.quantizer], "linestyle": "none"}
            draw_points(panel, [p], lambda p: p.held_back, **look)
        panel.set_xlabel("mean 1 − h' of the STE")
        panel.set_ylabel("gain in held-out loss (nats)")
        drawn = dict.fromkeys(p.table for p in points)
        named = [(network(name), {"color": COLORS[name], "linewidth": 3}) for name in drawn]
        named += [
            (name, {"color": BLACK, "marker": marker, "linestyle": "none"})
            for name, marker in looks.items()
        ]
        legend_below(figure, {name: panel.plot([], [], **look)[0] for name, look in named})
    return True


def gain_looks(points: Sequence[Gain]) -> dict[str, str]:
    """Return a marker for each quantizer."""
    quantizers = dict.fromkeys(p.quantizer for p in points)
    return dict(zip(quantizers, MARKERS, strict=False))


def _gains(found: TableResults) -> list[Gain]:
    split, _ = held_out(found.table)
    points = []
    for row, (held, test) in gains(found, split, "loss").items():
        low, high = (test.gain if end != end else end for end in (test.low, test.high))
        points.append(Gain(found.table, row, held, min(test.n), test.gain, low, high))
    return points
