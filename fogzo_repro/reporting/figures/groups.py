"""Metrics of any runs along one of their settings, or their loss along the steps.

For `python -m fogzo_repro.summary`; which runs belong together is decided there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.figures.drawing import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LOG_FROM,
    ORANGE,
    TEXT,
    VERMILION,
    canvas,
    draw_course,
    draw_levels,
    draw_points,
    legend_below,
    legend_height,
)

COLORS = (BLACK, VERMILION, BLUE, GREEN, ORANGE, GREY)
STYLES = ("-", "--", ":", "-.")
PANEL = 2.2  # inches
TICKS = 6  # more values than this have matplotlib's ticks
FALL = 0.1  # share of the steps whose losses may lie above the panel


@dataclass(frozen=True)
class Point:
    """A drawn point: mean of n runs, and mean -+ sd."""

    panel: str
    line: str
    x: float | None
    n: int
    mean: float
    low: float
    high: float


def draw_groups(points: Sequence[Point], x_label: str, path: Path, *, course: bool) -> list[Path]:
    """Draw a panel for each metric and a line for each kind of run; return the files written.

    Points without an x are horizontal lines. In a `course` there are many, along the steps.
    """
    panels = list(dict.fromkeys(p.panel for p in points))
    lines = list(dict.fromkeys(p.line for p in points))
    size = (max(TEXT, min(len(panels), 4) * PANEL), PANEL + legend_height(lines))
    pdf = path.suffix == ".pdf"
    with canvas(path.with_suffix(""), points, size, (1, len(panels)), pdf=pdf) as (figure, grid):
        handles: dict[str, Any] = {}
        for axes, panel in zip(grid[0], panels, strict=True):
            mine = [p for p in points if p.panel == panel]
            places = [p.x for p in mine if p.x is not None]
            if not course:
                _mark(axes, sorted({*places}))
            axes.set(title=panel, xlabel=x_label)
            for place, name in enumerate(lines):
                color = COLORS[place % len(COLORS)]
                look = {"color": color, "linestyle": STYLES[place // len(COLORS) % len(STYLES)]}
                placed = [p for p in mine if p.line == name and p.x is not None]
                level = [p for p in mine if p.line == name and p.x is None]
                if course and placed:
                    handles[name] = draw_course(axes, placed, lambda p: p.x, **look)
                elif placed:
                    handles[name] = draw_points(axes, placed, lambda p: p.x, marker="o", **look)
                if level:
                    draw_levels(axes, level, color, name)
                    axes.lines[-1].set_linestyle(STYLES[1 + place // len(COLORS) % 3])
                    handles.setdefault(name, axes.lines[-1])
            if course:  # the fall from the start may lie above
                late = [p.high for p in mine if p.x is not None and p.x > FALL * max(places)]
                axes.set_ylim(top=max(late))
        if any(lines):
            legend_below(figure, handles)
    return [path.with_suffix(s) for s in (".png", ".csv", *([".pdf"] if pdf else []))]


def _mark(axes: Any, values: Sequence[float]) -> None:
    """Make the axis logarithmic where its values span much, with a tick at each value."""
    from matplotlib.ticker import NullLocator

    if values and values[0] > 0 and values[-1] > LOG_FROM * values[0]:
        axes.set_xscale("log")
    if len(values) <= TICKS:
        axes.set_xticks(values, [f"{value:g}".replace("e-0", "e-") for value in values])
        axes.xaxis.set_minor_locator(NullLocator())
