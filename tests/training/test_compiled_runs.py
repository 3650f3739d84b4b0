"""Whole runs of a compiled network: only its training passes are compiled, in every run."""

import pytest

from tests.conftest import compiles
from tests.forked import ROOT, compiling, finish, start

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
@compiles
def test_each_run_compiles_its_training_pass_and_no_evaluation(tmp_path):
    """Also when there are more runs in a process than recompilations are allowed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = compiling(script, ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1", "1"]


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(tmp_path):
    def without():
        import torch._inductor.config as inductor

        inductor.cpp.cxx = ("no-such-compiler",)
        inductor.force_disable_caches = True

    words = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", "hardware.compile=true"]
    words += ["recipe.max_steps=2", "estimator=ste", f"output_root={tmp_path / 'runs'}"]
    assert finish(start(words, tmp_path / "err", before=without)) == 2
    said = (tmp_path / "err").read_text()
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert error.startswith(
        "error: torch.compile does not work here (InvalidCxxCompiler: No working"
    )
    assert error.endswith("(the run's log.txt says where it failed)") and "Traceback" not in said
    assert "Traceback" in next(tmp_path.glob("runs/*/log.txt")).read_text()
