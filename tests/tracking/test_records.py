"""Records of one run and of several seeds: written, checked, filed, and split into single runs."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.tracking.records import (
    FIELDS,
    OF_ONE,
    SCHEMA_VERSION,
    file_record,
    read_record,
    read_runs,
    write_record,
)
from tests.reporting.conftest import make_record


def single(seed: int, **changes: Any) -> dict[str, Any]:
    return make_record("STE", "lr=0.032", seed, 0.5, run_id=f"mlp-s{seed}-a") | changes


def ended_with(test: Any) -> dict[str, Any]:
    return single(0, metrics={"last": {"test": test}, "best": {}})


def but(record: dict[str, Any], field: str, value: Any = None) -> dict[str, Any]:
    """Return a record with another value at a dotted place, or without it."""
    copy: dict[str, Any] = json.loads(json.dumps(record))
    *outer, last = field.split(".")
    inner = copy
    for name in outer:
        inner = inner[name]
    inner[last] = value
    if value is None:
        del inner[last]
    return copy


def several(seeds: list[int], **changes: Any) -> dict[str, Any]:
    columns = {
        "schema_version": SCHEMA_VERSION, "lanes": 50, "seeds": seeds,
        "run_id": f"mlp-{len(seeds)}seeds-{min(seeds)}", "status": ["finished"] * len(seeds),
        "metrics": {"train": {"loss": [s / 10 for s in seeds]}}, "notes": {},
    }  # fmt: skip
    return but(single(0), "seed") | columns | changes


def test_nobody_is_told_to_delete_a_record_that_only_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(UserError, match=r"cannot read .*r\.json: Permission denied; see that you"):
        read_record(tmp_path / "r.json")


@pytest.mark.parametrize("history", [{"step": [1, 2], "loss": [0.5]}, {"step": 3}, [1]], ids=str)
def test_a_course_that_is_no_table_is_refused(tmp_path: Path, history: Any) -> None:
    path = tmp_path / "r.json"
    write_record(path, single(0, history=history))
    with pytest.raises(UserError, match=r"is not a record \(.*history.*; delete it and run"):
        read_record(path)


def test_a_record_of_several_seeds_is_read_as_its_runs(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    metrics = {"train": {"loss": [0.5, None]}, "test": {"loss": [0.6, None], "top1": [80.0, None]}}
    notes = {"7": "step 3: loss nan"}
    written = several([4, 7], status=["finished", "diverged"], metrics=metrics, notes=notes)
    write_record(path, written)
    first, second = read_runs(path)
    assert first["metrics"]["last"] == {"train": {"loss": 0.5}, "test": {"loss": 0.6, "top1": 80.0}}
    assert (first["seed"], first["status"], first["notes"]) == (4, "finished", "")
    assert (second["seed"], second["status"]) == (7, "diverged")
    assert (second["metrics"]["last"], second["notes"]) == ({}, "step 3: loss nan")
    path.write_text(json.dumps(first))
    assert read_record(path) == first and "seeds" not in first and "lanes" not in first


def test_each_column_of_several_seeds_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    record = several([*range(500)])
    write_record(path, record)
    text = path.read_text()
    assert json.loads(text) == record
    assert len(text.splitlines()) < 60


def test_a_record_of_one_run_is_read_as_that_run(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_record(path, single(3))
    assert read_runs(path) == [read_record(path)] == [single(3)]


def test_what_needs_one_run_refuses_several_seeds_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_record(path, several([0, 1]))
    with pytest.raises(UserError, match="is the record of 2 runs"):
        read_record(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metrics": {"train": {"loss": [1.0]}}}, r"2 seeds and 1 metrics\.train\.loss"),
        ({"status": ["finished"]}, "2 seeds and 1 status"),
        ({"seeds": [3, 3]}, "no seed, or one twice"),
        ({"seeds": []}, "no seed, or one twice"),
        ({"schema_version": SCHEMA_VERSION + 1}, "update the code"),
    ],
    ids=["short column", "short status", "seed twice", "no seed", "newer schema"],
)
def test_uneven_columns_are_neither_written_nor_read(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path, record = tmp_path / "r.json", several([0, 1]) | change
    with pytest.raises(UserError, match=message):
        write_record(path, record)
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=message):
        read_runs(path)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        (single(0, metrics=3), "metrics"),
        (single(0, metrics={"last": [], "best": {}}), "metrics.last"),
        (ended_with(3), "metrics.last.test"),
        (single(0, schema_version="x"), "schema_version"),
        (single(0, schema_version=None), "schema_version"),
        (single(0, config=[]), "config"),
        (single(0, config={"model": 3}), "config.model"),
        (single(0, steps="many"), "steps"),
        (single(0, evaluations_per_step=[1]), "evaluations_per_step"),
        (but(single(0), "config.recipe.lr", "0.1"), "config.recipe.lr"),
        (single(0, notes=3), "notes"),
        (several([0, 1], notes={"0": 3}), "notes.0"),
        (single(0, hardware=[]), "hardware"),
        (single(0, perturbed_weights="many"), "perturbed_weights"),
        (single(0, resolved={"data": 3}), "resolved.data"),
        (
            but(single(0), "config.estimator", {"name": "fogzo", "noise": "x"}),
            r"config\.estimator\.noise",
        ),
        (single(0, history={"step": [1], "loss": ["x"]}), "history.loss"),
        (but(single(0), "metrics.best", {"test": {"loss": 0.5}}), "metrics.best.test.step"),
        (ended_with({"loss": None}), "metrics.last.test.loss"),
        (ended_with({"loss": "1"}), "metrics.last.test.loss"),
        (ended_with({"loss": math.nan}), "metrics.last.test.loss"),
        (single(0, gpu_hours=math.nan), "gpu_hours"),
        (single(0) | {"status": "Finished"}, "status"),
        (several([0, 1], status=["finished", None]), "status"),
        (single(0) | {"seed": "3"}, "seed"),
        (several([0, 1]) | {"seeds": 3}, "seeds"),
        (several([0, 1]) | {"seeds": [[], 1]}, "seeds"),
        (several([0, 1], metrics={"test": 3}), "metrics.test"),
        (several([0, 1], metrics={"test": {"loss": 3}}), "metrics.test.loss"),
        (several([0, 1], metrics={"test": {"loss": [0.5, None]}}), "metrics.test.loss"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_field_of_another_type_is_one_line(
    tmp_path: Path, record: dict[str, Any], field: str
) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match=rf"r\.json is not a record \({field} is .*; delete it"):
        read_runs(path)


@pytest.mark.parametrize("field", {**FIELDS, **OF_ONE})
def test_a_field_that_is_not_there_is_one_line(tmp_path: Path, field: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(but(single(0), field)))
    with pytest.raises(UserError, match=rf"r\.json lacks the field {field}; delete it and run"):
        read_record(path)


def test_a_deep_nest_is_not_a_record(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(UserError, match="is not a record"):
        read_runs(path)


def test_more_seeds_of_a_cell_are_filed_beside_the_first(tmp_path: Path) -> None:
    assert file_record(several([0, 1]), tmp_path) is None
    assert file_record(several([2, 3]), tmp_path) is None
    assert file_record(single(4), tmp_path) is None
    (tmp_path / "figure-shallow" / "a.json.77.tmp").write_bytes(b"of a command that was killed")
    assert file_record(single(5), tmp_path) is None
    assert len(list((tmp_path / "figure-shallow").iterdir())) == 4


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (single(1), several([0, 1])),
        (several([0, 1]), single(1)),
        (several([0, 1]), several([1, 2])),
    ],
    ids=["one, then several", "several, then one", "several twice"],
)
def test_a_seed_that_a_record_holds_already_is_not_filed_again(
    tmp_path: Path, first: dict[str, Any], second: dict[str, Any]
) -> None:
    file_record(first, tmp_path)
    said = file_record(second, tmp_path)
    assert said is not None and "has the record" in said
    newer = second | {"method_version": 2}
    assert file_record(newer, tmp_path) is None
    (kept,) = (tmp_path / "figure-shallow").iterdir()
    assert json.loads(kept.read_text()) == newer


def test_the_same_record_may_be_filed_twice(tmp_path: Path) -> None:
    assert file_record(several([0, 1]), tmp_path) is None
    assert file_record(several([0, 1]), tmp_path) is None
