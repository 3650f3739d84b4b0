"""Tables 1 to 4: the paper's value beside ours, and what may not stand there."""

from __future__ import annotations

from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import read_claims
from fogzo_repro.reporting.columns import Column, latex
from fogzo_repro.reporting.results import ran_alone, read_paper
from fogzo_repro.reporting.tables import PAPER_TITLES, write_table
from tests.reporting.conftest import Save, line_of, page, read_csv

FIRST = ("DeiT-Tiny, ImageNet-100", "identity STE")


@pytest.fixture
def save_cell(save: Save) -> Save:
    """Write a record of Table 1's first cell, or as `changes` say."""

    def write(seed: int, top1: float = 60.0, **changes: Any) -> dict[str, Any]:
        row, column = changes.pop("place", FIRST)
        metrics = {
            "last": {
                "train": {"loss": 2.5}, "val": {"loss": 1.0, "top1": top1, "perplexity": top1},
            },
            "best": {"val": {"step": 1, "top1": top1 + 5}},
        }  # fmt: skip
        return save(row, column, seed, 0.0, **{"table": "table1", "metrics": metrics} | changes)

    return write


def test_a_table_without_cells_is_one_clear_error(results: Path) -> None:
    path = results / "paper" / "table1.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(UserError, match=r"names the unknown cell DeiT-Tiny, ImageNet-100"):
        write_table(results, "table1")


def main_line(results: Path) -> str:
    return line_of(page(results, "table1"), f"| {FIRST[0]} | {FIRST[1]}")


@pytest.mark.parametrize("table", ["figure-shallow", *PAPER_TITLES])
def test_without_records_every_cell_says_not_run(results: Path, table: str) -> None:
    write_table(results, table)
    lines = read_csv(results / "tables" / f"{table}.csv")
    assert {line["diverged"] for line in lines} == {"not run"}
    assert len(lines) == len(read_paper(results / "paper" / f"{table}.csv"))


@pytest.mark.parametrize("table", PAPER_TITLES)
def test_every_pair_whose_values_are_known_has_a_claim(results: Path, table: str) -> None:
    # FOGZO is the better one in each pair of the paper; a pair has one line per metric.
    known = [e for e in read_paper(results / "paper" / f"{table}.csv") if e["value"]]
    ours = read_claims(results / "paper" / "claims.csv", table)
    fogzo = {(e["row"], e["column"], e["metric"]) for e in known if "FOGZO" in e["column"]}
    ste = {(e["row"], e["column"], e["metric"]) for e in known if "FOGZO" not in e["column"]}
    assert {(*claim.better, claim.metric) for claim in ours} == fogzo
    assert {(*claim.worse, claim.metric) for claim in ours} == ste
    directions = {"top1": "higher", "loss": "lower", "perplexity": "lower"}
    assert all(c.direction == directions[c.metric] and c.margin == 0 for c in ours)


def test_a_cell_shows_paper_ours_and_difference(results: Path, save_cell: Save) -> None:
    for seed, top1 in enumerate((61.0, 62.0, 63.0)):
        save_cell(seed, top1)
    assert "| val top-1 (%) | 62.72 | 62.00 ± 1.00 (3) | -0.72 |" in main_line(results)


def test_the_best_evaluation_never_stands_for_the_last(results: Path, save_cell: Save) -> None:
    save_cell(0, 61.0)
    assert "66.00" not in page(results, "table1")


def test_quests_published_value_stands_beside_its_cell(results: Path) -> None:
    assert "| 37.75 | not run | 35.66 |" in line_of(page(results, "table3"), "| 95M | QuEST |")
    assert "35.66" in (results / "tables" / "table3.tex").read_text()


@pytest.mark.parametrize(
    ("dataset", "reason"),
    [
        ({"allow_partial": True, "classes": "imagenet100"}, "allow_partial"),
        ({"allow_partial": False, "classes": "mine.txt"}, "classes=mine.txt"),
    ],
    ids=["a part of the data", "other classes"],
)
def test_a_record_of_other_data_is_refused(
    results: Path, save_cell: Save, dataset: dict[str, Any], reason: str
) -> None:
    record = save_cell(0)
    config = record["config"] | {"dataset": {"name": "imagenet100", **dataset}}
    save_cell(0, config=config)
    found = write_table(results, "table1")
    assert "not run" in main_line(results) and reason in found.refused[0]


def test_tuning_seeds_enter_a_sweep_and_not_the_papers_column(
    results: Path, save_cell: Save
) -> None:
    save_cell(100)
    for column in ("1-beta=1e-08", "1-beta=1e-09"):
        save_cell(101, place=("LLaMA-9m, C4: identity FOGZO", column))
    assert "| 62.72 | not run |" in main_line(results)
    sweep = line_of(page(results, "table1"), "| LLaMA-9m, C4: identity FOGZO | 1-beta=1e-08")
    assert sweep.endswith("| train loss | 2.5000 ± – (1), chosen, on the edge of its grid |")


