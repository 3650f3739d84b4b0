"""The Triton kernels compute what `Quest` says in torch; on the CPU by Triton's interpreter."""

import pytest
import torch

from fogzo_repro.quantization import quest
from fogzo_repro.quantization.quest import Quest
from tests.forked import by_triton

GPU = torch.cuda.is_available()
SCRIPT = """
import sys

sys.path.insert(0, sys.argv[1])
import torch

from fogzo_repro.quantization.products import CODES
from fogzo_repro.quantization.quest import Quest

GPU = torch.cuda.is_available()
device = "cuda" if GPU else "cpu"


def by_kernel(quantizer, x):
    assert quantizer.block >= 16
    return quantizer._by_kernel(x).rows


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(device)

def check_codes(half, quantizer, x, g):
    # The rows stay rotated, as in the half variant; the codes are theirs, with or without them.
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    rows, codes, scale = quantizer._by_kernel(leaf, CODES)
    expected = by_kernel(half, other)
    assert torch.equal(rows, expected)
    assert (codes.float() % 2 == 1).all()
    torch.testing.assert_close(codes.float() * scale, rows.float(), rtol=2e-2, atol=1e-6)
    rows.backward(g)
    expected.backward(g)
    assert torch.equal(leaf.grad, other.grad)
    with torch.no_grad():
        empty, again, _ = quantizer._by_kernel(x, CODES)
    assert empty.numel() == 0 and torch.equal(again.float(), codes.float())


CASES = [  # row, bits, variant, trust width
    (128, 2, "full", None), (640, 4, "full", None), (192, 3, "half", None), (48, 1, "full", None),
    (64, 8, "full", None), (256, 2, "full", 0.3), (96, 1, "half", None),
]
for kind in (torch.float16, torch.bfloat16)[: 1 + GPU]:  # the interpreter multiplies no bf16
    for row, bits, variant, width in CASES:
        quantizer = Quest(row, bits, variant, trust_width=width)
        x = gaussian(3, 30, row).to(kind)
        x[0, 0] = 0
        g = gaussian(3, 30, row, seed=1).to(kind)
        leaf, exact = x.clone().requires_grad_(), x.double().requires_grad_()
        found, expected = by_kernel(quantizer, leaf), quantizer(exact)
        found.backward(g)
        expected.backward(g.double())
        assert found.dtype == leaf.grad.dtype == kind
        assert found[0, 0].abs().max() < 1e-6
        # A level, or a bit of the mask, differs where rounding crosses a threshold: seldom.
        step = 2 * torch.finfo(kind).eps
        for name, a, b in (("value", found, expected), ("gradient", leaf.grad, exact.grad)):
            off = (a.double() - b).abs() > step * b.abs().max()
            assert off.double().mean() < 2e-3, (kind, row, bits, variant, name, off.double().mean())
        with torch.no_grad():
            assert torch.equal(by_kernel(quantizer, x), found)
        if bits <= 4:
            check_codes(Quest(row, bits, "half", trust_width=width), quantizer, x, g)
        print(kind, row, bits, variant)

from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition

quantizers = [Quest(64, 2, of_inputs=True) for _ in range(3)]
x = gaussian(5, 8, 64).half()
calls = []


def count(graph, _):
    op = torch.ops.fogzo_repro.quest_quantize.default
    calls.append(sum(node.target == op for node in graph.graph.nodes))
    return graph.forward


def backward(graph, _):
    return graph.forward


compiled = torch.compile(
    lambda x: sum(by_kernel(quantizer, x) for quantizer in quantizers),
    backend=aot_autograd(
        fw_compiler=count, bw_compiler=backward, partition_fn=min_cut_rematerialization_partition
    ),
)
leaf, other = (x.clone().requires_grad_() for _ in range(2))
found, expected = compiled(leaf), 3 * by_kernel(quantizers[0], other)
torch.testing.assert_close(found, expected)
g = gaussian(5, 8, 64, seed=1).half()
found.backward(g)
expected.backward(g)
torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-2, atol=1e-2)
print(calls)
"""


@pytest.mark.slow
def test_kernels_equal_the_formula_in_float64_compiled_too():
    """Compiled, layers that share their inputs quantize them once."""
    *equal, calls = by_triton(SCRIPT, GPU).splitlines()
    assert len(equal) == 7 * (1 + GPU)
    assert calls == "[1]"


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [([], False), ([(7, 5)], False), ([(9, 0), (7, 5)], False), ([(8, 0), (9, 0)], True)],
    ids=["no-gpu", "turing", "mixed", "ampere"],
)
def test_gpus_that_triton_does_not_support_take_plain_torch(monkeypatch, capabilities, expected):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    quest.has_kernels.cache_clear()
    assert Quest(64, 2, of_inputs=True).has_kernels == expected
    assert not Quest(8, 2, of_inputs=True).has_kernels
    assert not Quest(64, 2).has_kernels, "weights are rotated in float32"
    quest.has_kernels.cache_clear()


@pytest.mark.skipif(not GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("images", [False, True], ids=["tokens", "pixels"])
def test_a_network_on_a_gpu_uses_them(images):
    shape = (4, 64, 9, 9) if images else (4, 9, 64)
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).cuda()
    if images:
        x = x.to(memory_format=torch.channels_last)
    quantizer = Quest(64, 2, of_inputs=True, row_axes=0 if images else 1)
    with torch.autocast("cuda", torch.bfloat16), torch.profiler.profile() as profile:
        found = quantizer(x)
    assert any("quest_quantize" in event.key for event in profile.key_averages())
    assert found.dtype == x.dtype and found.stride() == x.stride()
    exact = quantizer(x.bfloat16().double())
    assert ((found - exact).abs() > 0.02 * exact.abs().max()).double().mean() < 2e-3
