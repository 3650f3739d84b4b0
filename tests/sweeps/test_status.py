"""Where runs stand, by what they have left."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from fogzo_repro import METHOD_VERSION
from fogzo_repro.config import RunConfig, to_yaml
from fogzo_repro.sweeps.jobs import Job
from fogzo_repro.sweeps.status import known_runs, runs_of
from scripts.status import not_needed
from tests.conftest import ROOT

Make = Callable[..., RunConfig]


def record(config: RunConfig, **changes: object) -> str:
    labels = {"table": "miniature", "row": "STE", "column": "-", "scale": "full"}
    known = {"seed": config.seed, "status": "finished", "method_version": METHOD_VERSION}
    return json.dumps({**labels, **known, **changes})


@pytest.mark.slow
def test_each_state_is_told_from_what_a_run_has_left(make_config: Make, tmp_path: Path) -> None:
    jobs = [Job(make_config(f"seed={s}"), f"run-{s}", 5, 15) for s in range(7)]
    for job in jobs[:5]:
        job.folder.mkdir(parents=True)
        (job.folder / "resolved.json").write_text("{}")
        (job.folder / "config.yaml").write_text(to_yaml(job.config))
    for seed, changes in enumerate([{}, {"status": "diverged"}, {"method_version": 0}]):
        (jobs[seed].folder / "record.json").write_text(record(jobs[seed].config, **changes))
    jobs[5].note_failure("hangs")
    with open(jobs[3].folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        known = known_runs(tmp_path / "records", [tmp_path / "runs"])
    runs = runs_of(jobs[0].config.cell, "full", range(7))
    states = ["done", "diverged", "stale", "running", "interrupted", "failed"]
    assert [known.get(run) for run in runs] == [*states, None]


DAMAGED = {
    "empty": b"",
    "half": b"{",
    "zeros": bytes(40),
    "a list": b"[1, 2]",
    "deep": b"[" * 20_000 + b"]" * 20_000,
    "pairs": b"[[1, 2]]",
    "a key lost": b'{"row": "STE", "column": "-", "seed": 0}',
    "other types": b'{"row": null, "cell": 3, "seeds": 3}',
    "not UTF-8": b"\xff\xfe",
    "not hashable": b'{"row": ["STE"], "table": {}, "column": 1, "scale": 1, "seed": 0}',
}


def test_a_record_whose_status_is_none_is_told(
    make_config: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "table").mkdir()
    for seed, status in ((1, "finished"), (2, "diverged"), (3, "Finished"), (4, None)):
        made = json.loads(record(make_config(), seed=seed, resolved={"device": "cpu"}))
        made |= {"status": status}
        if status is None:
            del made["status"]
        (tmp_path / "table" / f"{seed}.json").write_text(json.dumps(made))
    assert [*known_runs(tmp_path, []).values()] == ["done", "diverged"]
    of_three, of_four = capsys.readouterr().err.splitlines()
    assert of_three.startswith("left out: ") and of_four.startswith("left out: ")
    remedy = "delete it and run the cell again"
    assert of_three.endswith(f"3.json is not a record (status is 'Finished'); {remedy}")
    assert of_four.endswith(f"4.json is not a record (it lacks 'status'); {remedy}")


@pytest.mark.slow
@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize(
    ("name", "state"),
    [("failed.json", "failed"), ("record.json", "interrupted"), ("config.yaml", None)],
    ids=["failed", "record", "config"],
)
def test_half_written_files_stop_no_status(
    make_config: Make, tmp_path: Path, name: str, state: str | None, content: bytes
) -> None:
    job = Job(make_config(), "run", 5, 15)
    job.folder.mkdir(parents=True)
    (job.folder / "resolved.json").write_text("{}")
    (job.folder / "config.yaml").write_text(to_yaml(job.config))
    (job.folder / name).write_bytes(content)
    records = tmp_path / "records" / "table"
    records.mkdir(parents=True)
    (records / "half.json").write_bytes(content)
    known = known_runs(tmp_path / "records", [tmp_path / "runs"])
    (run,) = runs_of(job.config.cell, "full", [job.config.seed])
    assert known == ({} if state is None else {run: state})


def test_a_run_that_is_over_has_not_failed(make_config: Make, tmp_path: Path) -> None:
    """Another attempt found it locked, and has noted that."""
    job = Job(make_config(), "run", 5, 15)
    job.note_failure("runs/run is being written by another process")
    (job.folder / "resolved.json").write_text("{}")
    (job.folder / "record.json").write_text(record(job.config))
    (run,) = runs_of(job.config.cell, "full", [job.config.seed])
    assert known_runs(tmp_path, [tmp_path / "runs"]) == {run: "done"}


def test_a_failure_that_cannot_be_noted_stops_nothing(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file where the folder of runs should be")
    job = Job(make_config(), "run", 5, 15)
    job.note_failure("full disk")
    job.forget_failure()


def test_a_run_that_failed_is_forgotten_when_it_is_tried_again(
    make_config: Make, tmp_path: Path
) -> None:
    job = Job(make_config(), "run", 5, 15)
    job.note_failure("hangs")
    job.forget_failure()
    assert known_runs(tmp_path, [tmp_path / "runs"]) == {}


def test_status_needs_no_torch_and_knows_the_committed_records() -> None:
    code = "import sys; sys.modules['torch'] = None; sys.argv = ['status.py', 'figure-shallow']; "
    code += "from scripts import status; status.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, cells, runs, over, diverged, *_, others = done.stdout.splitlines()[1].split()
    assert (name, cells, runs) == ("figure-shallow", "118", "14049")
    assert 13_000 < int(over) <= 14_049
    overview = (ROOT / "results" / "README.md").read_text()
    recorded = re.search(r"^\| \[figure-shallow\].*? of 118 \| (\d+) \|", overview, re.M)
    assert recorded and int(over) + int(diverged) + int(others) == int(recorded[1])


def test_what_no_claim_needs_is_told_from_what_is_missing(tmp_path: Path) -> None:
    runs = runs_of(Labels("table1", "DeiT-Tiny, ImageNet-100", "identity STE"), "full", range(5))
    spare = runs_of(Labels("table1", "DeiT-Tiny, ImageNet-100", "approxsign STE"), "full", [0, 100])
    known = {runs[0]: "done"}
    found = not_needed(ROOT / "results", "table1", [*runs, *spare], known)
    assert found == {spare[0]}  # a tuning run chooses, and is needed


class Labels(NamedTuple):
    table: str
    row: str
    column: str
