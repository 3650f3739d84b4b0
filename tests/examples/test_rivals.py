"""examples/rivals: the rules against numbers worked out by hand; at strength 0 the baseline."""

import importlib.util
import math
from functools import partial

import pytest
import torch
from torch import tensor

from fogzo_repro import load_run
from fogzo_repro.composition import compose_run
from fogzo_repro.estimators import QuantizedWeight, smoothing_law
from fogzo_repro.quantization.quest import Quest
from fogzo_repro.quantization.sign import Sign
from fogzo_repro.quantization.surrogates import sign_hardtanh
from fogzo_repro.quantization.uniform import Round
from fogzo_repro.run import execute
from tests.conftest import ROOT

RIVALS = ROOT / "examples" / "rivals"


def load(place):
    spec = importlib.util.spec_from_file_location(place.replace("/", "_"), RIVALS / f"{place}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ewgs, stableqat = load("quantizer/ewgs"), load("quantizer/stableqat")
cage = load("estimator/cage")


def gradients(quantizer, weight, incoming):
    """Return w_q and dL/dw; the quantizer's parameters keep theirs."""
    weight = weight.clone().requires_grad_()
    value = quantizer(weight)
    value.backward(incoming)
    return value.detach(), weight.grad


def close(found, expected, tolerance=5e-7):
    return torch.allclose(found, tensor(expected, dtype=found.dtype), atol=tolerance, rtol=0)


W = tensor([0.3, -0.3, 0.9, -1.2, 1.5], dtype=torch.float64)
G = tensor([0.25, -0.25, 0.25, 0.25, -0.25], dtype=torch.float64)


def between_ends(delta):
    """Return EWGS with 4 levels from -1 to 1, its output as the authors' code has it."""
    quantizer = ewgs.Ewgs(W, 2, delta, learned=True).double()
    with torch.no_grad():
        for name, value in {"lower": -1.0, "upper": 1.0, "factor": 1.0}.items():
            getattr(quantizer, name).fill_(value)
    return quantizer


def test_ewgs_scales_weights_and_both_ends_of_its_range():
    quantizer = between_ends(0.2)
    value, grad = gradients(quantizer, W, G)
    assert close(value, [1 / 3, -1 / 3, 1, -1, 1])
    assert close(grad, [0.2491667, -0.2491667, 0.2475, 0, 0])
    assert close(quantizer.lower.grad, 0.062375) and close(quantizer.upper.grad, -0.309875)


def test_ewgs_without_strength_is_the_ste():
    _, grad = gradients(between_ends(0.0), W, G)
    assert close(grad, [0.25, -0.25, 0.25, 0, 0], 1e-15)


def test_ewgs_discretizer_alone():
    x = tensor([0.65, 0.35, 0.95], dtype=torch.float64, requires_grad=True)
    ewgs.Discretize.apply(x, 4, 0.2).backward(tensor([0.5, 0.5, -0.5], dtype=torch.float64))
    assert close(x.grad, [0.4983333, 0.5016667, -0.505])


def test_ewgs_gives_the_ends_of_its_range_their_gradient():
    quantizer = between_ends(0.0)
    _, grad = gradients(quantizer, tensor([-1.0, 1.0]).double(), tensor([1.0, 1.0]).double())
    assert close(grad, [1.0, 1.0])


def test_ewgs_delta_by_curvature():
    h = tensor([1, 2, 3, -0.5], dtype=torch.float64)
    q = tensor([0.5, -0.5, 1, 0.25], dtype=torch.float64, requires_grad=True)
    batch = (0.5 * (h * q * q).sum(), q)
    generator = torch.Generator().manual_seed(0)
    assert abs(ewgs.measured_delta([batch], generator) - 0.2667696) < 5e-8
    down = (-0.5 * (q * q).sum(), q)
    assert ewgs.measured_delta([down], generator) == 0.0


def test_ewgs_refuses_a_delta_that_turns_gradients_round():
    with pytest.raises(ValueError, match=r"quantizer.delta=6.0 is outside \[0, 6\)"):
        ewgs.Ewgs(W, 2, 6.0, learned=False)


ONE_BIT = partial(Sign, surrogate=sign_hardtanh.build())
HALF = pytest.mark.parametrize("half", [False, True], ids=["integer", "half-integer"])


@HALF
@pytest.mark.parametrize("bits", [1, 2, 3])
def test_ewgs_has_the_levels_of_the_suite_and_at_0_its_derivative(bits, half):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    incoming = weight.roll(1, 0)
    suite = (
        Round(weight, bits, half_integer=half, clip_gradient=True) if bits > 1 else ONE_BIT(weight)
    )
    rival = ewgs.Ewgs(weight, bits, 0.0, learned=False, half_integer=half)
    value, grad = gradients(rival, weight, incoming)
    expected, reference = gradients(suite, weight, incoming)
    assert torch.allclose(value, expected, atol=1e-12)
    assert torch.allclose(grad, reference, atol=1e-12)


def test_stableqat_derivative():
    v = tensor([0, 0.1, 0.25, -0.75, 0.4, 1.3, 0.5], dtype=torch.float64)
    expected = [0.0346582, 0.0596920, 0.2050120, 0.2050120, 0.5524159, 0.2916502, 1.0]
    assert close(stableqat.derivative(v, [0.21]), expected)
    assert close(stableqat.derivative(tensor([0.25]).double(), [0.21, -0.07]), [0.0640302])


def test_stableqat_derivative_has_the_moments_of_theorem_4_2():
    v = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000 - 0.5
    at = stableqat.derivative(v, [1 / (math.sqrt(2) * math.pi)])
    assert abs(at.mean() - (4 / math.pi - 1)) < 1e-5 and abs(at.var() - 0.07651) < 1e-5


def a_row(amplitudes):
    row = tensor([[0.26, -0.11, 0.55, 0.65, -0.85]], dtype=torch.float64)
    quantizer = stableqat.StableQat(row, 3, amplitudes, learned=True)
    with torch.no_grad():
        quantizer.scale.fill_(0.2)
    return quantizer, *gradients(quantizer, row, tensor([[1.0, -2, 0.5, 1, 1]]).double())


def test_stableqat_is_smallest_on_the_levels_of_either_grid():
    for half in (False, True):
        weight = tensor([[0.0, 0.5, -0.5, -1.0]]).double()
        rival = stableqat.StableQat(weight, 2, [0.21], learned=True, half_integer=half)
        with torch.no_grad():
            rival.scale.fill_(1.0)
        _, grad = gradients(rival, weight, torch.ones_like(weight))
        on, between = 0.0346582, 1.0
        expected = [between, on, on, between] if half else [on, between, between, on]
        assert close(grad[0], expected)


def test_stableqat_row():
    quantizer, value, grad = a_row([0.21])
    assert close(value, [[0.2, -0.2, 0.6, 0.6, -0.8]])
    assert close(grad, [[0.2916502, -1.4905409, 0.1025060, 0, 0]])
    assert close(quantizer.scale.grad, [[-0.0710047]])


def test_stableqat_without_amplitude_is_the_ste():
    _, _, grad = a_row([0.0])
    assert torch.equal(grad, tensor([[1.0, -2, 0.5, 0, 0]]).double())


@pytest.mark.parametrize(("bits", "begin"), [(2, 0.85), (3, 0.85 / 3), (4, 0.85 / 7)])
def test_stableqat_begins_its_steps_as_published(bits, begin):
    weight = tensor([[0.26, -0.85], [0.5, 0.1]])
    quantizer = stableqat.StableQat(weight, bits, [0.21], learned=True)
    assert close(quantizer.scale.detach()[0], [begin], 1e-7) and quantizer.scale.shape == (2, 1)
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    assert (quantizer.perturbation_scale(weight) == 1e-5).all()


@HALF
def test_stableqat_has_the_levels_of_the_suite_and_without_amplitude_its_derivative(half):
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(1))
    incoming = weight.roll(1, 0)
    rival = stableqat.StableQat(weight, 2, [0.0], learned=False, half_integer=half)
    found = gradients(rival, weight, incoming)
    suite = Round(weight, 2, half_integer=half, clip_gradient=True)
    expected = gradients(suite, weight, incoming)
    assert torch.equal(found[0], expected[0]) and torch.allclose(found[1], expected[1], atol=1e-6)


