"""The block Hadamard rotation of QuEST (RECIPES D.3), in plain torch.

A row is cut into blocks of a power of two and each block is multiplied by the Sylvester matrix
H_1 = (1), H_2m = ((H_m, H_m), (H_m, -H_m)), divided by the root of the block. The result is
symmetric and orthonormal, so that the rotation is its own inverse and its own transpose.

A product with the small matrix, not the fast transform: that takes log2(block) additions an element
and not `block`, but compiled it passes over memory once for each of them.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

MAX_BLOCK = 128  # QuEST's block [RECIPES D.3]


def block_size(row: int) -> int:
    """Return the largest power of two up to 128 that divides a row; choice, see docs/choices.md.

    >>> [block_size(row) for row in (640, 192, 784, 147)]
    [128, 64, 16, 1]
    """
    return min(MAX_BLOCK, row & -row)


def sylvester(block: int, device: torch.device | None = None) -> Tensor:
    """Return the Sylvester matrix (block, block) of +1 and -1, of int64.

    Entry (i, j) is -1 to the number of ones that i and j have in common. It is computed where it is
    used, so that a compiler sees that all layers use the same one, and rotates inputs that several
    layers share only once.

    >>> sylvester(2).tolist()
    [[1, 1], [1, -1]]
    """
    index = torch.arange(block, device=device)
    ones = index.unsqueeze(1) & index
    for shift in (4, 2, 1):  # the parity of up to 8 bits in the last one
        ones = ones ^ (ones >> shift)
    return 1 - 2 * (ones & 1)


def block_hadamard(x: Tensor, block: int, dtype: torch.dtype | None = None) -> Tensor:
    """Rotate the last axis block by block.

    Args:
        x: (..., row).
        block: a power of two that divides the row, see `block_size`.
        dtype: of the factors of the product, whose entries +-2^-k are exact in any; by default that
            of x, in at least float32. It is torch's own product, in float32 without TF32 unless
            `torch.backends` says otherwise; upstream's bf16 matrix is not orthonormal,
            H H^T = 0.99979 I.

    Returns:
        The rotated rows, (..., row), in at least float32.
    """
    product = _signed_sums(x, block, dtype)
    return product.to(torch.promote_types(x.dtype, torch.float32)) * rest(block)


def scaled_block_hadamard(
    x: Tensor, scale: Tensor, block: int, dtype: torch.dtype | None = None
) -> Tensor:
    """Rotate scale * x block by block.

    All factors go in front of the product, where a compiler has a pass over memory anyway; behind
    it they would be one more.

    Args:
        x: (..., row).
        scale: one number a row, (..., 1).
        block: as in `block_hadamard`.
        dtype: as there; also that of the result.
    """
    return _signed_sums(x * (scale * rest(block)), block, dtype)


def _signed_sums(x: Tensor, block: int, dtype: torch.dtype | None) -> Tensor:
    """Return the product with the Sylvester matrix over 2^k, which keeps float16 in its range."""
    dtype = dtype or torch.promote_types(x.dtype, torch.float32)
    if block == 1:
        return x.to(dtype)
    with torch.autocast(x.device.type, enabled=False):
        matrix = entry(block) * sylvester(block, x.device)
        return torch.mm(x.reshape(-1, block).to(dtype), matrix.to(dtype)).reshape(x.shape)


def entry(block: int) -> float:
    """Return 2^-k, by which the Sylvester matrix is multiplied for products."""
    return 2.0 ** -(int(math.log2(block)) // 2)


def rest(block: int) -> float:
    """Return what then makes the product orthonormal: 1 or sqrt(1/2)."""
    return block**-0.5 / entry(block)
