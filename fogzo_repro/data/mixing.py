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

from fogzo_repro.data.augmentation import drawn_from
from fogzo_repro.data.images import Batch
from fogzo_repro.data.order import EpochOrder, across_epochs
from fogzo_repro.randomness import derive_seed


@dataclass(frozen=True)
class Mixing:
    """The recipe's mixing.

    Attributes:
        mixup: both parameters of the Beta law of lambda for mixup; 0 turns it off.
        cutmix: the same for CutMix.
        probability: of mixing a batch at all.
        cutmix_share: probability of CutMix where both are on.
        smoothing: label smoothing, folded into the mixed target.
    """

    mixup: float
    cutmix: float
    probability: float
    cutmix_share: float
    smoothing: float

    @property
    def mixes(self) -> bool:
        """Whether it changes images."""
        return self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)

    @property
    def changes(self) -> bool:
        """Whether it changes images or targets at all."""
        return self.mixes or self.smoothing > 0

    def of(self, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Return (inputs (B, C, H, W), labels (B,)) -> (mixed inputs, soft targets (B, classes)).

        What it returns draws from numpy's global generator and mixes the inputs in place.
        """
        from timm.data.mixup import Mixup, mixup_target

        if not self.mixes:
            return lambda x, y: (x, mixup_target(y, classes, smoothing=self.smoothing))
        return Mixup(
            self.mixup,
            self.cutmix,
            prob=self.probability,
            switch_prob=self.cutmix_share,
            label_smoothing=self.smoothing,
            num_classes=classes,
        )


@dataclass(frozen=True)
class MixedBatches:
    """Batches of `data` with their images mixed: normalised float inputs and soft targets."""

    data: Any
    mixing: Mixing
    normalize: Callable[[Tensor], Tensor]
    classes: int

    @property
    def order(self) -> EpochOrder:
        """Which images a batch holds."""
        return self.data.order

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield mixed batches; the draw of batch k is a function of the generator's seed and k."""
        return self._mixed(self.data.epoch(generator, start), lambda _: generator, count(start))

    def across_epochs(
        self, order: Callable[[int], torch.Generator], steps: range
    ) -> Iterator[Batch]:
        """Yield the mixed batches of a run's steps, see `order.across_epochs`."""
        return self._mixed(across_epochs(self.data, order, steps), order, steps)

    def _mixed(
        self,
        batches: Iterable[Batch],
        order: Callable[[int], torch.Generator],
        steps: Iterable[int],
    ) -> Iterator[Batch]:
        mix = self.mixing.of(self.classes)
        for batch, step in zip(batches, steps, strict=False):
            epoch, index = divmod(step, self.order.steps)
            inputs = self.normalize(batch.pixels)
            with drawn_from(derive_seed(order(epoch).initial_seed(), index, "mixing")):
                mixed = mix(inputs, batch.labels)
            yield Batch(*mixed)
