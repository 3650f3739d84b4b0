"""Counts the bytes that are alive while something runs: those of tensors, or of the allocator."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.autograd.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self.known: Any = weakref.WeakKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage in self.known:
            return
        size = self.known[storage] = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self.remove, size)

    def remove(self, size: int) -> None:
        self.live -= size

    def __torch_dispatch__(self, call: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = call(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return result


def peak_bytes(run: Callable[[], Any]) -> int:
    """Peak of the allocator while `run` runs, from the profiler's record of every allocation."""
    with profile(profile_memory=True) as recorded:
        run()
    assert recorded.kineto_results is not None
    events = [e for e in recorded.kineto_results.events() if e.name() == "[memory]"]
    assert events, "the profiler has recorded no allocation"
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak
