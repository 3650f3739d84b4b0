"""From a model to the weights that are perturbed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogzo_repro.config import RoundConfig
from fogzo_repro.estimators import nspsa
from fogzo_repro.training import network
from fogzo_repro.training.network import Network, build_network

ROUND = RoundConfig("round", 2, 16, "identity", "integer", clip_gradient=False, first_last="float")


class Tied(nn.Module):
    """Two layers of one weight between two of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.once = nn.Linear(4, 4)
        self.twice = nn.Linear(4, 4)
        self.twice.weight = self.once.weight
        self.tail = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.twice(self.once(self.head(x)).relu()).relu())


def build(
    monkeypatch: pytest.MonkeyPatch, quantizer: Any = ROUND, first_last: tuple[str, ...] = ()
) -> Network:
    monkeypatch.setattr(network, "build_model", lambda config: Tied())
    config: Any = SimpleNamespace(
        seed=0, model=SimpleNamespace(first_last=list(first_last)), quantizer=quantizer
    )
    return build_network(config, {}, torch.device("cpu"))


def test_tied_parameter_is_perturbed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    built = build(monkeypatch)
    model: Any = built.model
    found = [w.parameter for w in built.weights]
    expected = [model.head.weight, model.once.weight, model.tail.weight]
    assert all(a is b for a, b in zip(found, expected, strict=True))
    assert built.perturbed == 16 + 16 + 8 and built.parameters == 40 + 4 * 3 + 2

    x, seen = torch.randn(5, 4), []

    def loss() -> Tensor:
        seen.append(model.once.weight.detach().clone())
        assert model.twice.weight is model.once.weight
        return model(x).square().mean()

    before = model.once.weight.detach().clone()
    loss().backward()
    nspsa(built.weights, loss, generator=torch.Generator().manual_seed(0))
    plus, minus = seen[1] - before, seen[2] - before
    assert torch.allclose(plus, -minus, atol=1e-7) and plus.abs().max() > 0
    bound = built.weights[1].epsilon() * 3**0.5  # u is within sqrt(3): one displacement, not two
    assert plus.abs().max() <= bound * 1.001


def test_initialisation_is_a_function_of_the_seed_and_leaves_the_global_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(1)
    first = build(monkeypatch).model.state_dict()
    position = torch.get_rng_state()
    torch.manual_seed(2)
    second = build(monkeypatch).model.state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), position)


@pytest.mark.parametrize(
    ("choice", "bits"),
    [("float", [None, 2, None]), ("quantized", [2, 2, 2]), ("8bit", [8, 2, 8])],
    ids=["float", "quantized", "8bit"],
)
def test_first_and_last_layers_are_treated_as_chosen(
    monkeypatch: pytest.MonkeyPatch, choice: str, bits: list[int | None]
) -> None:
    built = build(monkeypatch, replace(ROUND, first_last=choice), ("head", "tail"))
    model: Any = built.model
    layers = (model.head, model.once, model.tail)
    quantizers = [getattr(layer, "weight_quantizer", None) for layer in layers]
    assert [q and q.bits for q in quantizers] == bits
    assert len(built.weights) == sum(b is not None for b in bits)


def test_nothing_is_quantized_or_perturbed_in_full_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = build(monkeypatch, SimpleNamespace(name="none"))
    assert built.weights == [] and built.perturbed == 0
