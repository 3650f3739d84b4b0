"""What the claims of a table need: tuning sweeps first, then the cells that the claims name.

A sweep over four values takes four times the evaluation runs that its claims look at, since only
the chosen value is compared. So a table can be run in two parts; the whole sweep stays printed, on
its tuning seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import named_cells, read_claims
from fogzo_repro.reporting.results import TUNING_SEEDS, read_results
from fogzo_repro.sweeps.jobs import Cell


def tuning_part(cells: Sequence[Cell]) -> list[Cell]:
    """Return the cells that have tuning seeds, with those alone."""
    found = []
    for cell in cells:
        seeds = tuple(s for s in cell.seeds if s in TUNING_SEEDS)
        found += [replace(cell, seeds=seeds)] if seeds else []
    return found


def claimed_part(cells: Sequence[Cell], results: Path, table: str) -> list[Cell]:
    """Return the cells that a claim names, and those of rows without claims, on evaluation seeds.

    Args:
        cells: of the table, or some of them; claims about others are left aside.
        results: the folder with paper/ and records/, which hold the claims and the tuning runs.
        table: its name.

    Raises:
        UserError: where the tuning runs are not complete, so that nothing can be chosen.
    """
    claims = read_claims(results / "paper" / "claims.csv", table)
    found = read_results(results, table)
    given = {one.config.cell.row for one in cells}
    rows, named = set(), set()
    for claim in claims:
        compared = {claim.better[0], claim.worse[0]}
        if compared.isdisjoint(given):
            continue
        rows |= compared
        for cell in named_cells(found, claim):
            if cell is None:
                raise UserError(
                    f"{table}: the tuning sweep that chooses for the claim {claim.id} is not "
                    "complete; run the same command again"
                )
            named.add((cell.row, cell.column))
    kept = []
    for one in cells:
        label = one.config.cell
        if label.row not in rows or (label.row, label.column) in named:
            seeds = tuple(s for s in one.seeds if s not in TUNING_SEEDS)
            kept += [replace(one, seeds=seeds)] if seeds else []
    return kept
