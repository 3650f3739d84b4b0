"""The soak in short: runs that are killed at random end as those that are not; a fault is seen."""

import random

import pytest

from scripts import soak
from tests.forked import ROOT, python


@pytest.mark.slow
def test_runs_that_are_killed_at_random_end_with_the_same_bytes():
    done = python(ROOT / "scripts" / "soak.py", "--short", "--kills", "4", "mlp-fogzo")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 killed" in done.stdout and "; 0 faults," in done.stdout


def test_a_run_that_ends_otherwise_is_a_fault(tmp_path, monkeypatch):
    case = soak.Case("mlp-ste", [])
    monkeypatch.setattr(soak, "run", lambda *_: 0)
    monkeypatch.setattr(soak, "ends", lambda folder: {"a": folder.name.encode()})
    counts, faults = soak.soak(case, tmp_path, 0, random.Random(0))
    assert counts["compared"] == 1
    assert faults == [f"mlp-ste: a differs in {tmp_path / 'killed-0'}"]


def test_what_is_left_half_written_is_a_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "ends", lambda folder: {})
    (tmp_path / "record.json.77.tmp").touch()
    (tmp_path / "runs" / "r").mkdir(parents=True)
    (tmp_path / "runs" / "r" / "record.json").write_text("{")
    (tmp_path / "runs" / "r" / "checkpoint-00000003.safetensors").touch()
    faults = soak.compare(soak.Case("mlp-ste", []), tmp_path, {}, 0)
    assert len(faults) == 3
    assert "record.json.77.tmp is left" in faults[0]
    assert "checkpoint-00000003.safetensors is left" in faults[1]
