"""The end of the layers that no probe changes: ResNet's stem, DeiT's patch embedding.

The probes see the batch of the STE pass, so up to the first weight that is perturbed they compute
the same numbers. `EndOfPrefix` keeps its output in the STE pass and gives it again in the probes;
`training.passes` tells it when. What stands in front of it is then dead code, which torch.compile
leaves out; an eager pass computes it in vain.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


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
