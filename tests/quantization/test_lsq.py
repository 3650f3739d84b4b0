import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.integrate import quad
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from fogzo_repro.quantization.lsq import FLOOR, LsqInput, LsqWeight
from fogzo_repro.quantization.replace import quantize_layers

GRIDS = [
    pytest.param(bits, half, id=f"{bits}bit-{'half' if half else 'integer'}")
    for bits in (1, 2, 3, 4, 8)
    for half in (False, True)
]
KINDS = [pytest.param("weight", id="weight"), pytest.param("input", id="input")]


def bounds(bits: int, half: bool) -> tuple[float, float, float, int]:
    """Outer levels, offset and Q_P as RECIPES D.4 writes them; one bit is +-1/2 with Q_P = 1."""
    if bits == 1:
        return -0.5, 0.5, 0.5, 1
    offset = 0.5 if half else 0.0
    return -(2 ** (bits - 1)) + offset, 2 ** (bits - 1) - 1 + offset, offset, 2 ** (bits - 1) - 1


def quantizer_with_step(kind: str, bits: int, half: bool, v: torch.Tensor, step: float):
    if kind == "weight":
        quantizer = LsqWeight(v, bits, half)
    else:
        quantizer = LsqInput(bits, half)
        quantizer(v)  # the first batch
    quantizer.to(v.dtype)
    with torch.no_grad():
        quantizer.step.fill_(step)
    return quantizer


@pytest.mark.parametrize(
    "shape", [(64, 32), (8, 8, 32), (4, 8, 8, 8)], ids=["rows", "tokens", "images"]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("bits", "half"), GRIDS)
def test_gradients_follow_the_piecewise_formulas(kind, bits, half, shape):
    generator = torch.Generator().manual_seed(bits)
    v = torch.randn(shape, generator=generator).requires_grad_()
    g = torch.randn(shape, generator=generator)
    step = 1.3 / 2 ** (bits - 1)
    quantizer = quantizer_with_step(kind, bits, half, v.detach(), step)
    out = quantizer(v)
    out.backward(g)

    low, high, offset, q_p = bounds(bits, half)
    x = v.detach() / step
    q = (x - offset).clamp(low - offset, high - offset).round() + offset
    inside = (x >= low) & (x <= high)
    by_step = torch.where(inside, q - x, torch.where(x < low, low, high))
    count = v.numel() if kind == "weight" else v[0].numel()  # features: the batch is not counted
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(out, step * q)
    torch.testing.assert_close(v.grad, g * inside)
    expected = (g * by_step).sum() / (count * q_p) ** 0.5
    torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "half"), GRIDS)
def test_gradients_equal_autograd_through_a_float64_reference(bits, half):
    generator = torch.Generator().manual_seed(bits)
    v = torch.randn(40, 8, generator=generator, dtype=torch.float64).requires_grad_()
    step = 1.1 / 2 ** (bits - 1)
    quantizer = quantizer_with_step("weight", bits, half, v.detach(), step)
    quantizer(v).square().sum().backward()
    ours = v.grad.clone()

    v.grad = None
    low, high, offset, q_p = bounds(bits, half)
    s = torch.tensor(step, dtype=torch.float64, requires_grad=True)
    clipped = torch.minimum(torch.maximum(v / s, torch.tensor(low)), torch.tensor(high))
    rounding_error = ((clipped - offset).round() + offset - clipped).detach()
    (s * (clipped + rounding_error)).square().sum().backward()
    torch.testing.assert_close(ours, v.grad, rtol=1e-10, atol=1e-10)
    expected = s.grad / (v.numel() * q_p) ** 0.5
    torch.testing.assert_close(quantizer.step.grad, expected, rtol=1e-10, atol=1e-10)


def test_the_bounds_belong_to_the_range_that_takes_gradient():
    v = torch.tensor([-2.0, 1.0, -2.1, 1.1]).requires_grad_()
    quantizer = quantizer_with_step("weight", 2, False, v.detach(), 1.0)
    quantizer(v).sum().backward()
    assert v.grad.tolist() == [1.0, 1.0, 0.0, 0.0]


