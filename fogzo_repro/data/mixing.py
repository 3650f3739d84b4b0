"""Mixup, CutMix and label smoothing by timm, drawn once for the global batch (RECIPES B.2).

The partner of the image at position i of a batch of B is the one at position B-1-i; `rank_share`
keeps both on one rank, so timm's Mixup on a rank's share does what it would do to the whole batch.
Upstream draws for each rank's batch; here the number of ranks does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from fogzo_repro.config import VisionRecipe
from fogzo_repro.data.augmentation import drawn_from
from fogzo_repro.data.images import Batch
from fogzo_repro.data.order import EpochOrder, across_epochs
from fogzo_repro.randomness import derive_seed

Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def mixer(recipe: VisionRecipe, classes: int) -> Mix | None:
    """Return (inputs (B, C, H, W), labels (B,)) -> (mixed inputs, soft targets (B, classes)).

    It draws from numpy's global generator and mixes the inputs in place. None for a recipe that
    mixes nothing and smooths no labels.
    """
    smoothing = recipe.label_smoothing
    if not recipe.mixes and smoothing == 0:
        return None
    from timm.data.mixup import Mixup, mixup_target

    if not recipe.mixes:
        return lambda x, y: (x, mixup_target(y, classes, smoothing=smoothing))
    return Mixup(
        recipe.mixup, recipe.cutmix,
        prob=recipe.mix_probability, switch_prob=recipe.cutmix_share,
        label_smoothing=smoothing, num_classes=classes,
    )  # fmt: skip


@dataclass(frozen=True)
class MixedBatches:
    """Batches of `data` with their images mixed: normalised float inputs and soft targets."""

    data: Any
    mix: Mix
    normalize: Callable[[Tensor], Tensor]

    @property
    def order(self) -> EpochOrder:
        """Which images a batch holds."""
        return self.data.order

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield mixed batches; the draw of batch k is a function of the generator's seed and k."""
        return self._mixed(self.data.epoch(generator, start), lambda _: generator, count(start))

    def across_epochs(
        self, generator_of: Callable[[int], torch.Generator], steps: range
    ) -> Iterator[Batch]:
        """Yield the mixed batches of a run's steps, see `order.across_epochs`."""
        batches = across_epochs(self.data, generator_of, steps)
        return self._mixed(batches, generator_of, steps)

    def _mixed(
        self,
        batches: Iterable[Batch],
        generator_of: Callable[[int], torch.Generator],
        steps: Iterable[int],
    ) -> Iterator[Batch]:
        for batch, step in zip(batches, steps, strict=False):
            epoch, index = divmod(step, self.order.steps)
            inputs = self.normalize(batch.pixels)
            with drawn_from(derive_seed(generator_of(epoch).initial_seed(), index, "mixing")):
                mixed = self.mix(inputs, batch.labels)
            yield Batch(*mixed)
