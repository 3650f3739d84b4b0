"""Jobs of a cluster: Hydra's submitit launcher, here with its executor for one machine."""

from __future__ import annotations

import os
import signal
import time
from importlib.util import find_spec
from pathlib import Path

import pytest

from fogzo_repro.tracking.records import read_record
from tests.conftest import ROOT
from tests.forked import finish, launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        find_spec("submitit") is None,
        reason="the extra slurm (hydra-submitit-launcher) is not installed",
    ),
]


def submit(folder: Path, *overrides: str, launcher: str = "local") -> int:
    command = [
        "-m", "fogzo_repro", "-m", f"hydra/launcher=submitit_{launcher}",
        "experiment=figure-shallow/ste-equal-cost", "dataset=digits", "recipe=digits_mlp",
        "hardware=cpu", "seed=0",
        f"output_root={folder / 'runs'}", *overrides,
    ]  # fmt: skip
    return launch(command, ROOT, folder / "out", folder / "err")


def process_of(folder: Path) -> int | None:
    """Return the process that trains: the one that holds the run's lock open."""
    for entry in Path("/proc").glob("[0-9]*/fd"):
        try:
            held = {os.readlink(link) for link in entry.iterdir()}
        except OSError:
            continue
        if str(folder / "lock") in held:
            return int(entry.parent.name)
    return None


def test_a_preempted_job_saves_is_queued_again_and_goes_on(tmp_path: Path) -> None:
    job = submit(tmp_path, "recipe.max_steps=1500", "quantizer.grid=integer")
    deadline = time.monotonic() + 240
    while not (timing := list(tmp_path.glob("runs/mlp-*/timing.jsonl"))):
        assert os.waitpid(job, os.WNOHANG) == (0, 0), (tmp_path / "err").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    pid = process_of(timing[0].parent)
    assert pid is not None
    os.kill(pid, signal.SIGUSR2)  # what Slurm is asked to send before it takes a node away
    assert finish(job) == 0, (tmp_path / "err").read_text()
    record = read_record(timing[0].parent / "record.json")
    assert (record["status"], record["steps"]) == ("finished", 1500)
    log = (timing[0].parent / "log.txt").read_text()
    assert "SIGUSR2: saved after step" in log and "resumed after step" in log
    said = f"waiting for jobs (1), which write to {tmp_path / 'runs' / '.submitit'}\n"
    assert said in (tmp_path / "err").read_text()


def test_no_slurm_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    job = submit(tmp_path, launcher="slurm")
    assert finish(job) == 2
    assert (tmp_path / "err").read_text().startswith("error: hydra/launcher=submitit_slurm needs")
    assert (tmp_path / "err").read_text().count("\n") == 1
