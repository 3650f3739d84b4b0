"""The whole training step as one CUDA graph: kernels are launched without waiting for Python.

The first steps run eagerly, as the warm-up that capturing needs (compilation included); they are
ordinary steps of the run, and so is a batch of another size, the last one of an epoch. Random
streams are registered with the graph: reseeding a generator between replays has the same effect as
between eager steps.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from fogzo_repro.training.step import TrainStep

WARM_UP_STEPS = 3


def can_capture(model: nn.Module) -> bool:
    """Return whether the passes of a captured step see the same function.

    Dropout draws from the default generator, which cannot be wound back inside a graph; the masks
    of `models.steered` lie in memory.
    """
    return not any(isinstance(m, _DropoutNd) and m.p > 0 for m in model.modules())


class CapturedStep:
    """Runs `TrainStep` from a captured graph, one graph per kind of step (probed or not).

    Batches that have not the examples of a full one are taken eagerly.
    """

    def __init__(self, step: TrainStep, examples: int) -> None:
        self.step = step
        self.examples = examples
        self.stream = torch.cuda.Stream()
        self.graphs: dict[bool, tuple[torch.cuda.CUDAGraph, Any, Tensor]] = {}
        self.taken = {True: 0, False: 0}
        self.capture_seconds = 0.0

    def __call__(self, batch: Any, probing: bool) -> Tensor:
        """Take one step; the row is overwritten by the next."""
        if self.taken[probing] < WARM_UP_STEPS or len(batch[0]) != self.examples:
            return self._eagerly(batch, probing)
        if probing not in self.graphs:
            torch.cuda.synchronize()
            started = time.monotonic()
            self.graphs[probing] = self._capture(batch, probing)
            torch.cuda.synchronize()
            self.capture_seconds += time.monotonic() - started
        graph, inputs, row = self.graphs[probing]
        for static, value in zip(inputs, batch, strict=True):
            static.copy_(value)
        graph.replay()
        return row

    def _eagerly(self, batch: Any, probing: bool) -> Tensor:
        self.taken[probing] += len(batch[0]) == self.examples
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            row = self.step(batch, probing)
        torch.cuda.current_stream().wait_stream(self.stream)
        return row

    def _capture(self, batch: Any, probing: bool) -> tuple[torch.cuda.CUDAGraph, Any, Tensor]:
        inputs = type(batch)(*(t.clone() for t in batch))
        graph = torch.cuda.CUDAGraph()
        for generator in (*self.step.generators.values(), self.step.passes.generator):
            graph.register_generator_state(generator)
        self.step.optimizer.zero_grad(set_to_none=True)
        pool = next((g.pool() for g, _, _ in self.graphs.values()), None)  # one replays at a time
        # The threads that bring batches go on meanwhile, and allocate: only this one is watched.
        mode = "thread_local"
        with torch.cuda.graph(graph, pool, self.stream, capture_error_mode=mode):
            row = self.step(inputs, probing)
        return graph, inputs, row
