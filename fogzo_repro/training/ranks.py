"""Several processes that train as one: `torchrun --nproc-per-node=N -m fogzo_repro ...`.

Every rank holds the whole model and the whole optimizer and sees its share of each global batch.
Losses, gradients and estimates are averaged over the ranks, so that all take the same step, bit for
bit; nothing wraps the model, so the probes run the very module that is trained. Gradients are
averaged after the backward pass, in one flat buffer per data type: no overlap with it, and the same
code for every model.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fogzo_repro.config import UserError
from fogzo_repro.terminal import first_line

INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class SharedError(UserError):
    """An error that all processes of a run raise at the same place."""

    def tell(self) -> None:
        """Print it, in the first process."""
        if current_ranks().first:
            super().tell()


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    world_size: int = 1
    control: Any = None  # a gloo group, for decisions that are taken on the CPU

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def average(self, value: Tensor) -> Tensor:
        """Return the mean over the ranks; `value` itself for one process."""
        if self.world_size == 1:
            return value
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def average_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace every `.grad` by its mean over the ranks."""
        if self.world_size == 1:
            return
        by_type: dict[torch.dtype, list[Tensor]] = {}
        for p in parameters:
            if p.grad is not None:
                by_type.setdefault(p.grad.dtype, []).append(p.grad)
        for gradients in by_type.values():
            flat = torch.cat([g.reshape(-1) for g in gradients])
            dist.all_reduce(flat)
            flat /= self.world_size
            parts = flat.split([g.numel() for g in gradients])
            for g, part in zip(gradients, parts, strict=True):
                g.copy_(part.view(g.shape))

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set on any rank; all ranks must ask."""
        if self.world_size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, dist.ReduceOp.MAX, group=self.control)
        return bool(votes.item())

    def union(self, lines: set[str]) -> set[str]:
        """Return what any rank has; all ranks must ask."""
        if self.world_size == 1:
            return lines
        found: list[set[str]] = [set()] * self.world_size
        dist.all_gather_object(found, lines, group=self.control)
        return set().union(*found)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do what each rank does, and raise in all of them what any one raises.

        So none waits for one that is gone, and it is enough that the first one says it.

        Raises:
            SharedError: where any rank has raised a UserError.
        """
        own: set[str] = set()
        try:
            yield
        except UserError as error:
            if self.world_size == 1:
                raise
            own.add(str(error))
        if said := self.union(own):
            raise SharedError("; ".join(sorted(said)))

    def agree(self, tensors: Iterable[Tensor]) -> bool:
        """Return whether all ranks hold the same bits, by their sums as integers; all must ask."""
        if self.world_size == 1:
            return True
        sums = [t.detach().view(INTEGERS[t.element_size()]).sum() for t in tensors]
        return len(self.union({str(torch.stack(sums).tolist())})) == 1

    def barrier(self) -> None:
        """Wait for all ranks."""
        self.any(False)

    def same_buffers(self, model: nn.Module) -> None:
        """Give all ranks the first rank's buffers: BatchNorm's running statistics differ."""
        if self.world_size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, src=0)

    def sum(self, values: Tensor) -> Tensor:
        """Sum over the ranks, in place; return the values."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values


ALONE = Ranks()


@cache
def current_ranks() -> Ranks:
    """Join the other processes that torchrun has started, on the first call; else a single one."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1 or "RANK" not in os.environ:
        return Ranks()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if not dist.is_initialized():
        on_gpu = torch.cuda.is_available() and torch.cuda.device_count() > local_rank
        if on_gpu:
            torch.cuda.set_device(local_rank)
        try:
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
        except (ValueError, RuntimeError) as error:
            raise UserError(
                f"cannot join the {world_size} processes that WORLD_SIZE and RANK tell of "
                f"({first_line(error)}); start them with torchrun, or unset these for a run of one"
            ) from error
    control = dist.new_group(backend="gloo")
    return Ranks(int(os.environ["RANK"]), world_size, control)


def leave() -> None:
    """Part from the other processes after runs that came to their ends.

    Not after an error: a captured graph that still holds the communicator would wait for the rest.
    """
    if dist.is_initialized():
        gc.collect()
        dist.destroy_process_group()
        current_ranks.cache_clear()


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous()
        dist.all_reduce(total)
        return total


class RankBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d whose batch statistics are those of the global batch; equal shares assumed.

    torch's SyncBatchNorm runs on a GPU only and waits for it in every layer; this one runs wherever
    the run does and waits for nothing. Mean and variance are taken one after the other, so that no
    digits are lost to the difference of two large sums.

    B batch of this rank, C channels, H height, W width.
    """

    def forward(self, input: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if not self.training:
            return super().forward(input)
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        axes = (0, 2, 3)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _SumOverRanks.apply(x.sum(axes)) / count
        centred = x - mean.view(1, -1, 1, 1)
        variance = _SumOverRanks.apply(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / max(1, count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return torch.addcmul(self.bias.view(1, -1, 1, 1), centred, scale.view(1, -1, 1, 1)).to(
            input.dtype
        )

    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.num_batches_tracked is not None and self.momentum is not None
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)


def share_batchnorm(model: nn.Module) -> None:
    """Let every BatchNorm2d of a model see the batches of all ranks, in place."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = RankBatchNorm2d
