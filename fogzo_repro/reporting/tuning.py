"""Which cell of a row the tuning seeds choose, and what limits the choice."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fogzo_repro.reporting.results import CellResult, TableResults

CHOSEN = "chosen"  # column: the one with the lowest loss on the tuning seeds


def chosen(results: TableResults, row: str) -> CellResult | None:
    """Return the cell of a row with the lowest mean loss on the tuning seeds.

    A cell with a diverged tuning run cannot be chosen. None where the sweep is not complete: every
    cell that has tuning runs must have those of the same seeds.
    """
    swept = results.tuned(row)
    complete = {tuple(sorted((*c.tuning_losses(), *c.diverged(tuning=True)))) for c in swept}
    if len(complete) != 1:
        return None
    (seeds,) = complete
    found = [*swept, *_elsewhere(results, row, swept)]
    stable = [c for c in found if {*seeds} <= {*c.tuning_losses()}]

    def loss(cell: CellResult) -> float:
        losses = cell.tuning_losses()
        return math.fsum(losses[seed] for seed in seeds)

    return min(stable, key=loss, default=None)


def _elsewhere(results: TableResults, row: str, swept: Sequence[CellResult]) -> list[CellResult]:
    """Return the cell of a sweep over rates that stands in the sweep over noises before it.

    The row `X: FOGZO, rate` has rates at one noise; that noise at the recipe's rate is a cell of
    `X: FOGZO, noise`, where it was chosen, and is the same run.
    """
    noises = {_settings(c.column).get("1-beta") for c in swept}
    before = results.row(row.removesuffix("rate") + "noise") if row.endswith(", rate") else []
    return [c for c in before if _settings(c.column).get("1-beta") in noises]


def on_edge(results: TableResults, cell: CellResult, row: str = "") -> bool:
    """Return whether a chosen value is the smallest or the largest of those that were tried.

    A better one may lie beyond it. The values stand in the columns' labels, as `lr=0.008` or
    `1-beta=1e-05, lr=0.016`; 0 has nothing below it. The cell was chosen from its own row, or from
    the one that is given and the sweep before that.
    """
    swept = results.tuned(row or cell.row)
    before = [c for c in _elsewhere(results, row or cell.row, swept) if c.reporting(tuning=True)]
    tried = {(c.row, c.column): _settings(c.column) for c in (cell, *swept, *before)}
    for c in before:  # at the recipe's rate, which its label does not name
        if c.rate is not None:
            tried[c.row, c.column]["lr"] = c.rate
    for name, value in tried[cell.row, cell.column].items():
        values = {settings[name] for settings in tried.values() if name in settings}
        if len(values) > 1 and value and value in (min(values), max(values)):
            return True
    return False


def _settings(column: str) -> dict[str, float]:
    """Return the numbers in a column's label by name."""
    found = {}
    for part in column.split(", "):
        name, _, text = part.partition("=")
        try:
            found[name] = float(text)
        except ValueError:
            continue
    return found


def untuned(results: TableResults, cell: CellResult) -> list[str]:
    """Return the settings that a row has cells for, none of which has tuning runs yet."""
    named, tuned = (
        {name for c in cells for name in _settings(c.column)}
        for cells in (results.row(cell.row), results.tuned(cell.row))
    )
    return sorted(named - tuned)
