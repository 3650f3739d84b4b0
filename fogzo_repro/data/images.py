"""Small images held in memory, and their batches.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """Pixels (B, C, H, W) uint8 and labels (B,) int64."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Images:
    """A dataset in memory: uint8 pixels, and the mean and deviation that normalise pixel / 255."""

    train: Batch
    test: Batch
    mean: float
    std: float
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        c, h, w = self.train.pixels.shape[1:]
        return c, h, w

    def to(self, device: torch.device) -> Images:
        """Return the dataset on a device."""
        train, test = (Batch(*(t.to(device) for t in b)) for b in (self.train, self.test))
        return replace(self, train=train, test=test)

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return (pixel / 255 - mean) / std in float32."""
        return (pixels.float() / 255 - self.mean) / self.std


@dataclass(frozen=True)
class ImageBatches:
    """The batches of an epoch: a permutation cut into full global batches, the rest dropped.

    Attributes:
        data: the training images.
        batch_size: images per step over all ranks.
        rank: this process.
        world_size: number of processes.
    """

    data: Batch
    batch_size: int
    rank: int = 0
    world_size: int = 1

    @property
    def steps_per_epoch(self) -> int:
        """Full global batches in an epoch."""
        return len(self.data.labels) // self.batch_size

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        """Yield this rank's share of each batch.

        Args:
            generator: decides the order of the epoch, the same on all ranks; on the CPU.
            start: the batch to begin with.
        """
        order = torch.randperm(len(self.data.labels), generator=generator)
        order = order.to(self.data.labels.device)
        for index in range(start, self.steps_per_epoch):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            chosen = chosen[self.rank :: self.world_size]
            yield Batch(self.data.pixels[chosen], self.data.labels[chosen])
