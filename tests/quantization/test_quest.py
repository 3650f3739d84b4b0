import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import hadamard
from torch import nn

from fogzo_repro.quantization.quest import OUTER_LEVEL, Quest
from fogzo_repro.quantization.replace import quantize_layers

GAUSSIAN_ERROR = {  # RECIPES D.1, last column
    1: 0.363380,
    2: 0.118846,
    3: 0.037440,
    4: 0.011543,
    5: 3.4952e-3,
    6: 1.0400e-3,
    7: 3.0437e-4,
    8: 8.7822e-5,
}
BITS = pytest.mark.parametrize("bits", range(1, 9), ids=lambda b: f"{b}bit")
VARIANTS = pytest.mark.parametrize("variant", ["full", "half", "none"])


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def reference(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Q(x), Delta and T of RECIPES D.1 and D.2 in float64, without a rotation."""
    x = x.double()
    n = 2**bits
    rms = x.square().mean(-1, keepdim=True).sqrt()
    alpha = OUTER_LEVEL[bits] * rms + 1e-8
    delta = 2 * alpha / (n - 1)
    value = delta * (((x.clamp(-alpha, alpha) / delta) + 0.5).round() - 0.5)
    return value, delta, rms * OUTER_LEVEL[bits] / (n - 1)


@BITS
def test_error_on_a_gaussian_is_the_tabulated_one(bits):
    # One draw from each of 2^20 equal parts of the law, in random order: the few clipped draws in
    # the tails make an eighth of the error at 8 bits, and would be a matter of luck otherwise.
    generator = torch.Generator().manual_seed(0)
    strata = torch.randperm(2**20, generator=generator)
    r = (strata + torch.rand(2**20, generator=generator, dtype=torch.float64)) / 2**20
    x = torch.special.ndtri(r).float().view(32, -1)
    error = (Quest(2**15, bits, "none")(x) - x).square().mean().item()
    assert error == pytest.approx(GAUSSIAN_ERROR[bits], rel=0.01)


@BITS
def test_values_equal_the_formula_in_float64(bits):
    x = gaussian(16, 48)
    value, _, _ = reference(x, bits)
    torch.testing.assert_close(Quest(48, bits, "none")(x).double(), value, rtol=1e-6, atol=1e-7)


@BITS
def test_levels_are_half_integers_whose_ends_are_the_outer_level(bits):
    quantizer = Quest(64, bits, "none")
    levels = quantizer.levels(torch.linspace(-200, 200, 40_001))
    assert levels.unique().tolist() == [k - (2**bits - 1) / 2 for k in range(2**bits)]
    scaled = quantizer(torch.tensor([[-1e3] + [1.0] * 62 + [1e3]]))
    rms = ((2e6 + 62) / 64) ** 0.5
    assert scaled.max().item() == pytest.approx(OUTER_LEVEL[bits] * rms)


@pytest.mark.parametrize("bits", [2, 3, 4, 8], ids=lambda b: f"{b}bit")
def test_trust_mask_equals_its_outer_clip_form_and_the_error_form(bits):
    x = gaussian(64, 2**14)
    quantizer = Quest(2**14, bits, "none")
    units = quantizer.units(x)
    mask = quantizer.trusted(units, quantizer.levels(units))
    value, delta, half_level = reference(x, bits)
    by_error = (value - x.double()).abs() <= half_level * (1 + 1e-9)
    n = 2**bits
    by_clip = x.double().abs() <= (delta * (n - 1) / 2) * n / (n - 1)
    assert (by_error != by_clip).sum() == 0
    assert (mask != by_clip).sum() == 0
    assert not mask.all()


@pytest.mark.parametrize("width", [0.2, 0.8], ids=["narrow", "wide"])
def test_a_custom_trust_width_is_in_units_of_rms(width):
    x = gaussian(8, 256)
    leaf = x.clone().requires_grad_()
    Quest(256, 2, "none", trust_width=width)(leaf).sum().backward()
    value, _, _ = reference(x, 2)
    rms = x.double().square().mean(-1, keepdim=True).sqrt()
    expected = ((value - x.double()).abs() <= width * rms).float()
    assert torch.equal(leaf.grad, expected)


def test_one_bit_takes_gradient_up_to_1_30_of_its_level():
    x = gaussian(8, 4096).requires_grad_()
    Quest(4096, 1, "none")(x).sum().backward()
    rms = x.detach().square().mean(-1, keepdim=True).sqrt()
    assert torch.equal(x.grad, (x.abs() <= 1.30 * OUTER_LEVEL[1] * rms).float())
    assert 1 - x.grad.mean().item() == pytest.approx(0.2996, abs=0.01)  # RECIPES D.2


@BITS
@VARIANTS
def test_gradient_is_rotated_masked_and_rotated_back(bits, variant):
    x = gaussian(6, 64).requires_grad_()
    g = gaussian(6, 64, seed=1)
    quantizer = Quest(64, bits, variant)
    quantizer(x).backward(g)
    h = torch.eye(64) if variant == "none" else torch.tensor(hadamard(64) / 8, dtype=torch.float32)
    rotated = x.detach() @ h
    edge = 1.30 * OUTER_LEVEL[1] if bits == 1 else OUTER_LEVEL[bits] * 2**bits / (2**bits - 1)
    mask = rotated.abs() <= edge * rotated.square().mean(-1, keepdim=True).sqrt()
    expected = ((g if variant == "half" else g @ h) * mask) @ h.T
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-5)


def test_no_gradient_flows_through_the_scale():
    x = gaussian(2, 16).double().requires_grad_()
    Quest(16, 2, "none")(x).square().sum().backward()
    value, _, half_level = reference(x.detach(), 2)
    mask = (value - x.detach()).abs() <= half_level * (1 + 1e-9)
    torch.testing.assert_close(x.grad, 2 * value * mask)


def quantized_linear(variant: str, seed: int) -> nn.Linear:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(48, 5))
    quantize_layers(
        model,
        lambda name, weight: Quest(48, 2, variant),
        lambda name, layer: Quest(48, 4, variant),
    )
    return model[0]


def test_full_and_half_variants_compute_the_same_layer():
    full, half = quantized_linear("full", 0), quantized_linear("half", 0)
    x = gaussian(3, 7, 48)
    torch.testing.assert_close(full(x), half(x), rtol=1e-5, atol=1e-6)
    for layer in (full, half):
        layer(x).square().sum().backward()
    torch.testing.assert_close(full.weight.grad, half.weight.grad, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(full(x), F.linear(x, full.weight, full.bias), atol=1e-2)


def test_a_convolution_has_a_scale_for_each_output_channel_and_each_pixel():
    weight = gaussian(3, 4, 2, 2) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1)
    rows = Quest(16, 2)(weight.flatten(1)).view_as(weight)
    torch.testing.assert_close(Quest(16, 2, row_axes=3)(weight), rows)
    images = gaussian(2, 8, 5, 5)
    pixels = Quest(8, 2)(images.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    torch.testing.assert_close(Quest(8, 2, row_axes=0)(images), pixels)


@pytest.mark.parametrize("shape", [(6, 48), (6, 3, 4, 4)], ids=["linear", "conv"])
@BITS
def test_rotate_back_undoes_rotate_with_any_leading_axes(shape, bits):
    quantizer = Quest(48, bits, row_axes=len(shape) - 1)
    v = gaussian(5, *shape)
    torch.testing.assert_close(quantizer.rotate_back(quantizer.rotate(v)), v)
    torch.testing.assert_close(quantizer.rotate(v)[2], quantizer.rotate(v[2]))
    assert not torch.allclose(quantizer.rotate(v), v, atol=0.1)


def test_levels_of_a_perturbed_weight_use_its_own_scale():
    quantizer = Quest(64, 2)
    weight = gaussian(4, 64)
    torch.testing.assert_close(
        quantizer.levels(quantizer.units(3 * weight)), quantizer.levels(quantizer.units(weight))
    )
    torch.testing.assert_close(quantizer(3 * weight), 3 * quantizer(weight))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"row": 27}, "hadamard=full rotates rows of even length"),
        ({"row": 36, "hadamard": "half", "row_axes": 3}, "use quantizer.hadamard=full"),
        ({"row": 64, "hadamard": "half", "row_axes": 0}, "use quantizer.hadamard=full"),
    ],
    ids=["odd-row", "half-on-a-convolution", "half-on-pixels"],
)
def test_a_row_that_cannot_be_rotated_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Quest(bits=2, **arguments)


def test_an_odd_row_works_without_hadamard():
    assert Quest(27, 2, "none")(gaussian(2, 27)).isfinite().all()


def test_a_row_of_zeros_stays_finite():
    x = torch.zeros(2, 16, requires_grad=True)
    out = Quest(16, 2)(x)
    out.sum().backward()
    assert out.abs().max() < 1e-6
    assert x.grad.isfinite().all()


def test_autocast_rotates_inputs_in_its_type_and_never_weights():
    x = torch.randn(256, 640, generator=torch.Generator().manual_seed(0))
    weight, inputs = Quest(640, 2), Quest(640, 2, of_inputs=True)
    exact = weight(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(weight(x), exact)
        rounded = inputs(x)
    assert rounded.dtype == x.dtype and not torch.equal(rounded, exact)
    # A level differs only where rounding to 8 bits crosses a threshold; a level is 1 rms wide.
    assert (rounded - exact).square().mean().sqrt() < 0.1


@pytest.mark.slow
def test_compiled_layers_that_share_their_inputs_rotate_them_once():
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    quantizers = [Quest(64, 2, of_inputs=True) for _ in range(3)]
    products = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        products.append(sum(node.target == torch.ops.aten.mm.default for node in graph.graph.nodes))
        return graph.forward

    compiled = torch.compile(
        lambda x: sum(quantizer(x) for quantizer in quantizers),
        backend=aot_autograd(fw_compiler=count, partition_fn=min_cut_rematerialization_partition),
    )
    x = gaussian(8, 64).requires_grad_()
    torch.testing.assert_close(compiled(x), 3 * quantizers[0](x))
    assert products == [2]  # there and back
