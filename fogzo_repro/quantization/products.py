"""Exact products of quantized operands in eight bits.

Of b <= 3 bits a side, the levels of both operands are integers up to 7, or half-integers up to
3.5, which doubled are integers up to 7. Each is exact in float8 (e4m3), and so is their product
where it is summed in enough bits: the matrix units keep 14, and with slow accumulation they hand
over to float32 after 128 products, which are at most 128 x 49 < 2^14 here (4 bits, with 15 x 15,
could exceed that). A linear layer is then

    y = (scale_x codes_x) (scale_w codes_w)^T = scale_x (codes_x codes_w^T) scale_w

with a scale a token (or one) and one a channel: one product in eight bits, of which a GPU does
twice as many a second as in bf16, and one rounding, that of y. In bf16 each operand is rounded too.

The backward pass multiplies gradients, which are no integers: it takes the operands in bf16.

Shapes: M tokens, K features in, N features out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

CODES = torch.float8_e4m3fn
MOST_BITS = 3
LEAST_IN, LEAST_OUT = 640, 384  # features from which on they looked faster than bf16 on an H200
MULTIPLE = 16  # of features, which the product needs


class Coded(NamedTuple):
    """A quantized operand, twice.

    Attributes:
        rows: its values (..., K), with their derivative; without a backward pass they may be empty.
        codes: eight-bit integers (..., K), without a gradient.
        scale: float32, (..., 1) or 0-dim: the values are scale * codes.
    """

    rows: Tensor
    codes: Tensor
    scale: Tensor


def has_products(device: torch.device) -> bool:
    """Return whether the device is of the kind for which this was written, Hopper."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] == 9


def linear(x: Coded, weight: Coded) -> Tensor:
    """Return x weight^T (..., N) in bf16.

    Args:
        x: (..., K).
        weight: (N, K).
    """
    rows = x.rows.to(torch.bfloat16), weight.rows.to(torch.bfloat16)
    return _Linear.apply(*rows, x.codes, x.scale, weight.codes, weight.scale)


class _Linear(torch.autograd.Function):
    """The product of the codes, with the derivative of that of the rows."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor,
        x_codes: Tensor, x_scale: Tensor, weight_codes: Tensor, weight_scale: Tensor,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(x, weight)
        y = product(x_codes.flatten(0, -2), weight_codes, x_scale, weight_scale)
        return y.view(*x_codes.shape[:-1], len(weight_codes))

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for_weight = incoming.flatten(0, -2).T @ x.flatten(0, -2)
        return incoming @ weight, for_weight, None, None, None, None


def product(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """Return scale_x (x weight^T) scale_w for codes (M, K) and (N, K), rounded once."""
    by_row, by_column = x_scale.reshape(-1, 1), weight_scale.reshape(1, -1)
    if x.is_cuda:
        if x_scale.dim() or weight_scale.dim():
            by_row = by_row.expand(len(x), 1).contiguous()
            by_column = by_column.expand(1, len(weight)).contiguous()
        # Fast accumulation keeps 14 bits of the whole sum, fewer than it may have.
        return torch._scaled_mm(
            x, weight.T, by_row, by_column, out_dtype=torch.bfloat16, use_fast_accum=False
        )
    with torch.autocast(x.device.type, enabled=False):
        return ((x.float() @ weight.float().T) * by_row * by_column).bfloat16()
