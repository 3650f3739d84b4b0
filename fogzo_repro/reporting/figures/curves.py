"""results/figures/<table>-curves: the loss of a step against steps, from the records' histories.

It is what the step minimises, with its mixing and label smoothing, not the tables' train loss.

A panel for each network or quantizer, a line for each method: mean over the evaluation seeds with
its standard deviation as a band; random signs may lie above the panel. A row without a quantizer is
drawn into the panels of the others. Left out is a method that would look like one before it, as
FOGZO with other probes, and a record without a history, of an older version.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.figures.drawing import draw_course, ends_of_sd, scale_values
from fogzo_repro.reporting.figures.panels import (
    FULL,
    RANDOM,
    Styles,
    draw_panels,
    kind_of,
    looks,
    panels,
)
from fogzo_repro.reporting.results import CellResult, TableResults
from fogzo_repro.reporting.statistics import summarize

PANEL_HEIGHT = 1.5  # inches
SKIPPED = 0.05  # share of the steps whose losses may lie above the panel: the fall from the start


@dataclass(frozen=True)
class Point:
    """The loss of a step in nats, around it, over n seeds, and mean -+ sd."""

    panel: str
    method: str
    step: float
    n: int
    mean: float
    low: float
    high: float


def write_curves(stem: Path, found: TableResults) -> bool:
    """Write <stem>.png and .csv; return False where no record has a history."""
    rows = panels(found)
    plain = rows.pop(FULL, []) if len(rows) > 1 else []
    points = [
        point
        for panel, cells in rows.items()
        for cell in [*_told_apart(cells), *plain]
        for point in _course(panel, cell)
    ]
    if not points:
        return False
    methods = list(dict.fromkeys(p.method for p in points))
    draw_panels(stem, points, methods, PANEL_HEIGHT, "step", _draw)
    return True


def _told_apart(cells: Sequence[CellResult]) -> list[CellResult]:
    """Return the cells of a panel, of those that look alike the first."""
    styles = looks([cell.column for cell in cells])
    found = {str(styles[cell.column]): cell for cell in reversed(cells)}
    return [cell for cell in cells if found[str(styles[cell.column])] is cell]


def _course(panel: str, cell: CellResult) -> Iterator[Point]:
    histories = [r["history"] for r in cell.finished().values() if r.get("history")]
    if not histories:
        return
    losses = zip(*(h["loss"] for h in histories), strict=True)
    for step, values in zip(histories[0]["step"], losses, strict=True):
        summary = summarize([v for v in values if v is not None])
        if step is not None and summary is not None:
            place = panel, FULL if cell.column == "-" else cell.column, step
            yield Point(*place, summary.n, summary.mean, *ends_of_sd(summary))


def _draw(axes: Any, points: Sequence[Point], styles: Styles) -> dict[str, Any]:
    """Draw a panel; return its lines by method."""
    compared = [p for p in points if kind_of(p.method) != RANDOM] or points  # that one is far off
    late = [p.mean for p in compared if p.step > SKIPPED * max(p.step for p in compared)]
    top, handles = 1.03 * max(late), {}
    for name in dict.fromkeys(p.method for p in points):
        line = [p for p in points if p.method == name]
        label = name + " (above)" * (min(p.mean for p in line) >= top)
        handles[label] = draw_course(axes, line, lambda p: p.step, **styles[name])
    scale_values(axes.yaxis, late)
    axes.set_ylim(top=top)
    axes.set_ylabel("loss of the step (nats)")
    return handles
