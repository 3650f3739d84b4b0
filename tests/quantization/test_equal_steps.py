"""Learned steps on two ranks, each with its own data: equal after the start and after updates."""

import multiprocessing
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fogzo_repro.quantization.lsq import LsqInput, LsqWeight
from fogzo_repro.quantization.replace import quantize_layers

UPDATES = 10


def first_batch(rank: int) -> torch.Tensor:
    """Ranks see data of different size, so that steps of their own would differ."""
    generator = torch.Generator().manual_seed(rank)
    return (1 + rank) * torch.randn(32, 8, generator=generator)


def train(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    quantize_layers(
        model, lambda name, weight: LsqWeight(weight, 2), lambda name, layer: LsqInput(2)
    )
    x = first_batch(rank)
    saved = {}
    for _ in range(UPDATES):
        model.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        saved.setdefault("start", model[0].input_quantizer.step.detach().clone())
        with torch.no_grad():
            for p in model.parameters():  # the mean over ranks, as DistributedDataParallel has it
                dist.all_reduce(p.grad)
                p -= 0.1 * p.grad / 2
    steps = {k: v.detach() for k, v in model.named_parameters() if k.endswith("step")}
    torch.save({**saved, **steps}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_hold_equal_steps_after_ten_updates(tmp_path):
    context = multiprocessing.get_context("fork")  # torch is not imported anew
    ranks = [context.Process(target=train, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=300)
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(one) == 5  # the start of one activation; two weights' and two activations' steps
    for name in one:
        assert torch.equal(one[name], two[name]), name
    starts = [2 * first_batch(rank).abs().mean() for rank in range(2)]
    torch.testing.assert_close(one["start"], sum(starts) / 2)
    assert not torch.isclose(starts[0], starts[1], rtol=0.3)
    assert one["0.input_quantizer.step"] != one["start"]
