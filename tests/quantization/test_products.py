"""Products in eight bits are those of the quantized operands: in float64, but for one rounding."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fogzo_repro import plan
from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.data.c4 import TokenBatch
from fogzo_repro.plan import build_step
from fogzo_repro.quantization import products, use_exact_products
from fogzo_repro.quantization.lsq import LsqInput, LsqWeight
from fogzo_repro.quantization.quest import Quest
from fogzo_repro.quantization.replace import quantize_layers
from fogzo_repro.training.graph import CapturedStep
from fogzo_repro.training.machine import resolve_machine
from fogzo_repro.training.network import build_network
from fogzo_repro.training.row import ROW

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
K, N = 64, 48
HALF_ULP = 2.0**-8  # what a rounding to bf16 changes at most, relatively


def gaussian(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def lsq_input(bits, **more):
    quantizer = LsqInput(bits, **more)
    quantizer.to(DEVICE)(gaussian(16, K))  # starts
    return quantizer


PAIRS = {  # of inputs and weight, by bits
    "quest": lambda b: (Quest(K, b, of_inputs=True), Quest(K, b)),
    "quest-half": lambda b: (Quest(K, b, "half", of_inputs=True), Quest(K, b, "half")),
    "quest-none": lambda b: (Quest(K, b, "none", of_inputs=True), Quest(K, b, "none")),
    "lsq": lambda b: (lsq_input(b), LsqWeight(gaussian(N, K, seed=1), b)),
    "lsq-half-integers": lambda b: (
        lsq_input(b, half_integer=True),
        LsqWeight(gaussian(N, K, seed=1), b, half_integer=True, per_channel=True),
    ),
    "lsq-unsigned": lambda b: (
        lsq_input(b, unsigned=True),
        LsqWeight(gaussian(N, K, seed=1), b),
    ),
}
BITS = pytest.mark.parametrize("bits", range(1, products.MOST_BITS + 1), ids=lambda b: f"{b}bit")
QUANTIZERS = pytest.mark.parametrize("pair", PAIRS, ids=PAIRS)


def layer_of(pair, bits, bias=True):
    torch.manual_seed(2)
    of_inputs, of_weight = PAIRS[pair](bits)
    model = nn.Sequential(nn.Linear(K, N, bias=bias))
    with torch.no_grad():
        model[0].weight.copy_(gaussian(N, K, seed=1))
    quantize_layers(model, lambda *_: of_weight, lambda *_: of_inputs)
    return model.to(DEVICE)[0]


@QUANTIZERS
@BITS
def test_codes_are_integers_whose_scaled_values_are_the_quantized_ones(pair, bits):
    for quantizer, v in zip(PAIRS[pair](bits), (gaussian(3, 20, K), gaussian(N, K)), strict=True):
        quantizer = quantizer.to(DEVICE).double()
        coded = quantizer.coded(v.double())
        codes = coded.codes.double()
        assert torch.equal(codes, codes.round()) and 1 <= codes.abs().max() <= 15
        values = codes * coded.scale
        torch.testing.assert_close(coded.rows, values, rtol=1e-6, atol=1e-7)
        if getattr(quantizer, "hadamard", "none") == "full":
            values = quantizer.rotate(values)
        torch.testing.assert_close(quantizer(v.double()), values, rtol=1e-6, atol=1e-6)


@QUANTIZERS
@BITS
def test_a_layer_equals_float64_but_for_one_rounding(pair, bits):
    layer = layer_of(pair, bits, bias=False)
    x = gaussian(2, 32, K)
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        a, b = layer.input_quantizer.coded(x), layer.weight_quantizer.coded(layer.weight)
        exact = (a.codes.double() * a.scale) @ (b.codes.double() * b.scale).T
        layer.exact = True
        found = layer(x)
    assert found.dtype == torch.bfloat16
    beyond = (found - exact).abs() - HALF_ULP * exact.abs()
    assert beyond.max() <= 1e-5 * exact.abs().max(), beyond.max()  # of the scales in float32
    layer.exact = False
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        in_bf16 = layer(x)
    scale = exact.abs().max()
    assert not torch.equal(in_bf16, found)  # it rounds the operands too
    assert ((in_bf16 - exact).abs().max() / scale) < 0.03


@QUANTIZERS
def test_gradients_are_those_of_the_product_in_bf16(pair):
    gradients = {}
    for exact in (False, True):
        layer = layer_of(pair, 2)
        layer.exact = exact
        x = gaussian(4, 16, K).requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            y = layer(x)
        y.backward(gaussian(4, 16, N, seed=3).to(y.dtype))
        gradients[exact] = {n: p.grad for n, p in layer.named_parameters()} | {"input": x.grad}
    for name, found in gradients[True].items():
        expected = gradients[False][name]
        assert expected.abs().max() > 0, name
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < 0.03, (name, error)


@QUANTIZERS
def test_without_autocast_nothing_changes(pair):
    layer, x = layer_of(pair, 2), gaussian(8, K)
    plain = layer(x)
    layer.exact = True
    assert torch.equal(layer(x), plain)


def test_a_bias_is_added():
    layer = layer_of("quest", 2)
    layer.exact = True
    with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
        found = layer(gaussian(8, K))
        layer.bias += 1
        torch.testing.assert_close(layer(gaussian(8, K)), found + 1, rtol=2e-2, atol=2e-2)


def test_the_values_that_the_backward_pass_takes_are_those_of_the_forward_pass():
    """The rows are the codes times the scale in bf16, as the product's derivative supposes."""
    layer = layer_of("quest", 2, bias=False)
    x = gaussian(8, K)
    with torch.autocast(DEVICE, torch.bfloat16):
        coded = layer.input_quantizer.coded(x.requires_grad_())
    product = F.linear(coded.rows.double(), gaussian(N, K).double())
    expected = F.linear(coded.codes.double() * coded.scale, gaussian(N, K).double())
    torch.testing.assert_close(product, expected, rtol=1e-2, atol=1e-2 * expected.abs().max())


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["quest", "lsq-half-integers"])
def test_a_compiled_layer_computes_the_same_in_one_graph(pair):
    layer = layer_of(pair, 2)
    layer.exact = True
    torch.compiler.reset()
    backend = "inductor" if GPU else "aot_eager"
    found = {}
    for name, run in (("eager", layer), ("compiled", torch.compile(layer, backend=backend))):
        layer.zero_grad()
        x = gaussian(4, 16, K).requires_grad_()
        with torch.autocast(DEVICE, torch.bfloat16):
            y = run(x)
        y.backward(gaussian(4, 16, N, seed=3).to(y.dtype))
        found[name] = [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]
        with torch.no_grad(), torch.autocast(DEVICE, torch.bfloat16):
            assert (run(x) != y).float().mean() < 0.01  # the same levels, but for ties
    # Compiled, an input may be quantized before it is rounded to bf16: a few levels fall otherwise.
    for a, b in zip(*found.values(), strict=True):
        assert (a - b).norm() <= 0.05 * b.norm()


