"""scripts/run_cells.py: what a table is, and a queue that is interrupted and goes on."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro.reporting.minis import FINETUNED
from fogzo_repro.reporting.minis import TITLES as MINIS
from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps.jobs import Cell
from scripts import run_cells
from tests.forked import finish, launch, python

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "run_cells.py"
TABLE = "figure-shallow"


@pytest.fixture(scope="module")
def cells() -> dict[tuple[str, str], Cell]:
    return {cell.place: cell for cell in run_cells.table_cells(TABLE, [])}


@pytest.mark.slow
def test_every_cell_reports_on_fresh_seeds_as_many_as_its_cost_allows(
    cells: dict[tuple[str, str], Cell],
) -> None:
    for (row, column), cell in cells.items():
        seeds = [s for s in cell.seeds if s not in TUNING_SEEDS]
        pairs = getattr(cell.config.estimator, "n", 0)
        many = 500 if pairs < 10 else 100 if pairs <= 100 else 60
        if "lr=" in column and column != "lr=0.032":
            many = 0  # what such a sweep chooses is run on the seeds that `make` gives
        if "sign" in row or row == "Full precision":
            many = 100
        first_look = "n=100, integer" in row and column in (
            "1-beta=0.334",
            "1-beta=0.1",
            "1-beta=1e-06",
        )
        assert seeds == (
            [*range(10)] if first_look and "FOGZO" in row else [*range(2000, 2000 + many)]
        )


@pytest.mark.slow
def test_both_sides_and_the_control_at_equal_cost_are_tuned_over_one_grid_of_rates(
    cells: dict[tuple[str, str], Cell],
) -> None:
    tuned: dict[str, set[float]] = {}
    for (row, _), cell in cells.items():
        if set(TUNING_SEEDS) <= set(cell.seeds):
            tuned.setdefault(row, set()).add(cell.config.recipe.lr)
    for grid in ("half_integer", "integer"):
        ste, cost, fogzo = (
            tuned[f"{row}, {grid} grid"] for row in ("STE", "STE, equal cost", "FOGZO n=1")
        )
        assert ste == cost == fogzo and len(ste) == 8


@pytest.mark.slow
def test_every_cell_is_what_its_label_says(cells: dict[tuple[str, str], Cell]) -> None:
    for (row, column), cell in cells.items():
        config = cell.config
        assert config.dataset.name == "mnist" and config.recipe.global_batch_size == 512
        assert (config.quantizer.name == "none") == (row == "Full precision")
        assert getattr(config.estimator, "random_sign", False) == ("random sign" in row)
        if "n=" in row:
            assert f"n={config.estimator.n}" in row
        given = dict(part.split("=") for part in column.split(", ") if "=" in part)
        if "1-beta" in given:
            assert config.estimator.noise == float(given["1-beta"])
            assert config.estimator.beta_schedule == "constant"
        assert config.recipe.lr == float(given.get("lr", 0.032))
        if row != "Full precision":
            assert row.endswith(f", {config.quantizer.grid} grid")
            assert (config.quantizer.clip_gradient, config.quantizer.scale_factor) == (False, 1.0)


def test_a_pattern_takes_a_part_of_a_table() -> None:
    found = run_cells.table_cells("table4/lsq-[!f]*", [])
    assert [cell.config.cell.column for cell in found] == ["LSQ-STE, 3.522B tokens"]


BAD = {
    "table": (["figure-deep"], "figure-deep is not a table; tables: figure-shallow, "),
    "file": ([f"{TABLE}/stee"], "figure-shallow.yaml has no cell stee; did you mean ste?"),
    "seeds": ([TABLE, "--seeds", "0,x"], "--seeds=0,x is not a list of numbers"),
    "tuning seed": ([TABLE, "--seeds", "0,100"], "100 is a tuning seed"),
    "option": ([TABLE, "--wrokers", "2"], "--wrokers is neither an option nor an override"),
    "override": ([f"{TABLE}/ste", "recipe.rl=1"], "rl"),
    "seed": ([f"{TABLE}/ste", "seed=3"], "give --seeds 3"),
    "dry run": ([f"{TABLE}/ste", "dry_run=true"], "give --dry-run"),
    "two values": (
        [f"{TABLE}/ste", "recipe.lr=1", "recipe.lr=2"],
        "recipe.lr=1 and recipe.lr=2 are given together; give one",
    ),
    "card": ([f"{TABLE}/ste", "--gpus", "0,99"], "there is no card"),
    "C4": (["table4/lsq-ste", "data_dir=/nowhere", "hardware=cpu"], "prepare_c4.py --source hub"),
    "ImageNet": (
        ["table1/resnet18-tanh-ste", "data_dir=/nowhere", "hardware=cpu"],
        "prepare_imagenet.py",
    ),
}


@pytest.mark.parametrize(
    ("cell", "cores", "workers"),
    [
        ("figure-shallow/full-precision", 4, 4),
        ("figure-shallow/full-precision", 64, 8),
        ("mini-deit-tiny/round-ste", 4, 2),
    ],
)
def test_on_a_cpu_a_run_of_the_mlp_has_one_core(
    cell: str, cores: int, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    (first, *_) = run_cells.table_cells(cell, ["hardware=cpu"])
    assert run_cells.default_workers(first.config, []) == workers


@pytest.mark.parametrize(
    ("visible", "count", "asked", "names"),
    [(None, 1, "0", ["0"]), ("", 1, "0", ["0"]), ("5", 1, "0", ["5"]), ("2,3", 2, "1", ["3"])],
    ids=str,
)
def test_a_worker_sees_the_card_that_it_was_dealt(monkeypatch, visible, count, asked, names):
    """With one card and no CUDA_VISIBLE_DEVICES its name was empty, which hides the card."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert run_cells.visible_gpus(asked) == names


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD)
def test_bad_input_is_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["run_cells.py", *arguments])
    assert run_cells.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said and said.count("\n") == 1


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("target", ["table4", "figure-shallow"], ids=str)
def test_after_an_error_make_says_nothing_more(target: str) -> None:
    binaries = Path(sys.executable).parent
    command = ["make", "-o", ".venv/installed", f"BIN={binaries}", target, "SEEDS=x"]
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=outside)
    first, *rest = done.stderr.splitlines()
    assert first.startswith("error: --seeds=x is not a list of numbers, as 0,1,2 or 0..4: x is")
    assert done.returncode == 2 and done.stdout == ""
    assert all(line.startswith("make") for line in rest)


