"""What the claims of a table need, and no more."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.reporting.results import TUNING_SEEDS, read_paper
from fogzo_repro.sweeps.claimed import claimed_part, tuning_part
from fogzo_repro.sweeps.jobs import Cell
from tests.conftest import ROOT
from tests.reporting.mini_tables import make_mini_record, save_mini

TABLE = "mini-llama"
EVALUATION = (0, 1, 2, 3, 4)
LOSSES = {  # of the tuning seeds
    "2-bit STE": {"lr=0.00025": 4.3, "lr=0.0005": 4.1, "lr=0.001": 4.2, "lr=0.002": 4.4},
    "2-bit FOGZO": {"1-beta=1e-07": 4.3, "1-beta=1e-08": 4.0, "1-beta=1e-09": 4.2,
                    "1-beta=1e-10": 4.2},
}  # fmt: skip


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Claims and cells without records."""
    shutil.copytree(ROOT / "results" / "paper", tmp_path / "results" / "paper")
    return tmp_path / "results"


@pytest.fixture
def cells(make_config: Callable[..., RunConfig]) -> list[Cell]:
    """The cells of the small LLaMA's table, on a network that costs nothing."""
    config, found = make_config(), []
    for line in read_paper(ROOT / "results" / "paper" / f"{TABLE}.csv"):
        label = replace(config.cell, table=TABLE, row=line["row"], column=line["column"])
        seeds = (*EVALUATION, *TUNING_SEEDS) if line["row"] in LOSSES else EVALUATION
        found.append(Cell(replace(config, cell=label), seeds))
    return found


def places(cells: list[Cell]) -> set[tuple[str, str]]:
    return {(cell.config.cell.row, cell.config.cell.column) for cell in cells}


def tune(results: Path, leave_out: str = "") -> None:
    for row, losses in LOSSES.items():
        for column, loss in losses.items():
            for seed in TUNING_SEEDS if column != leave_out else TUNING_SEEDS[:1]:
                save_mini(results, make_mini_record(TABLE, row, column, seed, loss))


def test_the_first_part_is_every_sweep_on_its_tuning_seeds(cells: list[Cell]) -> None:
    first = tuning_part(cells)
    assert places(first) == {(row, column) for row, found in LOSSES.items() for column in found}
    assert {cell.seeds for cell in first} == {TUNING_SEEDS}


def test_the_second_part_is_what_claims_compare_and_the_other_controls(
    cells: list[Cell], results: Path
) -> None:
    tune(results)
    second = claimed_part(cells, results, TABLE)
    assert places(second) == {
        ("2-bit STE", "lr=0.001"), ("2-bit STE", "lr=0.0005"), ("2-bit FOGZO", "1-beta=1e-08"),
        ("2-bit FOGZO, random sign", "1-beta=1e-08"), ("2-bit STE, equal cost", "-"),
        ("Full precision", "-"),
    }  # fmt: skip
    assert {cell.seeds for cell in second} == {EVALUATION}


def test_nothing_is_chosen_before_the_sweep_is_complete(cells: list[Cell], results: Path) -> None:
    tune(results, leave_out="1-beta=1e-10")
    with pytest.raises(UserError, match="2bit-better is not complete; run the same command again"):
        claimed_part(cells, results, TABLE)


def test_claims_about_cells_that_were_not_asked_for_are_left_aside(
    cells: list[Cell], results: Path
) -> None:
    alone = [cell for cell in cells if cell.config.cell.row == "Full precision"]
    assert places(claimed_part(alone, results, TABLE)) == {("Full precision", "-")}