def test_layers_multiply_exactly_where_both_operands_can_be_coded():
    torch.manual_seed(0)
    large, odd, small = nn.Linear(640, 384), nn.Linear(640, 392), nn.Linear(384, 640)
    model = nn.ModuleList([large, odd, small, nn.Linear(640, 640), nn.Linear(640, 640)])
    bits = {"3": 8}
    layers = quantize_layers(
        model,
        lambda name, weight: Quest(weight.shape[1], bits.get(name, 2)),
        lambda name, layer: None if name == "4" else Quest(layer.in_features, 2, of_inputs=True),
    ).values()
    assert use_exact_products(layers)
    assert [layer.exact for layer in layers] == [True, False, False, False, False]
    assert use_exact_products(layers, everywhere=True)
    assert [layer.exact for layer in layers] == [True, False, True, False, False]


@pytest.mark.skipif(GPU, reason="of a machine without a GPU")
@pytest.mark.slow
def test_a_machine_that_cannot_says_so_in_one_line_when_asked_and_else_goes_on():
    command = ["model=llama_9m", "quantizer=quest", "quantizer.activation_bits=2", "scale=smoke"]
    with pytest.raises(UserError, match=r"^hardware\.exact_products=true needs .*it out$"):
        resolve_machine(compose_run(*command, "hardware.exact_products=true"))
    config = compose_run(*command, "hardware.exact_products=null")
    network = build_network(config, {}, resolve_machine(config).device)
    assert not network.exact_products


