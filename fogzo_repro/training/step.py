"""One training step, in the order of PAPER 4 "Order within a step".

backward -> unscale -> finite check -> guide from the unclipped gradient -> probes -> G written to
.grad -> clipping over all parameters together -> optimizer.

Nothing here waits for the device: a step that must not be taken is stopped by a flag that the
optimizer's kernels read, and what the step has to say is one row of numbers on the device. So the
same code runs eagerly and inside a captured CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.estimators import Point, QuantizedWeight, RandomSign, SequentialProbes
from fogzo_repro.estimators.protocol import Estimator, LossFunction, Probes
from fogzo_repro.models.drop_path import DropPathMasks
from fogzo_repro.models.prefix import SharedPrefix
from fogzo_repro.randomness import derive_seed
from fogzo_repro.training.buffers import FrozenBuffers
from fogzo_repro.training.optimizers import set_lr
from fogzo_repro.training.ranks import ALONE, RankAveraged, Ranks

STREAMS = ("directions", "signs", "control", "masks")
ROW = (
    "loss", "coefficient", "flips", "flat_probes", "bad_probes", "dead_guides", "guide_norm",
    "grad_norm_quantized", "grad_norm_other", "skipped", "failed",
)  # fmt: skip
# The gradient norms are of what the optimizer is given, estimates included, before clipping.
MAX_BAD_STREAK = 10  # steps in a row with a probe that is not finite, before the run stops


class TrainStep:
    """The step of one run.

    Args:
        model: in training mode.
        loss: (model, batch) -> 0-dim loss in float32.
        optimizer: of the fused kind.
        estimator: replaces the gradients of `weights`.
        weights: the quantized weights.
        seed: of the run.
        batched_probes: batch -> probes, in place of the sequential ones.
        probe_fraction: share of the batch that the probes see.
        random_sign: the control of PAPER 4.
        autocast: dtype of the forward passes, or None for float32.
        clip_norm: bound on the norm of all gradients together, or None.
        ranks: the processes that share each batch; losses and gradients are averaged over them.
        micro_batch: examples of one pass, where the batch is accumulated; None for all at once.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[[nn.Module, Any], Tensor],
        optimizer: torch.optim.Optimizer,
        estimator: Estimator,
        weights: Sequence[QuantizedWeight],
        *,
        seed: int,
        batched_probes: Callable[[Any], Probes] | None = None,
        probe_fraction: float = 1.0,
        random_sign: bool = False,
        autocast: torch.dtype | None = None,
        clip_norm: float | None = None,
        ranks: Ranks = ALONE,
        micro_batch: int | None = None,
    ) -> None:
        self.model = model
        self.loss = loss
        self.optimizer = optimizer
        self.estimator = estimator
        self.weights = weights
        self.seed = seed
        self.batched_probes = batched_probes
        self.probe_fraction = probe_fraction
        self.random_sign = random_sign
        self.autocast = autocast
        self.clip_norm = clip_norm
        self.ranks = ranks
        self.micro_batch = micro_batch

        quantized = {w.parameter for w in weights}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.others = [p for p in self.parameters if p not in quantized]
        self.device = self.parameters[0].device
        self.frozen = FrozenBuffers(model)
        self.masks = DropPathMasks(model)
        whole = micro_batch is None and probe_fraction == 1  # the passes are over the same examples
        self.prefix = SharedPrefix(
            model if whole else nn.Identity(), [w.parameter for w in weights]
        )
        fp16 = autocast == torch.float16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=fp16)
        self.generators = {name: torch.Generator(self.device) for name in STREAMS}
        self.failed = torch.zeros((), device=self.device)  # 1 once the run must stop
        self.bad_streak = torch.zeros((), device=self.device)
        self.asks_null_level = False  # at the next step that is probed
        self.null_level = self.bad_streak  # |L(theta) - L(theta)|: 0, or far below |c|

    def prepare(self, step: int, total_steps: int, lr: float) -> bool:
        """Set what depends on the step: streams, learning rate, beta.

        Returns:
            Whether this step is probed.
        """
        rank = f"/{self.ranks.rank}" if self.ranks.rank else ""
        self.mask_seed = derive_seed(self.seed, step, f"masks{rank}")
        seeds = {name: derive_seed(self.seed, step, name) for name in STREAMS}
        for name, seed in {**seeds, "masks": self.mask_seed}.items():
            self.generators[name].manual_seed(seed)
        set_lr(self.optimizer, lr)
        return self.estimator.prepare(step, total_steps)

    def __call__(self, batch: Any, probing: bool) -> Tensor:
        """Take one step; return its row, see `ROW`."""
        self._draw_masks(batch)
        self.optimizer.zero_grad(set_to_none=True)
        with self.prefix.kept():
            loss = self.ranks.average(self._mean_loss(batch, backward=True))
        self.ranks.average_gradients(self.parameters)
        self.scaler.unscale_(self.optimizer)
        norm_quantized = self._norm(w.parameter for w in self.weights)
        norm_other = self._norm(self.others)
        finite = loss.isfinite() & norm_quantized.isfinite() & norm_other.isfinite()

        estimate = None
        if probing:
            probes = self.probes(batch)
            if self.asks_null_level:
                self.null_level = self._null_level(probes)
            streams = self.generators["directions"], self.generators["signs"]
            estimate = self.estimator(self.weights, probes, *streams)
            # Equal on all ranks but for rounding: each may tune compiled kernels for itself.
            self.ranks.average_gradients(w.parameter for w in self.weights)
            norm_quantized = self._norm(w.parameter for w in self.weights)  # of the estimate
        self.prefix.forget()
        norm = torch.stack([norm_quantized, norm_other]).norm()
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        if estimate:
            self._count_bad(finite, estimate.bad_probes)
        skipped = self._update(loss.isfinite(), finite, norm.isfinite())

        zero = torch.zeros_like(norm)
        said: tuple[Tensor, ...] = (zero,) * 6
        if estimate:  # a step that is skipped has no estimate: its guide is not finite
            e = estimate
            said = tuple(
                torch.where(finite, value, zero)
                for value in (
                    e.coefficient, e.flips, e.flat_probes,
                    e.bad_probes, e.dead_guides, e.guide_norm,
                )
            )  # fmt: skip
        row = (loss, *said, norm_quantized, norm_other, skipped, self.failed)
        return torch.stack([value.float() for value in row])

    def _count_bad(self, finite: Tensor, bad_probes: Tensor) -> None:
        """Count steps in a row with a bad probe; a skipped step has no estimate and counts not."""
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

    def probes(self, batch: Any) -> Probes:
        """Return what measures the loss around the current weights on this batch."""
        part = _first_part(batch, self.probe_fraction)
        probes: Probes
        if self.batched_probes is not None:
            probes = self.batched_probes(part)
        else:
            probes = SequentialProbes(self.probe_loss(part))
        if self.ranks.world_size > 1:
            probes = RankAveraged(probes, self.ranks)
        return RandomSign(probes, self.generators["control"]) if self.random_sign else probes

    def probe_loss(self, batch: Any) -> LossFunction:
        """Return a closure: the loss in training mode, with the masks of the STE pass.

        BatchNorm uses the batch's statistics and updates nothing; other buffers are put back, bit
        for bit.
        """

        @torch.no_grad()
        def loss() -> Tensor:
            with self.frozen.held(), self.prefix.reused():
                return self._mean_loss(batch)

        return loss

    def _null_level(self, probes: Probes) -> Tensor:
        """Return |L(theta) - L(theta)| of a probe pair along nothing."""
        nowhere = [torch.zeros_like(w.parameter).unsqueeze(0) for w in self.weights]
        losses = probes(Point(self.weights), nowhere)
        return (losses.plus - losses.minus).abs().squeeze()

    def _draw_masks(self, batch: Any) -> None:
        self.masks.draw(len(batch[0]), self.generators["masks"])

    def _norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """Return the norm of all gradients together; 0 for none."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.device)
        return torch.nn.utils.get_total_norm(gradients)

    def _mean_loss(self, batch: Any, backward: bool = False) -> Tensor:
        """Return the loss of the whole batch, one micro-batch after another."""
        size = len(batch[0])
        micro_batch = self.micro_batch or size
        total = torch.zeros((), device=self.device)
        for index, start in enumerate(range(0, size, micro_batch)):
            part = type(batch)(*(t[start : start + micro_batch] for t in batch))
            self.masks.select(start, len(part[0]))
            loss = self._forward(part, index) * (len(part[0]) / size)
            if backward:
                self.scaler.scale(loss).backward()
            total = total + loss.detach()
        return total

    def _forward(self, batch: Any, index: int = 0) -> Tensor:
        if not _capturing(self.device):
            seed_masks(self.device, self.mask_seed + index)
        with torch.autocast(self.device.type, self.autocast, enabled=self.autocast is not None):
            return self.loss(self.model, batch)


def seed_masks(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout and drop-path draw from: one draw for all passes of a step.

    torch.manual_seed does the same but formats a stack trace each time, a millisecond a call.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


def _capturing(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def _first_part(batch: Any, fraction: float) -> Any:
    if fraction == 1:
        return batch
    return type(batch)(*(t[: max(1, round(fraction * len(t)))] for t in batch))
