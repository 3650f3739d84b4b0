"""torch.compile of a network, where blocks that are alike are compiled once.

The compiler would trace, differentiate and lower every block of a network anew: most of a start of
LLaMA or DeiT. So such a model names its `regions`, the methods that its forward pass is made of,
and each is compiled by itself. The one that is called with one block after another, or with a few
at a time, takes their parameters and buffers as inputs of its graph, and all calls share it. For
that the blocks must agree in all that their forward pass reads and that is no tensor; where they do
not, as in a number of the layer, each call gets a graph of its own, and from the ninth on they run
eagerly.

A model without regions (ResNet, whose blocks differ in shape; a user's) is compiled as a whole.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn

from fogzo_repro.config import UserError
from fogzo_repro.config.own_errors import place_in_own_file
from fogzo_repro.terminal import first_line

# For networks with quantized inputs. A computation that several kernels need is repeated in each
# while it has no more operations and reads than these, else its result is written; the compiler's
# own limits are 30, 4 and 8. A quantizer's derivative behind a norm and a ReLU has more, and is
# cheaper to compute again from the convolution's output, which is in memory anyway. Without
# quantizers higher limits make longer chains of residuals, and more bytes.
RECOMPUTED: dict[str, Any] = {
    "realize_opcount_threshold": 100,
    "realize_reads_threshold": 8,
    "realize_acc_reads_threshold": 16,
}
COMPILERS = ("torch._dynamo", "torch._inductor", "triton")  # where their errors are defined


def compile_network(model: nn.Module) -> None:
    """Have a network compiled when it is called, in place: its parameters keep their names.

    Args:
        model: names the methods that are compiled by themselves in `regions`, or is compiled whole.
    """
    torch.compiler.reset()  # the graphs of earlier runs in this process count against a limit
    regions: tuple[str, ...] = getattr(model, "regions", ())
    for name in regions:
        method = getattr(type(model), name).__get__(model)
        setattr(model, name, torch.compile(method, dynamic=False))
    if not regions:
        quantized = any(getattr(m, "input_quantizer", None) is not None for m in model.modules())
        on_gpu = any(p.is_cuda for p in model.parameters())
        model.compile(dynamic=False, options=RECOMPUTED if quantized and on_gpu else None)


def start_compilers() -> None:
    """Start the processes that compile kernels: it takes them seconds.

    Until they are there the compiler compiles one kernel after another in this process.
    """
    with contextlib.suppress(ImportError, AttributeError):  # it has no public name
        from torch._inductor.async_compile import AsyncCompile

        AsyncCompile.use_process_pool()


def compile_failure(error: BaseException) -> UserError | None:
    """Return in one line that the compiler does not work here, where that is the error.

    It looks for its own tools, a C++ compiler among them, when the first step is taken.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    ours = not place_in_own_file(error)  # a user's model that the compiler has found wrong
    if not (ours and any(type(e).__module__.startswith(COMPILERS) for e in chain)):
        return None
    return UserError(
        f"torch.compile does not work here ({first_line(chain[-1])}); it needs a C++ compiler, on "
        "a GPU with Python's headers, and room for its files (TORCHINDUCTOR_CACHE_DIR, by default "
        "on /tmp, and FOGZO_COMPILED); else give hardware.compile=false (the run's log.txt says "
        "where it failed)"
    )
