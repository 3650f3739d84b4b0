"""Cross-entropy behind a linear head, in chunks of tokens: a batch's logits never exist at once.

A batch of 64 x 512 tokens and 50,304 words has 1.6e9 logits: 6.6 GB in float32, and as much for
their gradient. In chunks of 4,096 tokens each takes a gigabyte at most. The gradients of a chunk
are taken while its logits are there, so nothing is recomputed: the head costs three products,
as usual. A pass without gradients needs no logits: on a card that has the instructions for it one
kernel keeps them on the chip (`head_kernel.py`).

Shapes: N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_LOGITS = 2**28  # half a gigabyte in bf16, a gigabyte in float32


@torch.compiler.assume_constant_result
def has_kernel(device: torch.device) -> bool:
    """Return whether the kernel is written for the device, and is right there."""
    return _looked_up(device)


@cache
def _looked_up(device: torch.device) -> bool:
    on_gpu = device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9
    return on_gpu and find_spec("triton") is not None and kernel_agrees(device)


def takes_kernel(width: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Return whether a pass without gradients takes the kernel, by width D and products' type."""
    return dtype in (torch.bfloat16, torch.float16) and width % 8 == 0 and has_kernel(device)


@torch.no_grad()
def kernel_agrees(device: torch.device) -> bool:
    """Return whether the kernels work and give what float64 does, where no tile is full."""
    from fogzo_repro.models.head_kernel import add_product, softmax_gradients, token_losses

    generator = torch.Generator().manual_seed(0)
    hidden, weight = (
        torch.randn(count, 72, generator=generator).to(device, torch.bfloat16)
        for count in (200, 1000)
    )
    targets = torch.randint(1000, (200,), generator=generator).to(device)
    with torch.autocast(device.type, enabled=False):
        logits = hidden.double() @ weight.double().T
        exact = F.cross_entropy(logits, targets, reduction="none")
        aims = F.one_hot(targets, len(weight))
        try:
            found = token_losses(hidden, weight, targets)
            gradients = logits.float()
            rows = softmax_gradients(gradients, targets)
            total = weight.float()
            add_product(total, aims.bfloat16(), hidden)
        except Exception:  # Triton's errors have no class in common; the chunks need no kernel
            return False
        sums = weight.double() + aims.T.double() @ hidden.double()
        pairs = (
            (found, exact), (rows, exact), (gradients, logits.softmax(-1) - aims), (total, sums),
        )  # fmt: skip
        return all(torch.allclose(a.double(), b, rtol=1e-5, atol=1e-5) for a, b in pairs)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk_logits: int | None = None
) -> Tensor:
    """Return the mean of -log softmax(hidden weight^T)[targets], a 0-dim tensor.

    The product runs in autocast's type, the softmax in float32 or better.

    Args:
        hidden: (N, D).
        weight: (V, D).
        targets: (N,) int64 from 0 to V - 1.
        chunk_logits: bound on the number of logits that are held at once; CHUNK_LOGITS by default.
    """
    size = _chunk_size(len(hidden), len(weight), chunk_logits or CHUNK_LOGITS)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, size)
    weight = _for_products(weight)
    if takes_kernel(weight.shape[1], weight.dtype, weight.device):
        from fogzo_repro.models.head_kernel import token_losses  # triton takes a while to import

        return token_losses(_for_products(hidden), weight, targets).mean()
    sums = []
    for _, logits, part_targets in _chunks(hidden, weight, targets, size):
        wide = _wide(logits)
        sums.append(_sum_of_losses(wide, wide.logsumexp(-1, keepdim=True), part_targets))
    return torch.stack(sums).sum() / len(hidden)


def _chunk_size(tokens: int, vocabulary: int, chunk_logits: int) -> int:
    """Return tokens a chunk, by halving: a power of two keeps the products aligned."""
    halvings = max(0, math.ceil(math.log2(tokens * vocabulary / chunk_logits)))
    return max(1, -(-tokens // 2**halvings))


def _for_products(x: Tensor) -> Tensor:
    """Return x in autocast's type, where autocast is on: once, not once a chunk."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _chunks(hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Any:
    """Yield (hidden, logits, targets) of each chunk."""
    for part, part_targets in zip(hidden.split(size), targets.split(size), strict=True):
        part = _for_products(part)
        yield part, F.linear(part, weight), part_targets


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _sum_of_losses(logits: Tensor, normalizer: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of -log softmax(logits)[targets], given the log of its denominator (N, 1)."""
    return (normalizer - logits.gather(-1, targets.unsqueeze(-1))).sum()


def _by_parts(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return a chunk's sum of losses and its gradient in the type of the logits; uses them up."""
    wide = _wide(logits)
    normalizer = wide.logsumexp(-1, keepdim=True)
    loss = _sum_of_losses(wide, normalizer, targets)
    gradient = wide.sub_(normalizer).exp_()
    words = torch.arange(logits.shape[1], device=logits.device)
    gradient -= (words == targets.unsqueeze(-1)).to(gradient.dtype)  # softmax - 1_hot
    return loss, gradient.to(logits.dtype)


def _by_kernel(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Do so in one kernel, in the place of the logits."""
    from fogzo_repro.models.head_kernel import softmax_gradients

    losses = softmax_gradients(logits, targets)
    return losses.sum(), logits


def _add_product(total: Tensor, left: Tensor, right: Tensor, kernel: bool) -> None:
    """Add left^T right to total."""
    if kernel and total.dtype == torch.float32:
        from fogzo_repro.models.head_kernel import add_product

        add_product(total, left, right)
    else:
        total += left.T @ right


class _LinearCrossEntropy(torch.autograd.Function):
    """Takes the gradients of the *sum* of losses in the forward pass.

    Of the sum, since a token's share of the mean, 1/N of a probability, underflows in float16; the
    factor 1/N and the incoming gradient (GradScaler's) come in the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, size: int) -> Tensor:
        product_weight = _for_products(weight)
        sums, hidden_gradients = [], []
        weight_gradient = torch.zeros_like(weight)
        kernel = takes_kernel(weight.shape[1], product_weight.dtype, weight.device)
        losses_and_gradients = _by_kernel if kernel else _by_parts
        for part, logits, part_targets in _chunks(hidden, product_weight, targets, size):
            loss, gradient = losses_and_gradients(logits, part_targets)
            sums.append(loss)
            hidden_gradients.append(gradient @ product_weight)
            _add_product(weight_gradient, gradient, part, kernel)
        ctx.save_for_backward(torch.cat(hidden_gradients).to(hidden.dtype), weight_gradient)
        return torch.stack(sums).sum() / len(hidden)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, Tensor, None, None]:
        hidden_gradient, weight_gradient = ctx.saved_tensors
        factor = incoming / len(hidden_gradient)
        return hidden_gradient * factor, weight_gradient * factor, None, None
