"""The whole training step as one CUDA graph: small networks are bound by kernel launches.

The first steps run eagerly, as the warm-up that capturing needs; they are ordinary steps of the
run. Random streams are registered with the graph: reseeding a generator between replays has the
same effect as between eager steps.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from fogzo_repro.training.step import TrainStep

WARM_UP_STEPS = 3


class CapturedStep:
    """Runs `TrainStep` from a captured graph, one graph per kind of step (probed or not)."""

    def __init__(self, step: TrainStep) -> None:
        self.step = step
        self.stream = torch.cuda.Stream()
        self.graphs: dict[bool, tuple[torch.cuda.CUDAGraph, Any, Tensor]] = {}
        self.taken = {True: 0, False: 0}
        self.capture_seconds = 0.0

    def __call__(self, batch: Any, probing: bool) -> Tensor:
        """Take one step; the row is overwritten by the next."""
        if self.taken[probing] < WARM_UP_STEPS:
            self.taken[probing] += 1
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                row = self.step(batch, probing)
            torch.cuda.current_stream().wait_stream(self.stream)
            return row
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

    def _capture(self, batch: Any, probing: bool) -> tuple[torch.cuda.CUDAGraph, Any, Tensor]:
        inputs = type(batch)(*(t.clone() for t in batch))
        graph = torch.cuda.CUDAGraph()
        for generator in self.step.generators.values():
            graph.register_generator_state(generator)
        self.step.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(graph, stream=self.stream):
            row = self.step(inputs, probing)
        return graph, inputs, row