PRETENDED = """#!/bin/sh
echo "$*" >>called
case "$1" in scripts/finetune_starts.py) exit $TRAINED;; esac
"""


def pretend_to_make(
    folder: Path, *words: str, trained: str = "0"
) -> tuple[int, list[list[str]], str]:
    """Have make call something else than Python; return its status, what it called and its last."""
    for name, text in {"python": PRETENDED, "requirements.lock": ""}.items():
        (folder / name).write_text(text)
    (folder / "python").chmod(0o755)
    command = ["make", "-f", str(ROOT / "Makefile"), "-o", ".venv/installed", "BIN=.", *words]
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    outside |= {"TRAINED": trained}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=outside)
    called = [line.split() for line in (folder / "called").read_text().splitlines()]
    return done.returncode, called, (done.stdout.splitlines() or [""])[-1]


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_trains_what_mini_finetune_begins_with_and_runs_it(tmp_path: Path) -> None:
    words = ["mini-finetune", "HARDWARE=cpu", "PART=sweep-*"]
    status, called, _ = pretend_to_make(tmp_path, *words)
    same = ["mini-finetune/sweep-*", "hardware=cpu"]
    first, cells = ["scripts/finetune_starts.py", *same], ["scripts/run_cells.py", *same]
    assert (status, called) == (0, [first, cells, ["scripts/make_tables.py"]])
    (tmp_path / "called").unlink()
    status, called, _ = pretend_to_make(tmp_path, *words, "DRY_RUN=1")
    assert (status, called) == (0, [[*first, "--dry-run"], [*cells, "--dry-run"]])
    (tmp_path / "called").unlink()
    status, called, _ = pretend_to_make(tmp_path, *words, trained="75")
    assert status != 0 and called == [first]