TINY = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=3", "hardware=cpu"]


@pytest.mark.parametrize("learned", ["true", "false"], ids=["learned", "fixed"])
@pytest.mark.parametrize("name", ["ewgs", "stableqat"])
def test_a_rival_trains_as_a_part_of_a_users(name, learned, tmp_path, monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(RIVALS))
    words = [f"quantizer={name}", "estimator=ste", f"quantizer.learned_scales={learned}"]
    record = execute(compose_run(*TINY, *words, f"output_root={tmp_path}"), quiet=True)
    assert record["status"] == "finished" and record["run_id"].startswith(f"mlp-digits-{name}-ste")


X, Q = [0.30, -0.62, 0.70], 0.5


def one_step(rule):
    """Take the first step of AdamW with CAGE beside it, lambda_t = 5; return the weights."""
    x = torch.nn.Parameter(tensor(X, dtype=torch.float64))
    weight = QuantizedWeight(x, tensor(Q), smoothing_law("round", "identity"), quantized=to_grid)
    optimizer = torch.optim.AdamW([x], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    pull = cage.build(
        0.0 if rule == "none" else 5.0, 0.0, "constant", rule.replace("none", "after"), x.device
    )
    x.grad = tensor([0.2, -0.4, 0.1], dtype=torch.float64)
    with torch.no_grad():
        assert pull.begin_step(0, 1000) == (rule != "none")
        pull([weight], None, torch.Generator(), torch.Generator())
        optimizer.step()
        pull.after_update([weight], tensor(0.01, dtype=torch.float64))
    return x.detach()


def to_grid(x):
    return Q * (x / Q).round()


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("none", [0.2897, -0.60938, 0.6893]),
        ("after", [0.300215, -0.603911, 0.679835]),
        ("before", [0.2997, -0.60338, 0.6793]),
        ("coupled", [0.3097, -0.60938, 0.6893]),
    ],
    ids=["AdamW alone", "after", "before", "coupled"],
)
def test_cage_first_step(rule, expected):
    assert close(one_step(rule), expected)


