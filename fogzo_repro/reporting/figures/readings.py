"""results/figures/readings: FOGZO's gain over the STE by reading of Section 4.1.

A panel for each grid and learning rate, a line for each derivative, against the distance of two
levels: at the paper's beta (filled), and at the noise with the lowest mean of five on these same
seeds (open). Mean gain in train loss over the seeds with its 95% t interval, paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.figures.drawing import (
    BLACK,
    BLUE,
    GREY,
    TEXT,
    VERMILION,
    canvas,
    draw_points,
    legend_below,
)
from fogzo_repro.reporting.readings import DERIVATIVES, FOGZO, STE, SWEPT, Tried
from fogzo_repro.reporting.statistics import gain_test

LOOKS = dict(zip(DERIVATIVES.values(), ((BLUE, "o"), (VERMILION, "D"), (BLACK, "s")), strict=True))
PAPER, BEST = "β=0.999", "best noise"
HEIGHT = 3.9  # inches
APART = 0.035  # between the lines of a panel, in standard deviations


@dataclass(frozen=True)
class Point:
    """FOGZO n=1 on a reading: how far its train loss is below the STE's, over n seeds."""

    grid: str
    rate: float
    derivative: str
    spacing: float
    which: str
    noise: str
    n: int
    mean: float
    low: float
    high: float


def write_figure(stem: Path, tried: Sequence[Tried]) -> bool:
    """Write <stem>.png and .csv; return False where nothing was run."""
    points = [p for one in tried for p in _points(one)]
    if not points:
        return False
    grids = list(dict.fromkeys(p.grid for p in points))
    rates = list(dict.fromkeys(p.rate for p in points))
    with canvas(stem, points, (TEXT, HEIGHT), (len(grids), len(rates))) as (figure, axes):
        handles: dict[str, Any] = {}
        for grid, line in zip(grids, axes, strict=True):
            for rate, panel in zip(rates, line, strict=True):
                shown = [p for p in points if (p.grid, p.rate) == (grid, rate)]
                handles |= _draw(panel, shown)
                panel.set_title(f"{grid} grid, lr {rate:g}")
                panel.sharey(axes[0][0])
            line[0].set_ylabel("gain of FOGZO (nats)")
        for panel in axes[-1]:
            panel.set_xlabel(r"distance of two levels ($\sigma$)")
        legend_below(figure, handles, columns=2)
    return True


def _points(one: Tried) -> list[Point]:
    found = []
    for which, row in ((PAPER, FOGZO), (BEST, one.best)):
        better, worse = one.losses(row or ""), one.losses(STE)
        if row is None or not better or not worse:
            continue
        test, reading = gain_test(better, worse), one.reading
        place = reading.grid, reading.rate, reading.derivative, reading.spacing
        noise = row.removeprefix(SWEPT)
        found.append(Point(*place, which, noise, min(test.n), test.gain, test.low, test.high))
    return found


def _draw(axes: Any, points: Sequence[Point]) -> dict[str, Any]:
    axes.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    handles = {}
    for which in (PAPER, BEST):
        for place, (derivative, (color, marker)) in enumerate(LOOKS.items()):
            along = [p for p in points if (p.which, p.derivative) == (which, derivative)]
            along.sort(key=lambda p: p.spacing)
            look: dict[str, Any] = {"color": color, "marker": marker}
            if which == BEST:
                look |= {"markerfacecolor": "white", "linestyle": ":"}
            beside = partial(_beside, shift=APART * (place - 1))
            label = f"{which}, derivative {derivative}"
            handles[label] = draw_points(axes, along, beside, **look)
    return {label: handle for label, handle in handles.items() if handle is not None}


def _beside(point: Point, shift: float) -> float:
    return point.spacing + shift
