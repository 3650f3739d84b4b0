"""The bench of several cards, as two processes on the CPU with a tiny network."""

import json
import subprocess
from pathlib import Path

import pytest

from fogzo_repro.reporting.benches import speed
from tests.forked import ROOT, torchrun


@pytest.mark.slow
def test_two_processes_train_together_and_alone(tmp_path: Path) -> None:
    out = tmp_path / "cards.json"
    command = torchrun(
        "-m", "scripts.bench.cards", "--toy", "--networks=resnet18", "--steps=2", "--warm-up=1",
        f"--out={out}",
    )  # fmt: skip
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert process.returncode == 0, process.stdout + process.stderr
    record = json.loads(out.read_text())
    assert record["command"].startswith("torchrun --nproc-per-node=2 -m scripts.bench.cards")
    found = record["cards"]["resnet18"]
    ways = ("together", "eager", "one_card")
    times = {w: [found[w][k]["median"] for k in ("ste_ms", "fogzo_ms")] for w in ways}
    assert min(min(both) for both in times.values()) > 0
    (row,) = (line for line in speed(tmp_path).splitlines() if line.startswith("| FOGZO on 2 "))
    rates = 2 * times["one_card"][1] / times["together"][1]  # two processes of 4 images each
    assert f"| resnet18 {rates:.2f} |" in row
