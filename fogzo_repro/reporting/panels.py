"""Which cells of a table are drawn together, and how a method looks in every figure.

In Tables 1 to 4 a row is a network and a column a method; in the mini tables a row begins with the
quantizer, names the method, and has a column for each learning rate or 1 - beta.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fogzo_repro.reporting.claims import chosen
from fogzo_repro.reporting.drawing import BLACK, BLUE, GREEN, GREY, ORANGE, VERMILION
from fogzo_repro.reporting.results import TUNING_SEEDS, CellResult, TableResults

FULL, RANDOM, EQUAL, FOGZO, STE = "full precision", "random sign", "equal cost", "FOGZO", "STE"
LINES = {STE: "--", FOGZO: "-", EQUAL: ":", RANDOM: "-.", FULL: (0, (4, 1, 1, 1, 1, 1))}
MARKERS = {STE: "o", FOGZO: "D", EQUAL: "s", RANDOM: "x", FULL: "*"}
FAMILY_COLORS = (BLUE, ORANGE, VERMILION)
Styles = dict[str, dict[str, Any]]  # by method: colour, line, marker
FAMILIES = re.compile("identity|tanh|approxsign|LSQ|QuEST")


def of_the_paper(found: TableResults) -> bool:
    """Return whether rows are networks and columns methods."""
    return re.fullmatch(r"table\d", found.table) is not None


def panels(found: TableResults) -> dict[str, list[CellResult]]:
    """Return the cells that have an evaluation run that finished, by panel, without the sweeps."""
    paper = of_the_paper(found)
    done = [c for c in found.cells.values() if evaluated(c) and not (paper and ": " in c.row)]
    if paper:
        return {
            row: [c for c in done if c.row == row] for row in dict.fromkeys(c.row for c in done)
        }
    quantizers = dict.fromkeys(c.row.split()[0] for c in done if not _full_precision(c.row))
    return {
        q: [c for c in done if c.row.split()[0] == q or _full_precision(c.row)] for q in quantizers
    }


def evaluated(cell: CellResult) -> list[dict[str, Any]]:
    """Return the finished records on evaluation seeds, by seed."""
    return [
        record
        for seed, record in sorted(cell.runs.items())
        if seed not in TUNING_SEEDS and record["status"] == "finished"
    ]


def one_per_method(found: TableResults, cells: Sequence[CellResult]) -> list[CellResult]:
    """Return one cell for each method: in a mini table the column that its tuning chose.

    The control with random signs has the 1 - beta that FOGZO has. Where the STE's tuning chose
    another learning rate than FOGZO has, the STE has two cells, first the one at FOGZO's.
    """
    if of_the_paper(found):
        return list(cells)
    rates = {_rate(c) for c in cells if kind_of(c.row) == FOGZO}
    kept = []
    for row in dict.fromkeys(c.row for c in cells):
        best = chosen(found, row) or chosen(found, row.removesuffix(f", {RANDOM}"))
        same = [c for c in cells if c.row == row]
        wanted = [c for c in same if best is not None and c.column == best.column] or same[:1]
        if kind_of(row) == STE:
            shared = [c for c in same if _rate(c) in rates]
            wanted = [*shared, *(c for c in wanted if c not in shared)]
        kept += wanted
    return kept


def _rate(cell: CellResult) -> float:
    return evaluated(cell)[0]["config"]["recipe"]["lr"]


def method(found: TableResults, cell: CellResult) -> str:
    """Return the text that names a cell's method."""
    if of_the_paper(found):
        return cell.column
    name = cell.row if _full_precision(cell.row) else cell.row.split(maxsplit=1)[-1]
    return name if cell.column == "-" else f"{name}, {cell.column}"


def looks(names: Sequence[str]) -> Styles:
    """Return colour, line and marker of each method of a figure.

    The line says what is compared (STE, FOGZO, control). The colour says the surrogate or the
    quantizer where the figure has several, else it stands for the same as the line; a second STE,
    at another learning rate, has its own.
    """
    families = list(dict.fromkeys(f[0] for name in names if (f := FAMILIES.search(name))))
    stes = [name for name in names if kind_of(name) == STE]
    found = {}
    for name in names:
        kind = kind_of(name)
        family = FAMILIES.search(name)
        place = families.index(family[0]) if family else 0
        color = FAMILY_COLORS[place % len(FAMILY_COLORS)]
        if len(families) < 2:
            color = {STE: BLACK, EQUAL: ORANGE, RANDOM: GREY}.get(kind, BLUE)
            color = VERMILION if name in stes[1:] else color
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


def _full_precision(row: str) -> bool:
    return row.lower() == FULL