def finetuned(*words: str) -> list[str]:
    """Return the command of two cells whose runs all have a record, of a GPU."""
    return [str(SCRIPT), "mini-finetune/lsq-*", "hardware=h200", "output_root=runs", *words]


@pytest.mark.slow
def test_what_is_over_needs_no_network_to_begin_with(tmp_path: Path) -> None:
    """The dry run names one where a run is missing alone, as does an error of the run."""
    begins = "missing on this machine: recipe.start_from=runs/full-precision, with which 5 of the"
    records = ["--records", str(ROOT / "results" / "records")]
    done = python(*finetuned(*records), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 cells, 20 runs, 20 over, 0 to run\n" in done.stderr
    assert "recipe.start_from=runs/full-precision is not here: cells" in done.stderr
    assert begins not in python(*finetuned(*records, "--dry-run"), cwd=tmp_path).stdout
    kept = tmp_path / "results" / "records"
    shutil.copytree(ROOT / "results" / "records" / "mini-finetune", kept / "mini-finetune")
    for path in (kept / "mini-finetune").glob("*.json"):
        if json.loads(path.read_text())["column"] == "STE":
            path.unlink()
    more = ["--records", str(kept)]
    assert begins in python(*finetuned(*more, "--dry-run"), cwd=tmp_path).stdout


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
@pytest.mark.parametrize("words", [["DRY_RUN=1"], ["SCALE=smoke"], []], ids=str)
def test_make_minis_says_which_mini_it_leaves_out(tmp_path: Path, words: list[str]) -> None:
    status, called, last = pretend_to_make(tmp_path, "minis", *words)
    assert status == 0 and last.startswith("left out: ") and last.endswith(": make mini-finetune")
    assert {*MINIS, *FINETUNED} == {
        *(t for t in MINIS if any(t in " ".join(c) for c in called)), last.split()[-1]
    }  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_queue_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    command = [
        SCRIPT, f"{TABLE}/full-precision", "--seeds", "0,1", "--workers", "1",
        "--records", tmp_path / "records", "dataset=digits", "recipe=digits_mlp",
        "recipe.max_steps=1500", "hardware=cpu", f"output_root={tmp_path / 'runs'}",
        "recipe.clip_norm=1e9",  # lanes have no clipping: these runs go through the queue
    ]  # fmt: skip
    err = tmp_path / "err"
    pid = launch(command, ROOT, tmp_path / "out", err)
    deadline = time.monotonic() + 300
    while not list(tmp_path.glob("runs/*/timing.jsonl")):
        assert os.waitpid(pid, os.WNOHANG) == (0, 0) and time.monotonic() < deadline
        time.sleep(0.02)
    sent = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    status, said = finish(pid), err.read_text()
    assert status == 75 and time.monotonic() < sent + 5, said
    assert "0 finished, 0 diverged, 0 failed, 2 not run" in said
    assert "run the same command again" in said
    (stopped,) = tmp_path.glob("runs/mlp-*")
    assert list(stopped.glob("checkpoint-*.json"))
    assert not (stopped / "record.json").exists()

    again = python(*command)
    assert again.returncode == 0, again.stderr
    assert "2 finished, 0 diverged, 0 failed, 0 not run" in again.stderr
    assert "resumed after step" in (stopped / "log.txt").read_text()
    records = [json.loads(p.read_text()) for p in (tmp_path / "records" / TABLE).glob("*.json")]
    assert sorted(r["seed"] for r in records) == [0, 1]
    assert {(r["row"], r["steps"]) for r in records} == {("Full precision", 1500)}


@pytest.mark.slow
def test_runs_side_by_side_go_on_with_the_cells_that_are_missing(tmp_path: Path) -> None:
    command = [
        SCRIPT, f"{TABLE}/random-sign", "--seeds", "0..2", "--records", tmp_path / "records",
        "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=3", "hardware=cpu",
        f"output_root={tmp_path / 'runs'}", "quantizer.grid=integer",
    ]  # fmt: skip
    first = python(*command, "estimator.noise=1e-4")
    assert first.returncode == 0, first.stderr
    assert "1 cells, 3 runs, 0 over, 3 to run, 3 of them side by side" in first.stderr
    whole = python(*command)
    assert whole.returncode == 0, whole.stderr
    assert "6 cells, 18 runs, 3 over, 15 to run" in whole.stderr
    assert "15 finished, 0 diverged, 0 failed, 0 not run" in whole.stderr
    again = python(*command)
    assert "6 cells, 18 runs, 18 over, 0 to run\n" in again.stderr
    assert len(list((tmp_path / "records" / TABLE).glob("*-3seeds-*.json"))) == 6
    assert not list((tmp_path / "runs").glob("*/*.json"))

    fewer = [*command, "estimator.noise=1e-4"]
    fewer[fewer.index("recipe.max_steps=3")] = "recipe.max_steps=2"
    other = python(*fewer)
    assert "3 of the missing runs have a record of other settings, or of other" in other.stderr

    for path in (tmp_path / "records" / TABLE).glob("*.json"):
        path.write_text(path.read_text().replace('"device": "cpu"', '"device": "cuda"'))
    other = python(*fewer)
    assert "3 of the missing runs have a record of a GPU: on the CPU, which" in other.stderr
    assert other.stderr.count("not filed: ") == 1


@pytest.mark.slow
def test_runs_that_diverged_before_are_told_and_are_no_failure(tmp_path: Path) -> None:
    command = [
        SCRIPT, f"{TABLE}/full-precision", "--seeds", "0..1", "--records", tmp_path / "records",
        "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=3", "hardware=cpu",
        f"output_root={tmp_path / 'runs'}",
    ]  # fmt: skip
    first, again = (python(*command, "recipe.lr=1e38") for _ in range(2))
    assert first.returncode == 3 and "0 finished, 2 diverged" in first.stderr
    assert again.returncode == 0, again.stderr
    assert "2 over, 0 to run" in again.stderr
    assert again.stderr.endswith("of the runs that were over before, 2 diverged\n")
    assert "diverged\n" not in python(*command).stderr  # other runs, beside which they do not count


@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_a_dry_run_at_smoke_is_refused_and_trains_nothing() -> None:
    words = ["make", "minis", "SCALE=smoke", "DRY_RUN=1"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "leave out SCALE=smoke or DRY_RUN=1" in done.stderr


def test_a_place_that_takes_no_records_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    (tmp_path / "records").write_text("a file where the folder of records should be")
    done = python(
        SCRIPT, "figure-shallow/full-precision", "dataset=digits", "recipe=digits_mlp",
        "recipe.max_steps=5", "recipe.clip_norm=1e9", "hardware=cpu", "--seeds", "0",
        "--records", tmp_path / "records", f"output_root={tmp_path}/runs",
    )  # fmt: skip
    assert done.returncode == 2
    assert f"error: {tmp_path}/records/figure-shallow is not writable" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("later", "status"), [(0, 3), (1, 1), (75, 75)])
def test_with_claims_a_failure_stands_before_what_diverged_in_the_tuning(
    monkeypatch: pytest.MonkeyPatch, later: int, status: int
) -> None:
    ends = iter([3, later])
    monkeypatch.setattr(run_cells, "run_table", lambda *_: next(ends))
    some: Any = ["a cell"]
    assert run_cells.run_tuned(argparse.Namespace(), some, lambda: some) == status