def test_evaluations_count_the_steps_that_are_probed(results: Path, save_cell: Save) -> None:
    # 2000 steps of 3, against 1000 of 3 + 2 probes of which 30% are taken: 6000 / 3600
    plain, late = ("LSQ-STE, 3.522B tokens", "70% STE + 30% FOGZO, 3.0B tokens")
    first = save_cell(0, place=("30M", plain), table="table4", steps=2000)
    config = first["config"] | {
        "estimator": {"name": "fogzo", "noise": 1e-9, "start_fraction": 0.7}
    }
    counts = {"probes": 2, "total": 5}
    save_cell(
        0, place=("30M", late), table="table4", steps=1000, config=config,
        evaluations_per_step=counts,
    )  # fmt: skip
    line = line_of(page(results, "table4"), "| 30% FOGZO after")
    assert "| – / 1.667 | inconclusive" in line


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"last": {"val": {"loss": 1.0}}}}, r"lacks metrics\.last\.val\.top1"),
        ({"run_id": "another-s0-bbbbbbbb"}, "two records of DeiT-Tiny.*seed 0"),
    ],
    ids=["a metric missing", "two records"],
)
def test_a_damaged_or_doubled_record_is_one_clear_error(
    results: Path, save_cell: Save, change: dict[str, Any], message: str
) -> None:
    if "run_id" in change:
        save_cell(0)
    save_cell(0, **change)
    with pytest.raises(UserError, match=message):
        write_table(results, "table1")


def test_a_value_of_the_paper_that_is_no_number_is_one_clear_error(results: Path) -> None:
    path = results / "paper" / "table3.csv"
    path.write_text(path.read_text().replace("37.75", "about 38"))
    with pytest.raises(UserError, match=r"95M \| QuEST has value=about 38"):
        write_table(results, "table3")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        (
            "claims",
            "id,table,claim,",
            "half,table,claim,",
            r"claims\.csv has no column id; restore",
        ),
        ("table3", "table,row,", "a,b,", r"table3\.csv has no column row; restore it with git"),
        ("quest", "row,column,value", "95M,QuEST,3", r"quest\.csv has no column .*row, value; res"),
        ("table3", "perplexity", "perplex", r"csv, line 2: metric=perplex is none of loss, top1"),
        ("claims", ",train,", ",trian,", r"claims\.csv, line 2: split=trian is none of train, val"),
    ],
    ids=["claims", "table", "quest", "metric", "split"],
)
def test_a_damaged_file_of_the_paper_is_one_clear_error(
    results: Path, name: str, old: str, new: str, message: str
) -> None:
    path = results / "paper" / f"{name}.csv"
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(UserError, match=message):
        write_table(results, "table3")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_that_a_spreadsheet_has_saved_is_read_or_named(results: Path, encoding: str) -> None:
    path = results / "paper" / "table3.csv"
    before = read_paper(path)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    if encoding == "utf-8-sig":
        assert read_paper(path) == before
    else:
        with pytest.raises(UserError, match=r"cannot read .*table3\.csv \('utf-8' codec .*restore"):
            read_paper(path)


def written(titles: str, lines: list[list[str]]) -> str:
    return latex([Column(title, itemgetter(k)) for k, title in enumerate(titles.split())], lines)


def test_latex_lines_have_as_many_columns_as_the_table_declares() -> None:
    text = written("a b c d", [["70% x", "b & c", "", "-1.5 ± 2"], ["y_1", "", "", ""]])
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert r"\begin{tabular}{lllr}" in text
    assert [line.replace(r"\&", "").count("&") for line in body] == [3, 3, 3]
    assert body[1] == r"70\% x & b \& c &  & $-$1.5 $\pm$ 2 \\"


def test_latex_names_a_row_once_and_rules_off_the_next() -> None:
    text = written("row v", [["a", "1"], ["a", "2"], ["b", "3"]])
    assert text.count("\\midrule") == 2
    assert [line.split(" &")[0] for line in text.splitlines()[5:7]] == ["a", ""]


@pytest.mark.parametrize(
    ("command", "resolved", "alone"),
    [
        ("python -m fogzo_repro", {}, True),
        ("python scripts/run_cells.py table1 --workers 2", {}, False),
        ("python scripts/run_cells.py figure-shallow", {"evaluator": "lanes"}, False),
    ],
    ids=["single", "shared", "lanes"],
)
def test_the_time_of_a_run_that_shared_its_card_is_not_told(
    command: str, resolved: dict[str, str], alone: bool
) -> None:
    record = {"command": command, "resolved": resolved}
    assert ran_alone(record) is alone
    assert not ran_alone({**record, "beside": 7})  # as its queue had them without being told
    assert ran_alone({**record, "beside": 0}) is not bool(resolved)  # with a card for each worker


def test_a_column_without_anything_to_say_is_left_out(results: Path) -> None:
    head = line_of(page(results, "table1"), "| row")
    assert "ours" in head and "hours" not in head and "difference" not in head
