"""Mixup, CutMix and label smoothing, drawn once for the global batch (RECIPES B.2).

The partner of the image at position i of a batch of B is the one at position B-1-i; `rank_share`
keeps both on one rank. Upstream draws for each rank's batch; here the number of ranks does not
matter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fogzo_repro.data.images import Batch


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
    def changes(self) -> bool:
        """Whether it changes images or targets at all."""
        mixes = self.probability > 0 and (self.mixup > 0 or self.cutmix > 0)
        return mixes or self.smoothing > 0

    def draw(self, height: int, width: int, rng: np.random.Generator) -> Mix:
        """Draw what happens to one batch of images (height, width)."""
        if rng.random() >= self.probability or max(self.mixup, self.cutmix) == 0:
            return Mix(1.0, None)
        cut = self.mixup == 0 or (self.cutmix > 0 and rng.random() < self.cutmix_share)
        alpha = self.cutmix if cut else self.mixup
        share = rng.beta(alpha, alpha)
        if not cut:
            return Mix(share, None)
        centre = int(rng.integers(height)), int(rng.integers(width))
        box = cutmix_box(height, width, share, centre)
        top, bottom, left, right = box
        return Mix(1 - (bottom - top) * (right - left) / (height * width), box)

    def targets(self, labels: Tensor, classes: int, share: float) -> Tensor:
        """Return soft targets (B, classes) for labels (B,): share * own + (1 - share) * partner's.

        On-value 1 - s + s/classes, off-value s/classes for smoothing s.
        """
        off = self.smoothing / classes
        own = torch.nn.functional.one_hot(labels, classes).float() * (1 - self.smoothing) + off
        return own if share == 1 else own * share + own.flip(0) * (1 - share)


@dataclass(frozen=True)
class Mix:
    """One batch's draw: the share of the own image, and CutMix's box (top, bottom, left, right)."""

    share: float
    box: tuple[int, int, int, int] | None

    def apply(self, inputs: Tensor) -> Tensor:
        """Return inputs (B, C, H, W) mixed with their reversal."""
        if self.box is not None:
            top, bottom, left, right = self.box
            mixed = inputs.clone()
            mixed[:, :, top:bottom, left:right] = inputs.flip(0)[:, :, top:bottom, left:right]
            return mixed
        return inputs if self.share == 1 else torch.lerp(inputs.flip(0), inputs, self.share)


def cutmix_box(
    height: int, width: int, share: float, centre: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return CutMix's box: sides sqrt(1 - share) of the image's, clipped at its borders.

    >>> cutmix_box(10, 10, 0.75, (5, 0))
    (3, 8, 0, 3)
    """
    side = math.sqrt(1 - share)
    edges: list[int] = []
    for extent, middle in zip((height, width), centre, strict=True):
        cut = int(extent * side)
        borders = middle - cut // 2, middle + (cut + 1) // 2
        edges += [min(max(border, 0), extent) for border in borders]
    return edges[0], edges[1], edges[2], edges[3]


@dataclass(frozen=True)
class MixedBatches:
    """Batches whose images are mixed: normalised float inputs and soft targets.

    Attributes:
        data: batches of images and labels.
        mixing: the recipe's mixing.
        normalize: from pixels to inputs.
        classes: the length of a target.
    """

    data: Any
    mixing: Mixing
    normalize: Callable[[Tensor], Tensor]
    classes: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return self.data.steps_per_epoch

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield mixed batches; the draw of batch k is a function of the generator's seed and k."""
        seed = generator.initial_seed()
        for index, batch in enumerate(self.data.epoch(generator, start), start):
            inputs = self.normalize(batch.pixels)
            height, width = inputs.shape[-2:]
            mix = self.mixing.draw(height, width, np.random.default_rng([seed, index]))
            targets = self.mixing.targets(batch.labels, self.classes, mix.share)
            yield Batch(mix.apply(inputs), targets)