def expected_step_gradient(step: float, bits: int) -> float:
    """E[(v_hat - v) d v_hat / d s] for v ~ N(0, 1) and the loss (v_hat - v)^2 / 2, integer grid."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    total = 0.0
    for q in range(low, high + 1):
        left, right = max(q - 0.5, low) * step, min(q + 0.5, high) * step

        def inside(v, q=q):
            return (step * q - v) * (q - v / step) * norm.pdf(v)

        total += quad(inside, left, right)[0]
    total += quad(lambda v: (step * low - v) * low * norm.pdf(v), -np.inf, low * step)[0]
    total += quad(lambda v: (step * high - v) * high * norm.pdf(v), high * step, np.inf)[0]
    return total


@pytest.mark.parametrize("bits", [2, 3, 4], ids=lambda b: f"{b}bit")
def test_step_on_a_gaussian_converges_to_the_zero_of_its_expected_gradient(bits):
    zero = brentq(expected_step_gradient, 0.05, 3.0, args=(bits,))
    if bits == 2:
        assert zero == pytest.approx(1.0979, abs=5e-4)  # 1.097 to three digits cut
    v = torch.tensor(norm.ppf((np.arange(20_000) + 0.5) / 20_000), dtype=torch.float32)
    quantizer = LsqWeight(v, bits)
    assert quantizer.step.item() != pytest.approx(zero, rel=0.02)  # it has a way to go
    optimizer = torch.optim.SGD([quantizer.step], lr=0.3 * (len(v) * quantizer.grid.q_p) ** 0.5)
    for _ in range(200):
        optimizer.zero_grad()
        ((quantizer(v) - v).square().mean() / 2).backward()
        optimizer.step()
    assert quantizer.step.item() == pytest.approx(zero, rel=0.01)


def test_start_is_twice_the_mean_magnitude_over_root_q_p():
    v = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    assert LsqWeight(v, 4).step.item() == pytest.approx(2 * v.abs().mean().item() / 7**0.5)
    per_channel = LsqWeight(v, 4, per_channel=True).step
    torch.testing.assert_close(per_channel.detach(), 2 * v.abs().mean(1) / 7**0.5)
    assert per_channel.dim() == 1  # no weight decay
    unsigned = LsqInput(4, unsigned=True)
    unsigned(v.relu())
    assert unsigned.step.item() == pytest.approx(2 * v.relu().mean().item() / 15**0.5)


@pytest.mark.parametrize("half", [False, True], ids=["integer", "half"])
def test_one_bit_starts_at_the_best_scale_of_a_sign(half):
    v = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    out = LsqWeight(v, 1, half)(v)
    torch.testing.assert_close(out.detach(), v.abs().mean() * v.sign())


def test_unsigned_levels_are_the_integers_from_zero():
    quantizer = LsqInput(2, half_integer=True, unsigned=True)
    quantizer(torch.rand(8, 5))
    with torch.no_grad():
        quantizer.step.fill_(1.0)
    v = torch.tensor([[-1.0, 0.2, 0.7, 2.2, 9.0]])
    assert quantizer(v).tolist() == [[0.0, 0.0, 1.0, 2.0, 3.0]]


def test_channels_have_steps_of_their_own():
    v = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    v = v * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1, 1)
    whole = LsqWeight(v, 3, per_channel=True)(v)
    for channel in range(3):
        torch.testing.assert_close(whole[channel], LsqWeight(v[channel], 3)(v[channel]))


@pytest.mark.parametrize("value", [0.0, -0.5], ids=["zero", "negative"])
def test_a_step_pushed_to_zero_or_below_stays_positive_and_comes_back(value):
    v = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    quantizer = LsqWeight(v, 2)
    start = quantizer.step.item()
    with torch.no_grad():
        quantizer.step.fill_(value)
    out = quantizer(v)
    assert out.abs().max().item() == pytest.approx(2 * FLOOR * start)
    assert quantizer.perturbation_scale(v).item() == pytest.approx(FLOOR * start)
    optimizer = torch.optim.AdamW([quantizer.step], lr=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        (quantizer(v) - v).square().mean().backward()
        optimizer.step()
    assert quantizer.step.item() > 0.5


def test_weights_without_spread_are_refused():
    with pytest.raises(ValueError, match="no spread"):
        LsqWeight(torch.zeros(4, 4), 2)


def test_an_activation_step_starts_once_from_the_first_batch_that_is_trained_on():
    first, second = torch.randn(16, 8), 5 * torch.randn(16, 8)
    quantizer = LsqInput(2)
    with torch.no_grad():
        quantizer(second)  # a probe: keeps nothing
    quantizer.eval()
    quantizer(second)  # an evaluation: keeps nothing
    assert quantizer.start == 0
    quantizer.train()
    quantizer(first)
    start = quantizer.step.detach().clone()
    assert start.item() == pytest.approx(2 * first.abs().mean().item())
    quantizer(second)
    assert torch.equal(quantizer.step.detach(), start)


def test_a_probe_before_the_start_sees_what_the_first_step_will_see():
    v = torch.randn(16, 8)
    quantizer = LsqInput(2)
    with torch.no_grad():
        early = quantizer(v)
    assert torch.equal(early, quantizer(v).detach())


def test_a_restored_activation_step_has_no_second_start():
    trained = LsqInput(2)
    trained(torch.randn(16, 8))
    with torch.no_grad():
        trained.step.mul_(1.5)
    restored = LsqInput(2)
    restored.load_state_dict(trained.state_dict())
    restored(100 * torch.randn(16, 8))
    assert torch.equal(restored.step, trained.step)


def test_a_first_batch_of_zeros_gives_a_positive_step():
    quantizer = LsqInput(2, unsigned=True)
    assert torch.equal(quantizer(torch.zeros(4, 8)), torch.zeros(4, 8))
    assert quantizer.step.item() > 0


def test_half_precision_inputs_are_divided_in_float32_and_come_back_as_they_were():
    v = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    quantizer = LsqInput(8)
    out = quantizer(v)
    assert out.dtype == torch.bfloat16
    exact = (v.double() / quantizer.step.double()).round().clamp(-128, 127) * quantizer.step
    torch.testing.assert_close(out, exact.to(torch.bfloat16))


UPDATES = 10


def first_batch(rank: int) -> torch.Tensor:
    """Ranks see data of different size, so that steps of their own would differ."""
    generator = torch.Generator().manual_seed(rank)
    return (1 + rank) * torch.randn(32, 8, generator=generator)


def train(rank: int, folder: Path) -> None:
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    quantize_layers(
        model, lambda name, weight: LsqWeight(weight, 2), lambda name, layer: LsqInput(2)
    )
    x = first_batch(rank)
    saved = {}
    for _ in range(UPDATES):
        model.zero_grad()
        (model(x) - x[:, :4]).square().mean().backward()
        saved.setdefault("start", model[0].input_quantizer.step.detach().clone())
        with torch.no_grad():
            for p in model.parameters():  # the mean over ranks, as DistributedDataParallel has it
                dist.all_reduce(p.grad)
                p -= 0.1 * p.grad / 2
    steps = {k: v.detach() for k, v in model.named_parameters() if k.endswith("step")}
    torch.save({**saved, **steps}, folder / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_ranks_hold_equal_steps_after_ten_updates(tmp_path):
    context = multiprocessing.get_context("fork")  # torch is not imported anew
    ranks = [context.Process(target=train, args=(rank, tmp_path)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=300)
        assert process.exitcode == 0
    one, two = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert len(one) == 5  # the start of one activation; two weights' and two activations' steps
    for name in one:
        assert torch.equal(one[name], two[name]), name
    starts = [2 * first_batch(rank).abs().mean() for rank in range(2)]
    torch.testing.assert_close(one["start"], sum(starts) / 2)
    assert not torch.isclose(starts[0], starts[1], rtol=0.3)
    assert one["0.input_quantizer.step"] != one["start"]
