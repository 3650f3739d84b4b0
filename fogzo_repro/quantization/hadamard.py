"""The block Hadamard rotation of QuEST (RECIPES D.3), in plain torch.

A row is cut into blocks of a power of two and each block is multiplied by the Sylvester matrix
H_1 = (1), H_2m = ((H_m, H_m), (H_m, -H_m)), divided by the root of the block. The result is
symmetric and orthonormal, so that the rotation is its own inverse and its own transpose.
"""

from __future__ import annotations

import torch
from torch import Tensor

MAX_BLOCK = 128  # QuEST's block [RECIPES D.3]


def block_size(row: int) -> int:
    """Return the largest power of two up to 128 that divides a row; choice, see README.

    >>> [block_size(row) for row in (640, 192, 784, 147)]
    [128, 64, 16, 1]
    """
    return min(MAX_BLOCK, row & -row)


def block_hadamard(x: Tensor, block: int) -> Tensor:
    """Rotate the last axis block by block with the fast transform.

    Costs log2(block) additions an element. Computed in float32 or better: upstream's bf16 matrix
    is not orthonormal, H H^T = 0.99979 I.

    Args:
        x: (..., row).
        block: a power of two that divides the row.

    Returns:
        The rotated rows, (..., row), in at least float32.
    """
    y = x.to(torch.promote_types(x.dtype, torch.float32))
    width = 1
    while width < block:
        pairs = y.reshape(*x.shape[:-1], -1, 2, width)
        first, second = pairs.unbind(-2)
        y = torch.stack((first + second, first - second), dim=-2)
        width *= 2
    return y.reshape(x.shape) * block**-0.5
