"""Cells that train side by side: which, in what memory, and what is kept of them."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from fogzo_repro import files, run
from fogzo_repro.config import RunConfig
from fogzo_repro.data import digits
from fogzo_repro.sweeps import side_by_side
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.lanes import LaneCell, group_key, groups, plan_lanes
from fogzo_repro.sweeps.queue import Outcome
from fogzo_repro.sweeps.side_by_side import memory_of, parts, train_lanes
from fogzo_repro.tracking.records import read_runs
from fogzo_repro.training.lanes import Lanes
from fogzo_repro.training.machine import resolve_machine
from tests.live_bytes import peak_bytes

Make = Callable[..., RunConfig]
FOGZO = ("estimator=fogzo", "estimator.noise=1e-4")


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        (*FOGZO, "recipe.lr=0.008"), ("estimator=fogzo", "estimator.noise=0.1"),
        (*FOGZO, "estimator.random_sign=true"), ("estimator=nspsa",), (*FOGZO, "seed=9"),
        (*FOGZO, "cell.column=other"), (*FOGZO, "quantizer.scale_factor=2.0"),
        ("estimator=fogzo", "estimator.rho=0.1"),
    ],
    ids=lambda settings: settings[-1],
)  # fmt: skip
def test_runs_that_differ_in_numbers_train_together(
    make_config: Make, other: tuple[str, ...]
) -> None:
    key = group_key(make_config(*FOGZO))
    assert key is not None and group_key(make_config(*other)) == key


@pytest.mark.slow
@pytest.mark.parametrize(
    "other",
    [
        ("estimator.n=10",), ("quantizer.grid=integer",), ("recipe.max_steps=9",),
        ("recipe.weight_decay=0.1",), ("estimator.start_fraction=0.5",), ("quantizer=sign",),
        ("quantizer.clip_gradient=true",), ("dataset=mnist",),
    ],
    ids=lambda settings: settings[0],
)  # fmt: skip
def test_runs_that_differ_in_kind_do_not(make_config: Make, other: tuple[str]) -> None:
    here, there = group_key(make_config(*FOGZO)), group_key(make_config(*FOGZO, *other))
    assert here is not None and there is not None and here != there


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("estimator=nspsa", "estimator.n=1990"), ("estimator.evaluator=sequential",),
        ("estimator.probe_fraction=0.5",), ("quantizer=lsq",), ("recipe.clip_norm=1.0",),
        ("scale=smoke",), ("model.first_last=[fc2]",), ("recipe.optimizer=sgd",),
        ("model=resnet18", "dataset=digits", "recipe=digits_mlp"),
    ],
    ids=lambda settings: settings[-1],
)  # fmt: skip
def test_other_runs_train_alone(make_config: Make, settings: tuple[str, ...]) -> None:
    assert group_key(make_config(*settings)) is None


def test_a_part_keeps_to_the_budget_and_no_lane_is_forgotten() -> None:
    for budget in (100, 1000, 10_000):
        seen = []
        for cells, seeds in parts(7, 20, budget, seed=10, lane=40):
            inside = [(c, s) for c in range(7)[cells] for s in range(20)[seeds]]
            many = len(range(20)[seeds])
            assert many * 10 + len(inside) * 40 <= budget or len(inside) == 1
            seen += inside
        assert sorted(seen) == [(c, s) for c in range(7) for s in range(20)]
    assert len(list(parts(7, 20, 10_000, seed=10, lane=40))) == 1
    assert len(list(parts(7, 20, 1, seed=10, lane=40))) == 140


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "cells", "seeds"),
    [
        (("estimator=ste",), 6, 3), (FOGZO, 6, 3), ((*FOGZO, "estimator.n=10"), 3, 2),
        ((*FOGZO, "estimator.n=60"), 2, 1), ((*FOGZO, "quantizer=sign"), 4, 3),
    ],
    ids=["ste", "n1", "n10", "n60", "sign"],
)  # fmt: skip
def test_lanes_take_the_memory_that_is_said(
    make_config: Make, settings: tuple[str, ...], cells: int, seeds: int
) -> None:
    config = make_config(*settings, "recipe.global_batch_size=512", "recipe.max_steps=2")
    images = digits.read()
    table = 2 * 4 * images.train.pixels.numel()  # inputs and pixels, beside the budget
    seed, lane = memory_of(config, 784, 10, 2, on_gpu=False)
    said = seeds * (seed + cells * lane)
    peak = peak_bytes(lambda: Lanes([config] * cells, range(seeds), images).run()) - table
    assert said / 3 < peak <= said


def train(cells: list[Cell], records: Path, **options: Any) -> tuple[Outcome, list[LaneCell]]:
    planned = plan_lanes(cells, records)
    said: list[str] = []
    outcome = train_lanes(planned, records, said.append, options.get("deadline", math.inf))
    assert not said
    return outcome, planned


def losses(records: Path) -> dict[tuple[str, int], float]:
    runs = [run for path in (records / "miniature").glob("*.json") for run in read_runs(path)]
    return {(r["column"], r["seed"]): r["metrics"]["last"]["train"]["loss"] for r in runs}


def test_a_group_leaves_a_record_a_cell_and_is_then_over(make_config: Make, tmp_path: Path) -> None:
    configs = [
        make_config(*FOGZO, f"recipe.lr={lr}", f"cell.column=at-{lr}") for lr in (0.004, 0.02)
    ]
    cells = [Cell(config, (0, 5)) for config in configs]
    outcome, _ = train(cells, tmp_path)
    assert len(outcome.finished) == 4 and not outcome.interrupted
    paths = sorted((tmp_path / "miniature").glob("*.json"))
    assert len(paths) == 2 and not list((tmp_path / "runs").glob("*/*.json"))
    record = json.loads(paths[0].read_text())
    assert record["resolved"]["evaluator"] == "lanes" and "seed" not in record["config"]
    assert (record["lanes"], record["steps"], record["perturbed_weights"]) == (4, 5, 7940)
    assert record["run_id"] == paths[0].stem and "-2seeds-" in paths[0].stem

    lanes = Lanes(configs, (0, 5), digits.read())
    lanes.run()
    expected = lanes.evaluate(2000)["train"]["loss"]
    found = losses(tmp_path)
    for s, seed in enumerate((0, 5)):
        for c, column in enumerate(("at-0.004", "at-0.02")):
            assert found[column, seed] == pytest.approx(expected[s, c].item(), abs=2e-6)

    assert groups(plan_lanes(cells, tmp_path)) == []
    more = [Cell(config, (0, 5, 6)) for config in configs]
    outcome, planned = train(more, tmp_path)
    assert [cell.seeds for cell in planned] == [(6,)] * 2
    assert len(losses(tmp_path)) == 6 and len(outcome.finished) == 2


def test_a_seed_with_a_record_of_its_own_is_not_trained_again(
    make_config: Make, tmp_path: Path
) -> None:
    config = make_config("estimator=ste")
    record = run.execute(config, quiet=True)
    (tmp_path / "miniature").mkdir()
    (tmp_path / "miniature" / f"{record['run_id']}.json").write_text(json.dumps(record))
    (planned,) = plan_lanes([Cell(config, (0, 1))], tmp_path)
    assert planned.seeds == (1,)
    (forced,) = plan_lanes([Cell(replace(config, force=True), (0, 1))], tmp_path)
    assert forced.seeds == (0, 1)


def test_cells_that_another_process_trains_are_left_to_it(
    make_config: Make, tmp_path: Path
) -> None:
    cells = [Cell(make_config("estimator=ste", f"cell.column={c}"), (0,)) for c in "ab"]
    cells.append(Cell(make_config(*FOGZO), (0,)))
    (held, _, _) = planned = plan_lanes(cells, tmp_path)
    lock = Path(held.config.output_root) / "lanes" / f"{held.run_id}.lock"
    lock.parent.mkdir(parents=True)
    with files.locked(lock, "the cell"):
        outcome = train_lanes(planned, tmp_path, pytest.fail, math.inf)
    assert [job.run_id for job in outcome.finished] == [planned[2].run_id]
    assert {why for _, why in outcome.elsewhere} == {
        "another process has it; once that has ended, run the same command again to go on"
    }
    assert len(losses(tmp_path)) == 1


def test_what_another_process_has_filed_meanwhile_is_not_trained_again(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell(make_config("estimator=ste"), (0,))]
    planned = plan_lanes(cells, tmp_path)
    train(cells, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.json")}
    outcome = train_lanes(planned, tmp_path, pytest.fail, math.inf)
    assert len(outcome.finished) == 1
    assert before and before == {path: path.read_bytes() for path in tmp_path.rglob("*.json")}


def test_the_records_of_a_group_share_out_the_hours_of_its_card(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [
        Cell(make_config(*FOGZO, f"recipe.lr={lr}", f"cell.column=at-{lr}"), (0, 5, 6))
        for lr in (0.004, 0.02)
    ]
    (group,) = groups(plan_lanes(cells, tmp_path))
    assert [record["gpu_hours"] for record in side_by_side.train_group(group)] == [0.0, 0.0]

    lanes = side_by_side._columns(
        [cell.config for cell in group], (0, 5, 6), digits.read(), resolve_machine(group[0].config),
        0, lambda done: None,
    )  # fmt: skip
    card = SimpleNamespace(device=torch.device("cuda"), card="a card", peak_memory_mb=lambda: 1.0)
    task = SimpleNamespace(images=digits.read(), load=lambda device: None)
    clock = iter([1000.0, 1000.0 + 3 * 3600])
    monkeypatch.setattr(side_by_side, "resolve_machine", lambda config: card)
    monkeypatch.setattr(side_by_side, "build_task", lambda config: task)
    monkeypatch.setattr(side_by_side, "_columns", lambda *given: lanes)
    monkeypatch.setattr(side_by_side, "RunProgress", MagicMock())
    monkeypatch.setattr(side_by_side.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    records = side_by_side.train_group(group)
    assert [record["gpu_hours"] for record in records] == [1.5, 1.5]
    assert [record["wall_seconds"] for record in records] == [3 * 3600.0] * 2


def test_parts_change_nothing(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = [Cell(make_config(*FOGZO, f"recipe.lr={lr}", f"cell.column=at-{lr}"), (0, 5, 6))
             for lr in (0.004, 0.02)]  # fmt: skip
    train(cells, tmp_path / "whole")
    monkeypatch.setattr(side_by_side, "memory_of", lambda *_: (0, 2**40))
    train(cells, tmp_path / "lane-by-lane")
    whole, alone = losses(tmp_path / "whole"), losses(tmp_path / "lane-by-lane")
    assert len(whole) == 6 and len({round(x, 4) for x in whole.values()}) == 6
    assert alone == pytest.approx(whole, abs=1e-4)


def test_a_diverged_lane_is_recorded_with_its_reason(make_config: Make, tmp_path: Path) -> None:
    config = make_config("estimator=ste", "recipe.lr=1e37")
    outcome, _ = train([Cell(config, (0, 1))], tmp_path)
    assert [why for _, why in outcome.diverged] == [
        "after step 1: loss, gradient or ten probes in a row not finite; stopped before the update"
    ] * 2
    (path,) = (tmp_path / "miniature").glob("*.json")
    assert json.loads(path.read_text())["metrics"]["test"]["loss"] == [None, None]
    assert [run["status"] for run in read_runs(path)] == ["diverged"] * 2


def test_what_is_interrupted_leaves_nothing_and_what_is_over_stays(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([*[0.0] * 400, *[math.inf] * 10_000])
    monkeypatch.setattr("fogzo_repro.sweeps.side_by_side.time.monotonic", lambda: next(clock))
    cells = [
        Cell(make_config("estimator=ste"), (0,)),
        Cell(make_config("estimator=ste", "recipe.max_steps=3000", "cell.column=long"), (0,)),
    ]
    outcome, _ = train(cells, tmp_path, deadline=1.0)
    assert outcome.interrupted and len(outcome.finished) == 1
    assert {column for column, _ in losses(tmp_path)} == {"-"}


def test_a_signal_in_their_evaluation_is_heard(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = Lanes.evaluate

    def evaluate(lanes: Lanes, *arguments: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return usual(lanes, *arguments)

    monkeypatch.setattr(Lanes, "evaluate", evaluate)
    outcome, _ = train([Cell(make_config("estimator=ste"), (0,))], tmp_path)
    assert outcome.interrupted and not outcome.finished and not losses(tmp_path)


ON_TOP = 2**28  # bytes; 0.23e9 were seen on an H200, the same for n = 0 and n = 10


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("n", [0, 1, 10, 100])
def test_lanes_on_a_card_take_the_memory_that_is_said(make_config: Make, n: int) -> None:
    settings = ["estimator=ste"] if n == 0 else [*FOGZO, f"estimator.n={n}"]
    common = ["hardware=auto", "recipe.global_batch_size=512", "recipe.max_steps=2"]
    config = make_config(*settings, *common)
    images = digits.read().to(torch.device("cuda"))
    seed, lane = memory_of(config, 784, 10, 2, on_gpu=True)
    cells, seeds = (6, 40) if n < 10 else (6, 4)
    Lanes([config], range(2), images, compile=True).run()  # libraries, compilation
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    Lanes([config] * cells, range(seeds), images, compile=True).run()
    table = (2 + 4) * images.train.pixels.numel()
    peak = torch.cuda.max_memory_allocated() - before - table
    said = seeds * (seed + cells * lane)
    assert said / 4 < peak <= said + ON_TOP
