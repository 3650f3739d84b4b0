"""Stochastic depth (Huang et al., 2016) with masks that are drawn before the passes of a step.

The STE pass and the probes must see the same function, so they share one draw. Masks that lie in
memory are also the same inside a captured CUDA graph, where a generator cannot be wound back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for whole examples, and divides what is left by its probability.

    Args:
        drop_prob: probability of dropping.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.factors: Tensor | None = None  # (B,): 0 or 1/(1 - drop_prob); set by DropPathMasks

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape; the identity outside training."""
        if not self.training or self.drop_prob == 0:
            return x
        if self.factors is None:
            raise RuntimeError("draw the masks before a pass in training mode: DropPathMasks.draw")
        factors = self.factors[: len(x)].to(x.dtype)
        return x * factors.view(-1, *[1] * (x.dim() - 1))


class DropPathMasks:
    """The masks of all stochastic-depth layers of a model.

    Args:
        model: its `DropPath` layers are served.
    """

    def __init__(self, model: nn.Module) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, DropPath) and m.drop_prob]
        self.table = torch.empty(len(self.layers), 0)

    def draw(self, examples: int, generator: torch.Generator) -> None:
        """Draw one mask for each layer and example, in place where there are as many as before."""
        if not self.layers:
            return
        if self.table.shape[1] != examples:
            kept = [1 - layer.drop_prob for layer in self.layers]
            self.kept = torch.tensor(kept, device=generator.device).unsqueeze(1)
            self.table = self.kept.new_empty(len(kept), examples)
        self.table.uniform_(generator=generator)
        self.table.copy_((self.table < self.kept) / self.kept)
        self.select(0, examples)

    def select(self, first: int, count: int) -> None:
        """Give the layers the masks of `count` examples from `first` on."""
        for layer, factors in zip(self.layers, self.table, strict=True):
            layer.factors = factors[first : first + count]


def share_drop_path(model: nn.Module) -> None:
    """Put `DropPath` in the place of timm's layers of that name."""
    for parent in list(model.modules()):
        layer: Any
        for name, layer in list(parent.named_children()):
            if type(layer).__name__ == "DropPath" and not isinstance(layer, DropPath):
                setattr(parent, name, DropPath(layer.drop_prob))
