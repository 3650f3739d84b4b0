"""Comparing two runs: what differs is shown, what is equal is counted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from fogzo_repro import compare
from fogzo_repro.config import UserError
from tests.forked import python
from tests.reporting.conftest import make_record
from tests.short_runs import train


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("runs")
    ste = train(folder, "estimator=ste")
    return {"ste": ste, "fogzo": train(folder, "estimator=fogzo", "estimator.noise=1e-9")}


def test_settings_that_differ_are_shown_and_equal_ones_are_not(runs: dict[str, Path]) -> None:
    text = compare.compare(runs["ste"], runs["fogzo"])
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if line.strip()}
    assert lines["estimator.name"] == ["ste", "fogzo"]
    assert lines["estimator.noise"] == ["-", "1e-09"]
    assert "recipe.lr" not in lines


def test_a_run_compared_with_itself_has_no_difference(runs: dict[str, Path]) -> None:
    text = compare.compare(runs["ste"], runs["ste"])
    assert text.count(": 0 differ") == 3
    assert text.splitlines()[-1].startswith("metrics.jsonl: equal, ")


def test_a_time_of_a_run_that_shared_its_card_is_not_told(tmp_path: Path) -> None:
    for name, changes in {"a": {"wall_seconds": 2.0}, "b": {"beside": 3}}.items():
        record = make_record("STE", "-", 0, 0.7, **changes)
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    text = compare.compare(tmp_path / "a.json", tmp_path / "b.json")
    (line,) = (line for line in text.splitlines() if "wall_seconds" in line)
    assert line.split() == ["wall_seconds", "2", "shared", "its", "card"]


def test_the_first_step_that_differs_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    copy = shutil.copytree(runs["ste"], tmp_path / "copy")
    lines = [json.loads(line) for line in (copy / "metrics.jsonl").read_text().splitlines()]
    at = next(i for i, line in enumerate(lines) if line["step"] == 7)
    lines[at]["loss"] = 99.0
    lines[at + 1]["loss"] = 98.0
    (copy / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = compare.compare(runs["ste"], copy).splitlines()[-1]
    assert last.startswith("metrics.jsonl: first differ at step 7: loss ")
    assert last.endswith("/ 99.0")
    (copy / "metrics.jsonl").write_text('{"step": "x"}\n')
    with pytest.raises(UserError, match=r"metrics\.jsonl is damaged .*; compare the record\.json"):
        compare.compare(runs["ste"], copy)


def test_a_shorter_run_is_said_to_end() -> None:
    lines = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}]
    assert compare.first_difference(lines, lines[:1]).endswith("equal until B ends, at step 1")


def test_numbers_that_look_alike_are_shown_in_full() -> None:
    a, b = make_record("STE", "-", 0, 1.0), make_record("STE", "-", 0, 1.0 + 1e-9)
    assert "1.000000001" in compare.report(a, b)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.json", None, "is not there"),
        ("broken.json", "{", "is not a record"),
        ("short.json", '{"schema_version": 1}', "lacks the field"),
        ("list.json", "[]", "is not a record"),
        ("", None, "the run is not over"),
    ],
    ids=["missing", "not JSON", "a field missing", "not an object", "unfinished"],
)
def test_what_cannot_be_compared_is_one_clear_error(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        compare.load(tmp_path / name)


def test_an_error_is_one_line_and_status_2(tmp_path: Path) -> None:
    done = python("-m", "fogzo_repro.compare", tmp_path, tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
