"""Measure the products of linear layers in eight bits against bf16, and the head, on one GPU.

    python -m scripts.bench.products --out results/records/bench/products-h200.json
    python -m scripts.bench.products --toy --out /tmp/products.json     # does it run? (CPU)

For each linear layer of LLaMAs and DeiTs (32,768 tokens; 256 images) the product of 2-bit operands
in bf16, as `F.linear`, of their codes in float8, with a scale for each row and with one for all,
and of integers in int8 without scales. Times are of captured graphs, without the quantizers.
`exact_to` is the largest K, of those tried, up to which K products of the largest codes, half of
them negative, sum up exactly.

The head is that of llama_30m: its product alone, and the loss with and without gradients, compiled.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from fogzo_repro.models.head_loss import linear_cross_entropy
from fogzo_repro.quantization import products
from fogzo_repro.terminal import one_line_errors
from scripts.bench.clock import times
from scripts.bench.record import begin, bench_parser, card_name, head, tell_moved, write

LAYERS = {  # tokens, and (K, N) of each kind of layer
    "llama_30m": (32768, [(640, 640), (640, 1792), (1792, 640)]),
    "llama_200m": (32768, [(1024, 1024), (1024, 2816), (2816, 1024)]),
    "llama_300m": (32768, [(1280, 1280), (1280, 3584), (3584, 1280)]),
    "deit_small": (50432, [(384, 1152), (384, 384), (384, 1536), (1536, 384)]),
    "deit_tiny": (50432, [(192, 576), (192, 192), (192, 768), (768, 192)]),
}
LARGEST = {"2 bits": 3, "4 bits": 15}  # code
FEATURES = (640, 1280, 1792, 2816, 3584, 5120)
HEAD = (32768, 640, 50304)  # N, D, V
CALLS = 8  # in a graph


@one_line_errors
def main() -> int:
    """Measure, write one JSON file."""
    parser = bench_parser(__doc__, toy="tiny products")
    arguments = parser.parse_args()
    committed = begin(arguments.out, on_gpu=not arguments.toy)
    device = torch.device("cpu" if arguments.toy else "cuda")
    record = head("products", "the same products in bf16", card_name(arguments.toy))
    shrink = 32 if arguments.toy else 1
    record["layers"] = {
        f"{name} {k} to {n}": layer(tokens // shrink**2, k, n, device)
        for name, (tokens, shapes) in LAYERS.items()
        for k, n in shapes
    }
    record["exact_to"] = {
        name: {scales: exact_to(code, scales, device) for scales in ("by_row", "one")}
        for name, code in LARGEST.items()
    }
    record["head"] = head_of(*(n // shrink for n in HEAD), device)
    write(arguments.out, record)
    for part in ("layers", "head"):
        tell_moved(record, committed, (part,), arguments.out.name)
    return 0


def layer(tokens: int, k: int, n: int, device: Any) -> dict[str, float]:
    """Return milliseconds of a layer's product in bf16 and in float8."""
    stream = torch.Generator().manual_seed(0)
    drawn = (torch.randint(0, 4, (rows, k), generator=stream) for rows in (tokens, n))
    x, weight = ((2 * levels - 3).to(device) for levels in drawn)
    codes = x.to(products.CODES), weight.to(products.CODES)
    wide = x.bfloat16(), weight.bfloat16()
    integers = x.to(torch.int8), weight.to(torch.int8).T
    by_row = torch.rand(tokens, 1, device=device), torch.rand(n, 1, device=device)
    one = torch.ones((), device=device)
    found = {
        "bf16_ms": milliseconds(lambda: F.linear(*wide), device),
        "int8_unscaled_ms": milliseconds(lambda: torch._int_mm(*integers), device),
        "float8_by_row_ms": milliseconds(lambda: products.product(*codes, *by_row), device),
        "float8_one_scale_ms": milliseconds(lambda: products.product(*codes, one, one), device),
    }
    found["bf16_over_float8"] = found["bf16_ms"] / found["float8_by_row_ms"]
    print(f"{k} to {n}: {found['bf16_over_float8']:.2f} times as fast", flush=True)
    return found


def exact_to(code: int, scales: str, device: Any) -> int:
    """Return the largest number of products of this code whose sum comes out exactly, 0 if none."""
    found = 0
    for k in FEATURES:
        x, weight = (torch.full((rows, k), float(code), device=device) for rows in (256, 128))
        x[:, k // 2 :] *= -1  # the sum grows, and falls to a small one that bf16 shows exactly
        for operand in (x, weight):
            operand[torch.arange(len(operand)), torch.arange(len(operand)) % k] = 1
        shapes = [(256, 1), (128, 1)] if scales == "by_row" else [(), ()]
        ones = [torch.ones(shape, device=device) for shape in shapes]
        codes = x.to(products.CODES), weight.to(products.CODES)
        exact = (x.double() @ weight.double().T).bfloat16()
        if not torch.equal(products.product(*codes, *ones), exact):
            break
        found = k
    return found


def head_of(tokens: int, width: int, words: int, device: Any) -> dict[str, float]:
    """Return milliseconds of a head's product, and of the loss with and without gradients."""
    stream = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=stream).to(device).requires_grad_()
    weight = (0.02 * torch.randn(words, width, generator=stream)).to(device).requires_grad_()
    targets = torch.randint(words, (tokens,), generator=stream).to(device)
    narrow = hidden.detach().bfloat16(), weight.detach().bfloat16()
    loss = linear_cross_entropy
    if device.type == "cuda":
        loss = torch.compile(loss, dynamic=False)

    def forward() -> Any:
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            return loss(hidden, weight, targets)

    def train() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            found = loss(hidden, weight, targets)
        return torch.autograd.grad(found, (hidden, weight))

    part = narrow[0][: tokens // 8]
    found = {
        "product_ms": 8 * milliseconds(lambda: F.linear(part, narrow[1]), device),
        "forward_ms": milliseconds(forward, device, 1),
        "train_ms": milliseconds(train, device, 1),
    }
    print(f"head: {found}", flush=True)
    return found


def milliseconds(call: Callable[[], Any], device: Any, calls: int = CALLS) -> float:
    """Return the median time of a call in a captured graph of some, or on the CPU of one call."""
    if device.type == "cpu":
        return times(call, False, 1)[0]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(calls):
            call()
    return statistics.median(times(graph.replay, True, 12)[2:]) / calls


if __name__ == "__main__":
    sys.exit(main())
