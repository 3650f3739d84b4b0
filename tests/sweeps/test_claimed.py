"""What the claims of a table need, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.reporting.results import TUNING_SEEDS, read_paper
from fogzo_repro.sweeps.claimed import claimed_part, needed_cells, needed_part, tuning_part
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.tracking.records import write_record
from tests.conftest import ROOT
from tests.reporting.conftest import TABLE, make_record

GRIDS = ("half_integer", "integer")
EVALUATION = (0, 1, 2, 3, 4)
CHOSEN = {"STE": "lr=0.008", "STE, equal cost": "lr=0.008", "FOGZO n=1": "1-beta=1e-05, lr=0.008"}


def is_swept(row: str, column: str) -> bool:
    return row.rpartition(", ")[0] in CHOSEN and column != "1-beta=0"


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Claims and cells without records."""
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "results" / "paper")
    return tmp_path / "results"


@pytest.fixture
def cells(make_config: Callable[..., RunConfig]) -> list[Cell]:
    """The cells of the shallow figure, on data that cost nothing."""
    config, found = make_config(), []
    for line in read_paper(ROOT / "results" / "paper" / f"{TABLE}.csv"):
        label = replace(config.cell, table=TABLE, row=line["row"], column=line["column"])
        tuned = is_swept(line["row"], line["column"])
        alone = tuned and "lr=" in line["column"] and line["column"] != "lr=0.032"
        seeds = (*EVALUATION * (not alone), *TUNING_SEEDS * tuned)
        found.append(Cell(replace(config, cell=label), seeds))
    return found


def places(cells: list[Cell]) -> set[tuple[str, str]]:
    return {cell.place for cell in cells}


def tune(results: Path, cells: list[Cell], leave_out: str = "") -> None:
    for row, column in places(tuning_part(cells)):
        loss = float(column != CHOSEN[row.rpartition(", ")[0]])
        for seed in TUNING_SEEDS if column != leave_out else TUNING_SEEDS[:1]:
            record = make_record(row, column, seed, loss)
            folder = results / "records" / TABLE
            folder.mkdir(parents=True, exist_ok=True)
            write_record(folder / f"{record['run_id']}.json", record)


def test_the_first_part_is_every_sweep_on_its_tuning_seeds(cells: list[Cell]) -> None:
    first = tuning_part(cells)
    assert places(first) == {place for place in places(cells) if is_swept(*place)}
    assert {cell.seeds for cell in first} == {TUNING_SEEDS}


@pytest.mark.parametrize("seeds", [None, (7, 8)], ids=["none given", "given"])
def test_the_second_part_is_what_claims_compare_and_the_other_controls(
    cells: list[Cell], results: Path, seeds: tuple[int, ...] | None
) -> None:
    tune(results, cells)
    second = claimed_part(cells, results, TABLE, seeds)
    chosen = {(f"{row}, {grid} grid", column) for row, column in CHOSEN.items() for grid in GRIDS}
    named = {
        ("STE", "lr=0.032"), ("FOGZO n=1", "1-beta=0.001"), ("FOGZO n=10", "1-beta=0.001"),
        ("n-SPSA n=1", "-"), ("n-SPSA n=7960", "-"),
    }  # fmt: skip
    compared = {(f"{row}, {grid} grid", column) for row, column in named for grid in GRIDS}
    compared |= {
        (f"FOGZO n=1, {control}{grid} grid", f"1-beta={noise}")
        for grid, noise in zip(GRIDS, ("0.0001", "1e-05"), strict=True)
        for control in ("", "random sign, ")
    }
    if seeds:
        compared |= chosen
    rows = {row for row, _ in compared | chosen}
    assert {place for place in places(second) if place[0] in rows} == compared
    assert {place for place in places(cells) if place[0] not in rows} <= places(second)
    assert {c.seeds for c in second if c.place in chosen} == ({seeds} if seeds else set())


def test_nothing_is_chosen_before_the_sweep_is_complete(cells: list[Cell], results: Path) -> None:
    tune(results, cells, leave_out="1-beta=1e-06")
    with pytest.raises(
        UserError, match="half-fogzo-beats-tuned-ste is not complete; run the same command again"
    ):
        claimed_part(cells, results, TABLE)


def test_claims_about_cells_that_were_not_asked_for_are_left_aside(
    cells: list[Cell], results: Path
) -> None:
    alone = [cell for cell in cells if cell.config.cell.row == "Full precision"]
    assert places(claimed_part(alone, results, TABLE)) == {("Full precision", "-")}


def test_cells_that_a_sweep_has_not_chosen_are_not_needed(results: Path, cells: list[Cell]) -> None:
    tune(results, cells)
    needed = needed_cells(results, TABLE)
    kept = places(claimed_part(cells, results, TABLE, EVALUATION))
    assert {place for place in places(cells) if place in needed} == kept
    assert ("FOGZO n=1, integer grid", "1-beta=1e-05, lr=0.008") in needed  # the lowest
    assert ("FOGZO n=1, integer grid", "1-beta=1e-06") not in needed
    assert ("FOGZO n=100, integer grid", "1-beta=1e-06") in needed  # no claim compares its row


def test_before_the_sweep_has_chosen_every_cell_of_the_claim_may_be_needed(
    results: Path, cells: list[Cell]
) -> None:
    tune(results, cells, leave_out="1-beta=1e-05")
    assert ("FOGZO n=1, integer grid", "1-beta=1e-06") in needed_cells(results, TABLE)


@pytest.mark.parametrize("leave_out", ["", "1-beta=1e-06"], ids=["chosen", "open"])
def test_what_the_claims_need_is_both_parts_as_far_as_it_is_known(
    cells: list[Cell], results: Path, leave_out: str
) -> None:
    tune(results, cells, leave_out)
    found, said = needed_part(cells, results, TABLE)
    parts = tuning_part(cells) + ([] if leave_out else claimed_part(cells, results, TABLE))
    assert bool(said) == bool(leave_out)
    assert places(found) == places(parts) and len(found) == len(places(parts))
    assert sum(len(c.seeds) for c in found) == sum(len(c.seeds) for c in parts)
