"""One training step, in the order of PAPER 4 "Order within a step".

backward -> unscale -> finite check -> guide from the unclipped gradient -> probes -> G written to
.grad -> clipping over all parameters together -> optimizer.

Nothing here waits for the device: a step that must not be taken is stopped by a flag that the
optimizer's kernels read, and what the step has to say is one row of numbers on the device. So the
same code runs eagerly and inside a captured CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import UserError
from fogzo_repro.estimators import (
    AveragedProbes,
    CountedProbes,
    QuantizedWeight,
    RandomSign,
    SequentialProbes,
)
from fogzo_repro.estimators.protocol import Estimate, Estimator, Probes
from fogzo_repro.estimators.schedule import start_step
from fogzo_repro.randomness import derive_seed
from fogzo_repro.training.optimizers import set_lr
from fogzo_repro.training.passes import Passes, null_level
from fogzo_repro.training.ranks import ALONE, Ranks
from fogzo_repro.training.row import MAX_BAD_STREAK, make_row

STREAMS = ("directions", "signs", "control")  # all ranks draw the same


@dataclass(eq=False)
class TrainStep:
    """The step of one run.

    Attributes:
        model: in training mode.
        loss: (model, batch) -> 0-dim loss in float32.
        optimizer: of the fused kind.
        estimator: replaces the gradients of `weights`.
        weights: the quantized weights.
        seed: of the run.
        pairs: how many probe pairs the estimator measures at each of its steps.
        batched_probes: batch -> probes, in place of the sequential ones.
        start_fraction: share of the steps, from the first on, that are left to the STE.
        probe_fraction: share of the batch that the probes see.
        random_sign: the control of PAPER 4.
        probe_gradients: whether each probe adds the STE's gradient there to the weights' `.grad`;
            not in fp16, and not with batched probes.
        autocast: dtype of the forward passes, or None for float32.
        clip_norm: bound on the norm of all gradients together, or None.
        ranks: the processes that share each batch; losses and gradients are averaged over them.
        micro_batch: examples of one pass, where the batch is accumulated; None for all at once.
        examples: of a full batch, see `Passes`.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    optimizer: torch.optim.Optimizer
    estimator: Estimator
    weights: Sequence[QuantizedWeight]
    _: KW_ONLY
    seed: int
    pairs: int
    batched_probes: Callable[[Any], Probes] | None = None
    start_fraction: float = 0.0
    probe_fraction: float = 1.0
    random_sign: bool = False
    probe_gradients: bool = False
    autocast: torch.dtype | None = None
    clip_norm: float | None = None
    ranks: Ranks = ALONE
    micro_batch: int | None = None
    examples: int | None = None

    def __post_init__(self) -> None:
        self.after_update = getattr(self.estimator, "after_update", None)
        perturbed = [w.parameter for w in self.weights]
        self.passes = Passes(
            self.model, self.loss, perturbed, self.autocast, self.micro_batch,
            one_batch=self.probe_fraction == 1, examples=self.examples,
        )  # fmt: skip
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        moved = set(perturbed)
        self.others = [p for p in self.parameters if p not in moved]
        self.device = self.passes.device
        fp16 = self.autocast == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.generators = {name: torch.Generator(self.device) for name in STREAMS}
        self.failed = torch.zeros((), device=self.device)  # 1 once the run must stop
        self.bad_streak = torch.zeros((), device=self.device)
        self.asks_null_level = False  # at the next step that is the estimator's
        self.null_level = torch.zeros((), device=self.device)

    def begin_estimator(self, step: int, total_steps: int) -> bool:
        """Begin a step for the estimator; return whether it is called at that step."""
        start = start_step(self.start_fraction, total_steps)
        return step >= start and self.estimator.begin_step(step - start, total_steps - start)

    def begin(self, step: int, total_steps: int, lr: float) -> bool:
        """Set what depends on the step: streams, learning rate, beta.

        Returns:
            Whether the estimator is called at this step; else it is the STE's.
        """
        for name, generator in self.generators.items():
            generator.manual_seed(derive_seed(self.seed, step, name))
        rank = f"/{self.ranks.rank}" if self.ranks.rank else ""
        self.passes.seed(derive_seed(self.seed, step, f"masks{rank}"))
        set_lr(self.optimizer, lr)
        return self.begin_estimator(step, total_steps)

    def __call__(self, batch: Any, probing: bool) -> Tensor:
        """Take one step, the estimator's where it is probed; return its row, see `training.row`."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.passes.straight_through(batch, lambda part: self.scaler.scale(part).backward())
        loss = self.ranks.average(loss)
        self.ranks.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm_quantized = self._norm(w.parameter for w in self.weights)
        norm_other = self._norm(self.others)
        finite = loss.isfinite() & norm_quantized.isfinite() & norm_other.isfinite()

        estimate = None
        if probing:
            estimate = self._estimate(batch)
            # Equal on all ranks but for rounding: each may tune compiled kernels for itself.
            self.ranks.average_gradients(w.parameter for w in self.weights)
            norm_quantized = self._norm(w.parameter for w in self.weights)  # of the estimate
        self.passes.finish()
        norm = torch.stack([norm_quantized, norm_other]).norm()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        if estimate:
            self._count_bad(finite, estimate.bad_probes)
        skipped = self._update(loss.isfinite(), finite, norm.isfinite())
        if probing and self.after_update is not None:
            with torch.no_grad():
                taken = 1 - torch.maximum(self.failed, skipped)
                self.after_update(self.weights, self.optimizer.param_groups[0]["lr"] * taken)
        return make_row(
            estimate, finite, loss=loss, grad_norm_quantized=norm_quantized,
            grad_norm_other=norm_other, skipped=skipped, failed=self.failed,
        )  # fmt: skip

    @torch.no_grad()
    def _estimate(self, batch: Any) -> Estimate | None:
        """Let the estimator replace the gradients; autograd records nothing of it.

        Raises:
            UserError: where it measures more or fewer pairs than its settings say, or returns
                something else than an estimate.
        """
        if self.asks_null_level:
            self.null_level = null_level(self.weights, self.probes(batch))
        counted = CountedProbes(self.probes(batch, gradients=self.probe_gradients))
        streams = self.generators["directions"], self.generators["signs"]
        estimate = self.estimator(self.weights, counted, *streams)
        if counted.pairs != self.pairs:
            raise UserError(
                f"the estimator measured {counted.pairs} probe pairs at a step and estimator.n is "
                f"{self.pairs}: give n: {counted.pairs} in its YAML file, by which costs, memory "
                "and records go"
            )
        if not isinstance(estimate, Estimate | None):
            raise UserError(
                f"the estimator returned a {type(estimate).__name__}; return an Estimate, as "
                "Total.write() gives it, or None"
            )
        return estimate

    def _count_bad(self, finite: Tensor, bad_probes: Tensor) -> None:
        """Count steps in a row with a bad probe; a skipped step, without an estimate, is passed."""
        streak = torch.where(bad_probes > 0, self.bad_streak + 1, 0)
        self.bad_streak.copy_(torch.where(finite, streak, self.bad_streak))

    def _update(self, loss_finite: Tensor, finite: Tensor, written_finite: Tensor) -> Tensor:
        """Step the optimizer unless the run has failed; return 1 where the update was skipped.

        In fp16 the scaler skips a gradient that is not finite and lowers its scale; a loss that is
        not finite does not depend on the scale and stops the run as in any other precision.
        """
        stop = ~loss_finite | (finite & ~written_finite) | (self.bad_streak >= MAX_BAD_STREAK)
        if self.scaler.is_enabled():
            self.failed.copy_(torch.maximum(self.failed, stop.float()))
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.failed.copy_(torch.maximum(self.failed, (stop | ~finite).float()))
            self.optimizer.found_inf = self.failed  # type: ignore[attr-defined]
            self.optimizer.step()
        return (~finite).float()

    def probes(self, batch: Any, *, gradients: bool = False) -> Probes:
        """Return what measures the loss around the current weights on this batch.

        Args:
            batch: of the step.
            gradients: whether each probe adds the STE's gradient there to the weights' `.grad`.
        """
        part, fraction = batch, self.probe_fraction
        if fraction < 1:
            part = type(batch)(*(t[: max(1, round(fraction * len(t)))] for t in batch))
        probes: Probes
        if self.batched_probes is not None:
            probes = self.batched_probes(part)
        else:
            probes = SequentialProbes(self.passes.probe(part, gradients=gradients))
        if self.ranks.world_size > 1:
            probes = AveragedProbes(probes)
        return RandomSign(probes, self.generators["control"]) if self.random_sign else probes

    def _norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the norm of all gradients together; 0 for none.

        Its squares are in float32: a norm above 1e19 is infinite and stops the run, one below 1e-23
        is 0. A second norm beside it would cost the small networks a dozen kernels a call.
        """
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.device)
        return torch.nn.utils.get_total_norm(gradients)
