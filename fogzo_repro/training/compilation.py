"""torch.compile of a network, where blocks that are alike are compiled once.

The compiler would trace, differentiate and lower every block of a network anew: most of a start of
LLaMA or DeiT. So such a model names its `regions`, the methods that its forward pass is made of,
and each is compiled by itself. The one that is called with one block after another takes their
parameters and buffers as inputs of its graph, and they all share it. For that the blocks must agree
in all that their forward pass reads and that is no tensor; where they do not, as in a number of the
layer, each gets a graph of its own, and from the ninth on they run eagerly.

A model without regions (ResNet, whose blocks differ in shape; a user's) is compiled as a whole.
"""

from __future__ import annotations

import torch
from torch import nn


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
