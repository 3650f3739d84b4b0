"""Layers that `training.passes` steers, so that all passes of a step see the same function.

Stochastic depth (Huang et al., 2016) takes masks that are drawn once a step. And up to the first
weight that is perturbed, ResNet's stem or DeiT's patch embedding, probes of the whole batch compute
what the STE pass did: `EndOfPrefix` keeps its output there and gives it again in the probes. What
stands in front of it is then dead code, which torch.compile leaves out; an eager pass computes it
in vain.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class DropPath(nn.Module):
    """Drops a residual branch for whole examples, and divides what is left by its probability.

    Args:
        drop_prob: probability of dropping.
    """

    def __init__(self, drop_prob: float) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.factors: Tensor | None = None  # (B,): 0 or 1/(1 - drop_prob); set from outside

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, ...) to the same shape; the identity outside training.

        Raises:
            RuntimeError: where no masks were drawn.
        """
        if not self.training:  # the rate is not asked: blocks that differ in it share their code
            return x
        if self.factors is None:
            raise RuntimeError("draw the masks before a pass in training mode: training.passes")
        factors = self.factors[: len(x)].to(x.dtype)
        return x * factors.view(-1, *[1] * (x.dim() - 1))


def share_drop_path(model: nn.Module) -> None:
    """Put `DropPath` in the place of timm's layers of that name.

    The first block, whose rate is 0, gets one too, so that all blocks are alike.
    """
    found = [
        (parent, name, getattr(layer, "drop_prob", 0.0))
        for parent in model.modules()
        for name, layer in parent.named_children()
        if name in ("drop_path1", "drop_path2")
    ]
    if any(rate for _, _, rate in found):
        for parent, name, rate in found:
            setattr(parent, name, DropPath(rate))


class EndOfPrefix(nn.Module):
    """The last layer of a prefix.

    Args:
        last: the layer itself.
        before: the layers in front of it that hold parameters.
    """

    def __init__(self, last: nn.Module, before: Sequence[nn.Module]) -> None:
        super().__init__()
        self.last = last
        self.before = tuple(before)  # a tuple: they keep their own names in the network
        self.mode = "compute"  # or `keep`, or `reuse`
        self.output: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer, or give what it gave when its output was kept."""
        if self.mode == "reuse":
            assert self.output is not None
            return self.output
        y = self.last(x)
        if self.mode == "keep":
            self.output = y.detach()
        return y
