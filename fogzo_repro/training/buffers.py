"""Buffers in the probes: BatchNorm uses the batch's statistics, and nothing is updated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class FrozenBuffers:
    """Keeps a model's buffers as they are during forward passes in training mode.

    Args:
        model: its BatchNorm layers are told not to track statistics, which costs nothing; all other
            buffers are saved and copied back.
    """

    def __init__(self, model: nn.Module) -> None:
        found = (m for m in model.modules() if isinstance(m, _BatchNorm))
        self.norms = [m for m in found if m.track_running_stats]
        untouched = {id(b) for m in self.norms for b in m.buffers(recurse=False)}
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for buffer in model.buffers():
            if id(buffer) not in untouched:
                by_type.setdefault(buffer.dtype, []).append(buffer)
        self.buffers = list(by_type.values())
        self.saved = [[torch.empty_like(b) for b in group] for group in self.buffers]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run forward passes in here."""
        for saved, buffers in zip(self.saved, self.buffers, strict=True):
            torch._foreach_copy_(saved, buffers)
        for norm in self.norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in self.norms:
                norm.track_running_stats = True
            for saved, buffers in zip(self.saved, self.buffers, strict=True):
                torch._foreach_copy_(buffers, saved)
