"""Tables and figure: from records alone, the same bytes each time."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro import METHOD_VERSION
from fogzo_repro.config import UserError
from fogzo_repro.reporting.figures.shallow import write_accuracy
from fogzo_repro.reporting.results import read_results
from scripts import make_tables
from tests.reporting.conftest import ROOT, TABLE, Save, line_of, make_record, page, read_csv


def hashes(results: Path) -> dict[str, str]:
    made = [results / "README.md", *results.glob("tables/*"), *results.glob("figures/*")]
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in made}


@pytest.mark.slow
def test_tables_and_figures_regenerate_byte_identically(full_table: Path) -> None:
    script = ROOT / "scripts" / "make_tables.py"
    command = [sys.executable, script, "--results", full_table]
    subprocess.run(command, check=True, capture_output=True, cwd=full_table)
    runs = [hashes(full_table)]
    assert make_tables.write_all(full_table)  # another process, with other hash seeds
    runs.append(hashes(full_table))
    assert runs[0] == runs[1]
    written = {name for name in runs[0] if name.startswith(TABLE)}
    figures = {f"{TABLE}-accuracy.{kind}" for kind in ("csv", "png")}
    assert written == figures | {f"{TABLE}.{kind}" for kind in ("md", "csv", "png", "pdf")}


@pytest.mark.slow
def test_committed_results_are_those_of_the_committed_records(tmp_path: Path) -> None:
    copy = tmp_path / "results"
    shutil.copytree(ROOT / "results", copy, ignore=shutil.ignore_patterns("tables", "figures"))
    (copy / "README.md").unlink()
    make_tables.write_all(copy)
    text = {"README.md", *(p.relative_to(copy).as_posix() for p in copy.glob("tables/*"))}
    text |= {p.relative_to(copy).as_posix() for p in copy.glob("figures/*.csv")}
    assert {f"tables/table{k}.{kind}" for k in (1, 2, 3, 4) for kind in ("md", "csv", "tex")} < text
    for name in sorted(text):  # images depend on the version of matplotlib's libraries
        assert (copy / name).read_bytes() == (ROOT / "results" / name).read_bytes(), (
            f"results/{name} is stale: run `make tables`"
        )


def test_a_cell_shows_mean_sd_count_and_interval(results: Path, save: Save) -> None:
    for seed, loss in enumerate((1.0, 2.0, 3.0)):
        save("STE, integer grid", "lr=0.032", seed, loss, top1=70.0 + loss)
    # sd 1, t(0.975, 2) = 4.302653, half = 4.302653 / sqrt(3) = 2.484138
    line = line_of(page(results), "| STE, integer grid | lr=0.032")
    assert "| 2.0000 ± 1.0000 (3) | [-0.4841, 4.4841] | 72.00 ± 1.00 (3) |" in line
    assert "| 0 / 3 |" in line


def test_the_accuracy_that_is_drawn_is_that_of_the_test_images(results: Path, save: Save) -> None:
    for seed in (0, 1):
        save("FOGZO n=1, integer grid", "1-beta=0.001", seed, 1.0, top1=80.0 + seed)
    save("FOGZO n=1, integer grid", "1-beta=0.001", 100, 1.0, top1=10.0)
    assert write_accuracy(results / "figures" / f"{TABLE}-accuracy", read_results(results, TABLE))
    (point,) = read_csv(results / "figures" / f"{TABLE}-accuracy.csv")
    assert (point["noise"], point["perturbed"], point["n"]) == ("0.001", "7940", "2")
    assert float(point["mean"]) == 80.5


def test_rho_is_noise_times_d_over_beta(results: Path, save: Save) -> None:
    save("FOGZO n=1, integer grid", "1-beta=0.001", 0, 1.0)
    line = line_of(page(results), "| FOGZO n=1, integer grid | 1-beta=0.001")
    assert "| 7.95 | 1170 | 2 / 5 |" in line


def test_a_diverged_run_is_printed_and_not_averaged(results: Path, save: Save) -> None:
    save("STE, integer grid", "lr=0.032", 0, 1.0)
    lost = {"status": "diverged", "notes": "step 7: loss nan", "metrics": {}}
    save("STE, integer grid", "lr=0.032", 1, 9.0, **lost)
    text = page(results)
    assert "1.0000 ± – (1), 1 diverged" in line_of(text, "| STE, integer grid | lr=0.032")
    assert "- STE, integer grid (lr=0.032), seed 1: step 7: loss nan" in text.splitlines()


def test_a_cell_whose_runs_all_diverged_is_not_called_not_run(results: Path, save: Save) -> None:
    save("STE, integer grid", "lr=0.032", 0, 9.0, status="diverged", notes="", metrics={})
    assert "| 1 diverged |" in line_of(page(results), "| STE, integer grid | lr=0.032")


def test_tuning_seeds_do_not_enter_the_reported_mean(results: Path, save: Save) -> None:
    save("STE, integer grid", "lr=0.032", 0, 1.0)
    save("STE, integer grid", "lr=0.032", 100, 5.0)
    assert "| 1.0000 ± – (1) |" in line_of(page(results), "| STE, integer grid | lr=0.032")


def test_a_cell_of_tuning_seeds_alone_is_not_called_not_run(results: Path, save: Save) -> None:
    save("STE, integer grid", "lr=0.008", 100, 5.0)
    line = line_of(page(results), "| STE, integer grid | lr=0.008")
    assert line.endswith("| 5.0000 ± – (1) |")


def test_796_is_shown_under_both_countings(results: Path, save: Save) -> None:
    save("FOGZO n=10, half_integer grid", "1-beta=0.001", 0, 1.0)
    save("n-SPSA n=7960, half_integer grid", "-", 0, 1.0)
    assert "| 796 / 692.3 |" in line_of(page(results), "| FOGZO n=10 beta=0.999 is no worse")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"dirty": True}, "not from a clean commit; commit its files and give its command again"),
        ({"dirty": None}, "not from a clean commit; commit its files and give its command again"),
        ({"commit": None}, "not from a clean commit; commit its files and give its command again"),
        ({"scale": "smoke"}, "scale smoke"),
        ({"scale": "mini"}, "scale mini"),
        ({"method_version": METHOD_VERSION - 1}, "stale"),
    ],
    ids=["dirty tree", "unknown tree", "no commit", "smoke", "mini", "older method"],
)
def test_a_record_that_may_not_stand_there_is_refused_by_name(
    results: Path, save: Save, change: dict[str, Any], reason: str
) -> None:
    record = save("STE, integer grid", "lr=0.032", 0, 1.0, **change)
    assert line_of(page(results), f"- {record['run_id']}.json: {reason}")
    found = read_results(results, TABLE)
    assert not found.cells["STE, integer grid", "lr=0.032"].runs
    assert found.refused[0].startswith(f"{record['run_id']}.json: {reason}")


def test_records_refused_for_one_reason_are_one_line(results: Path, save: Save) -> None:
    for seed in range(3):
        save("STE, integer grid", "lr=0.032", seed, 1.0, dirty=True)
    said = page(results).partition("## Refused records\n\n")[2]
    assert said.count("\n- ") == 0 and " and 2 more: not from a clean commit; commit" in said


def test_an_unknown_cell_is_one_clear_error(results: Path, save: Save) -> None:
    save("STE, integer grid", "lr=7", 0, 1.0)
    with pytest.raises(UserError, match=r"unknown cell STE, integer grid \| lr=7"):
        read_results(results, TABLE)


@pytest.mark.parametrize(
    ("one", "other", "named"),
    [
        (
            {"data": "c4 1, tuning: 7 windows"},
            {"data": "c4 2, heldout: 7 windows"},
            "data of mnist",
        ),
        ({"start_from": "a"}, {"start_from": "b"}, "start_from of STE, integer grid"),
    ],
)
def test_a_table_of_different_data_or_networks_is_refused(
    results: Path, save: Save, one: dict[str, str], other: dict[str, str], named: str
) -> None:
    save("STE, integer grid", "lr=0.032", 0, 1.0, resolved=one)
    save("STE, integer grid", "lr=0.008", 100, 1.0, resolved=one)
    read_results(results, TABLE)
    save("STE, integer grid", "lr=0.016", 100, 1.0, resolved=other)
    with pytest.raises(UserError, match=f"had different {named}"):
        read_results(results, TABLE)


def test_runs_of_one_cell_may_be_computed_in_other_ways(results: Path, save: Save) -> None:
    for seed, evaluator in enumerate(("sequential", "batched")):
        config = make_record("STE", "lr=0.032", 0, 1.0)["config"]
        config["estimator"]["evaluator"] = evaluator
        save("STE, integer grid", "lr=0.032", seed, 1.0, config=config)
    assert len(read_results(results, TABLE).cells["STE, integer grid", "lr=0.032"].runs) == 2


def test_runs_of_one_cell_with_other_settings_are_refused(results: Path, save: Save) -> None:
    first = save("STE, integer grid", "lr=0.032", 0, 1.0)
    other = json.loads(json.dumps(first["config"])) | {"recipe": {"lr": 7}}
    save("STE, integer grid", "lr=0.032", 1, 1.0, config=other)
    with pytest.raises(UserError, match="differ in recipe"):
        read_results(results, TABLE)
