"""The order of an epoch: which images each batch holds, and which of them a process takes.

Both are functions of the epoch's generator and the sizes alone: workers, the number of processes
and an interruption do not change which images a step trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

ROUND = 256  # repeated augmentation keeps a multiple of this many images an epoch (RECIPES B.3)


@dataclass(frozen=True)
class EpochOrder:
    """The order of an epoch: images, and which copy of each, batch after batch.

    Repeated augmentation as upstream's sampler gives it on `sampler_ranks` processes, whatever
    their number here: shuffle, repeat each image, deal the list out to the sampler's ranks, keep as
    many as there are images, rounded down; a batch is the ranks' parts one after another (RECIPES
    B.3).

    Attributes:
        images: in the split.
        batch_size: images per step over all ranks.
        drop_last: leave out the batch that is not full.
        world_size: our processes; a batch that is not full is cut to a multiple of it.
        repeats: copies of each image in the list; 1 is a plain permutation.
        sampler_ranks: processes of the upstream command.
    """

    images: int
    batch_size: int
    drop_last: bool = True
    world_size: int = 1
    repeats: int = 1
    sampler_ranks: int = 1

    @property
    def steps(self) -> int:
        """Batches in an epoch; a last one that is not full counts if every rank has a share.

        >>> EpochOrder(1_281_167, 256, drop_last=False).steps
        5005
        """
        if self.repeats > 1:
            return self._kept // (self.batch_size // self.sampler_ranks)
        full, rest = divmod(self.images, self.batch_size)
        return full + (full > 0 and rest >= self.world_size and not self.drop_last)

    @property
    def last_share(self) -> int:
        """Examples of a process in the last batch of an epoch, which may not be full.

        >>> EpochOrder(193, 64, drop_last=False).last_share
        1
        """
        size = self.batch_size
        if self.repeats == 1 and not self.drop_last:
            size = min(size, self.images - (self.steps - 1) * size)
        return size // self.world_size

    def seen(self, steps: int) -> int:
        """Return how many examples the first `steps` steps take over all ranks.

        >>> EpochOrder(193, 64, drop_last=False).seen(5)
        257
        """
        short = self.batch_size - self.world_size * self.last_share
        return steps * self.batch_size - steps // self.steps * short

    @property
    def _kept(self) -> int:
        """Images an epoch and rank of the sampler."""
        if self.images < ROUND:
            return -(-self.images // self.sampler_ranks)
        return self.images // ROUND * ROUND // self.sampler_ranks

    def draw(self, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return image and copy at each place of the epoch, both int64."""
        order = torch.randperm(self.images, generator=generator)
        if self.repeats == 1:
            return order, torch.zeros_like(order)
        part = self.batch_size // self.sampler_ranks
        places = torch.arange(self.steps * part * self.sampler_ranks)
        places = places.view(self.steps, part, self.sampler_ranks)
        places = places.transpose(1, 2).reshape(-1)  # within a batch: rank after rank
        return order[places // self.repeats % self.images], places % self.repeats

    def batches(self, places: Tensor, rank: int, start: int = 0) -> Iterator[Tensor]:
        """Yield a rank's share of each batch, from `start` on, of what stands at each place."""
        for i in range(start, self.steps):
            batch = places[i * self.batch_size : (i + 1) * self.batch_size]
            yield batch[rank_share(len(batch), rank, self.world_size)]


def across_epochs(
    data: Any, generator_of: Callable[[int], torch.Generator], steps: range
) -> Iterator[Any]:
    """Yield the batches of a run's steps, epoch after epoch.

    Data that load ahead have a method of this name, which is told of all steps and so does not stop
    at the end of an epoch; others have `epoch` and `order` alone.

    Args:
        data: the batches of one epoch.
        generator_of: from the number of an epoch, from 0 on, to its generator, new at each call.
        steps: which ones, counted from the run's first.
    """
    ahead = getattr(data, "across_epochs", None)
    if ahead is not None:
        return ahead(generator_of, steps)
    return one_after_another(data.epoch, generator_of, steps, data.order.steps)


def one_after_another(
    epoch: Callable[[torch.Generator, int], Iterable[T]],
    generator_of: Callable[[int], torch.Generator],
    steps: range,
    steps_per_epoch: int,
) -> Iterator[T]:
    """Yield what `epoch` gives for each step.

    It is called with a generator and the step to begin with, when its first step is asked for; the
    rest is as for `across_epochs`.
    """
    step = steps.start
    while step < steps.stop:
        number, start = divmod(step, steps_per_epoch)
        for each in islice(epoch(generator_of(number), start), steps.stop - step):
            yield each
            step += 1


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
