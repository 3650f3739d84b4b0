"""From a model to the weights that are perturbed."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogzo_repro.composition import compose_run
from fogzo_repro.config import RoundConfig, UserError
from fogzo_repro.estimators import nspsa
from fogzo_repro.training import network
from fogzo_repro.training.network import Network, build_network

ROUND = RoundConfig(
    "round", "uniform", 2, 16, "float", "identity", "integer", clip_gradient=False, scale_factor=1.0
)


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
    build_part = network.build_part

    def build_tied(section: str, *arguments: Any, **given: Any) -> Any:
        return Tied() if section == "model" else build_part(section, *arguments, **given)

    monkeypatch.setattr(network, "build_part", build_tied)
    config: Any = SimpleNamespace(
        seed=0,
        parts_dir=None,
        model=SimpleNamespace(name="tied", first_last=list(first_last)),
        hardware=SimpleNamespace(exact_products=False),
        quantizer=quantizer,
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


def test_a_first_or_last_layer_that_is_not_there_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match=r"model\.first_last: haed is not a .*did you mean head\?"):
        build(monkeypatch, first_last=("haed",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "quantized"),
    [("resnet18", 19), ("resnet50", 52), ("deit_tiny", 48)],
    ids=["resnet18", "resnet50", "deit_tiny"],
)
def test_all_of_a_vision_network_but_its_first_and_last_layer_is_quantized(
    model: str, quantized: int
) -> None:
    """53 convolutions of ResNet-50 and 20 of ResNet-18, downsampling included; 4 a DeiT block."""
    counts = {}
    for choice in ("float", "8bit", "quantized"):
        settings = [f"model={model}", "scale=smoke", f"quantizer.first_last={choice}"]
        built = build_network(
            compose_run(*settings), {"image_shape": (1, 28, 28), "classes": 10}, torch.device("cpu")
        )
        layers: Any = [m for m in built.model.modules() if hasattr(m, "weight_quantizer")]
        counts[choice] = [layer.weight_quantizer.bits for layer in layers]
        assert len(built.weights) == len(layers)
    assert counts["float"] == [2] * quantized
    assert counts["8bit"] == [8, *[2] * quantized, 8]
    assert counts["quantized"] == [2] * (quantized + 2)


def test_nothing_is_quantized_or_perturbed_in_full_precision(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    built = build(monkeypatch, SimpleNamespace(name="none"))
    assert built.weights == [] and built.perturbed == 0


@pytest.mark.parametrize(
    ("shape", "said"),
    [((2**50,), "needs 4,294,967,296 MiB for a single"), ((2**62, 2**62), "than can be counted")],
    ids=["large", "overflow"],
)
def test_a_network_that_no_memory_holds_is_one_line(monkeypatch, shape, said):
    monkeypatch.setattr(network, "build_part", lambda *a, **k: torch.empty(shape))
    with pytest.raises(UserError, match=said):
        network.build_network(compose_run("dataset=digits"), {}, torch.device("cpu"))