def test_cage_schedule():
    at = [cage.strength_at(t - 1, 1000, 10, 0.8, "linear_ramp") for t in (1, 800, 801, 900, 1000)]
    assert close(tensor(at), [0, 0, 0.05, 5, 10], 1e-6)
    assert [cage.strength_at(t - 1, 1000, 10, 0.8, "constant") for t in (800, 801)] == [0.0, 10]


PUBLISHED_GRID = {  # what (1, -0.2, 0.5, -2, 0.1, 0.05, -0.3, 0.4) becomes, by bits
    4: "0.9773708 -0.1396244 0.4188732 -2.0943660 0.1396244 0.1396244 -0.4188732 0.4188732",
    3: "1.2205383 -0.2441076 0.7323229 -1.7087535 0.2441076 0.2441076 -0.2441076 0.2441076",
}


@pytest.mark.parametrize("bits", PUBLISHED_GRID)
def test_the_grid_that_cage_was_published_with_is_that_of_quest(bits):
    row = tensor([[1, -0.2, 0.5, -2, 0.1, 0.05, -0.3, 0.4]], dtype=torch.float64)
    value, mask = gradients(Quest(8, bits, "none"), row, torch.ones_like(row))
    assert close(value[0], [float(x) for x in PUBLISHED_GRID[bits].split()])
    assert [k for k, kept in enumerate(mask[0]) if not kept] == ([] if bits == 4 else [3])


def trained(tmp_path, monkeypatch, *words):
    """Train for 20 steps; return the metrics and the weights in units of their scale."""
    monkeypatch.setenv("FOGZO_PARTS", str(RIVALS))
    config = compose_run(
        *TINY[:2], "recipe.max_steps=20", "hardware=cpu", *words, f"output_root={tmp_path}"
    )
    record = execute(config, quiet=True)
    model = load_run(tmp_path / record["run_id"])
    layers = (model.fc1, model.fc2)
    return record["metrics"], [layer.weight_quantizer.units(layer.weight) for layer in layers]


def off_grid(weights):
    levels = [(v - 0.5).round().clamp(-2, 1) + 0.5 for v in weights]
    off = [(v - level).abs().flatten() for v, level in zip(weights, levels, strict=True)]
    return torch.cat(off).mean().item()


def test_cage_without_strength_is_the_ste(tmp_path, monkeypatch):
    pull = trained(tmp_path, monkeypatch, "estimator=cage", "estimator.strength=0")
    ste = trained(tmp_path, monkeypatch, "estimator=ste")
    assert pull[0] == ste[0] and all(map(torch.equal, pull[1], ste[1]))


@pytest.mark.parametrize("rule", ["after", "before"])
def test_cage_draws_weights_to_the_grid(rule, tmp_path, monkeypatch):
    words = ["estimator=cage", "estimator.strength=30", "estimator.silent=0"]
    words += ["estimator.ramp=constant", f"estimator.rule={rule}"]
    _, pulled = trained(tmp_path, monkeypatch, *words)
    _, plain = trained(tmp_path, monkeypatch, "estimator=ste")
    assert off_grid(pulled) < 0.8 * off_grid(plain)
