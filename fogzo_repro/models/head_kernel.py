"""The cross-entropy behind a head in Triton, without gradients and with them.

`token_losses` needs no logits: none leaves the chip. Each program multiplies a tile of tokens with
a tile of words and keeps, of each token, the largest of its logits there and the sum of their
exponentials, in float32; the tiles are joined after. The logits of the targets are taken beside the
kernel, out of a compiler's sight: it may leave out that hidden and weight are rounded to bf16, and
the two parts of the loss would then be of different weights.

`softmax_gradients` goes through the logits of a token twice, the second time while the card's cache
holds them still, where the compiler's own kernels go through them three times. `add_product` keeps
a product of 16-bit numbers in float32 until it is added.

Shapes: N tokens, D width, V vocabulary, S tiles of words.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TOKENS, WORDS, DEPTH, WARPS, STAGES = 128, 256, 64, 8, 3  # of a tile; fastest of five
ROW, ROW_WARPS = 4096, 8  # words of a token at a time; fastest of those tried
TOGETHER = 16  # tiles of tokens that go through the words side by side, for the cache


def token_losses(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return log sum_v exp(hidden weight_v) - hidden weight_target, (N,) float32.

    Args:
        hidden: (N, D), bf16 or fp16, D a multiple of 8.
        weight: (V, D), of the same type.
        targets: (N,) int64 from 0 to V - 1; others are not noticed.
    """
    high, total, of_targets = _tiles(hidden, weight, targets)
    highest = high.amax(0)
    return highest + ((high - highest).exp() * total).sum(0).log() - of_targets


@triton.jit
def _kernel(
    hidden, weight, high_pointer, total_pointer, N, V, D,
    BN: tl.constexpr, BV: tl.constexpr, BD: tl.constexpr, G: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    across = G * tl.cdiv(V, BV)
    first = program // across * G
    group = tl.minimum(tl.cdiv(N, BN) - first, G)
    n = (first + program % across % group) * BN
    tile = program % across // group
    v = tile * BV
    logits = tl.zeros((BN, BV), tl.float32)
    for d in range(0, D, BD):
        logits = tl.dot(hidden.load([n, d]), weight.load([v, d]).T, logits)
    logits = tl.where((v + tl.arange(0, BV))[None, :] < V, logits, float("-inf"))
    high = tl.maximum(tl.max(logits, 1), -3e38)  # not -inf, see below
    total = tl.sum(tl.exp(logits - high[:, None]), 1)
    token = n + tl.arange(0, BN)
    place = tile.to(tl.int64) * N + token
    tl.store(high_pointer + place, high, token < N)
    tl.store(total_pointer + place, total, token < N)


@torch.library.custom_op("fogzo_repro::head_tiles", mutates_args=())
def _tiles(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return float32 (S, N), (S, N), (N,): largest logits, sums of exponentials, targets' logits.

    The exponentials are those below the largest logit of their tile.
    """
    hidden, weight = hidden.contiguous(), weight.contiguous()
    high, total, _ = _empty(hidden, weight)
    (tokens, width), words = hidden.shape, len(weight)
    programs = triton.cdiv(tokens, TOKENS) * len(high)
    if programs:
        _kernel[(programs,)](
            TensorDescriptor.from_tensor(hidden, [TOKENS, DEPTH]),
            TensorDescriptor.from_tensor(weight, [WORDS, DEPTH]),
            high, total, tokens, words, width,
            BN=TOKENS, BV=WORDS, BD=DEPTH, G=TOGETHER, num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip
    return high, total, (hidden.float() * weight[targets]).sum(-1)


@_tiles.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(hidden, weight)


def _empty(hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    tiles, tokens = -(-len(weight) // WORDS), len(hidden)
    high, total = (hidden.new_empty(tiles, tokens, dtype=torch.float32) for _ in range(2))
    return high, total, hidden.new_empty(tokens, dtype=torch.float32)


@triton.jit
def _row_kernel(logits, targets, losses, V, token_stride, word_stride, BV: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    row = logits + token * token_stride
    target = tl.load(targets + token)
    of_target = tl.load(row + target * word_stride).to(tl.float32)
    high, total = -3e38, 0.0  # not -inf, whose difference from itself is no number
    for v in range(0, V, BV):
        word = v + tl.arange(0, BV)
        x = tl.load(row + word * word_stride, word < V, float("-inf")).to(tl.float32)
        higher = tl.maximum(high, tl.max(x, 0))
        total = total * tl.exp(high - higher) + tl.sum(tl.exp(x - higher), 0)
        high = higher
    normalizer = high + tl.log(total)
    tl.debug_barrier()  # all have read the row
    tl.store(losses + token, normalizer - of_target)
    for v in range(0, V, BV):
        word = v + tl.arange(0, BV)
        x = tl.load(row + word * word_stride, word < V, float("-inf")).to(tl.float32)
        gradient = tl.exp(x - normalizer) - (word == target).to(tl.float32)
        tl.store(row + word * word_stride, gradient.to(logits.dtype.element_ty), word < V)


@torch.library.custom_op("fogzo_repro::softmax_gradients", mutates_args=("logits",))
def softmax_gradients(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the losses, float32 (N,), and leave their gradients, softmax - 1_hot, in the logits.

    Args:
        logits: (N, V), of any floating type.
        targets: (N,) int64 from 0 to V - 1; others are not noticed.
    """
    losses = logits.new_empty(len(logits), dtype=torch.float32)
    if len(logits):
        _row_kernel[(len(logits),)](
            logits, targets.contiguous(), losses, logits.shape[1], *logits.stride(),
            BV=ROW, num_warps=ROW_WARPS,
        )  # fmt: skip
    return losses


@softmax_gradients.register_fake
def _(logits: Tensor, targets: Tensor) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.float32)


@torch.library.custom_op("fogzo_repro::add_product", mutates_args=("total",))
def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left^T right, of (N, V) and (N, D) in 16 bits, to total, float32 (V, D), on a GPU."""
    torch.addmm(total, left.T, right, out_dtype=torch.float32, out=total)
