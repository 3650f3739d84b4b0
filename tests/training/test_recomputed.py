"""What a compiled network computes anew in each kernel changes no gradient."""

import pytest

from tests.forked import ROOT, compiling

SCRIPT = """
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
    script.write_text(SCRIPT)
    done = compiling(script, ROOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4"]
