"""Layers that take the same input quantize it once, in all passes, and compute what each would."""

import copy

import pytest
import torch
from torch import nn

from fogzo_repro.composition import compose_run
from fogzo_repro.quantization.lsq import LsqInput, LsqWeight
from fogzo_repro.quantization.quest import Quest
from fogzo_repro.quantization.replace import SharedInput, quantize_layers
from fogzo_repro.training.network import build_network

WIDTH = 32


class Attention(nn.Module):
    """Three layers on one input and a fourth on another."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.o = nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return x + self.o(self.q(x).sigmoid() * self.k(x) + self.v(x))


class Network(nn.Module):
    shared_inputs = (("q", "k", "v"),)

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Attention(), Attention())

    def forward(self, x):
        return self.blocks(x)


def network(quantizer, bits=lambda name: 2):
    torch.manual_seed(0)
    model = Network()
    apart = copy.deepcopy(model)
    apart.shared_inputs = ()
    for one in (model, apart):
        quantize_layers(
            one,
            lambda _, weight: LsqWeight(weight, 2),
            lambda name, layer: quantizer(bits(name)),
        )
    return model.double(), apart.double()


def quest(bits):
    return Quest(WIDTH, bits, of_inputs=True)


def calls(model, x):
    """Return how many inputs were quantized."""
    count = []
    kinds = [m for m in model.modules() if isinstance(m, Quest)]
    handles = [m.register_forward_hook(lambda *_: count.append(1)) for m in kinds]
    model(x)
    for handle in handles:
        handle.remove()
    return len(count)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 6, WIDTH, dtype=torch.float64, generator=generator)


def gradients(model, x):
    leaf = x.clone().requires_grad_()
    model(leaf).square().sum().backward()
    return [leaf.grad, *(p.grad for p in model.parameters())]


def test_values_and_gradients_equal_those_of_quantizers_apart(x):
    shared, apart = network(quest)
    assert torch.equal(shared(x), apart(x))
    for found, expected in zip(gradients(shared, x), gradients(apart, x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_shared_input_is_quantized_once_with_and_without_gradients(x):
    shared, apart = network(quest)
    assert (calls(shared, x), calls(apart, x)) == (4, 8)
    with torch.no_grad():
        assert (calls(shared, x), calls(apart, x)) == (4, 8)


def test_nothing_is_kept_after_a_pass(x):
    shared, _ = network(quest)
    shared(x)
    kept = [m.kept for m in shared.modules() if isinstance(m, SharedInput)]
    assert kept == [None, None]


def test_a_pass_that_was_broken_off_leaves_no_trace_in_the_next(x):
    shared, apart = network(quest)
    shared.blocks[0].q(x)
    assert torch.equal(shared(2 * x), apart(2 * x))
    assert shared.blocks[0].q.input_quantizer.kept is None


def first_of_both():
    """Return a block whose layers share their input's quantizer, and one where each has its own."""
    return [model.blocks[0] for model in network(quest)]


@pytest.mark.parametrize("second", ["q", "k"])
@pytest.mark.parametrize("no_graph", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_input_that_is_refilled_in_place_is_quantized_again(x, second, no_graph):
    shared, apart = first_of_both()
    with no_graph():
        x = x.clone()
        shared.q(x)
        x.mul_(-3)
        assert torch.equal(shared.get_submodule(second)(x), apart.get_submodule(second)(x))


def test_a_layer_that_asks_twice_begins_another_pass(x):
    """A change that no version tells of, as of a replayed graph."""
    shared, apart = first_of_both()
    shared.q(x)
    x.data.mul_(-3)
    for name in "qkv":
        assert torch.equal(shared.get_submodule(name)(x), apart.get_submodule(name)(x))
    assert shared.q.input_quantizer.kept is None


def test_an_exception_between_the_layers_leaves_no_trace(x):
    shared, apart = first_of_both()

    def fail(*_):
        raise RuntimeError("in between")

    handle = shared.k.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="in between"):
        shared(x)
    handle.remove()
    x.neg_()
    assert torch.equal(shared(x), apart(x))


def test_a_pass_with_gradients_takes_nothing_of_one_without(x):
    shared, _ = first_of_both()
    leaf = x.clone().requires_grad_()
    with torch.no_grad():
        shared.q(leaf)
    shared.k(leaf).sum().backward()
    assert leaf.grad is not None


def test_an_input_that_comes_to_need_gradients_gets_them(x):
    shared, _ = first_of_both()
    shared.q(x)
    shared.k(x.requires_grad_()).sum().backward()
    assert x.grad is not None


def test_autocast_keeps_its_precision_to_itself(x):
    shared, apart = (block.float() for block in first_of_both())
    x = x.float()
    with torch.autocast("cpu", torch.bfloat16):
        low = shared.q(x)
    assert low.dtype == torch.bfloat16
    assert torch.equal(shared.k(x), apart.k(x))


@pytest.mark.parametrize("second", ["q", "k"])
def test_every_layer_alone_can_be_differentiated(x, second):
    shared, apart = first_of_both()
    leaf, other = (x.clone().requires_grad_() for _ in range(2))
    for block, of in ((shared, leaf), (apart, other)):
        block.q(of).sum().backward()
        block.get_submodule(second)(of).sum().backward()
    torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-12, atol=1e-12)


def test_a_copy_is_without_what_is_kept(x):
    shared, apart = first_of_both()
    shared.q(x.requires_grad_())
    twin = copy.deepcopy(shared)
    assert shared.q.input_quantizer.kept is not None and twin.q.input_quantizer.kept is None
    assert torch.equal(twin(x), apart(x))


@pytest.mark.parametrize(
    ("quantizer", "bits"),
    [
        (LsqInput, lambda name: 2),
        (quest, lambda name: 8 if name == "blocks.0.q" or name == "blocks.1.v" else 2),
    ],
    ids=["learned-steps", "other-bits"],
)
def test_quantizers_that_differ_stay_apart(quantizer, bits):
    shared, _ = network(quantizer, bits)
    assert not any(isinstance(m, SharedInput) for m in shared.modules())


@pytest.mark.slow
def test_a_compiled_block_shares_in_one_graph(x):
    shared, apart = network(quest)
    compiled = torch.compile(shared, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), apart(x), rtol=1e-12, atol=1e-12)
    pairs = zip(gradients(compiled, x), gradients(apart, x), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (["model=llama_9m"], [("self_attn.q_proj", 3), ("mlp.gate_proj", 2)]),
        (["model=resnet18", "dataset=cifar100"], [("conv1", 2)]),
    ],
    ids=["llama", "resnet"],
)
def test_the_layers_that_a_model_names_are_there(model, layers):
    config = compose_run(*model, "quantizer=quest", "quantizer.activation_bits=2", "scale=smoke")
    given = {} if "llama" in model[0] else {"image_shape": (3, 32, 32), "classes": 100}
    found = build_network(config, given, torch.device("cpu")).model
    block = found.layers[0] if "llama" in model[0] else found.layer2[0]
    for name, count in layers:
        assert block.get_submodule(name).input_quantizer.layers == count
