"""The batched evaluator: the losses of many perturbed MLPs at once (PAPER 1: n-SPSA, n = 7,960).

The first layer of k perturbed networks is one matrix product of integer levels and integer pixels.
Levels and pixels are exact in bf16 (8 bits each), so on a GPU the product runs on the bf16 tensor
cores with float32 accumulation; on the CPU it runs in float32. Up to 7 bits the sums stay below
2^24 and are exact; at 8 bits they are rounded like any float32 sum. What remains, the normalisation
of the inputs, is affine and is applied to the result.

Shapes: k directions, B images, P pixels, H hidden units, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.data.images import Batch, Images
from fogzo_repro.estimators.protocol import Point, ProbeLosses
from fogzo_repro.models.mlp import Mlp
from fogzo_repro.quantization.fixed import FixedScale

CPU_CHUNK_BYTES = 4 * 2**20  # one chunk's perturbed levels: stays in a core's cache


def supports_batched(model: nn.Module) -> bool:
    """Whether the batched evaluator can run a model: the MLP with round or sign weights."""
    return isinstance(model, Mlp) and all(
        isinstance(getattr(layer, "weight_quantizer", None), FixedScale)
        and layer.input_quantizer is None
        for layer in (model.fc1, model.fc2)
    )


class BatchedProbes:
    """Probes of the MLP, many directions at once, in chunks that keep to a memory budget.

    Args:
        model: the quantized MLP, see `supports_batched`.
        images: how its inputs are normalised.
        batch: pixels (B, 1, 28, 28) uint8 and labels (B,).
        budget_bytes: bound on the memory of a chunk, beside the block of directions; a chunk has
            at least one direction.
    """

    def __init__(self, model: Mlp, images: Images, batch: Batch, budget_bytes: int) -> None:
        self.fc1: Any = model.fc1
        self.fc2: Any = model.fc2
        self.images = images
        self.labels = batch.labels
        self.dtype = torch.bfloat16 if batch.pixels.is_cuda else torch.float32
        self.pixels = batch.pixels.flatten(1).T.to(self.dtype).contiguous()  # (P, B)
        per_direction = sum(
            layer.weight.numel() * (3 * 4 + 2 * self.dtype.itemsize)  # two sides and their sum
            for layer in (model.fc1, model.fc2)
        )
        widest = max(model.fc1.out_features, model.fc2.out_features)
        per_direction += 2 * 4 * 4 * widest * len(self.labels)  # activations or logits, four alive
        if not batch.pixels.is_cuda:
            budget_bytes = min(budget_bytes, CPU_CHUNK_BYTES)
        self.chunk = max(1, budget_bytes // per_direction)

    @torch.no_grad()
    def __call__(self, here: Point, directions: Sequence[Tensor]) -> ProbeLosses:
        """Measure k probe pairs; the point's weights are those of fc1 and fc2, in this order."""
        layers = (self.fc1, self.fc2)
        units = [layer.weight_quantizer.units(layer.weight) for layer in layers]
        flips = units[0].new_zeros(())
        plus, minus = [], []
        for start in range(0, len(directions[0]), self.chunk):
            sides: tuple[list[Tensor], list[Tensor]] = ([], [])
            for layer, x, w, v in zip(layers, units, here.weights, directions, strict=True):
                part, width = v[start : start + self.chunk], w.law.epsilon_bar
                if part.is_cuda:
                    x = x.expand_as(part).contiguous()  # twice as fast as to broadcast twice
                quantizer = layer.weight_quantizer
                above = quantizer.levels(torch.add(x, part, alpha=width), self.dtype)
                below = quantizer.levels(torch.sub(x, part, alpha=width), self.dtype)
                flips += (above != below).sum()
                sides[0].append(above)
                sides[1].append(below)
            plus.append(self._losses(*sides[0]))
            minus.append(self._losses(*sides[1]))
        return ProbeLosses(torch.cat(plus), torch.cat(minus), flips)

    def _losses(self, levels1: Tensor, levels2: Tensor) -> Tensor:
        """Return the mean cross-entropy of each network: levels (k, H, P) and (k, C, H) -> (k,)."""
        layers = (self.fc1, self.fc2)
        return losses_of_levels(
            (levels1, levels2),
            [layer.weight_quantizer.scale for layer in layers],
            [layer.bias.unsqueeze(-1) for layer in layers],
            self.images,
            self.pixels,
            self.labels,
        )


def losses_of_levels(
    levels: tuple[Tensor, Tensor],
    scales: Sequence[Tensor],
    biases: Sequence[Tensor],
    images: Images,
    pixels: Tensor,
    labels: Tensor,
) -> Tensor:
    """Return the mean cross-entropy of many networks; `...` are axes that count networks.

    fc1((p/255 - mean)/std) = a [levels p - 255 mean (sum levels) + bias/a] with
    a = alpha/(255 std); a > 0 passes through the ReLU into the second layer's weights.

    Args:
        levels: of the two layers, (..., H, P) and (..., C, H).
        scales: alpha of the two layers, broadcastable to their levels.
        biases: (..., H, 1) and (..., C, 1), or without some of the leading axes.
        images: how the inputs are normalised.
        pixels: (P, B) for all networks, or (S, P, B) where the first axis of the levels is S.
        labels: (B,), or with axes in front that broadcast to the networks'.

    Returns:
        (...)
    """
    levels1, levels2 = levels
    rows = levels1.flatten(pixels.dim() - 2, -2)
    sums = _exact_product(rows, pixels).view(*levels1.shape[:-1], -1)  # (..., H, B)
    a = scales[0] / (255 * images.std)
    total = levels1.sum(-1, keepdim=True, dtype=sums.dtype)
    activations = sums.add_(biases[0] / a - 255 * images.mean * total).relu_()
    logits = levels2.to(sums.dtype) * (a * scales[1]) @ activations  # (..., C, B)
    return mean_cross_entropy(logits.add_(biases[1]), labels)


def mean_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy in nats, averaged over a batch.

    Args:
        logits: (..., C, B).
        labels: (B,), or with axes in front that broadcast to the logits'.
    """
    correct = labels.unsqueeze(-2).expand(*logits.shape[:-2], 1, -1)
    return -logits.log_softmax(-2).gather(-2, correct).mean((-2, -1))


def _exact_product(levels: Tensor, pixels: Tensor) -> Tensor:
    """Return levels @ pixels, in float32 where they are narrower."""
    if levels.dtype == torch.bfloat16:
        product = torch.mm if pixels.dim() == 2 else torch.bmm
        return product(levels, pixels, out_dtype=torch.float32)
    return levels @ pixels
