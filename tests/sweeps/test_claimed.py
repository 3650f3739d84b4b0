"""What the claims of a table need, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.reporting.results import TUNING_SEEDS, read_paper
from fogzo_repro.sweeps.claimed import claimed_part, needed_cells, tuning_part
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.tracking.records import write_record
from tests.conftest import ROOT
from tests.reporting.conftest import TABLE, make_record

OTHERS = (  # rows that no claim names
    "Full precision", "FOGZO n=100", "n-SPSA n=10", "n-SPSA n=100", "n-SPSA n=1990",
)  # fmt: skip
EVALUATION = (0, 1, 2, 3, 4)
LOSSES = {  # of the tuning seeds
    "STE": dict(zip(("0.008", "0.016", "0.024", "0.032", "0.048", "0.064"), range(6), strict=True)),
    "FOGZO n=1": {"0.334": 3, "0.1": 2, "0.001": 2, "0.0001": 1, "1e-05": 0, "1e-06": 1},
}
LOSSES = {
    row: {f"{'lr' if row == 'STE' else '1-beta'}={value}": loss for value, loss in losses.items()}
    for row, losses in LOSSES.items()
}


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
        tuned = line["column"] in LOSSES.get(line["row"], {})
        seeds = (*EVALUATION, *TUNING_SEEDS) if tuned else EVALUATION
        found.append(Cell(replace(config, cell=label), seeds))
    return found


def places(cells: list[Cell]) -> set[tuple[str, str]]:
    return {(cell.config.cell.row, cell.config.cell.column) for cell in cells}


def tune(results: Path, leave_out: str = "") -> None:
    for row, losses in LOSSES.items():
        for column, loss in losses.items():
            for seed in TUNING_SEEDS if column != leave_out else TUNING_SEEDS[:1]:
                record = make_record(row, column, seed, loss)
                folder = results / "records" / TABLE
                folder.mkdir(parents=True, exist_ok=True)
                write_record(folder / f"{record['run_id']}.json", record)


def test_the_first_part_is_every_sweep_on_its_tuning_seeds(cells: list[Cell]) -> None:
    first = tuning_part(cells)
    assert places(first) == {(row, column) for row, found in LOSSES.items() for column in found}
    assert {cell.seeds for cell in first} == {TUNING_SEEDS}


def test_the_second_part_is_what_claims_compare_and_the_other_controls(
    cells: list[Cell], results: Path
) -> None:
    tune(results)
    second = claimed_part(cells, results, TABLE)
    assert {place for place in places(second) if place[0] not in OTHERS} == {
        ("STE", "lr=0.032"), ("STE", "lr=0.008"), ("STE, equal cost", "-"),
        ("FOGZO n=1", "1-beta=0.001"), ("FOGZO n=1", "1-beta=1e-05"),
        ("FOGZO n=1, random sign", "1-beta=1e-05"), ("FOGZO n=10", "1-beta=0.001"),
        ("n-SPSA n=1", "-"), ("n-SPSA n=7960", "-"),
    }  # fmt: skip
    untouched = {place for place in places(cells) if place[0] in OTHERS}
    assert untouched <= places(second)
    assert {cell.seeds for cell in second} == {EVALUATION}


def test_nothing_is_chosen_before_the_sweep_is_complete(cells: list[Cell], results: Path) -> None:
    tune(results, leave_out="1-beta=1e-06")
    with pytest.raises(
        UserError, match="fogzo-chosen-better is not complete; run the same command again"
    ):
        claimed_part(cells, results, TABLE)


def test_claims_about_cells_that_were_not_asked_for_are_left_aside(
    cells: list[Cell], results: Path
) -> None:
    alone = [cell for cell in cells if cell.config.cell.row == "Full precision"]
    assert places(claimed_part(alone, results, TABLE)) == {("Full precision", "-")}


def test_cells_that_a_sweep_has_not_chosen_are_not_needed(results: Path, cells: list[Cell]) -> None:
    tune(results)
    needed = needed_cells(results, TABLE)
    kept = places(claimed_part(cells, results, TABLE))
    assert {place for place in places(cells) if place in needed} == kept
    assert ("FOGZO n=1", "1-beta=1e-05") in needed  # the lowest
    assert ("FOGZO n=1", "1-beta=1e-06") not in needed
    assert ("FOGZO n=100", "1-beta=1e-06") in needed  # no claim compares its row


def test_before_the_sweep_has_chosen_every_cell_of_the_claim_may_be_needed(results: Path) -> None:
    tune(results, leave_out="1-beta=1e-05")
    assert ("FOGZO n=1", "1-beta=1e-06") in needed_cells(results, TABLE)
