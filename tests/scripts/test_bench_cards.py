"""The bench of several cards, as two processes on the CPU with a tiny network."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fogzo_repro.reporting.benches import read_benches, speed
from tests.forked import ROOT, finish, torchrun_forked


@pytest.mark.slow
def test_two_processes_train_together_and_alone(tmp_path: Path) -> None:
    out, said = tmp_path / "cards.json", tmp_path / "said"
    command = [
        "-m", "scripts.bench.cards", "--toy", "--networks=resnet18", "--steps=2", "--warm-up=1",
        f"--out={out}",
    ]  # fmt: skip
    pid = torchrun_forked(command, ROOT, tmp_path / "printed", said)
    assert finish(pid) == 0, said.read_text()
    record = json.loads(out.read_text())
    assert record["command"].startswith("torchrun --nproc-per-node=2 -m scripts.bench.cards")
    found = record["cards"]["resnet18"]
    ways = ("together", "eager", "one_card")
    times = {w: [found[w][k]["median"] for k in ("ste_ms", "fogzo_ms")] for w in ways}
    assert min(min(both) for both in times.values()) > 0
    lines = speed(read_benches(tmp_path)).splitlines()
    (row,) = (line for line in lines if line.startswith("| FOGZO on 2 "))
    rates = 2 * times["one_card"][1] / times["together"][1]  # two processes of 4 images each
    assert f"| resnet18 {rates:.2f} |" in row


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_make_says_in_one_line_that_there_is_no_card() -> None:
    command = ["make", "-o", ".venv/installed", f"BIN={Path(sys.executable).parent}", "bench-cards"]
    outside = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=outside)
    first, *rest = done.stderr.splitlines()
    assert done.returncode == 2 and first.startswith("error: no CUDA device is here")
    assert all(line.startswith("make") for line in rest)
