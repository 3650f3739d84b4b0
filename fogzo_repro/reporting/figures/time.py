"""Quality against the time of a run, the view of Table 4: results/figures/<table>-time and -cost.

A panel for each network or quantizer, a mark for each cell of the STE, of FOGZO and of the STE at
equal cost: mean ± sd over the evaluation seeds against the mean time of the runs that had a card to
themselves; the staircase joins the cells that no other one beats in both. In a mini, whose runs
share their cards, it is the time of their steps by a bench, in that of the STE's run, and a number
beside a mark is the part of the batch that the probes see.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.benches import read_benches
from fogzo_repro.reporting.figures.drawing import GREY, draw_points, ends_of_sd, scale_values
from fogzo_repro.reporting.figures.panels import (
    EQUAL,
    FOGZO,
    STE,
    Styles,
    draw_panels,
    kind_of,
    panels,
)
from fogzo_repro.reporting.minis import probes, time_of
from fogzo_repro.reporting.results import CellResult, TableResults
from fogzo_repro.reporting.wording import METRIC_NAMES

PANEL_HEIGHT = 1.7  # inches
COMPARED = (STE, FOGZO, EQUAL)
COST = re.compile("(STE|FOGZO)(, probes=.*)?|STE, equal cost.*")  # the columns of a cost figure
UNITS = {"hours": 1.0, "minutes": 60.0, "seconds": 3600.0}  # in an hour
# The first that a run has:
QUALITY = (("val", "perplexity"), ("val", "top1"), ("test", "top1"), ("train", "loss"))
LABELS = METRIC_NAMES | {"loss": "train loss (nats)"}


@dataclass(frozen=True)
class Point:
    """A cell over n seeds: hours of a run on the hardware, in a mini STE runs, and its quality."""

    panel: str
    method: str
    hardware: str
    metric: str
    n: int
    hours: float
    mean: float
    low: float
    high: float


def write_time(stem: Path, found: TableResults) -> bool:
    """Write <stem>.png and .csv; return False where no two methods were run and timed."""
    points = [
        _point(panel, cell, cell.hours)
        for panel, cells in panels(found).items()
        for cell in cells
        if kind_of(cell.column) in COMPARED and cell.hours is not None
    ]
    if len(points) < 2:
        return False  # one point trades nothing off
    groups = list(dict.fromkeys(_group(p) for p in points))
    longest = max(p.hours for p in points)
    unit, per_hour = next((u, k) for u, k in UNITS.items() if k * longest > 1 or u == "seconds")
    cards = ", ".join(dict.fromkeys(p.hardware for p in points))
    label, draw = f"{unit} of a run ({cards})", partial(_draw, per_hour=per_hour)
    draw_panels(stem, points, groups, PANEL_HEIGHT, label, draw)
    return True


def write_cost(stem: Path, found: TableResults) -> bool:
    """Write <stem>.png and .csv of the rows with probes on a part; return False without any."""
    benches = read_benches(stem.parents[1] / "records" / "bench")
    rows = {kept.cell.row for kept in probes(found, benches)}
    points = []
    for row, cells in panels(found).items():
        for cell in cells if row in rows else ():
            time = time_of(cell, found.cells[row, STE], benches)
            if COST.fullmatch(cell.column) and time is not None:
                points.append(_point(row, cell, time))
    if not points:
        return False
    label, groups = "time of a run (in the STE's)", list(dict.fromkeys(map(_group, points)))
    draw_panels(stem, points, groups, PANEL_HEIGHT, label, partial(_draw, per_hour=1.0))
    return True


def pareto_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that none is below in one coordinate and not above in the other.

    >>> pareto_front([(1, 3), (2, 4), (2, 2), (3, 2)])
    [(1, 3), (2, 2)]
    """
    front: list[tuple[float, float]] = []
    for point in sorted(points):
        if not front or point[1] < front[-1][1]:
            front.append(point)
    return front


def _point(panel: str, cell: CellResult, hours: float) -> Point:
    record = next(iter(cell.finished().values()))
    last = record["metrics"]["last"]
    split, metric = next(((s, m) for s, m in QUALITY if m in last.get(s, {})), QUALITY[-1])
    summary = cell.summary(split, metric)
    assert summary is not None, "a panel holds cells with finished evaluation runs alone"
    place = panel, cell.column, record["hardware"]
    return Point(*place, metric, summary.n, hours, summary.mean, *ends_of_sd(summary))


def _group(point: Point) -> str:
    """Return a method's name without its learning rate or 1 - beta: one colour for all of them."""
    return re.sub(r"(, | of )[^, ]*=[^, ]*", "", point.method)


def _draw(axes: Any, points: Sequence[Point], styles: Styles, per_hour: float) -> dict[str, Any]:
    """Draw a panel in units of 1 / per_hour hours; return its marks by method."""
    metric = points[0].metric
    sign = -1 if metric == "top1" else 1
    front = pareto_front([(per_hour * p.hours, sign * p.mean) for p in points])
    axes.step(
        [x for x, _ in front], [sign * y for _, y in front],
        where="post", color=GREY, linewidth=0.8, zorder=0,
    )  # fmt: skip
    handles = {}
    for name in dict.fromkeys(map(_group, points)):
        same = [p for p in points if _group(p) == name]
        look = {**styles[name], "linestyle": "none"}
        if kind_of(name) == EQUAL:
            look["markerfacecolor"] = "white"
        handles[name] = draw_points(axes, same, lambda p: per_hour * p.hours, **look)
    for p in points:
        if probes_on := re.fullmatch(r"FOGZO, probes=([\d.]+), start=([\d.]+)", p.method):
            part, start = probes_on.groups()
            text = f"{Fraction(part)}" + (f" from {float(start):g}" if float(start) else "")
            place = {"textcoords": "offset points", "fontsize": 5, "va": "top"}
            axes.annotate(text, (per_hour * p.hours, p.mean), (3, -2), **place)
    axes.set_ylabel(LABELS[metric])
    scale_values(axes.yaxis, [p.mean for p in points])
    scale_values(axes.xaxis, [per_hour * p.hours for p in points])
    return handles
