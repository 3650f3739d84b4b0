"""The networks that the missing runs of mini-finetune begin with."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fogzo_repro.config import RunConfig
from fogzo_repro.sweeps.status import runs_of
from scripts import finetune_starts
from scripts.table_cells import table_cells

CELLS = table_cells("mini-finetune", [])


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[RunConfig]:
    """The runs that are trained, in an empty folder; none takes any time."""
    found: list[RunConfig] = []

    def run_one(config: RunConfig, *_: Any) -> int:
        Path(config.output_root).mkdir(exist_ok=True)
        found.append(config)
        return 0

    def make_plan(config: RunConfig) -> SimpleNamespace:
        return SimpleNamespace(folder=Path(config.output_root, "net-s0-a"))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finetune_starts, "run_one", run_one)
    monkeypatch.setattr(finetune_starts, "make_plan", make_plan)
    monkeypatch.setattr(finetune_starts, "known_runs", lambda *_: {})
    return found


def start(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["finetune_starts", *words, "hardware=cpu"])
    return finetune_starts.main()


def test_each_start_of_the_table_is_trained_once_and_linked(
    trained: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(monkeypatch, "mini-finetune") == 0
    links = {str(path): os.readlink(path) for path in Path("runs").iterdir()}
    assert links == {str(cell.config.recipe.start_from): "net-s0-a" for cell in CELLS}
    plain, tuning = trained
    assert (plain.seed, plain.cell.table, tuning.seed) == (0, "mini-resnet18", 100)
    assert tuning.dataset.held_out == 5000
    assert {config.quantizer.name for config in trained} == {"none"}
    assert start(monkeypatch, "mini-finetune") == 0 and len(trained) == 4  # the links are broken
    Path("runs/net-s0-a").mkdir()
    assert start(monkeypatch, "mini-finetune") == 0 and len(trained) == 4


def test_a_network_with_which_no_missing_run_begins_is_not_trained(
    trained: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    over = {
        run: "done"
        for cell in CELLS
        if not cell.config.dataset.held_out
        for run in runs_of(cell.config.cell, cell.config.scale, cell.seeds)
    }
    monkeypatch.setattr(finetune_starts, "known_runs", lambda *_: over)
    assert start(monkeypatch, "mini-finetune") == 0
    assert [config.dataset.held_out for config in trained] == [5000]
    assert start(monkeypatch, "mini-finetune/lsq-*") == 0 and len(trained) == 1


def test_a_dry_run_says_which_and_trains_none(
    trained: list[RunConfig], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(monkeypatch, "mini-finetune/sweep-*", "--dry-run") == 0
    said = "make mini-finetune trains runs/full-precision-tuning first: 60 epochs\n"
    assert capsys.readouterr().out == said and not trained


def test_a_network_that_was_not_trained_ends_it(
    trained: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finetune_starts, "run_one", lambda *_: 3)
    assert start(monkeypatch, "mini-finetune") == 3 and not Path("runs").exists()


def test_the_links_lead_to_runs_that_are_kept_elsewhere(
    trained: list[RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(monkeypatch, "mini-finetune", "output_root=mine") == 0
    Path("mine/net-s0-a").mkdir()
    assert Path("runs/full-precision").samefile("mine/net-s0-a")


@pytest.mark.parametrize("word", ["dry_run=true", "seed=3", "--bogus"])
def test_words_that_are_no_settings_of_all_runs_are_refused(
    trained: list[RunConfig],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    word: str,
) -> None:
    assert start(monkeypatch, "mini-finetune", word) == 2 and not trained
    assert capsys.readouterr().err.startswith(f"error: {word} ")