def test_a_run_without_a_layer_for_them_is_refused_where_they_are_asked_for(monkeypatch):
    config = compose_run("dataset=digits", "recipe=digits_mlp", "hardware.exact_products=true")
    hopper = resolve_machine(compose_run("hardware=cpu"))  # all but its products
    monkeypatch.setattr(plan, "resolve_machine", lambda config: hopper)
    monkeypatch.setattr("fogzo_repro.training.network.has_products", lambda device: True)
    with pytest.raises(UserError, match=r"^hardware\.exact_products=true: no linear .*it out$"):
        plan.make_plan(config)


@pytest.mark.skipif(not (GPU and products.has_products(torch.device("cuda"))), reason="no Hopper")
@pytest.mark.parametrize("features", [640, 1280, 1792, 3584, 5120])
@pytest.mark.parametrize("largest", [3, 7], ids=["2bit", "3bit"])
@pytest.mark.parametrize("signs", ["equal", "random", "cancelling"])
@pytest.mark.parametrize("scales", ["one", "by-row"])
def test_the_gpu_sums_exactly_up_to_the_largest_sum(features, largest, signs, scales):
    """Odd integers whose sum is as large as it can be, with one that is off by the least."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (largest * torch.ones(n, features) for n in (256, 128))
    for operand in (x, weight):
        rows = torch.arange(len(operand))
        operand[rows, torch.randint(features, rows.shape, generator=generator)] = 1
    if signs == "cancelling":  # a sum that bf16 shows to the last bit, after one of half the size
        x[:, features // 2 :] *= -1
    if signs == "random":
        x = x * (2 * torch.randint(0, 2, x.shape, generator=generator) - 1)
    shapes = [(), ()] if scales == "one" else [(256, 1), (128, 1)]
    a, b = (torch.rand(s, generator=generator).add(0.5).cuda() for s in shapes)
    exact = (x.double() @ weight.double().T).cuda()
    found = products.product(x.to(products.CODES).cuda(), weight.to(products.CODES).cuda(), a, b)
    exact = exact * (a.double() * b.double().T if a.dim() else a.double() * b.double())
    # One rounding to bf16; the scale's product in float32 may tip a tie.
    assert ((found.double() - exact).abs() <= 2.0**-8 * exact.abs() * (1 + 1e-5)).all()


@pytest.mark.skipif(not (GPU and products.has_products(torch.device("cuda"))), reason="no Hopper")
@pytest.mark.parametrize("quantizer", ["quest", "lsq"])
def test_a_captured_step_of_a_llama_multiplies_in_eight_bits(quantizer):
    """Compiled by regions and captured as a run is; its loss is that of products in bf16."""
    losses = {}
    for asked in ("null", "false"):
        config = compose_run(
            "model=llama_9m", "model.width=640", "model.heads=5", "model.hidden=1792",
            "model.layers=2", "model.vocabulary=512", "model.context=64",
            f"quantizer={quantizer}", "quantizer.activation_bits=2", "estimator=fogzo",
            "estimator.noise=1e-3", "recipe.global_batch_size=8",
            f"hardware.exact_products={asked}",
        )  # fmt: skip
        machine = resolve_machine(config)
        network = build_network(config, {}, machine.device)
        assert network.exact_products == (asked == "null")
        network.model.train()
        windows = torch.randint(512, (8, 65), generator=torch.Generator().manual_seed(0)).cuda()
        batch = TokenBatch(windows)
        step = build_step(
            config, machine, network, lambda m, b: m(b.windows[:, :-1], b.windows[:, 1:])
        )
        take = CapturedStep(step, 8)
        rows = []
        for count in range(6):
            step.begin(count + 1, 100, 1e-6)  # so small that rounding moves few levels
            rows.append(dict(zip(ROW, take(batch, True).tolist(), strict=True)))
        assert len(take.graphs) == 1
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            take(batch, True)
            torch.cuda.synchronize()
        names = " ".join(event.key for event in profile.key_averages())
        assert ("nvjet_sm90_qq" in names or "e4m3" in names) == (asked == "null")
        losses[asked] = [row["loss"] for row in rows]
        assert not any(row["failed"] or row["bad_probes"] for row in rows)
    # On a CPU float32, bf16 and exact products differ by up to 0.5% here.
    assert losses["null"] == pytest.approx(losses["false"], rel=1e-2)
    assert losses["null"] != losses["false"]
