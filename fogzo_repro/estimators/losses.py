"""Which losses have contributed to the gradients of a step, by hooks on the backward passes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fogzo_repro.estimators.replay import RecordedLoss


class StepLosses:
    """The losses of a step, each with its share in the gradients that backward passes have made.

    Args:
        parameters: the quantized weights; each gets a hook.

    Attributes:
        taken: the losses since the last estimate.
        expects_no_gradients: whether the next backward pass must find none, as the first one after
            an estimate. Looking waits for the device, and so is done after the first estimate only.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self.taken: list[RecordedLoss] = []
        self.passing: dict[RecordedLoss, Tensor] = {}  # what the present pass has handed to each
        self.expects_no_gradients = False
        self.additions = Additions()
        for number, parameter in enumerate(parameters):
            hook = partial(self.additions.note, number)
            parameter.register_post_accumulate_grad_hook(hook)

    def take(self, recorded: RecordedLoss) -> Tensor:
        """Take a loss for the first time, for the caller to differentiate."""
        self._end_pass()  # one that ended in an error did not say so
        loss = recorded.take()
        self.taken.append(recorded)
        loss.register_hook(lambda gradient: self._begin_pass(recorded, gradient))
        return loss

    def end_step(self) -> list[RecordedLoss]:
        """Return the losses that the gradients are of, and begin another step.

        Raises:
            ValueError: where there is none, backward was not called on one, or the gradients hold
                more than theirs.
        """
        self._end_pass()
        losses, self.taken = self.taken, []
        others, self.additions.others = self.additions.others, False
        if not losses:
            raise ValueError("no loss was recorded for this step; take it by loss(loss_fn, *batch)")
        for loss in losses:
            _ = loss.weight
        if others:
            raise ValueError(
                "the gradients hold those of a loss that FogzoStep.loss did not take, and that the "
                "probes would not see; take it by loss(loss_fn, *batch) too, or call its backward "
                "after estimate()"
            )
        return losses

    def _begin_pass(self, recorded: RecordedLoss, gradient: Tensor) -> None:
        """Note that a backward pass has come to a loss, and what it has handed to it."""
        handed = gradient.detach().squeeze()
        if torch.compiler.is_compiling():  # such a pass does not tell when it is over
            recorded.count_pass(handed, has_added=True)
            return
        self.passing[recorded] = handed
        if self.additions.are_recorded:  # by another loss that goes backward with it
            return
        self.additions.are_recorded = True
        # Torch has no public way to learn that a pass is over.
        torch.autograd.Variable._execution_engine.queue_callback(self._end_pass)
        self._look_at_gradients(recorded)

    def _end_pass(self) -> None:
        for recorded, handed in self.passing.items():
            recorded.count_pass(handed, self.additions.are_new)
        self.passing = {}
        self.additions.are_recorded = self.additions.are_new = False

    def _look_at_gradients(self, recorded: RecordedLoss) -> None:
        """Forget losses whose gradients were set to None or zero since: their batches are skipped.

        The device is asked only where that may be: not where the gradients are as the last pass has
        left them.
        """
        must_be_none, self.expects_no_gradients = self.expects_no_gradients, False
        others = self.additions.others
        if must_be_none and not others and self._hold_gradients():
            raise ValueError(
                "the gradients hold the last step's estimate still, to which this pass would add; "
                "call estimate() once all micro-batches of a step are in them, and set them to "
                "zero after the optimizer's step"
            )
        added = [loss for loss in self.taken if loss.is_added]
        may_be = others or (added and not self._are_left())
        if may_be and not self._hold_gradients():
            self.additions.others = False
            self.taken = [loss for loss in self.taken if loss is recorded or loss not in added]
            recorded.forget_passes()

    def _hold_gradients(self) -> bool:
        return any(p.grad is not None and bool(p.grad.any()) for p in self.parameters)

    def _are_left(self) -> bool:
        """Return whether the first gradient that is there is as the last addition has left it."""
        for number, p in enumerate(self.parameters):
            if p.grad is not None:
                return self.additions.versions.get(number) == p.grad._version
        return False


class Additions:
    """What backward passes have added to the weights' gradients, as the weights' hooks see it.

    It refers to no tensor: Python cannot collect a model whose weight has a hook that refers to it.

    Attributes:
        are_recorded: whether those of the present pass are a recorded loss's.
        are_new: whether the present pass, of a recorded loss, has made one.
        others: whether one was made that is no recorded loss's.
        versions: of the gradients behind the last one, by the number of the weight.
    """

    def __init__(self) -> None:
        self.are_recorded = self.are_new = self.others = False
        self.versions: dict[int, int] = {}

    def note(self, number: int, weight: Tensor) -> None:
        """Note an addition; the hook of a weight, called with its number."""
        if torch.compiler.is_compiling():  # a compiled pass does not tell when it is over
            return
        if weight.grad is None:  # another hook has taken it, and the estimate says so
            return
        self.versions[number] = weight.grad._version
        if self.are_recorded:
            self.are_new = True
        else:
            self.others = True
