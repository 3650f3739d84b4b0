"""Whole runs of a compiled network: only its training passes are compiled, in every run."""

import pytest

from tests.forked import ROOT, compiling, finish, start

SCRIPT = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
import torch
from torch._dynamo.utils import counters

import tests.traced
from tests.short_runs import train

with torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True):
    for seed in range(3):
        counters.clear()
        train(Path("runs"), "hardware.compile=true", "estimator=ste", f"seed={seed}")
        print(counters["stats"]["unique_graphs"])
"""


@pytest.mark.slow
def test_each_run_compiles_its_training_pass_and_no_evaluation(tmp_path):
    """Also when there are more runs in a process than recompilations are allowed."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = compiling(script, ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["1", "1", "1"]


SHORT = """
import sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from sklearn import datasets
from torch._dynamo.utils import counters

import tests.traced
from fogzo_repro.data import digits
from tests.short_runs import train

some = datasets.load_digits()
some.images, some.target = some.images[:48], some.target[:48]
datasets.load_digits = lambda: some
digits.IMAGES, digits.TEST_IMAGES = 48, 8
WORDS = [
    "scale=smoke", "model=deit_tiny", "model.depth=1", "recipe=cifar_resnet", "estimator=fogzo",
    "estimator.noise=0.01", "quantizer=round", "recipe.max_steps=4", "recipe.drop_last=false",
]


def rows(folder, *words):
    counters.clear()
    text = (train(Path(folder), *WORDS, *words) / "metrics.jsonl").read_text()
    return text, counters["stats"]["unique_graphs"]


for batch in sys.argv[2:]:
    words = [f"recipe.global_batch_size={batch}"]
    eager, _ = rows("eager", *words, "hardware.compile=false")
    found, graphs = rows("compiled", *words, "hardware.compile=true")
    assert found == eager, (found, eager)
    print(graphs)
"""


@pytest.mark.slow
def test_a_small_last_batch_of_an_epoch_compiles_nothing(tmp_path):
    """Of 40 images: twice 20; twice 16 and the half of it; 21 and 19, which is more than half.

    That is compiled once more: DeiT's three parts, with and without a backward pass.
    """
    script = tmp_path / "script.py"
    script.write_text(SHORT)
    done = compiling(script, ROOT, "20", "16", "21", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    whole, short, more = map(int, done.stdout.split())
    assert short == whole and more == whole + 3 * 2


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


RESIDUAL = """
import sys

sys.path.insert(0, sys.argv[1])
import torch
from torch import nn

from fogzo_repro.quantization.lsq import LsqInput, LsqWeight
from fogzo_repro.quantization.replace import quantize_layers
from fogzo_repro.training.compilation import RECOMPUTED


class Residual(nn.Sequential):
    def forward(self, x):
        return torch.relu(x + super().forward(x))


def half(convolution):
    return convolution, nn.BatchNorm2d(8)


torch.manual_seed(0)
blocks = [
    Residual(*half(nn.Conv2d(8, 8, 1)), nn.ReLU(), *half(nn.Conv2d(8, 8, 3, padding=1)))
    for _ in range(2)
]
network = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), *blocks)
quantize_layers(network, lambda _, w: LsqWeight(w.detach(), 2), lambda *_: LsqInput(2))
x = torch.randn(4, 8, 6, 6)
passes = []
for run in (network, network, torch.compile(network, dynamic=False, options=RECOMPUTED)):
    network.zero_grad()  # the first pass starts the steps of the inputs
    y = run(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    passes.append({name: p.grad.clone() for name, p in network.named_parameters()})
_, expected, found = passes
largest = max(g.abs().max().item() for g in expected.values())
for name, gradient in expected.items():
    torch.testing.assert_close(
        found[name], gradient, rtol=1e-4, atol=1e-5 * largest, msg=lambda said: f"{name}: {said}"
    )
print(sum("input_quantizer" in name for name in found))
"""


@pytest.mark.slow
def test_gradients_of_quantized_inputs_equal_the_eager_ones(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(RESIDUAL)
    done = compiling(script, ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"]
