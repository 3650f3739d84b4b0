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
    """Pixels (B, C, H, W) uint8 and labels (B,) int64.

    Where images are mixed or erased: normalised inputs (B, C, H, W) float32 instead of pixels, and
    soft targets (B, classes) instead of labels.
    """

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
        """Return (pixel / 255 - mean) / std in float32; inputs that are float already stay."""
        if pixels.is_floating_point():
            return pixels
        return (pixels.float() / 255 - self.mean) / self.std


def rank_share(size: int, rank: int, world_size: int) -> Tensor:
    """Return the positions in a global batch that a rank takes, in its order.

    Each rank has size // world_size of them. Where that is even, position i and its mirror image
    size-1-i are on the same rank, again as mirror images: reversing the rank's batch pairs the same
    images as reversing the global batch.

    >>> rank_share(8, 1, 2).tolist()
    [1, 3, 4, 6]
    """
    share = size // world_size
    if share % 2:
        return torch.arange(rank, share * world_size, world_size)
    first = torch.arange(rank, share // 2 * world_size, world_size)
    return torch.cat([first, (share * world_size - 1 - first).flip(0)])


@dataclass(frozen=True)
class ImageBatches:
    """The batches of an epoch: a permutation cut into global batches.

    Attributes:
        data: the training images.
        batch_size: images per step over all ranks.
        rank: this process.
        world_size: number of processes.
        drop_last: leave out the batch that is not full; else it is cut to a multiple of the ranks.
    """

    data: Batch
    batch_size: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        return batches_in(len(self.data.labels), self.batch_size, self.world_size, self.drop_last)

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
            share = rank_share(len(chosen), self.rank, self.world_size)
            chosen = chosen[share.to(chosen.device)]
            yield Batch(self.data.pixels[chosen], self.data.labels[chosen])


def batches_in(images: int, batch_size: int, world_size: int, drop_last: bool) -> int:
    """Return the batches of an epoch; a last one that is not full counts if every rank has a share.

    >>> batches_in(1_281_167, 256, 1, drop_last=False)
    5005
    """
    full, rest = divmod(images, batch_size)
    return full + (full > 0 and rest >= world_size and not drop_last)
