"""The clock of the benches: times one network's training step and forward passes."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from fogzo_repro.training.graph import WARM_UP_STEPS, CapturedStep
from fogzo_repro.training.row import ROW

LR = 1e-4  # low, so that random labels do no harm


class Clock:
    """Times one network; on a GPU with events, so that nothing waits within a step."""

    def __init__(
        self,
        step: Any,
        batches: list[Any],
        machine: Any,
        arguments: argparse.Namespace,
        captured: bool,
    ) -> None:
        self.step = step
        self.batches = batches
        self.on_gpu = machine.device.type == "cuda"
        self.take = CapturedStep(step, len(batches[0][0])) if captured else step
        self.forwards: Callable[[], Any] = self._two_forwards
        self.count, self.discarded, self.taken = arguments.steps, arguments.warm_up, 0
        self.row: Any = None
        self.memory_mb: dict[str, dict[str, float]] = {}  # by what is timed; on a GPU alone
        self.highest = 0.0  # allocated so far, in MiB

    def train(self, probing: bool) -> None:
        """Take one step."""
        self.step.begin(self.taken + 1, 10**4, LR)  # at the first step of all beta is 1
        self.row = self.take(self.batches[self.taken % len(self.batches)], probing)
        self.taken += 1

    def _two_forwards(self) -> None:
        loss = self.step.passes.probe(self.batches[0])
        loss()
        loss()

    def compile(self, kinds: Sequence[bool]) -> None:
        """Take the steps, probed or not, that compile what will be timed; give memory back."""
        for probing in kinds:
            self.step.begin(1, 10**4, LR)
            self.step(self.batches[0], probing)
            self.step.optimizer.zero_grad(set_to_none=True)
            if self.on_gpu:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()

    def capture(self, kinds: Sequence[bool]) -> None:
        """Capture the steps, probed or not, that will be timed; note what memory each kind takes.

        The peak of a captured step is seen while it is captured: a replay allocates nothing.
        """
        for probing in kinds:
            for _ in range(WARM_UP_STEPS):  # taken eagerly
                self.train(probing)
            with self._peaks("fogzo" if probing else "ste"):
                self.train(probing)
            self.train(probing)

    def capture_forwards(self) -> None:
        """Capture the two forward passes of a probe pair, on a GPU, and note their memory."""
        if not self.on_gpu:
            return
        torch.cuda.synchronize()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            self._two_forwards()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with self._peaks("two_forwards"), torch.cuda.graph(graph, stream=stream):
            self._two_forwards()
        self.forwards = graph.replay

    @contextmanager
    def _peaks(self, what: str) -> Iterator[None]:
        """Note the peak of the memory that is allocated and reserved in here, on a GPU."""
        if not self.on_gpu:
            yield
            return
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        self.peak_memory_mb()
        torch.cuda.reset_peak_memory_stats()
        yield
        torch.cuda.synchronize()
        self.memory_mb[what] = {
            "allocated": round(torch.cuda.max_memory_allocated() / 2**20, 1),
            "reserved": round(torch.cuda.max_memory_reserved() / 2**20, 1),
        }

    def peak_memory_mb(self) -> float:
        """Return the peak of allocated memory of this process since it began, in MiB."""
        self.highest = max(self.highest, torch.cuda.max_memory_allocated() / 2**20)
        return round(self.highest, 1)

    def steps(self, probing: bool) -> dict[str, float]:
        """Time whole steps."""
        return self.median(lambda: self.train(probing))

    def two_forwards(self) -> dict[str, float]:
        """Time the two forward passes of a probe pair, each time on new weights."""
        return self.median(self.forwards, lambda: self.train(probing=False))

    def last_loss(self) -> float:
        """Return the loss of the last step; without numbers and gradients nothing was measured."""
        last = dict(zip(ROW, self.row.tolist(), strict=True))
        if last["failed"] or last["loss"] != last["loss"]:
            raise SystemExit("a loss or gradient was not finite: this was no training")
        if self.step.weights and not (last["grad_norm_quantized"] > 0 and not last["dead_guides"]):
            raise SystemExit("the quantized weights have no gradient: this was no training")
        return last["loss"]

    def kernels(self, work: Callable[[], Any], count: int) -> list[dict[str, Any]]:
        """Return the kernels of something that take longest on the GPU: name, launches, ms."""
        with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
            work()
        found = sorted(profiled.key_averages(), key=lambda one: -one.self_device_time_total)
        return [
            {"kernel": one.key, "launches": one.count, "ms": one.self_device_time_total / 1000}
            for one in found[:count]
        ]

    def median(
        self, timed: Callable[[], Any], between: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """Time something, with something else in between; in milliseconds."""
        count = self.discarded + self.count
        return spread(times(timed, self.on_gpu, count, between)[self.discarded :])


def times(
    work: Callable[[], Any], on_gpu: bool, count: int, between: Callable[[], None] = lambda: None
) -> list[float]:
    """Return the milliseconds of something each time, with something else in between."""
    marks: list[Any] = []
    for _ in range(count):
        between()
        if on_gpu:
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            work()
            end.record()
            marks.append((begin, end))
        else:
            begin_s = time.perf_counter()
            work()
            marks.append(1000 * (time.perf_counter() - begin_s))
    if on_gpu:
        torch.cuda.synchronize()
        return [begin.elapsed_time(end) for begin, end in marks]
    return marks


def spread(ms: Sequence[float]) -> dict[str, float]:
    """Return what a record says of repeated times."""
    return {"median": statistics.median(ms), "min": min(ms), "max": max(ms), "n": len(ms)}
