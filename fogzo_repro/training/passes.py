"""All passes of a step see the same function of the weights.

A step takes the loss several times: once for the STE gradient, then at both points of every probe
pair. What the estimate rests on, the difference of two such losses, is a millionth of the loss
where the noise is small, so that nothing but the weights may differ between the passes:

* dropout draws from the default generator, which is seeded anew before each pass;
* the masks of stochastic depth are drawn once a step and lie in memory. There they are the same
  inside a captured CUDA graph too, where a generator cannot be wound back;
* BatchNorm uses the batch's statistics in all passes, and no pass but the first changes a buffer;
* what lies in front of the first perturbed weight is the same in all passes of one batch, and is
  computed once;
* all are compiled or none. Compiling them for a last batch of an epoch that is not full takes
  longer than all the steps on such batches, so that a small one is passed eagerly.

`null_level` measures what is left: the difference of two passes at the same weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.estimators import Point, QuantizedWeight
from fogzo_repro.estimators.protocol import LossFunction, Probes
from fogzo_repro.estimators.replay import FrozenBuffers
from fogzo_repro.models.steered import DropPath, EndOfPrefix
from fogzo_repro.quantization.lsq import LsqInput


@dataclass(eq=False)
class Passes:
    """The passes of a training step.

    Attributes:
        model: in training mode.
        loss: (model, batch) -> 0-dim loss in float32.
        perturbed: the parameters that probes move.
        autocast: dtype of the passes, or None for float32.
        micro_batch: examples of one pass, where a batch is accumulated; None for all at once.
        one_batch: whether the probes see the whole batch; else they share no layers with the first
            pass.
        examples: of a full batch. Where a pass has at most half the examples of one of a full
            batch, all passes of the step are eager: they keep more for an example than compiled
            ones, up to two thirds by what was measured (see `training.memory`), and so no more
            than those of a full batch do.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Any], Tensor]
    perturbed: Sequence[Tensor] = ()
    autocast: torch.dtype | None = None
    micro_batch: int | None = None
    one_batch: bool = True
    examples: int | None = None

    def __post_init__(self) -> None:
        model = self.model
        self.eager = False  # the passes of this step, though the network is compiled
        self.device = next(model.parameters()).device
        self.generator = torch.Generator(self.device)  # of the masks of stochastic depth
        self.buffers = FrozenBuffers(model)
        self.masks = DropPathMasks(model, self.device)
        self.learned_inputs = [m for m in model.modules() if isinstance(m, LsqInput)]
        shares = self.one_batch and self.micro_batch is None
        self.prefix = SharedPrefix(model if shares else nn.Identity(), self.perturbed)
        self.seed(0)

    def seed(self, seed: int) -> None:
        """Begin a step: all masks that its passes see are functions of this seed."""
        self.mask_seed = seed
        self.generator.manual_seed(seed)

    def straight_through(self, batch: Any, backward: Callable[[Tensor], object]) -> Tensor:
        """Take the step's first pass, and draw the masks of all.

        Args:
            batch: all examples of the step.
            backward: called with each micro-batch's share of the loss.

        Returns:
            The loss of the whole batch, without a graph.
        """
        full = self._of_a_pass(self.examples or 0)
        self.eager = 2 * self._of_a_pass(len(batch[0])) <= full
        self.masks.draw(len(batch[0]), self.generator)
        if not all(quantizer.started for quantizer in self.learned_inputs):
            self._start_inputs(batch)
        with self.prefix.kept():
            return self._mean_loss(batch, backward)

    def probe(self, batch: Any, *, gradients: bool = False) -> LossFunction:
        """Return the loss of a batch as a function of the weights' present values.

        Args:
            batch: that of the first pass or its first part.
            gradients: add the STE's gradient there to the `.grad` of the perturbed parameters, and
                of no others.
        """

        def backward(part: Tensor) -> None:
            part.backward(inputs=self.perturbed)

        def loss() -> Tensor:
            with torch.set_grad_enabled(gradients), self.buffers.held(), self.prefix.reused():
                return self._mean_loss(batch, backward if gradients else None)

        return loss

    def finish(self) -> None:
        """Drop what the passes have shared: the next step's weights and batch are others."""
        self.prefix.forget()

    def _of_a_pass(self, examples: int) -> int:
        """Return how many examples of a batch go through the network at a time."""
        return min(examples, self.micro_batch or examples)

    def _start_inputs(self, batch: Any) -> None:
        """Let the learned steps of inputs start in a pass of its own, eager and without a graph.

        A compiled pass would be another one where they start, and compiled twice.
        """
        part = type(batch)(*(t[: self.micro_batch] for t in batch))
        self.masks.select(0, len(part[0]))
        nothing_kept = torch.autograd.graph.saved_tensors_hooks(lambda t: None, lambda none: none)
        eager = torch.compiler.set_stance("force_eager")
        with eager, nothing_kept, self.buffers.untracked():
            self._forward(part, 0)

    def _mean_loss(self, batch: Any, backward: Callable[[Tensor], object] | None) -> Tensor:
        """Return the loss of the whole batch, one micro-batch after another."""
        size = len(batch[0])
        micro_batch = self.micro_batch or size
        total = torch.zeros((), device=self.device)
        for index, start in enumerate(range(0, size, micro_batch)):
            part = type(batch)(*(t[start : start + micro_batch] for t in batch))
            self.masks.select(start, len(part[0]))
            loss = self._forward(part, index) * (len(part[0]) / size)
            if backward is not None:
                backward(loss)
            total = total + loss.detach()
        return total

    def _forward(self, batch: Any, index: int) -> Tensor:
        if not (self.device.type == "cuda" and torch.cuda.is_current_stream_capturing()):
            _seed_default_generator(self.device, self.mask_seed + index)
        autocast = torch.autocast(self.device.type, self.autocast, self.autocast is not None)
        stance = torch.compiler.set_stance("force_eager") if self.eager else nullcontext()
        with autocast, stance:
            return self.loss(self.model, batch)


