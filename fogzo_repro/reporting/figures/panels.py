"""Figures with a panel for each row of a table: which cells they hold, how a method looks in them.

In Tables 1 to 4 a row is a network and a column a method, in the mini tables a row is a quantizer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.figures.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    canvas,
    legend_below,
    legend_height,
)
from fogzo_repro.reporting.results import CellResult, TableResults

FULL, RANDOM, EQUAL, FOGZO, STE = "full precision", "random sign", "equal cost", "FOGZO", "STE"
LINES = {STE: "--", FOGZO: "-", EQUAL: ":", RANDOM: "-.", FULL: (0, (4, 1, 1, 1, 1, 1))}
MARKERS = {STE: "o", FOGZO: "D", EQUAL: "s", RANDOM: "x", FULL: "*"}
FAMILY_COLORS = (BLUE, ORANGE, VERMILION)
Styles = dict[str, dict[str, Any]]  # by method: colour, line, marker
FAMILIES = re.compile("identity|tanh|approxsign|LSQ|QuEST")


def panels(found: TableResults) -> dict[str, list[CellResult]]:
    """Return the cells that have an evaluation run that finished, by row, without the sweeps."""
    done = [c for c in found.cells.values() if c.finished() and ": " not in c.row]
    return {row: [c for c in done if c.row == row] for row in dict.fromkeys(c.row for c in done)}


def draw_panels(
    stem: Path,
    points: Sequence[Any],
    methods: Sequence[str],
    height: float,
    x_label: str,
    draw: Callable[[Any, list[Any], Styles], dict[str, Any]],
) -> None:
    """Write a figure with the panels of `points` below each other and one legend for all of them.

    Each point names its `panel`, of a height in inches. `draw` is given axes, the points of a panel
    and the looks of the methods, and returns what stands for them in the legend.
    """
    titles = list(dict.fromkeys(p.panel for p in points))
    size = COLUMN, height * len(titles) + legend_height(methods) + 0.25
    with canvas(stem, points, size, (len(titles), 1)) as (figure, axes):
        handles: dict[str, Any] = {}
        styles = looks(methods)
        for panel, title in zip(axes[:, 0], titles, strict=True):
            handles |= draw(panel, [p for p in points if p.panel == title], styles)
            panel.set_title(title)
        axes[-1][0].set_xlabel(x_label)
        legend_below(figure, handles)


def looks(names: Sequence[str]) -> Styles:
    """Return colour, line and marker of each method of a figure.

    The line says what is compared (STE, FOGZO, control). The colour says the surrogate or the
    quantizer where the figure has several, else it stands for the same as the line.
    """
    families = list(dict.fromkeys(f[0] for name in names if (f := FAMILIES.search(name))))
    found = {}
    for name in names:
        kind = kind_of(name)
        family = FAMILIES.search(name)
        place = families.index(family[0]) if family else 0
        color = FAMILY_COLORS[place % len(FAMILY_COLORS)]
        if len(families) < 2:
            color = {STE: BLACK, EQUAL: ORANGE, RANDOM: GREY}.get(kind, BLUE)
        color = GREEN if kind == FULL else color
        found[name] = {"color": color, "linestyle": LINES[kind], "marker": MARKERS[kind]}
    return found


def kind_of(name: str) -> str:
    """Return what a method's name says it is.

    >>> kind_of("identity FOGZO, random sign"), kind_of("LSQ-STE, 3.522B tokens"), kind_of("QuEST")
    ('random sign', 'STE', 'STE')
    """
    lowered = name.lower()
    return next((k for k in (FULL, RANDOM, EQUAL, FOGZO) if k.lower() in lowered), STE)
