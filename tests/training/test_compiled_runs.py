"""Whole runs of a compiled network: only its training passes are compiled, in every run."""

import shutil

import pytest
import torch
from torch._dynamo.utils import counters

from tests.short_runs import train

pytestmark = pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler"
)


def test_each_run_compiles_its_training_pass_and_no_evaluation(tmp_path, monkeypatch):
    """Also when there are more runs in a process than recompilations are allowed."""
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 2)
    for seed in range(4):
        counters.clear()
        train(tmp_path, "hardware.compile=true", "estimator=ste", f"seed={seed}")
        assert counters["stats"]["unique_graphs"] == 1
