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

import torch
from torch import nn

from fogzo_repro.config import UserError

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
        model.compile(dynamic=False)


def compile_failure(error: BaseException) -> UserError | None:
    """Return in one line that the compiler does not work here, where that is the error.

    It looks for its own tools, a C++ compiler among them, when the first step is taken.
    """
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__
    if not any(type(e).__module__.startswith(COMPILERS) for e in chain):
        return None
    reason = next(iter(str(chain[-1]).strip().splitlines()), type(chain[-1]).__name__)
    return UserError(
        f"torch.compile does not work here ({reason}); it needs a C++ "
        "compiler, on a GPU with Python's headers; else give hardware.compile=false (the run's "
        "log.txt says where it failed)"
    )
