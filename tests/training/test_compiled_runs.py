"""Whole runs of a compiled network: only its training passes are compiled, in every run."""

import shutil

import pytest

from tests.forked import ROOT, new_python

SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
from torch._dynamo.utils import counters

from tests.short_runs import train

with torch._dynamo.config.patch(recompile_limit=1):
    for seed in range(3):
        counters.clear()
        train(Path("runs"), "hardware.compile=true", "estimator=ste", f"seed={seed}")
        print(counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_each_run_compiles_its_training_pass_and_no_evaluation(tmp_path):
    """Also when there are more runs in a process than recompilations are allowed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = new_python(script, ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1", "1"]
