"""FOGZO in somebody's training loop, as one object that does right what is easily done wrong.

    fogzo = FogzoStep(model, optimizer, weights)
    for x, y in batches:
        loss = fogzo.loss(loss_fn, x, y)
        loss.backward()
        fogzo.step()  # in place of optimizer.step() and optimizer.zero_grad()

The probes take the loss that `loss` has recorded: the same batch, the same dropout masks, the same
autocast, BatchNorm's statistics untouched. How a recorded loss took part in backward (divided by
the number of micro-batches, multiplied by a GradScaler) is told by the gradient that it was handed,
so that the estimate stands in `.grad` in the very units in which the STE's gradient stood there.

Beside this file: `replay.py` takes a loss again, `losses.py` finds out which losses the gradients
are of, `checks.py` and `first_step.py` refuse or tell of what would go wrong without a word.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fogzo_repro.estimators.checks import (
    check_kinds,
    check_places,
    check_replicas,
    check_weights,
    check_whole,
    chosen_noise,
    places_of,
)
from fogzo_repro.estimators.first_step import check_factors, taken_again
from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.losses import StepLosses
from fogzo_repro.estimators.probes import AveragedProbes, SequentialProbes
from fogzo_repro.estimators.protocol import Estimate, Probes, QuantizedWeight
from fogzo_repro.estimators.replay import FrozenBuffers, RandomState, RecordedLoss
from fogzo_repro.randomness import derive_seed

REPLICAS_EVERY = 100  # steps between checks that all processes hold the same weights


class FogzoStep:
    """FOGZO beside any optimizer of torch.

    Args:
        model: in training mode; may be wrapped by DistributedDataParallel or torch.compile. Where
            the loss runs other modules too, as a discriminator, an nn.ModuleList of all of them.
        optimizer: trains all of the model, the quantized weights included.
        weights: the quantized weights, each parameter listed once.
        rho: energy of the noise over that of the guide, `RHO` where neither it nor `noise` is
            given; docs/library.md tells how to choose it.
        noise: 1 - beta, in place of `rho`.
        beta: no number: it would be rounded close to 1, where it matters; give `noise` or `rho`.
        n: probe pairs a step; each costs two forward passes.
        schedule: `constant`, or `linear` from no noise at the first step to all at the last.
        total_steps: of the training, for `linear`; at least 1.
        seed: of the directions; the same on all processes.
        clip_norm: bound on the norm of all gradients together, above 0, applied by `step` to the
            estimate; None for no bound.
        scaler: the GradScaler, where there is one.

    Attributes:
        d: the number of perturbed weights.
        steps: how many estimates have been made.
        null_level: by how much the loss of the first step differed when it was taken twice at the
            same weights; should be 0. 0-dim, None before that step.

    Raises:
        TypeError: of a model or an optimizer that is none of torch's.
        ValueError: in one line that names the argument, or the layer (see `check_weights`).
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        weights: Iterable[QuantizedWeight],
        *,
        rho: float | None = None,
        noise: float | None = None,
        beta: None = None,
        n: int = 1,
        schedule: str = "constant",
        total_steps: int | None = None,
        seed: int = 0,
        clip_norm: float | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        self.model = model
        # What accelerate and Lightning hand out holds the optimizer itself.
        self.optimizer: torch.optim.Optimizer = getattr(optimizer, "optimizer", optimizer)
        check_kinds(model, self.optimizer)
        self.held_by = None if self.optimizer is optimizer else type(optimizer).__name__
        self.weights = list(weights)
        check_weights(self.weights, model, self._parameters())
        self.places = places_of(self.weights, model)
        self.layer = next(m for m in model.modules() if m._parameters is self.places[0].own)
        self.d = sum(w.parameter.numel() for w in self.weights)
        noise = chosen_noise(rho, noise, beta, self.d)
        if not (clip_norm is None or (isinstance(clip_norm, Real) and clip_norm > 0)):
            raise ValueError(f"clip_norm={clip_norm!r} must be a number above 0, or None")
        if schedule not in ("constant", "linear"):
            raise ValueError(f"schedule={schedule}; options: constant, linear")
        if schedule == "linear" and total_steps is None:
            raise ValueError("schedule=linear needs total_steps")
        n = check_whole("n", n, least=1)
        self.device = self.weights[0].parameter.device
        self.estimator = Fogzo(n, noise, schedule, self.device)
        self.total_steps = 1 if total_steps is None else check_whole("total_steps", total_steps, 1)
        self.seed = check_whole("seed", seed, least=0)
        self.clip_norm = clip_norm
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.steps = 0
        self.recorded = StepLosses([w.parameter for w in self.weights])
        self.buffers: FrozenBuffers | None = None  # of the model as it is at the first step
        self.null_level: Tensor | None = None
        self.was_training = self.layer.training  # when the last loss was taken
        self.told_of_idle = False
        self.is_copy = False
        self.directions, self.signs = (torch.Generator(self.device) for _ in range(2))
        self.optimizer.register_step_pre_hook(self._before_update)
        self.optimizer.register_step_post_hook(self._refuse_without_estimate)

    @property
    def losses(self) -> list[RecordedLoss]:
        """The losses that were taken since the last estimate."""
        return self.recorded.taken

    def loss(self, loss_fn: Callable[..., Tensor], *batch: Any) -> Tensor:
        """Return the loss of a batch, or of a micro-batch, and remember how to take it again.

        Args:
            loss_fn: called with the batch; runs the model and returns the loss.
            batch: what it is called with. Give it here rather than in a closure: what a closure
                looks up has changed by the time of the probes, where batches are accumulated.

        Returns:
            The loss with its graph: divide or scale it as you are used to, and call backward.
        """
        self._refuse_copy()
        loss = self.recorded.take(RecordedLoss(loss_fn, batch, self.device))
        self.was_training = self.layer.training
        return loss

    @torch.no_grad()
    def estimate(self) -> Estimate:
        """Put FOGZO's estimate in place of the STE's gradient; call it before clipping.

        Gradients may be scaled still, or unscaled already where `scaler` was given.

        Returns:
            What the estimate rested on, in units of the loss.

        Raises:
            ValueError: where there is no loss, backward was not called, or was on a loss that was
                not recorded, the model's mode is another one, or a weight or scale is not what it
                was (see `check_places`).
            RuntimeError: where the processes of a distributed training hold different weights.
        """
        self._refuse_copy()
        losses = self.recorded.end_step()
        self._check_mode()
        check_places(self.places)
        weights = self._taking_part()
        is_unscaled, inverse = self._scale()
        unscaled_by = inverse if is_unscaled else None
        probes: Probes = SequentialProbes(lambda: self._sum(losses, unscaled_by))
        after = RandomState(self.device)
        is_first = self.null_level is None
        try:
            if is_first:
                _warn(*check_factors(losses, inverse))
                self.null_level, said = taken_again(losses, self._again, self.model)
                _warn(*said)
                self.recorded.expects_no_gradients = True
            if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
                probes = AveragedProbes(probes)
                if self.steps % REPLICAS_EVERY == 0:
                    check_replicas(self.weights, self.seed, self.steps)
            self._begin()
            estimate = self.estimator(weights, probes, self.directions, self.signs)
        finally:
            after.restore()
            for loss in losses:
                loss.forget()
        if is_first and estimate.flat_probes == self.estimator.n:
            _warn(
                "the loss is the same on both sides of the weights, and the estimate is zero: does "
                "it use weights that were rounded before, as in parametrize.cached(), or are they "
                "so few that none has changed its level?"
            )
        self.steps += 1
        if inverse is None or is_unscaled:
            return estimate
        coefficient, norm = estimate.coefficient * inverse, estimate.guide_norm * inverse
        return replace(estimate, coefficient=coefficient, guide_norm=norm)

    def step(self) -> Estimate:
        """Make the estimate, clip, step the optimizer and forget the gradients.

        Returns:
            As `estimate`.

        Raises:
            RuntimeError: where the optimizer is held by another object, as by accelerate's.
            TypeError: of an optimizer that needs a closure.
        """
        if self.held_by is not None:
            raise RuntimeError(
                f"the {self.held_by} that was given does more in a step than its optimizer alone; "
                "call FogzoStep.estimate() once all micro-batches are in the gradients, then step "
                "it and set gradients to zero as before"
            )
        if self.scaler is not None and not self._scale()[0]:
            self.scaler.unscale_(self.optimizer)
        estimate = self.estimate()
        if self.clip_norm is not None:
            _clip(self._parameters(), self.clip_norm)
        if self.scaler is None:
            self._update()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        self.optimizer.zero_grad()
        return estimate

    def state_dict(self) -> dict[str, int]:
        """Return what a resumed training needs, to go on with the directions that come next."""
        return {"steps": self.steps, "seed": self.seed}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: where it is no such state.
        """
        if not isinstance(state, Mapping) or not {"steps", "seed"} <= state.keys():
            raise ValueError("the state lacks steps or seed; give what state_dict() has returned")
        steps, seed = (check_whole(name, state[name], least=0) for name in ("steps", "seed"))
        self.steps, self.seed = steps, seed

    def _check_mode(self) -> None:
        if self.layer.training != self.was_training:
            modes = {True: "train", False: "eval"}
            raise ValueError(
                f"the loss was taken in {modes[self.was_training]} mode and the model is in "
                f"{modes[self.layer.training]} mode now, where probes would see another network; "
                f"call model.{modes[self.was_training]}() before the estimate"
            )

    def _taking_part(self) -> list[QuantizedWeight]:
        """Return the weights on which the loss of this step depends: those with a gradient."""
        found = [w for w in self.weights if w.parameter.grad is not None]
        if not found:
            raise ValueError(
                "no quantized weight has a gradient after backward: the loss depends on none of "
                "them, or something has set their gradients to None before the estimate"
            )
        if len(found) < len(self.weights) and not self.told_of_idle:
            self.told_of_idle = True
            idle = next(p.name for p in self.places if p.is_weight and p.tensor.grad is None)
            _warn(
                f"{idle} has no gradient after backward: the loss of this step does not depend on "
                "it; a weight stays as it is at such steps, of which only the first is told"
            )
        return found

    def _begin(self) -> None:
        """Set what depends on the step; its streams are functions of the seed and the step."""
        for purpose, generator in {"directions": self.directions, "signs": self.signs}.items():
            generator.manual_seed(derive_seed(self.seed, self.steps, purpose))
        self.estimator.begin_step(min(self.steps, self.total_steps - 1), self.total_steps)

    def _again(self, loss: RecordedLoss) -> Tensor:
        if self.buffers is None:
            self.buffers = FrozenBuffers(self.model)
        with self.buffers.held():
            return loss.again()

    def _sum(self, losses: Sequence[RecordedLoss], unscaled_by: Tensor | None) -> Tensor:
        """Return what was differentiated: the losses, each as it took part in backward."""
        total = torch.zeros((), device=self.device)
        for loss in losses:
            total = total + self._again(loss) * loss.weight
        return total if unscaled_by is None else total * unscaled_by

    def _scale(self) -> tuple[bool, Tensor | None]:
        """Return whether the scaler has unscaled the gradients, and the inverse of its scale."""
        if self.scaler is None:
            return False, None
        # GradScaler tells nobody in public, and a second unscale_ is an error.
        state = self.scaler._per_optimizer_states.get(id(self.optimizer), {})
        stage = getattr(state.get("stage"), "name", "READY")
        return stage == "UNSCALED", 1 / self.scaler.scale(torch.ones((), device=self.device))

    def _parameters(self) -> list[Tensor]:
        listed = (p for group in self.optimizer.param_groups for p in group["params"])
        return [*dict.fromkeys(listed)]  # torch takes one twice, with a warning

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill a copy, of this object or of what holds it, or one that was pickled."""
        self.__dict__.update(state, is_copy=True)

    def _refuse_copy(self) -> None:
        """Refuse to train by a copy: the hooks stay with the weights and optimizer of the first."""
        if self.is_copy:
            raise RuntimeError(
                "this FogzoStep is a copy, without the hooks on weights and optimizer; make a "
                "FogzoStep of the copied ones, and give it the state_dict() of the first by "
                "load_state_dict()"
            )

    def _update(self) -> None:
        try:
            self.optimizer.step()
        except TypeError as error:
            if "closure" not in str(error):
                raise
            raise TypeError(
                f"{type(self.optimizer).__name__} takes the loss itself; take it by loss(...) in "
                "its closure, with backward() and estimate() behind it, and call "
                "optimizer.step(closure)"
            ) from error

    def _before_update(self, _: Any, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        """Refuse an update by the STE's gradient, but where a closure may take the estimate yet."""
        if len(arguments) < 2 and named.get("closure") is None:
            self._refuse_without_estimate()

    def _refuse_without_estimate(self, *_: Any) -> None:
        if self.losses:
            self.losses.clear()
            raise RuntimeError(
                "optimizer.step() came before the estimate, and would use the STE's gradient; call "
                "FogzoStep.step() in its place, or FogzoStep.estimate() before clipping"
            )


def _warn(*lines: str) -> None:
    for line in lines:
        warnings.warn(line, RuntimeWarning, stacklevel=4)  # behind estimate() and its decorator


@torch.no_grad()
def _clip(parameters: Sequence[Tensor], bound: float) -> None:
    """Bound the norm of all gradients together, dense or sparse, in place.

    As `torch.nn.utils.clip_grad_norm_`, to the bit, but where the norm, or squares in float32,
    over- or underflow: by an infinite norm all gradients would be zero, without a word.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    values = [g.coalesce().values() if g.is_sparse else g for g in gradients]
    values = [torch.view_as_real(v) if v.is_complex() else v for v in values]
    norm = nn.utils.get_total_norm(values)
    norms = torch._foreach_norm(values, 2, dtype=torch.float64)
    wide = torch.stack([n.to(norm.device) for n in norms]).norm()
    usual = (bound / (norm + 1e-6)).clamp(max=1.0)
    # The factor of a norm that the type cannot hold may itself be too small for it, its root not.
    root = (bound / (wide + 1e-6)).clamp(max=1.0).sqrt().to(norm.dtype)
    held = norm.isfinite() & (wide > 1e-18) & (wide < 1e18) | ~wide.isfinite()
    factors = torch.where(held, usual, root), torch.where(held, torch.ones_like(root), root)
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        scaled = gradient._values() if gradient.is_sparse else gradient
        alike.setdefault((scaled.device, scaled.dtype), []).append(scaled)
    for (device, _), group in alike.items():
        for factor in factors:
            torch._foreach_mul_(group, factor.to(device))
