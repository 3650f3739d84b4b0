"""Take a loss again as it was the first time: what a training loop must hold fixed for probes.

The estimate rests on the difference of two losses, a millionth of the loss where the noise is
small. So the probes must see the same batch, the same dropout masks, the same autocast and the same
BatchNorm as the backward pass did, and leave no trace in the model's buffers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from fogzo_repro.estimators.protocol import one_number


class FrozenBuffers:
    """Keeps a model's buffers as they are during forward passes in training mode.

    A pass may write into a buffer or put another tensor in its place; both are undone.

    Args:
        model: its BatchNorm layers are told not to track statistics, which costs nothing; all other
            buffers are saved and copied back.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = [*model.modules()]
        found = (m for m in modules if isinstance(m, _BatchNorm))
        self.norms = [m for m in found if m.track_running_stats]
        held_off = {*self.norms}
        self.owners = [m._buffers for m in modules if m not in held_off]
        self.present: list[Tensor] = []
        self.buffers: list[list[Tensor]] = []  # the same, those of a type together
        self.saved: list[list[Tensor]] = []

    @contextmanager
    def held(self) -> Iterator[None]:
        """Run forward passes in here."""
        owners = [own for own in self.owners if own]
        before = [dict(own) for own in owners]
        self._make_room([b for own in before for b in own.values() if b is not None])
        for saved, buffers in zip(self.saved, self.buffers, strict=True):
            torch._foreach_copy_(saved, buffers)
        try:
            with self.untracked():
                yield
        finally:
            for own, theirs in zip(owners, before, strict=True):
                if any(own.get(name) is not buffer for name, buffer in theirs.items()):
                    own.update(theirs)
            for saved, buffers in zip(self.saved, self.buffers, strict=True):
                torch._foreach_copy_(buffers, saved)

    def _make_room(self, present: list[Tensor]) -> None:
        """Have memory to save buffers in: the same one as long as the buffers are the same."""
        known = self.present
        if len(known) == len(present) and all(map(operator.is_, known, present)):
            return
        by_type: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for buffer in present:
            by_type.setdefault((buffer.dtype, buffer.device), []).append(buffer)
        self.present, self.buffers = present, list(by_type.values())
        self.saved = [[torch.empty_like(b) for b in group] for group in self.buffers]

    @contextmanager
    def untracked(self) -> Iterator[None]:
        """Run forward passes in here that leave BatchNorm's statistics alone, and nothing else."""
        for norm in self.norms:
            norm.track_running_stats = False
        try:
            yield
        finally:
            for norm in self.norms:
                norm.track_running_stats = True


class RandomState:
    """The present state of torch's default generators, of the CPU and of one device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.module = None if device.type == "cpu" else torch.get_device_module(device)
        self.cpu = torch.get_rng_state()
        self.other = None if self.module is None else self.module.get_rng_state(device)

    def restore(self) -> None:
        """Put the generators back to where they were."""
        torch.set_rng_state(self.cpu)
        if self.module is not None:
            self.module.set_rng_state(self.other, self.device)


class RecordedLoss:
    """A loss of one batch that is taken once with gradients and can be taken again.

    Args:
        loss_fn: called with the batch, returns the loss, a tensor with one element.
        batch: what it is called with.
        device: whose random numbers and autocast are recorded.

    Attributes:
        first: the loss as it came out the first time.
        is_added: whether a backward pass of it has added to gradients.
    """

    def __init__(
        self, loss_fn: Callable[..., Tensor], batch: tuple[Any, ...], device: torch.device
    ) -> None:
        self.loss_fn = loss_fn
        self.batch = batch
        self.device = device
        self.random = RandomState(device)
        self.autocast = torch.is_autocast_enabled(device.type)
        self.dtype = torch.get_autocast_dtype(device.type)
        self.first: Tensor
        self.versions: list[int] = []
        self.forget_passes()

    def take(self) -> Tensor:
        """Return the loss for the first time, for the caller to differentiate.

        Raises:
            TypeError: where the function returns something else than a loss.
            ValueError: where the loss has no gradient.
        """
        given, self.batch = self.batch, _rebuilt(self.batch)
        loss = self.loss_fn(*given)
        one_number(loss)
        if not loss.requires_grad:
            raise ValueError(
                "the loss has no gradient: take it outside torch.no_grad(), of a model whose "
                "parameters require one"
            )
        self.first = loss.detach().clone()  # `loss /= k` changes it in place
        self.versions = _versions(self.batch)
        return loss

    def forget_passes(self) -> None:
        """Forget the backward passes that were counted."""
        self._weight: Tensor | None = None
        self.is_added = False

    def count_pass(self, handed: Tensor, has_added: bool) -> None:
        """Count what a backward pass has handed to the loss; a second one adds, as to `.grad`.

        One of torch.autograd.grad, which leaves `.grad` alone, counts where there is no other.
        """
        if self.is_added and not has_added:
            return
        if self._weight is not None and self.is_added == has_added:
            handed = self._weight + handed
        self._weight, self.is_added = handed, has_added

    @property
    def weight(self) -> Tensor:
        """The factor with which the loss took part in backward, 0-dim.

        1/k where it was divided by k micro-batches, the scale of a GradScaler.

        Raises:
            ValueError: where backward was not called.
        """
        if self._weight is None:
            raise ValueError(
                "backward was not called on a loss of this step; call loss.backward(), or "
                "FogzoStep.losses.clear() where the batch is skipped"
            )
        return self._weight

    def forget(self) -> None:
        """Let go of the batch: a caller may keep the loss, whose hooks refer to this object."""
        del self.batch, self.loss_fn

    def again(self) -> Tensor:
        """Return the loss at the parameters' present values, in float32 at least.

        Raises:
            ValueError: where the batch is no longer what it was.
        """
        if _versions(self.batch) != self.versions:
            raise ValueError(
                "a tensor of the batch was changed in place since its loss was taken, so that "
                "probes would see another batch; give loss() a copy, or change it after the step"
            )
        self.random.restore()
        # A cast that autocast remembers would be of the weights as they were.
        with torch.autocast(
            self.device.type, self.dtype, enabled=self.autocast, cache_enabled=False
        ):
            try:
                loss = one_number(self.loss_fn(*_rebuilt(self.batch)))
            except RuntimeError as error:
                if "does not require grad" not in str(error):
                    raise
                raise RuntimeError(
                    "the loss function takes a gradient itself, and probes are taken without: put "
                    "that part of it inside `with torch.enable_grad():`"
                ) from error
        self.versions = _versions(self.batch)  # what the function does itself, it does each time
        return loss


def _rebuilt(batch: Any) -> Any:
    """Return a batch in new containers: a loss function may take the labels out of its own."""
    return tree_map(lambda leaf: copy(leaf) if isinstance(leaf, MutableMapping) else leaf, batch)


def _versions(batch: Any) -> list[int]:
    """Return how often each tensor of a batch was changed in place.

    A view of another tensor counts what is changed elsewhere in it, and is left out.
    """
    tensors = (t for t in tree_leaves(batch) if isinstance(t, Tensor))
    return [t._version for t in tensors if not (t.is_inference() or t._is_view())]
