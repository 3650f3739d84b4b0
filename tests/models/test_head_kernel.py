"""The kernel of the cross-entropy behind a head; on the CPU by Triton's interpreter."""

import pytest
import torch

from fogzo_repro.models.head_loss import has_kernel, linear_cross_entropy
from tests.forked import by_triton

GPU = torch.cuda.is_available() and has_kernel(torch.device("cuda"))

SCRIPT = """
import os
import sys

sys.path.insert(0, sys.argv[1])
import torch

from fogzo_repro.models.head_kernel import softmax_gradients, token_losses

device = "cpu" if "TRITON_INTERPRET" in os.environ else "cuda"
generator = torch.Generator().manual_seed(0)
for tokens, words, width in ((200, 300, 64), (128, 512, 128), (37, 1000, 40), (1, 5, 8)):
    hidden, weight = (
        (3 * torch.randn(n, width, generator=generator) / width**0.25).half().to(device)
        for n in (tokens, words)
    )
    targets = torch.randint(words, (tokens,), generator=generator).to(device)
    targets[:1], targets[-1:] = words - 1, 0
    logits = hidden.double() @ weight.double().T
    exact = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    found = token_losses(hidden, weight, targets)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    print(tokens, words, width)
hidden, weight = torch.eye(1, 8).half().to(device), torch.zeros(600, 8).half().to(device)
weight[:, 0] = float("-inf")  # of whole tiles, but for one word
weight[3, 0] = 1
assert token_losses(hidden, weight, torch.tensor([3], device=device)).item() == 0
for words, kind in ((5, None), (1000, None), (9000, None), (8192, torch.float16)):
    kind = kind or torch.float32
    logits = (5 * torch.randn(7, words, generator=generator)).to(kind).to(device)
    logits[0, :-1], logits[1, 3] = float("-inf"), 200.0
    targets = torch.randint(words, (14,), generator=generator).to(device)[::2]
    targets[:2] = words - 1
    exact = logits.double()
    if words == 1000:
        logits = logits.T.contiguous().T
    losses, gradients = softmax_gradients(logits, targets), logits
    wanted = exact.softmax(-1) - torch.nn.functional.one_hot(targets, words)
    rounding = 1e-6 if kind == torch.float32 else 1e-3
    torch.testing.assert_close(gradients.double(), wanted, rtol=0, atol=rounding)
    exact = torch.nn.functional.cross_entropy(exact, targets, reduction="none")
    torch.testing.assert_close(losses.double(), exact, rtol=1e-6, atol=1e-5)
    print(words)
"""


@pytest.mark.slow
def test_losses_equal_float64_also_where_tiles_are_ragged():
    assert len(by_triton(SCRIPT, GPU).splitlines()) == 8


@pytest.mark.skipif(not GPU, reason="needs a Hopper card")
def test_a_captured_and_compiled_pass_without_gradients_equals_float64():
    torch.manual_seed(0)
    hidden, weight = torch.randn(4096, 640).cuda(), (torch.randn(50304, 640) * 0.05).cuda()
    targets = torch.randint(50304, (4096,)).cuda()
    narrow = hidden.bfloat16().double(), weight.bfloat16().double()
    exact = torch.nn.functional.cross_entropy(narrow[0] @ narrow[1].T, targets)
    compiled = torch.compile(linear_cross_entropy, fullgraph=True)
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for run in (linear_cross_entropy, compiled):
            stream = torch.cuda.Stream()
            with torch.cuda.stream(stream), torch.profiler.profile() as profile:
                run(hidden, weight, targets)
            assert any("head_tiles" in event.key for event in profile.key_averages())
            stream.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=stream):
                loss = run(hidden, weight, targets)
            graph.replay()
            torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    inputs = hidden.requires_grad_(), weight.requires_grad_()
    narrow = [x.bfloat16().double().detach().requires_grad_() for x in inputs]
    plain = torch.nn.functional.cross_entropy(narrow[0] @ narrow[1].T, targets)
    wanted = torch.autograd.grad(plain, narrow)
    for run in (linear_cross_entropy, compiled):
        with torch.autocast("cuda", torch.bfloat16), torch.profiler.profile() as profile:
            chunked = run(*inputs, targets)
        assert any("softmax_gradients" in event.key for event in profile.key_averages())
        torch.testing.assert_close(chunked.double(), exact, rtol=1e-4, atol=0)
        for a, b in zip(torch.autograd.grad(chunked, inputs), wanted, strict=True):
            assert (a.double() - b).norm() < 5e-3 * b.norm()  # bf16's rounding
