"""Which cells of a table are drawn together, and how a method looks in every figure.

In Tables 1 to 4 a row is a network and a column a method.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fogzo_repro.reporting.figures.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION
from fogzo_repro.reporting.results import CellResult, TableResults

FULL, RANDOM, EQUAL, FOGZO, STE = "full precision", "random sign", "equal cost", "FOGZO", "STE"
LINES = {STE: "--", FOGZO: "-", EQUAL: ":", RANDOM: "-.", FULL: (0, (4, 1, 1, 1, 1, 1))}
MARKERS = {STE: "o", FOGZO: "D", EQUAL: "s", RANDOM: "x", FULL: "*"}
FAMILY_COLORS = (BLUE, ORANGE, VERMILION)
Styles = dict[str, dict[str, Any]]  # by method: colour, line, marker
FAMILIES = re.compile("identity|tanh|approxsign|LSQ|QuEST")


def panels(found: TableResults) -> dict[str, list[CellResult]]:
    """Return the cells that have an evaluation run that finished, by row, without the sweeps."""
    done = [c for c in found.cells.values() if evaluated(c) and ": " not in c.row]
    return {row: [c for c in done if c.row == row] for row in dict.fromkeys(c.row for c in done)}


def evaluated(cell: CellResult) -> list[dict[str, Any]]:
    """Return the finished records on evaluation seeds, by seed."""
    return [record for record in cell.reporting().values() if record["status"] == "finished"]


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
