"""The mini tables, their figure and what is said of them, from invented records."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from matplotlib.axes import Axes

from fogzo_repro.reporting import readme
from fogzo_repro.reporting.claims import judge, read_claims
from fogzo_repro.reporting.curves import write_curves
from fogzo_repro.reporting.mini_figures import write_mini_figure
from fogzo_repro.reporting.overview import write_overview
from fogzo_repro.reporting.results import MINIS, read_results
from fogzo_repro.reporting.sweep_figures import write_sweeps
from fogzo_repro.reporting.tables import write_table
from fogzo_repro.reporting.tradeoff import write_tradeoff
from tests.reporting.mini_tables import (
    BINS,
    PERTURBED,
    STEPS,
    fill_mini,
    make_mini_record,
    save_mini,
)

VISION = "mini-resnet18"
FOGZO = (VISION, "2-bit FOGZO", "1-beta=1e-09")


def figure_lines(results: Path, quantity: str) -> list[dict[str, str]]:
    with open(results / "figures" / f"{VISION}.csv") as file:
        return [line for line in csv.DictReader(file) if line["quantity"] == quantity]


@pytest.mark.parametrize(
    ("scale", "refused"), [("mini", 0), ("full", 1), ("smoke", 1)], ids=["mini", "full", "smoke"]
)
def test_only_records_of_scale_mini_stand_in_a_mini_table(
    results: Path, scale: str, refused: int
) -> None:
    save_mini(results, make_mini_record(*FOGZO, 0, 0.05, scale=scale))
    assert len(read_results(results, VISION).refused) == refused


def test_the_language_table_shows_the_held_out_loss(results: Path) -> None:
    record = make_mini_record("mini-llama", "2-bit FOGZO", "1-beta=1e-09", 0, 5.0)
    record["metrics"]["last"] = {"train": {"loss": 5.0}, "val": {"loss": 6.5, "perplexity": 665.0}}
    save_mini(results, record)
    write_table(results, "mini-llama")
    text = (results / "tables" / "mini-llama.md").read_text()
    assert "| train loss | 95% | held-out loss | 95% |" in text
    assert "| 5.0000 ± – (1) |  | 6.5000 ± – (1) |" in text


def test_a_beta_of_ten_nines_is_not_printed_as_one(results: Path) -> None:
    save_mini(results, make_mini_record(VISION, "2-bit FOGZO", "1-beta=1e-10", 0, 0.05))
    write_table(results, VISION)
    assert "| 0.9999999999 | 0.0005 |" in (results / "tables" / f"{VISION}.md").read_text()


@pytest.mark.parametrize("table", MINIS, ids=MINIS)
def test_the_claims_compare_fogzo_with_every_control(results: Path, table: str) -> None:
    claims = read_claims(results / "paper" / "claims.csv", table)
    quantizers = 1 if table == "mini-llama" else 2
    assert len(claims) == 4 * quantizers
    assert {(c.direction, c.margin, c.better[1]) for c in claims} == {("lower", 0.0, "chosen")}
    for claim in claims:  # a claim compares rows of one quantizer
        assert claim.better[0].split()[0] == claim.worse[0].split()[0] == claim.claim.split()[0]


def test_holm_is_over_one_table(results: Path) -> None:
    for table in (VISION, "mini-llama"):
        fill_mini(results, table)
    judged = judge(
        read_results(results, "mini-llama"),
        read_claims(results / "paper" / "claims.csv", "mini-llama"),
    )
    (smallest, adjusted), *_ = sorted((j.test.p, j.adjusted_p) for j in judged if j.test)
    assert adjusted == pytest.approx(min(1.0, 4 * smallest))


def test_without_records_no_figure_is_drawn(results: Path) -> None:
    assert not write_mini_figure(results, write_table(results, VISION))
    assert not (results / "figures").exists()
    assert "figures/" not in (results / "tables" / f"{VISION}.md").read_text()


@pytest.mark.slow
def test_the_figure_and_its_numbers_are_written(results: Path) -> None:
    fill_mini(results, VISION)
    assert write_mini_figure(results, write_table(results, VISION))
    assert (results / "figures" / f"{VISION}.png").stat().st_size > 10_000
    assert f"(../figures/{VISION}.png)" in (results / "tables" / f"{VISION}.md").read_text()
    # rho of the linear schedule at the middle of bin k: noise (k + 1/2) / bins, times d
    lines = [p for p in figure_lines(results, "rho") if p["column"] == "1-beta=1e-09"]
    expected = [1e-9 * (k + 0.5) / BINS * PERTURBED for k in range(BINS)]
    assert [float(p["mean"]) for p in lines[:BINS]] == pytest.approx(expected, rel=1e-6)
    assert float(lines[BINS - 1]["step"]) == STEPS - STEPS / BINS / 2
    assert {p["n"] for p in lines} == {"5"}, "the tuning seeds are not in it"


def test_a_beta_that_was_only_tuned_is_drawn_from_its_tuning_seeds(results: Path) -> None:
    for column, seeds in (("1-beta=1e-08", (100, 101)), ("1-beta=1e-09", (0, 100))):
        for seed in seeds:
            save_mini(results, make_mini_record(VISION, "2-bit FOGZO", column, seed, 0.05))
    assert write_mini_figure(results, read_results(results, VISION))
    ends = {(p["column"], p["seeds"], p["n"]) for p in figure_lines(results, "train loss")}
    assert ends == {
        ("1-beta=1e-08", "tuning", "2"), ("1-beta=1e-09", "tuning", "1"),
        ("1-beta=1e-09", "evaluation", "1"),
    }  # fmt: skip
    courses = {(p["column"], p["seeds"], p["n"]) for p in figure_lines(results, "c_over_g")}
    assert courses == {("1-beta=1e-08", "tuning", "2"), ("1-beta=1e-09", "evaluation", "1")}


def test_a_beta_has_one_look_in_all_quantizers_though_their_sweeps_differ(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, set[tuple[str, str]]] = {}
    plot = Axes.plot

    def watch(axes: Axes, *what: Any, label: str = "", **look: Any) -> Any:
        drawn.setdefault(label, set()).add((look["color"], look["linestyle"]))
        return plot(axes, *what, label=label, **look)

    monkeypatch.setattr(Axes, "plot", watch)
    for quantizer, noises in (("2-bit", ("1e-08", "1e-07")), ("1-bit", ("1e-10", "1e-08"))):
        for noise in noises:
            cell = f"{quantizer} FOGZO", f"1-beta={noise}"
            save_mini(results, make_mini_record(VISION, *cell, 0, 0.05))
    assert write_mini_figure(results, read_results(results, VISION))
    assert len(drawn) == len(set().union(*drawn.values())) == 3


def test_old_records_without_a_history_still_give_the_final_losses(results: Path) -> None:
    record = make_mini_record(*FOGZO, 0, 0.05)
    del record["history"]
    save_mini(results, record)
    assert write_mini_figure(results, read_results(results, VISION))
    assert [p["mean"] for p in figure_lines(results, "train loss")] == ["0.05"]
    assert figure_lines(results, "rho") == []


def test_the_overview_counts_the_verdicts_of_a_table(results: Path) -> None:
    write_overview(results, [read_results(results, VISION)], [])
    text = (results / "README.md").read_text()
    assert f"| [{VISION}](tables/{VISION}.md) | 0 of 27 | 0 | 0 | 0 | 0 | 0 | 0 | 8 |" in text


def test_the_readme_has_a_line_for_each_table_and_quantizer(results: Path) -> None:
    fill_mini(results, "mini-llama")
    lines = [line for line in readme.block(results).splitlines() if line.startswith("| [mini-")]
    assert len(lines) == 5
    assert lines[0].endswith("2-bit | not run | not run | not run | not run |")
    assert lines[4].startswith("| [mini-llama](results/tables/mini-llama.md), 2-bit | ")
    assert lines[4].count("(5) |") == 4


def test_a_curve_is_drawn_for_each_method_at_the_column_that_tuning_chose(results: Path) -> None:
    for column, loss in (("1-beta=1e-08", 0.04), ("1-beta=1e-09", 0.05)):
        for seed in (0, 100, 101, 102):
            for row in ("2-bit FOGZO", "2-bit FOGZO, random sign"):
                if seed < 100 or row == "2-bit FOGZO":
                    save_mini(results, make_mini_record(VISION, row, column, seed, loss))
    save_mini(results, make_mini_record(VISION, "Full precision", "-", 0, 0.01))
    assert write_curves(results / "figures", VISION, read_results(results, VISION))
    with open(results / "figures" / f"{VISION}-curves.csv") as file:
        drawn = {(line["panel"], line["method"]) for line in csv.DictReader(file)}
    methods = ("FOGZO, 1-beta=1e-08", "FOGZO, random sign, 1-beta=1e-08", "Full precision")
    assert drawn == {("2-bit", method) for method in methods}


def test_the_ste_is_drawn_at_fogzos_rate_and_at_its_own(results: Path) -> None:
    for column, loss in (("lr=0.05", 0.03), ("lr=0.1", 0.05), ("lr=0.2", 0.04)):
        for seed in (0, 100, 101, 102):
            save_mini(results, make_mini_record(VISION, "2-bit STE", column, seed, loss))
    save_mini(results, make_mini_record(*FOGZO, 0, 0.05))
    assert write_curves(results / "figures", VISION, read_results(results, VISION))
    with open(results / "figures" / f"{VISION}-curves.csv") as file:
        drawn = dict.fromkeys(line["method"] for line in csv.DictReader(file))
    assert list(drawn) == ["STE, lr=0.2", "STE, lr=0.05", "FOGZO, 1-beta=1e-09"]


def test_the_time_of_a_mini_is_that_of_its_steps_by_the_bench(results: Path) -> None:
    times = {"ste_ms": {"median": 2.0}, "fogzo_ms": {"median": 3.0}}
    bench = {
        "bench": "minis", "hardware": "NVIDIA H200",
        "networks": {"resnet18": {"round-w2": times}},
    }  # fmt: skip
    (results / "records" / "bench").mkdir(parents=True)
    (results / "records" / "bench" / "minis.json").write_text(json.dumps(bench))
    for place in ((VISION, "2-bit STE", "lr=0.2"), FOGZO, (VISION, "1-bit STE", "lr=0.2")):
        record = make_mini_record(*place, 0, 0.05, hardware="NVIDIA H200", wall_seconds=999.0)
        record["config"] |= {"model": {"name": "resnet18"}}
        record["config"] |= {"quantizer": {"name": "round" if "2-bit" in place[1] else "sign"}}
        if "2-bit" in place[1]:
            record["config"]["quantizer"]["weight_bits"] = 2
        save_mini(results, record)
    assert write_tradeoff(results / "figures", VISION, read_results(results, VISION))
    with open(results / "figures" / f"{VISION}-time.csv") as file:
        drawn = {(p["panel"], p["method"]): float(p["hours"]) for p in csv.DictReader(file)}
    assert drawn == {  # the 1-bit network was not timed
        ("2-bit", "STE, lr=0.2"): pytest.approx(STEPS * 2e-3 / 3600),
        ("2-bit", "FOGZO, 1-beta=1e-09"): pytest.approx(STEPS * 3e-3 / 3600),
    }


def test_only_a_table_of_the_paper_has_a_sweeps_figure(results: Path) -> None:
    save_mini(results, make_mini_record(*FOGZO, 100, 0.05))
    assert not write_sweeps(results / "figures", VISION, read_results(results, VISION))
