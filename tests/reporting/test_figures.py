"""Curves, sweeps and time of Tables 1 to 4: from records alone, and only where there are any."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro.reporting.figures.curves import write_curves
from fogzo_repro.reporting.figures.minis import Gain, gain_looks
from fogzo_repro.reporting.figures.panels import looks, panels
from fogzo_repro.reporting.figures.sweeps import write_sweeps
from fogzo_repro.reporting.figures.time import write_time
from fogzo_repro.reporting.minis import TITLES
from fogzo_repro.reporting.results import TableResults, read_results
from tests.reporting.conftest import Save, read_csv

Draw = Callable[[Path, TableResults], bool]
STE, FOGZO = "LSQ-STE, 3.522B tokens", "70% STE + 30% FOGZO, 3.0B tokens"
ROOT = Path(__file__).resolve().parents[2]
SWEEP = "30M: 70% STE + 30% FOGZO"


@pytest.fixture
def save_run(save: Save) -> Save:
    """Write a record of Table 4 with a history of three steps."""

    def write(column: str, seed: int, value: float, row: str = "30M", **changes: Any) -> Any:
        losses = {"train": {"loss": value / 10}, "val": {"loss": 3.0, "perplexity": value}}
        history = {"step": [10.0, 20.0, 30.0], "loss": [9.0, value / 5, value / 10]}
        made = {
            "table": "table4", "metrics": {"last": losses, "best": {}}, "history": history,
            "hardware": "NVIDIA H200", "wall_seconds": 7200.0, "perturbed_weights": 1000,
        }  # fmt: skip
        return save(row, column, seed, 0.0, **made | changes)

    return write


def drawn(draw: Draw, results: Path) -> list[dict[str, str]]:
    """Draw Table 4 at full scale; return what the CSV holds."""
    assert draw(results / "figures" / "t", read_results(results, "table4"))
    (image,) = (results / "figures").glob("*.png")
    return read_csv(image.with_suffix(".csv"))


@pytest.mark.parametrize("draw", [write_curves, write_sweeps, write_time], ids=lambda d: d.__name__)
def test_without_records_nothing_is_drawn(results: Path, draw: Draw) -> None:
    assert not draw(results / "figures" / "t", read_results(results, "table4"))
    assert not (results / "figures").exists()


@pytest.mark.slow
@pytest.mark.parametrize("draw", [write_curves, write_sweeps, write_time], ids=lambda d: d.__name__)
def test_the_same_records_give_the_same_bytes(results: Path, save_run: Save, draw: Draw) -> None:
    for seed in (0, 1):
        save_run(STE, seed, 40.0 + seed)
        save_run(FOGZO, seed, 39.0 + seed)
    save_run("1-beta=1e-08", 100, 38.0, SWEEP)
    found = read_results(results, "table4")
    for name in ("one", "two"):
        assert draw(results / name / "t", found)
    files = sorted((results / "one").iterdir())
    assert [f.suffix for f in files] == [".csv", ".png"]
    assert all(f.read_bytes() == (results / "two" / f.name).read_bytes() for f in files)


@pytest.mark.slow
def test_a_curve_is_the_mean_of_the_histories_on_evaluation_seeds(
    results: Path, save_run: Save
) -> None:
    save_run(STE, 0, 40.0)
    save_run(STE, 1, 42.0)
    save_run(STE, 100, 90.0)
    points = drawn(write_curves, results)
    assert [(p["step"], p["n"]) for p in points] == [("10.0", "2"), ("20.0", "2"), ("30.0", "2")]
    assert [float(p["mean"]) for p in points] == pytest.approx([9.0, 8.2, 4.1])


def test_a_record_without_a_history_has_no_curve(results: Path, save_run: Save) -> None:
    save_run(STE, 0, 40.0, history=None)
    assert not write_curves(results / "figures" / "t", read_results(results, "table4"))


def test_a_bin_without_a_loss_is_left_out(results: Path, save_run: Save) -> None:
    save_run(STE, 0, 40.0, history={"step": [1.0, 2.0], "loss": [None, 5.0]})
    assert [p["step"] for p in drawn(write_curves, results)] == ["2.0"]


def test_full_precision_stands_in_the_other_panels_and_lookalikes_are_left_out(
    results: Path, save_run: Save
) -> None:
    table = {"table": "mini-llama", "scale": "mini"}
    rows = "LSQ, 2 bits and inputs", "sign, hardtanh"
    for row in rows:
        for column in ("STE", "FOGZO", "FOGZO, probes=0.25, start=0.0"):
            save_run(column, 0, 40.0, row, **table)
    save_run("-", 0, 30.0, "full precision", **table)
    assert write_curves(results / "figures" / "t", read_results(results, "mini-llama"))
    found = {(p["panel"], p["method"]) for p in read_csv(results / "figures" / "t.csv")}
    assert found == {(row, method) for row in rows for method in ("STE", "FOGZO", "full precision")}


def test_time_stands_against_the_papers_metric_at_full_scale(results: Path, save_run: Save) -> None:
    save_run(STE, 0, 40.0)
    save_run("full precision", 0, 20.0)  # is not compared
    assert not write_time(results / "figures" / "t", read_results(results, "table4"))
    save_run(FOGZO, 0, 39.0)
    point, _ = drawn(write_time, results)
    assert (point["metric"], point["mean"], point["hours"]) == ("perplexity", "40.0", "2.0")
    save_run(FOGZO, 0, 39.0, notes="shared its card with two others")  # its time says nothing
    assert not write_time(results / "figures" / "t", read_results(results, "table4"))


def test_a_sweep_shows_the_tuning_seeds_and_what_they_chose(results: Path, save_run: Save) -> None:
    for column, value in (("1-beta=1e-08", 38.0), ("1-beta=1e-09", 37.0)):
        save_run(column, 100, value, SWEEP)
        save_run(column, 0, 90.0, SWEEP)
    points = drawn(write_sweeps, results)
    found = {float(p["value"]): (float(p["mean"]), p["chosen"]) for p in points}
    assert found == {1e-8: (3.8, "False"), 1e-9: (3.7, "True")}


def test_a_diverged_run_is_in_no_panel(results: Path, save_run: Save) -> None:
    save_run(STE, 0, 40.0, status="diverged", metrics={})
    assert panels(read_results(results, "table4")) == {}


@pytest.mark.parametrize(
    "names",
    [
        ["identity STE", "identity FOGZO", "tanh STE", "tanh FOGZO", "identity STE, equal cost"],
        ["QuEST", "QuEST-FOGZO, random sign", "LSQ", "LSQ-FOGZO, random sign", "full precision"],
        [STE, FOGZO, "LSQ-STE, equal cost", "70% STE + 30% FOGZO, random sign"],
    ],
    ids=["table1", "table3", "table4"],
)
def test_no_two_methods_of_a_figure_look_alike(names: list[str]) -> None:
    styles = [(look["color"], look["marker"]) for look in looks(names).values()]
    assert len(set(styles)) == len(names)


def test_no_two_quantizers_of_the_gains_look_alike() -> None:
    """Whichever are run: of eight, as many as the mini tables have."""
    tables = [read_results(ROOT / "results", table) for table in TITLES]
    rows = dict.fromkeys(c.row for t in tables for c in t.cells.values() if c.column == "FOGZO")
    points = [Gain("mini-llama", row, 0.5, 5, 0.0, -0.1, 0.1) for row in rows]
    looks = gain_looks(points)
    assert [*looks] == [*rows]
    assert len(set(looks.values())) == len(rows)