def null_level(weights: Sequence[QuantizedWeight], probes: Probes) -> Tensor:
    """Return |L(theta) - L(theta)| of two passes at the same weights: 0, or far below |c|."""
    nowhere = [torch.zeros_like(w.parameter).unsqueeze(0) for w in weights]
    losses = probes(Point(weights), nowhere)
    return (losses.plus - losses.minus).abs().squeeze()


def _seed_default_generator(device: torch.device, seed: int) -> None:
    """Seed the generator that dropout draws from.

    torch.manual_seed does the same but formats a stack trace each time, a millisecond a call.
    """
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        torch.cuda.default_generators[index].manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class DropPathMasks:
    """The masks of all `DropPath` layers of a model."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        layers = [m for m in model.modules() if isinstance(m, DropPath)]
        self.layers = sorted(layers, key=lambda layer: not layer.drop_prob)  # that drop come first
        kept = [1 - layer.drop_prob for layer in layers if layer.drop_prob]
        self.kept = torch.tensor(kept, device=device).unsqueeze(1)
        # By the number of examples. A captured graph reads and writes those of a full batch where
        # they are, also after a smaller batch, the last one of an epoch.
        self.tables: dict[int, Tensor] = {}
        self.table = self.kept.new_ones(len(layers), 0)  # of the last draw

    def draw(self, examples: int, generator: torch.Generator) -> None:
        """Draw one mask for each layer and example, where those of as many examples lie."""
        if examples not in self.tables:
            self.tables[examples] = self.kept.new_ones(len(self.layers), examples)
        self.table = self.tables[examples]
        if len(self.kept):
            drawn = self.table[: len(self.kept)]
            drawn.uniform_(generator=generator)
            drawn.copy_((drawn < self.kept) / self.kept)
        self.select(0, examples)

    def select(self, first: int, count: int) -> None:
        """Give the layers the masks of `count` examples from `first` on."""
        for layer, factors in zip(self.layers, self.table, strict=True):
            layer.factors = factors[first : first + count]


class SharedPrefix:
    """The layers of a model whose output a step's passes share.

    Args:
        model: its `EndOfPrefix` layers are served, but those behind a perturbed weight.
        perturbed: the parameters that probes move.
    """

    def __init__(self, model: nn.Module, perturbed: Sequence[Tensor]) -> None:
        moved = {id(p) for p in perturbed}
        self.ends = [
            end
            for end in model.modules()
            if isinstance(end, EndOfPrefix)
            and not any(id(p) in moved for m in end.before for p in m.parameters())
        ]

    def kept(self) -> AbstractContextManager[None]:
        """Run the first pass in here."""
        return self._mode("keep")

    def reused(self) -> AbstractContextManager[None]:
        """Run probes in here; they compute the prefix themselves where none is kept."""
        is_kept = all(end.output is not None for end in self.ends)
        return self._mode("reuse" if is_kept else "compute")

    @contextmanager
    def _mode(self, mode: str) -> Iterator[None]:
        for end in self.ends:
            end.mode = mode
        try:
            yield
        finally:
            for end in self.ends:
                end.mode = "compute"

    def forget(self) -> None:
        """Drop what was kept."""
        for end in self.ends:
            end.output = None
