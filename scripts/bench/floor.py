"""What a step takes at the least: its matrix products, and the bytes that they must move.

A network's products are its linear layers, convolutions and attentions, found in one forward pass
without numbers (on the meta device), of the network without a quantizer. With bf16 operands of
b = 2 bytes, x the input, w the weight, y the output (numbers of elements):

    linear layer, convolution   FLOP f = 2 y w / (outputs of w)       bytes b (x + w + y)
        its backward pass       f for w and f for x                   as many for each of both
    attention on q, k, v        f = 4 q S, causal half of it          bytes b (q + k + v + y)
        its backward pass       2 f                                   b (2q + 2k + 2v + 2y)

with S the keys of a query. A product that reads the data has no gradient for x. The network's last
output, its logits, counts no bytes: the loss can take it as it arises. At F FLOP/s and M bytes/s a
product takes at least max(FLOP / F, bytes / M), and a pass the sum over its products:

    forward     all forward products
    ste         forward, backward, and the optimizer's bytes / M: it reads p and g, writes p, and
                reads and writes its states, one (SGD with momentum) or two (AdamW), 4 bytes each
    fogzo       ste + 2 forwards for each probe pair, without the products that read the data where
                these are not quantized (`first_last`): the probes can take them from the STE's pass

Everything else (norms, quantizers, residuals, the estimator's directions) is counted as if it were
free, so that no step can be faster. F and M are measured on the card itself, by a product of square
matrices and by a copy, each once read and once written; see `measured_rates`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from scripts.bench.clock import times

BYTES = 2  # of a number in bf16
STATES = {"adamw": 2, "sgd": 1}  # numbers that an optimizer keeps for each parameter


@dataclass(frozen=True)
class Product:
    """A layer's product: FLOP and bytes of its forward pass, and of its backward pass."""

    flop: float
    bytes: float
    backward: tuple[tuple[float, float], ...]  # (FLOP, bytes) of each
    reads_data: bool


class Products(TorchFunctionMode):
    """Notes the products of the forward pass that runs in here."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Product] = []

    def __torch_function__(
        self, function: Any, types: Any, given: Any = (), named: dict[str, Any] | None = None
    ) -> Any:
        """Note linear layers and convolutions by their weight, attentions by q, k and v."""
        result = function(*given, **(named or {}))
        if function in (F.linear, F.conv2d):
            x, w = given[:2]
            self.found.append(product_of_weight(x, w, result))
        elif function is F.scaled_dot_product_attention:
            q, k, v = given[:3]
            causal = bool((named or {}).get("is_causal", False))
            self.found.append(attention(q, k, v, causal))
        return result


def product_of_weight(x: Any, w: Any, y: Any) -> Product:
    """Return the product of a linear layer or convolution: input, weight (outputs first), output.

    An input without a gradient is data.
    """
    flop = 2.0 * y.numel() * w.numel() / len(w)
    size = float(BYTES * (x.numel() + w.numel() + y.numel()))
    reads_data = not x.requires_grad
    return Product(flop, size, ((flop, size),) * (1 if reads_data else 2), reads_data)


def attention(q: Any, k: Any, v: Any, causal: bool) -> Product:
    """Return the product of an attention on (..., queries or keys, width of a head)."""
    flop = 4.0 * q.numel() * k.shape[-2] / (2 if causal else 1)
    size = float(BYTES * (2 * q.numel() + k.numel() + v.numel()))  # the output is as large as q
    return Product(flop, size, ((2 * flop, 2 * size),), reads_data=False)


def products_of(model: nn.Module, example: Any) -> list[Product]:
    """Return the products of a network's forward pass, in their order.

    Model, without a quantizer, and example, the input of a whole batch, are on the meta device.
    """
    with Products() as products:
        logits = model(example)
    last, unmoved = products.found[-1], BYTES * logits.numel()
    backward = tuple((flop, size - unmoved) for flop, size in last.backward)
    return [*products.found[:-1], replace(last, bytes=last.bytes - unmoved, backward=backward)]


@dataclass(frozen=True)
class Rates:
    """A card's rates of products (FLOP/s) and of memory (bytes/s)."""

    flop_per_s: float
    bytes_per_s: float

    def of(self, parts: list[tuple[float, float]]) -> dict[str, float]:
        """Return the sums of FLOP and bytes, and the ms that they take at the least."""
        seconds = sum(max(f / self.flop_per_s, b / self.bytes_per_s) for f, b in parts)
        flop, size = (sum(kind) for kind in zip(*parts, strict=True))
        return {"flop": flop, "bytes": size, "ms": 1000 * seconds}


def floors(
    products: Sequence[Product], parameters: int, config: Any, rates: Rates
) -> dict[str, Any]:
    """Return the floor of a forward pass, of an STE step and of a FOGZO step, with its rates.

    The products are those of a run's forward pass, the parameters those that its optimizer trains.
    """
    recipe: Any = config.recipe
    states = STATES[recipe.optimizer] if recipe.optimizer == "adamw" or recipe.momentum else 0
    update = (0.0, 4.0 * parameters * (2 + 2 * states + 1))
    forward = [(p.flop, p.bytes) for p in products]
    ste = [*forward, *(part for p in products for part in p.backward), update]
    shared = (
        bool(config.model.first_last) and getattr(config.quantizer, "first_last", "") == "float"
    )
    probe = [(p.flop, p.bytes) for p in products if not (shared and p.reads_data)]
    found: dict[str, Any] = {
        "flop_per_s": rates.flop_per_s,
        "bytes_per_s": rates.bytes_per_s,
        "forward": rates.of(forward),
        "ste": rates.of(ste),
    }
    n = config.estimator.n
    if n:
        found["two_forwards"] = rates.of(2 * probe)
        found["fogzo"] = rates.of([*ste, *(2 * n * probe)])
    return found


def measured_rates(device: Any, dtype: Any, toy: bool = False) -> Rates:
    """Measure the rates on the device itself, each the median of 20; a toy checks that it runs."""
    side, count = (64, 2**10) if toy else (8192, 2**28)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    numbers = torch.ones(count, device=device)
    copy = torch.empty_like(numbers)
    work: tuple[Callable[[], Any], ...] = lambda: torch.mm(a, b), lambda: copy.copy_(numbers)
    on_gpu = torch.device(device).type == "cuda"
    product, copied = (statistics.median(times(one, on_gpu, 25)[5:]) / 1000 for one in work)
    return Rates(2 * side**3 / product, 2 * numbers.nbytes / copied)
