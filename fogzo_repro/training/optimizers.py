"""Optimizers by torch, and which parameters are decayed.

All are the fused kind: its kernels skip the update where `optimizer.found_inf` is set, so a step
that must not be taken is stopped on the device, without waiting for it.
"""

from __future__ import annotations

import torch
from torch import nn

from fogzo_repro.config import RecipeConfig

QUANTIZERS = {"weight_quantizer", "input_quantizer"}  # of a layer; what they learn are scales


def build_optimizer(
    recipe: RecipeConfig, model: nn.Module, capturable: bool
) -> torch.optim.Optimizer:
    """Build AdamW or SGD.

    `recipe.decay` says what is decayed of the network itself: `all`, or `weights`, which leaves out
    tensors of fewer than two axes (biases, norms). What quantizers learn, LSQ's steps, is decayed
    where `recipe.decay_scales` says so. The modules and parameters that `recipe.no_decay` names are
    never decayed.

    Args:
        recipe: lr, weight decay and the optimizer's constants.
        model: its trainable parameters are optimized.
        capturable: keep lr and step counts on the device, for a captured graph.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    trainable = [p for _, p in named]
    exempt = set(recipe.no_decay)

    def is_decayed(name: str, p: nn.Parameter) -> bool:
        parts = set(name.split("."))
        if parts & exempt:
            return False
        if parts & QUANTIZERS:
            return recipe.decay_scales
        return recipe.decay == "all" or p.dim() >= 2

    decayed = {p for name, p in named if is_decayed(name, p)}
    groups = [
        {"params": [p for p in trainable if p in decayed], "weight_decay": recipe.weight_decay},
        {"params": [p for p in trainable if p not in decayed], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    device = trainable[0].device
    lr = torch.tensor(recipe.lr, device=device) if capturable else recipe.lr
    if recipe.optimizer == "sgd":
        sgd = torch.optim.SGD(groups, lr=lr, momentum=recipe.momentum, fused=True)
        if recipe.momentum:
            # Fused SGD makes its momentum of uninitialised memory and writes it in the first step,
            # which in fp16 the scaler skips as a rule. From zero the first step is the same.
            for p in trainable:
                sgd.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)
        return sgd
    beta1, beta2 = recipe.betas
    return torch.optim.AdamW(
        groups, lr=lr, betas=(beta1, beta2), eps=recipe.eps, fused=True, capturable=capturable
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate, in place where it lives on the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module
) -> dict[str, torch.Tensor]:
    """Return the optimizer's state as `optimizer/{parameter}/{entry}`."""
    names: dict[torch.Tensor, str] = {p: name for name, p in model.named_parameters()}
    return {
        f"optimizer/{names[p]}/{key}": value
        for p, state in optimizer.state.items()
        for key, value in state.items()
        if isinstance(value, torch.Tensor)
    }


def load_optimizer_tensors(
    optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, torch.Tensor]
) -> None:
    """Restore what `optimizer_tensors` gave."""
    parameters = dict(model.named_parameters())
    for name, value in tensors.items():
        if not name.startswith("optimizer/"):
            continue
        _, parameter, key = name.split("/")
        p = parameters[parameter]
        value = value.to(p.device)
        if value.shape == p.shape:  # fused kernels walk the memory of both: same layout
            value = torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)
        optimizer.state[p][key] = value
