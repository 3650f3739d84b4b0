"""Quantizers in the network that a configuration describes, and under the estimators."""

import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import nn

from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig, UserError, build_part, result_fields
from fogzo_repro.estimators import SequentialProbes
from fogzo_repro.quantization import quantize_layers
from fogzo_repro.quantization.lsq import LsqInput, LsqWeight
from fogzo_repro.quantization.quest import Quest
from fogzo_repro.training.batched import supports_batched
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.optimizers import build_optimizer

IMAGE = (1, 4, 4)


def configured(*overrides: str) -> RunConfig:
    return compose_run("dataset=digits", *overrides)


def built(*overrides: str) -> Network:
    arguments = {"image_shape": IMAGE, "classes": 10}
    return build_network(configured(*overrides), arguments, torch.device("cpu"))


QUANTIZERS = {
    "round": ["quantizer=round"],
    "round-half": ["quantizer=round", "quantizer.grid=half_integer"],
    "sign-tanh": ["quantizer=sign"],
    "lsq-w1a1": ["quantizer=lsq", "quantizer.weight_bits=1", "quantizer.activation_bits=1"],
    "lsq-w2": ["quantizer=lsq"],
    "lsq-w2a2": [
        "quantizer=lsq",
        "quantizer.activation_bits=2",
        "quantizer.unsigned_inputs=[fc2]",
        "quantizer.per_channel=true",
    ],
    "lsq-w4a4-half": [
        "quantizer=lsq",
        "quantizer.grid=half_integer",
        "quantizer.weight_bits=4",
        "quantizer.activation_bits=4",
    ],
    "quest-w1a1": ["quantizer=quest", "quantizer.weight_bits=1", "quantizer.activation_bits=1"],
    "quest-w2": ["quantizer=quest"],
    "quest-w2-half": ["quantizer=quest", "quantizer.hadamard=half"],
    "quest-w2a2": ["quantizer=quest", "quantizer.activation_bits=2"],
    "quest-w4a4-plain": [
        "quantizer=quest",
        "quantizer.hadamard=none",
        "quantizer.weight_bits=4",
        "quantizer.activation_bits=4",
    ],
}
ESTIMATORS = {
    "fogzo": ["estimator=fogzo", "estimator.noise=0.1"],
    "nspsa": ["estimator=nspsa", "estimator.n=3"],
}


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_probes_move_the_loss_and_leave_the_weights(quantizer, estimator):
    config = configured(*QUANTIZERS[quantizer], *ESTIMATORS[estimator])
    network = built(*QUANTIZERS[quantizer], *ESTIMATORS[estimator])
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(64, *IMAGE, generator=generator), torch.arange(64) % 10

    def loss() -> torch.Tensor:
        return F.cross_entropy(network.model(x), y)

    loss().backward()
    straight_through = [w.parameter.grad.clone() for w in network.weights]
    others = {k: p.grad.clone() for k, p in network.model.named_parameters()}
    before = {k: v.clone() for k, v in network.model.state_dict().items()}

    measured = []

    def probes(here, directions):
        measured.append(SequentialProbes(loss)(here, directions))
        return measured[-1]

    chosen = build_part("estimator", config.estimator, None, device=torch.device("cpu"))
    assert chosen.begin_step(0, 10)
    signs = torch.Generator().manual_seed(1)
    estimate = chosen(network.weights, probes, generator, signs)

    for losses in measured:
        assert losses.plus.isfinite().all()
        assert losses.minus.isfinite().all()
        assert (losses.plus != losses.minus).all()
    assert estimate.flips > 0
    for w, ste in zip(network.weights, straight_through, strict=True):
        assert w.parameter.grad.isfinite().all()
        assert w.parameter.grad.norm() > 0
        assert not torch.allclose(w.parameter.grad, ste)
    quantized = {id(w.parameter) for w in network.weights}
    for name, parameter in network.model.named_parameters():
        if id(parameter) not in quantized:  # biases and steps keep the STE pass's gradient
            assert torch.equal(parameter.grad, others[name]), name
    for name, value in network.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("bits", [1, 2, 4], ids=lambda b: f"{b}bit")
