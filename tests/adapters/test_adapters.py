"""Each adapter against the package that it is for; those that are not here are skipped."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from fogzo_repro.adapters import quantized_weights
from fogzo_repro.estimators import FogzoStep, smoothing_law

IDENTITY, HARDTANH = smoothing_law("round", "identity"), smoothing_law("sign", "hardtanh")
Made = tuple[nn.Module, Callable[[], Tensor]]  # a layer (16 to 8), and its quantized weight


def rounded(weight: Tensor, scale: Tensor) -> Tensor:
    units = weight / scale
    return scale * (units + (units.round().clamp(-2, 1) - units).detach())


class Round(nn.Module):
    def __init__(self, weight: Tensor, learned: bool = False) -> None:
        super().__init__()
        scale = weight.detach().std(1, keepdim=True)
        self.scale = nn.Parameter(scale) if learned else nn.Buffer(scale)

    def forward(self, weight: Tensor) -> Tensor:
        return rounded(weight, self.scale)


class WithScale(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.step = nn.Parameter(self.weight.detach().std())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, rounded(self.weight, self.step), self.bias)


class WithChild(nn.Linear):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.quantizer = Round(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.quantizer(self.weight), self.bias)


def with_children(*names: str) -> nn.Linear:
    """A layer whose quantizers are called so, the first with scale 1, the next with 2."""
    layer = nn.Linear(4, 4)
    for number, name in enumerate(names, 1):
        layer.add_module(name, quantizer := Round(layer.weight))
        quantizer.scale.fill_(number)
    return layer


def parametrized(learned: bool) -> Made:
    layer = nn.Linear(16, 8)
    parametrize.register_parametrization(layer, "weight", Round(layer.weight, learned))
    return layer, lambda: layer.weight


def with_scale() -> Made:
    layer = WithScale(16, 8)
    return layer, lambda: rounded(layer.weight, layer.step)


def with_child() -> Made:
    layer = WithChild(16, 8)
    return layer, lambda: layer.quantizer(layer.weight)


def torchao(**options: Any) -> Made:
    qat = pytest.importorskip("torchao.quantization.qat")
    config = qat.IntxFakeQuantizeConfig(torch.int4, **options)
    layer = qat.FakeQuantizedLinear(16, 8, bias=True, weight_config=config)
    return layer, lambda: layer.weight_fake_quantizer(layer.weight)


def brevitas(name: str, **options: Any) -> Made:
    pytest.importorskip("brevitas")
    import brevitas.nn
    import brevitas.quant

    quant = getattr(brevitas.quant, name)
    layer = brevitas.nn.QuantLinear(16, 8, bias=True, weight_quant=quant, **options)
    return layer, lambda: layer.quant_weight().value


MADE: dict[str, Callable[[], Made]] = {
    "parametrization": lambda: parametrized(learned=False),
    "parametrization, learned": lambda: parametrized(learned=True),
    "scale of the module": with_scale,
    "scale of a child": with_child,
    "torchao, a row": lambda: torchao(granularity="per_channel", is_symmetric=True),
    "torchao, asymmetric": lambda: torchao(granularity="per_channel", is_symmetric=False),
    "torchao, groups": lambda: torchao(group_size=4, is_symmetric=True),
    "brevitas, tensor": lambda: brevitas("Int8WeightPerTensorFloat", weight_bit_width=2),
    "brevitas, row": lambda: brevitas("Int8WeightPerChannelFloat", weight_bit_width=2),
    "brevitas, ternary": lambda: brevitas("SignedTernaryWeightPerTensorConst"),
    "brevitas, sign": lambda: brevitas("SignedBinaryWeightPerTensorConst"),
}
EACH = pytest.mark.parametrize("name", MADE)


def made(name: str) -> tuple[nn.Module, Callable[[], Tensor], str]:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages
        layer, value = MADE[name]()
        value()
    return layer, value, "step" if name == "scale of the module" else "scale"


@EACH
def test_the_scale_is_the_distance_of_neighbouring_levels(name: str) -> None:
    """Half of it for sign: levels in units of the scale are whole numbers, one apart."""
    layer, value, scale = made(name)
    (weight,) = quantized_weights(layer, scale=scale)
    law = HARDTANH if "sign" in name else IDENTITY
    assert (weight.law.epsilon_bar, weight.law.factor) == (law.epsilon_bar, law.factor)
    assert weight.parameter.shape == (8, 16) and weight.parameter.is_leaf
    assert callable(weight.scale)
    units = (value() / weight.scale(weight.parameter.detach())).detach()
    levels = units.round().unique()
    assert torch.allclose(units, units.round(), atol=1e-4)
    if "sign" in name:
        assert levels.tolist() == [-1, 1]
    else:
        assert len(levels) >= 3 and (levels.diff() == 1).any()


@EACH
def test_fogzo_trains_it_without_a_warning(name: str) -> None:
    layer, _, scale = made(name)
    first = nn.Linear(6, 16)
    model = nn.Sequential(first, nn.BatchNorm1d(16), nn.ReLU(), layer)
    weights = quantized_weights(model, scale=scale)
    (weight,) = weights  # the first layer is left out
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    step = FogzoStep(model, optimizer, weights, noise=0.3)
    x, y = torch.randn(32, 6), torch.randint(8, (32,))
    flips, before = torch.zeros(()), weight.parameter.detach().clone()
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            step.loss(lambda x, y: F.cross_entropy(model(x), y), x, y).backward()
            told = step.step()
        assert told.bad_probes == 0 and told.coefficient != 0
        flips = flips + told.flips
    assert step.null_level == 0
    assert not torch.equal(weight.parameter, before)
    assert flips > 0 or weight.levels is None


def test_a_learned_scale_is_read_anew() -> None:
    layer, _ = parametrized(learned=True)
    (weight,) = quantized_weights(layer)
    before = weight.epsilon().clone()
    with torch.no_grad():
        layer.parametrizations.weight[0].scale.mul_(2)
    assert torch.equal(weight.epsilon(), 2 * before)


def test_a_model_without_quantizers_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"no quantized weight was found in a Linear: .*scale="):
        quantized_weights(nn.Linear(2, 2))


def test_several_parametrizations_are_refused_by_the_layers_name() -> None:
    layer, _ = parametrized(learned=False)
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    with pytest.raises(ValueError, match="0: its weight has 2 parametrizations"):
        quantized_weights(nn.Sequential(layer))


def test_a_scale_that_is_no_tensor_is_refused_by_the_layers_name() -> None:
    layer = nn.Linear(4, 4)
    layer.scale = 0.5  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"the scale of weight is a float, not a tensor"):
        FogzoStep(layer, torch.optim.SGD(layer.parameters(), lr=0.1), quantized_weights(layer))


def test_a_weight_that_two_layers_share_is_listed_once() -> None:
    one, other = WithScale(4, 4), WithScale(4, 4)
    other.weight, other.step = one.weight, one.step
    assert len(quantized_weights(nn.Sequential(one, other), scale="step")) == 1


def test_a_shared_weight_that_is_rounded_by_two_scales_is_refused() -> None:
    one, other = WithScale(4, 4), WithScale(4, 4)
    other.weight = one.weight
    with pytest.raises(ValueError, match="1: another layer has this weight too, and rounds it by"):
        quantized_weights(nn.Sequential(one, other), scale="step")


@pytest.mark.parametrize("names", [("act_quant", "quant"), ("x_quant", "w_quant", "bias_quant")])
def test_what_rounds_inputs_is_not_taken_for_what_rounds_the_weight(names: tuple[str, ...]) -> None:
    model = nn.Sequential(with_children("input_quant"), with_children(*names))
    (weight,) = quantized_weights(model)
    assert weight.parameter is model[1].weight and callable(weight.scale)
    assert (weight.scale(weight.parameter) == 2).all()


def test_a_weight_that_is_computed_from_what_is_trained_is_refused() -> None:
    for change in (
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: parametrizations.weight_norm(layer),
    ):
        layer = WithScale(4, 4)
        change(layer)
        with pytest.raises(ValueError, match="1: its weight is computed from what is trained"):
            quantized_weights(nn.Sequential(WithScale(4, 4), layer), scale="step")


def test_two_quantizers_of_which_either_may_be_the_weights_are_refused() -> None:
    with pytest.raises(ValueError, match="0: first and second have a scale each, and it is not cl"):
        quantized_weights(nn.Sequential(with_children("first", "second")))


def test_a_layer_of_brevitas_that_rounds_its_inputs_alone_is_left_out() -> None:
    pytest.importorskip("brevitas")
    import brevitas.nn
    import brevitas.quant

    options = {"weight_quant": None, "input_quant": brevitas.quant.Int8ActPerTensorFloat}
    first = brevitas.nn.QuantLinear(16, 16, bias=True, **options)
    layer, _, _ = made("brevitas, row")
    (weight,) = quantized_weights(nn.Sequential(first, layer))
    assert weight.parameter is layer.weight


def test_a_layer_of_torchao_that_rounds_its_inputs_alone_is_left_out() -> None:
    qat = pytest.importorskip("torchao.quantization.qat")
    config = qat.IntxFakeQuantizeConfig(torch.int8, "per_token", is_symmetric=False)
    first = qat.FakeQuantizedLinear(16, 16, bias=True, activation_config=config)
    layer, _, _ = made("torchao, a row")
    (weight,) = quantized_weights(nn.Sequential(first, layer))
    assert weight.parameter is layer.weight


def test_float8_of_torchao_is_refused() -> None:
    qat = pytest.importorskip("torchao.quantization.qat")
    config = qat.Float8FakeQuantizeConfig()
    layer = qat.FakeQuantizedLinear(16, 8, weight_config=config)
    with pytest.raises(ValueError, match="keeps no scale; use an IntxFakeQuantizeConfig"):
        quantized_weights(layer)
