"""The training loop: data, steps, metrics, evaluation, checkpoints, signals.

All that decides the numbers is a function of the state and of (seed, epoch, step): a run that is
resumed from any checkpoint ends with the same bytes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.order import EpochOrder, across_epochs
from fogzo_repro.estimators import QuantizedWeight
from fogzo_repro.randomness import generator_for
from fogzo_repro.tracking.metrics import Journal
from fogzo_repro.tracking.progress import RunProgress
from fogzo_repro.training.checkpoint import (
    MODEL,
    load_checkpoint,
    load_weights,
    model_tensors,
    pack_tensors,
    save_checkpoint,
)
from fogzo_repro.training.optimizers import load_optimizer_tensors, optimizer_tensors
from fogzo_repro.training.preemption import EvaluationStopped, Preempted, StopRequest, until_asked
from fogzo_repro.training.row import ROW, begin_line, has_no_gradient, read_row
from fogzo_repro.training.step import TrainStep

# torch 2.11 once compiled a quantizer's backward pass to zeros, without a word.
NO_GRADIENT = (
    "at the first step the gradient of all quantized weights together is exactly zero, so that "
    "they would not be trained; an estimator of yours has to leave it in .grad. If "
    "hardware.compile=false mends it, torch.compile has dropped it: report it with the version of "
    "torch"
)
LOOK_STEPS = 100  # between looks at how much the surrogate holds back, and one at the end
FLUSH_STEPS = 100  # rows are fetched from the device and written this many at a time


class Diverged(Exception):
    """The run cannot go on: a loss or gradient that is not finite. One line, with the step."""


class Data(Protocol):
    """Batches by epoch; the order is a function of the generator alone.

    See `data.order.across_epochs` for the method that data may have besides.
    """

    @property
    def order(self) -> EpochOrder:
        """How many steps an epoch has, and how many examples each takes over all ranks."""
        ...

    def epoch(self, generator: torch.Generator, start: int = 0) -> Any:
        """Iterate over the batches from `start` on."""
        ...


@torch.no_grad()
def held_back(weights: Sequence[QuantizedWeight]) -> dict[str, float]:
    """Return the mean of 1 - h' over all quantized weights: how much the STE holds back.

    It is the surrogate's derivative that counts, not which gradients happen to be zero. Nothing for
    a network without quantized weights.
    """
    known = [w for w in weights if w.slope is not None]
    if not known:
        return {}
    sums = [(1 - w.slope(w.parameter)).double().sum() for w in known]  # type: ignore[misc]
    total = sum(w.parameter.numel() for w in known)
    return {"held_back": torch.stack(sums).sum().item() / total}


@dataclass(frozen=True)
class Timetable:
    """How long, how often, where."""

    seed: int  # decides the order of every epoch
    total_steps: int
    lr: Callable[[int], float]  # of a step, from 0
    eval_every_epochs: int  # the last step is always evaluated
    eval_every_steps: int | None  # inside an epoch
    checkpoint_seconds: float  # wall time between checkpoints
    snapshot_steps: frozenset[int]  # after which the weights are kept for good
    folder: Path  # of the run


@dataclass(eq=False)
class Training:
    """One run from its last checkpoint to its end."""

    timetable: Timetable
    step: TrainStep  # with the model and all that is trained
    take: Callable[[Any, bool], Tensor]  # takes a step: `step` itself or its captured form
    data: Data
    evaluate: Callable[[bool], Mapping[str, dict[str, float]]]  # from (is last step), by split
    journal: Journal

    def __post_init__(self) -> None:
        step, total = self.step, self.timetable.total_steps
        self.model: nn.Module = step.model
        self.ranks = step.ranks
        self.done = 0
        probed = (t for t in range(total) if step.pairs and step.begin_estimator(t, total))
        self.first_probed = next(probed, None)
        self.buffer = torch.zeros(FLUSH_STEPS, len(ROW), device=step.device)
        self.pending: list[dict[str, Any]] = []
        self.last: dict[str, float] = {}  # the newest metrics, by split and name
        self.evaluation_due = False  # of the state after `done` steps: a signal came into it
        self.saved: int | None = None  # the step of the newest checkpoint
        self.saved_at = 0.0
        self.dead_steps = 0  # in a row, up to the last flush: no quantized weight had a gradient

    def resume(self) -> list[str]:
        """Load the newest whole checkpoint; return what there is to say about it."""
        journal = self.journal
        found = load_checkpoint(self.timetable.folder, journal.lacks)
        said: list[str] = []
        state: dict[str, Any] = {}
        if found is not None:
            self.done, tensors, state, said = found
            load_weights(self.model, model_tensors(tensors), self.timetable.folder)
            load_optimizer_tensors(self.step.optimizer, self.model, tensors)
            self.step.bad_streak.fill_(state["bad_streak"])
            self.step.scaler.load_state_dict(state["scaler"])
            self.evaluation_due = state.get("evaluation_due", False)
            self.saved = self.done
            said.append(f"resumed after step {self.done} of {self.timetable.total_steps}")
        self.ranks.barrier()  # all have read before the first rank writes
        journal.rewind(self.done, state)
        self.ranks.barrier()  # the files are as the checkpoint is
        for line in journal.lines():
            self._count_dead(line)
        return said

    def run(self, progress: RunProgress, stop: StopRequest) -> None:
        """Train to the end.

        Raises:
            Diverged: before the optimizer step that would have used the bad numbers.
            Preempted: after a signal, with the checkpoint written.
        """
        timetable = self.timetable
        self.saved_at = time.monotonic()
        self.journal.start_clock()
        self.model.train()
        if self.done == 0 and 0 in timetable.snapshot_steps:
            self._snapshot()
        if self.evaluation_due:
            self._conclude_step(progress, stop)
        left = range(self.done, timetable.total_steps)
        batches = until_asked(
            across_epochs(self.data, lambda e: generator_for(timetable.seed, e, "order"), left)
        )
        while self.done < timetable.total_steps:
            batch, error = None, None
            try:
                batch = next(batches)
            except UserError as found:  # of what this process reads
                error = found
            if self.ranks.any(batch is None):  # all leave before the same step
                with self.ranks.together():
                    if error is not None:
                        raise error
                self._leave(progress, stop)
            self._one_step(batch)
            progress.tick(self.done)
            self._conclude_step(progress, stop)

    def _conclude_step(self, progress: RunProgress, stop: StopRequest) -> None:
        """Write, evaluate, keep and save what is due after a step."""
        timetable = self.timetable
        finished = self.done == timetable.total_steps
        epoch_ends = self.done % self.data.order.steps == 0
        evaluated = finished or self._is_evaluated(epoch_ends)
        if len(self.pending) == FLUSH_STEPS or epoch_ends or evaluated:
            self.flush(progress)
        if epoch_ends and self.dead_steps >= self.data.order.steps:
            raise Diverged(f"step {self.done}: in a whole epoch no quantized weight had a gradient")
        if evaluated:
            try:
                self._evaluate(finished)
            except EvaluationStopped:
                self.evaluation_due = True
                self._leave(progress, stop)
            self.evaluation_due = False
        if self.done in timetable.snapshot_steps:
            self._snapshot()
        if finished or time.monotonic() - self.saved_at >= timetable.checkpoint_seconds:
            self.flush(progress)
            self.save()

    def _leave(self, progress: RunProgress, stop: StopRequest) -> NoReturn:
        """Save what no checkpoint holds yet, and leave."""
        self.flush(progress)
        if self.done and (self.saved != self.done or self.evaluation_due):
            self.save()
        self.ranks.barrier()  # the first rank's checkpoint is whole
        signal = stop.received or "another rank was asked to stop"
        saved = f"saved after step {self.done}" if self.done else "nothing to save before step 1"
        raise Preempted(f"{signal}: {saved}")

    def _is_evaluated(self, epoch_ends: bool) -> bool:
        """Return whether an interim evaluation is due; a function of the step alone."""
        timetable = self.timetable
        epochs, within = self.done // self.data.order.steps, timetable.eval_every_steps
        if epoch_ends and epochs % timetable.eval_every_epochs == 0:
            return True
        return within is not None and self.done % within == 0

    def _one_step(self, batch: Any) -> None:
        timetable, t = self.timetable, self.done
        lr = timetable.lr(t)
        probing = self.step.begin(t, timetable.total_steps, lr)
        noise = getattr(self.step.estimator, "noise", None) if probing else None
        asks = self.step.asks_null_level = t == self.first_probed
        self.buffer[len(self.pending)].copy_(self.take(batch, probing))
        null_level = self.step.null_level.item() if asks else None
        line = begin_line(t + 1, lr, noise, null_level)
        self.done += 1
        if self.done % LOOK_STEPS == 0 or self.done == timetable.total_steps:
            line |= held_back(self.step.weights)
        self.pending.append(line)

    def flush(self, progress: RunProgress) -> None:
        """Fetch the rows of the steps since the last time, check and write them.

        Raises:
            Diverged: at a step that was stopped; the steps before it are written.
            UserError: where no quantized weight has a gradient at the first step.
        """
        if not self.pending:
            return
        rows = self.buffer[: len(self.pending)].tolist()
        lines: list[dict[str, Any]] = []
        for line, row in zip(self.pending, rows, strict=True):
            values, reason = read_row(row)
            if reason is not None:
                self.journal.append(lines)
                raise Diverged(f"step {line['step']}: {reason}; stopped before the update")
            self._count_dead({**line, **values})
            if line["step"] == 1 and self.dead_steps:
                raise UserError(NO_GRADIENT)
            # JSON has no NaN.
            shown = {k: v if math.isfinite(v) else None for k, v in values.items()}
            lines.append({**line, **shown})
        self.journal.append(lines)
        self.pending = []
        self.last["loss"] = values["loss"]
        self.journal.time(self.done)
        progress.update(self.done, self.last)

    def _count_dead(self, line: dict[str, Any]) -> None:
        """Count a line of metrics.jsonl, if it is a step's."""
        if "split" not in line and self.step.weights:
            self.dead_steps = self.dead_steps + 1 if has_no_gradient(line) else 0

    def _evaluate(self, finished: bool) -> None:
        self.journal.time(self.done, pause="evaluation")
        if not self.ranks.agree(self.model.parameters()):
            raise UserError(
                f"step {self.done}: the processes hold different weights and train no longer as "
                "one; start again with hardware.compile=false, hardware.cuda_graph=false or one "
                "process"
            )
        lines: list[dict[str, Any]] = []
        self.ranks.same_buffers(self.model)
        self.model.eval()
        # Compiling it would take longer than it does.
        with torch.compiler.set_stance("force_eager"):
            found = self.evaluate(finished)
        self.model.train()
        for split, values in found.items():
            lines.append({"step": self.done, "split": split, **values})
            self.last.update({f"{split} {k}": v for k, v in values.items()})
        self.journal.append(lines)

    def save(self) -> None:
        """Write a checkpoint of the whole state; the first rank's stands for all."""
        self.saved = self.done
        if not self.ranks.first:
            return
        self.journal.time(self.done, pause="checkpoint")
        tensors = {f"{MODEL}{k}": v for k, v in self.model.state_dict().items()}
        tensors |= optimizer_tensors(self.step.optimizer, self.model)
        scaler = self.step.scaler.state_dict()
        state = {
            "bad_streak": self.step.bad_streak.item(),
            "scaler": scaler,
            "evaluation_due": self.evaluation_due,
            **self.journal.sync(),
        }
        save_checkpoint(self.timetable.folder, self.done, tensors, state)
        self.saved_at = time.monotonic()

    def _snapshot(self) -> None:
        if not self.ranks.first:
            return
        path = self.timetable.folder / f"snapshot-{self.done:08d}.safetensors"
        files.write(path, pack_tensors(self.model.state_dict()))