def test_quest_is_perturbed_in_rotated_coordinates_by_its_live_level_spacing(bits):
    network = built("quantizer=quest", f"quantizer.weight_bits={bits}")
    w = network.weights[0]
    quantizer = network.model.fc1.weight_quantizer
    v = torch.randn(w.parameter.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        dense = torch.tensor(hadamard(16) / 4, dtype=torch.float32)
        torch.testing.assert_close(w.rotate(w.parameter), w.parameter @ dense)
        moved = w.rotate(w.parameter + w.rotate_back(w.epsilon() * v)) - w.rotate(w.parameter)
        torch.testing.assert_close(moved, w.epsilon() * v, rtol=1e-4, atol=1e-6)
        narrow = w.epsilon().clone()
        w.parameter.mul_(2)
        torch.testing.assert_close(w.epsilon(), 2 * narrow)
    rms = w.parameter.detach().square().mean(1, keepdim=True).sqrt()
    half_step = quantizer.levels(torch.tensor(9e9)).item()
    alpha = {1: 0.79788, 2: 1.49353, 4: 2.51393}[bits] * rms
    scale = alpha if bits == 1 else alpha / half_step
    torch.testing.assert_close(w.epsilon(), scale * w.law.epsilon_bar, rtol=1e-4, atol=0)


def test_epsilon_follows_a_learned_step():
    network = built("quantizer=lsq")
    w, step = network.weights[0], network.model.fc1.weight_quantizer.step
    assert w.epsilon().item() == pytest.approx(step.item() / 12**0.5)
    with torch.no_grad():
        step.mul_(3)
    assert w.epsilon().item() == pytest.approx(step.item() / 12**0.5)


def test_activation_bits_alone_leave_nothing_to_perturb():
    network = built(
        "quantizer=quest",
        "estimator=ste",
        "quantizer.weight_bits=16",
        "quantizer.activation_bits=4",
    )
    assert network.perturbed == 0
    assert network.model.fc1.weight_quantizer is None
    assert isinstance(network.model.fc1.input_quantizer, Quest)


def test_sixteen_bits_are_full_precision():
    off = built(
        "quantizer=lsq",
        "estimator=ste",
        "quantizer.weight_bits=16",
        "quantizer.activation_bits=16",
    )
    plain = built("quantizer=none", "estimator=ste")
    x = torch.randn(8, *IMAGE)
    assert torch.equal(off.model(x), plain.model(x))


def test_first_and_last_layers_at_8_bits_have_8_bit_inputs():
    network = built(
        "quantizer=lsq",
        "quantizer.activation_bits=2",
        "quantizer.first_last=8bit",
        "model.first_last=[fc1]",
    )
    assert network.model.fc1.weight_quantizer.grid.high == 127
    assert network.model.fc1.input_quantizer.grid.high == 127
    assert network.model.fc2.weight_quantizer.grid.high == 1
    assert network.model.fc2.input_quantizer.grid.high == 1


def test_chosen_layers_have_unsigned_inputs():
    model = built(
        "quantizer=lsq", "quantizer.activation_bits=2", "quantizer.unsigned_inputs=['*2']"
    ).model
    assert model.fc1.input_quantizer.grid.low == -2
    assert model.fc2.input_quantizer.grid.low == 0


@pytest.mark.slow
@pytest.mark.parametrize("scales", [False, True], ids=["scales-free", "scales-decayed"])
@pytest.mark.parametrize("decay", ["weights", "all"], ids=str)
def test_steps_are_decayed_where_asked_whatever_else_is(decay, scales):
    overrides = [
        "quantizer=lsq", "quantizer.activation_bits=2", "quantizer.per_channel=true",
        f"recipe.decay={decay}", f"recipe.decay_scales={scales}",
    ]  # fmt: skip
    model = built(*overrides).model
    optimizer = build_optimizer(configured(*overrides).recipe, model, capturable=False)
    decayed = {p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    steps = {k: p for k, p in model.named_parameters() if k.endswith("step")}
    assert len(steps) == 4
    for name, step in steps.items():
        assert (step in decayed) == scales, name
    assert model.fc1.weight in decayed
    assert (model.fc1.bias in decayed) == (decay == "all")


def test_decay_of_scales_is_part_of_the_identity_of_learned_scales_alone():
    def fields(name):
        return result_fields(configured(f"quantizer={name}"), {})["recipe"]

    assert fields("lsq")["decay_scales"] is False
    assert all("decay_scales" not in fields(name) for name in ("round", "sign", "quest"))


def test_convolutions_take_both_quantizers():
    for quantizers in (
        (lambda n, w: LsqWeight(w, 2), lambda n, layer: LsqInput(2)),
        (lambda n, w: Quest(72, 2, row_axes=3), lambda n, layer: Quest(8, 2, row_axes=0)),
    ):
        model = nn.Sequential(nn.Conv2d(8, 4, 3))
        reference = nn.Conv2d(8, 4, 3)
        reference.load_state_dict(model[0].state_dict())
        quantize_layers(model, *quantizers)
        x = torch.randn(2, 8, 6, 6)
        layer = model[0]
        expected = F.conv2d(layer.input_quantizer(x), layer.weight_quantizer(layer.weight))
        expected = expected + reference.bias.view(1, -1, 1, 1)
        torch.testing.assert_close(model(x), expected)
        assert not torch.allclose(model(x), reference(x), atol=1e-2)


def test_the_batched_evaluator_is_for_fixed_scales_alone():
    assert supports_batched(built("quantizer=round").model)
    assert not supports_batched(built("quantizer=lsq").model)
    assert not supports_batched(built("quantizer=quest").model)
    model = built("quantizer=round").model
    model.fc1.input_quantizer = LsqInput(2)
    assert not supports_batched(model)


ONLY_ACTIVATIONS = ["estimator=ste", "quantizer.weight_bits=16", "quantizer.activation_bits=2"]
BAD = {
    "bits-too-many": (["quantizer=lsq", "quantizer.weight_bits=9"], "weight_bits=9 is outside"),
    "bits-none": (["quantizer=quest", "quantizer.activation_bits=0"], "activation_bits=0 is out"),
    "round-activations": (
        ["quantizer=round", "quantizer.activation_bits=4"],
        "quantizer=round takes its fixed scale from the initial weights",
    ),
    "sign-activations": (["quantizer=sign", "quantizer.activation_bits=1"], "quantizer=sign takes"),
    "odd-row": (["quantizer=quest", "model.hidden=15"], "weight of fc2: quantizer.hadamard=full"),
    "odd-inputs": (
        ["quantizer=quest", *ONLY_ACTIVATIONS, "model.hidden=15"],
        "inputs of fc2: quantizer.hadamard=full",
    ),
    "per-channel-without-weights": (
        ["quantizer=lsq", *ONLY_ACTIVATIONS, "quantizer.per_channel=true"],
        "quantizer.per_channel=true is a step for each output channel of a weight",
    ),
    "unsigned-without-activations": (
        ["quantizer=lsq", "quantizer.unsigned_inputs=[fc2]"],
        "needs quantized activations",
    ),
    "unsigned-nowhere": (
        ["quantizer=lsq", "quantizer.activation_bits=2", "quantizer.unsigned_inputs=[fc9]"],
        "fc9 matches no quantized layer; they are fc1, fc2",
    ),
    "nothing-to-perturb": (
        ["quantizer=lsq", "quantizer.weight_bits=16"],
        "quantizer.weight_bits=16 has none",
    ),
    "unknown-variant": (["quantizer=quest", "quantizer.hadamard=odd"], "options: full, half, none"),
    "decay-without-learned-scales": (
        ["quantizer=quest", "recipe.decay_scales=true"],
        "decays learned scales and quantizer=quest has none",
    ),
    "trust-width-of-1-bit": (
        ["quantizer=quest", "quantizer.weight_bits=1", "quantizer.trust_width=0.5"],
        "trust_width=0.5 is the mask of 2 bits and more.*quantizer.clip_scale",
    ),
    "trust-width": (["quantizer=quest", "quantizer.trust_width=-1"], "trust_width=-1.0 must be"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_bad_settings_are_refused_in_one_line(case):
    overrides, said = BAD[case]
    with pytest.raises(UserError, match=said.replace("(", r"\(")) as caught:
        built(*overrides)
    assert "\n" not in str(caught.value)
