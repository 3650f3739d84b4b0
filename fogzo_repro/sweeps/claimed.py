"""What the claims of a table need: tuning sweeps first, then the cells that the claims name.

A sweep over four values takes four times the evaluation runs that its claims look at, since only
the chosen value is compared. So a table can be run in two parts; the whole sweep stays printed, on
its tuning seeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
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


@dataclass(frozen=True)
class Needed:
    """Which cells the claims of a table look at."""

    rows: frozenset[str]  # that a claim compares; cells of other rows are all needed
    named: frozenset[tuple[str, str]]  # row and column of the cells that claims compare
    open: Mapping[str, frozenset[str]]  # by claim: its rows, where the tuning has not chosen yet

    def __contains__(self, place: tuple[str, str]) -> bool:
        """Tell whether a cell's evaluation runs are needed; those of an open claim may be."""
        unclear = any(place[0] in rows for rows in self.open.values())
        return place[0] not in self.rows or unclear or place in self.named


def needed_cells(results: Path, table: str, given: Collection[str] | None = None) -> Needed:
    """Read which cells the claims of a table need, all claims or those about the `given` rows.

    Raises:
        UserError: where the records of the table cannot be read.
    """
    claims = read_claims(results / "paper" / "claims.csv", table)
    if given is not None:
        claims = [c for c in claims if not {c.better[0], c.worse[0]}.isdisjoint(given)]
    rows: set[str] = set()
    named: set[tuple[str, str]] = set()
    open_claims = {}
    found = read_results(results, table) if claims else None
    for claim in claims:
        assert found is not None
        compared = frozenset((claim.better[0], claim.worse[0]))
        rows |= compared
        for cell in named_cells(found, claim):
            if cell is None:
                open_claims[claim.id] = compared
            else:
                named.add((cell.row, cell.column))
    return Needed(frozenset(rows), frozenset(named), open_claims)


def needed_part(
    cells: Sequence[Cell], results: Path, table: str, seeds: tuple[int, ...] | None = None
) -> tuple[list[Cell], list[str]]:
    """Return all that is run for the claims, as far as it is known, and what is not.

    Returns:
        The cells, of those that `claimed_part` takes too, and a line where a tuning sweep has not
        chosen yet.
    """
    parts = tuning_part(cells)
    said = []
    if open_claims := needed_cells(results, table, {one.config.cell.row for one in cells}).open:
        said = [
            f"tuning sweeps alone, since {', '.join(open_claims)} are open: what these compare on "
            "evaluation seeds is known once the sweeps have chosen"
        ]
    else:
        parts += claimed_part(cells, results, table, seeds)
    found: dict[tuple[str, str], tuple[int, ...]] = {}
    for part in parts:
        found[part.place] = found.get(part.place, ()) + part.seeds
    return [replace(one, seeds=found[one.place]) for one in cells if one.place in found], said


def claimed_part(
    cells: Sequence[Cell], results: Path, table: str, seeds: tuple[int, ...] | None = None
) -> list[Cell]:
    """Return the cells that a claim names, and those of rows without claims, on evaluation seeds.

    A cell that a claim names and that has tuning seeds alone, a sweep's chosen value, gets `seeds`.

    Raises:
        UserError: where the tuning runs are not complete, so that nothing can be chosen.
    """
    needed = needed_cells(results, table, {one.config.cell.row for one in cells})
    for claim in needed.open:
        raise UserError(
            f"{table}: the tuning sweep that chooses for the claim {claim} is not complete; run "
            "the same command again"
        )
    kept = []
    for one in cells:
        if one.place in needed:
            own = tuple(s for s in one.seeds if s not in TUNING_SEEDS)
            own = own or (seeds or ()) * (one.place in needed.named)
            kept += [replace(one, seeds=own)] if own else []
    return kept
