"""The layers in front of the first perturbed weight: computed once a step.

The probes see the batch of the STE pass, so up to the first weight that is perturbed they compute
the same numbers: ResNet's stem and DeiT's patch embedding.
`EndOfPrefix` keeps its output in the STE pass and gives it again in the probes. What stands in
front of it is then dead code, which torch.compile leaves out; an eager pass computes it in vain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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


class SharedPrefix:
    """The prefixes of a model whose output a step's passes can share.

    Args:
        model: its `EndOfPrefix` layers are served, but those behind a perturbed weight.
        perturbed: the parameters that probes move.
    """

    def __init__(self, model: nn.Module, perturbed: Sequence[Tensor]) -> None:
        moved = {id(p) for p in perturbed}
        self.ends = [
            end
            for end in model.modules()
            if isinstance(end, EndOfPrefix)
            and not any(id(p) in moved for m in end.before for p in m.parameters())
        ]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Run the STE pass in here."""
        with self._mode("keep"):
            yield

    @contextmanager
    def reused(self) -> Iterator[None]:
        """Run probes in here; they compute the prefix themselves where none is kept."""
        with self._mode("reuse" if all(end.output is not None for end in self.ends) else "compute"):
            yield

    @contextmanager
    def _mode(self, mode: str) -> Iterator[None]:
        for end in self.ends:
            end.mode = mode
        try:
            yield
        finally:
            for end in self.ends:
                end.mode = "compute"

    def forget(self) -> None:
        """Drop what was kept: the next step's weights and batch are others."""
        for end in self.ends:
            end.output = None
