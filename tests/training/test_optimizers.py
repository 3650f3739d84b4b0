"""An optimizer's state survives a checkpoint, whatever the memory format, and a skipped step."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from fogzo_repro.training.optimizers import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int) -> None:
    for k in range(count):
        optimizer.zero_grad()
        x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(k))
        model(x).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", ["sgd", "adamw"], ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"], ids=str)
def test_a_restored_optimizer_goes_on_as_if_nothing_had_happened(kind: str, layout: str) -> None:
    def build() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3))
        if layout == "channels_last":
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if kind == "sgd":
            return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)

    model, optimizer = build()
    steps(model, optimizer, 3)
    state = {k: v.contiguous() for k, v in optimizer_tensors(optimizer, model).items()}
    content = save(state)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    steps(model, optimizer, 2)

    again, restored = build()
    again.load_state_dict(weights)
    load_optimizer_tensors(restored, again, load(content))
    steps(again, restored, 2)
    for a, b in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_skipped_first_step_leaves_no_rubbish_in_the_momentum() -> None:
    recipe: Any = SimpleNamespace(
        optimizer="sgd", lr=0.1, momentum=0.9, weight_decay=0.0, decay="all", no_decay=[]
    )
    model = nn.Linear(2, 3)
    optimizer: Any = build_optimizer(recipe, model, capturable=False)
    torch.use_deterministic_algorithms(True)  # uninitialised memory is NaN
    try:
        for found_inf, gradient in ((1.0, math.nan), (0.0, 2.0)):
            before = model.weight.detach().clone()
            for p in model.parameters():
                p.grad = torch.full_like(p, gradient)
            optimizer.found_inf = torch.tensor(found_inf)
            optimizer.step()
            moved = 0.1 * gradient if found_inf == 0 else 0.0
            torch.testing.assert_close(model.weight.detach(), before - moved)
    finally:
        torch.use_deterministic_algorithms(False)
