"""FogzoStep in a real loop: each silent error of the loop that one would write, and none here."""

import gc
import math
import pickle
import random
import warnings
import weakref
from collections import UserDict
from collections.abc import Callable
from contextlib import nullcontext
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fogzo_repro.estimators import (
    FogzoStep,
    QuantizedWeight,
    fogzo,
    noise_from_rho,
    rho_from_noise,
    smoothing_law,
)
from fogzo_repro.estimators.loop import _clip
from fogzo_repro.estimators.schedule import RHO
from fogzo_repro.randomness import derive_seed
from tests.forked import check_forkable, finish

LAW = smoothing_law("round", "identity")
NOISE = 0.1


class Rounded(nn.Linear):
    """A linear layer with weights of 2 bits, the identity STE and a scale of its own."""

    def __init__(self, inputs: int, outputs: int, learned: bool = False) -> None:
        super().__init__(inputs, outputs)
        scale = self.weight.detach().std()
        self.scale = nn.Parameter(scale) if learned else nn.Buffer(scale)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight / self.scale
        w = w + (w.round().clamp(-2, 1) - w).detach()
        return F.linear(x, w * self.scale, self.bias)


class Masks(nn.Module):
    """Dropout of half the units, which keeps the masks that it has applied."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = F.dropout(torch.ones_like(x), 0.5)
        self.seen.append(mask.detach())
        return x * mask


def network(*middle: nn.Module, learned: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Rounded(6, 8, learned), *middle, nn.ReLU(), Rounded(8, 3, learned))


def quantized(model: nn.Module) -> list[QuantizedWeight]:
    layers = [m for m in model.modules() if isinstance(m, Rounded)]
    return [QuantizedWeight(m.weight, m.scale, LAW) for m in layers]


def batches(count: int, size: int = 16) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [
        (torch.randn(size, 6, generator=g), torch.randint(3, (size,), generator=g))
        for _ in range(count)
    ]


def loss_of(model: nn.Module) -> Callable[..., Tensor]:
    return lambda x, y: F.cross_entropy(model(x), y)


def sgd(model: nn.Module, lr: float = 0.1) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def naive(model: nn.Module, data: list[tuple[Tensor, Tensor]]) -> None:
    """The loop that one would write."""
    optimizer, generator = sgd(model), torch.Generator().manual_seed(0)
    for x, y in data:
        optimizer.zero_grad()
        loss_of(model)(x, y).backward()
        loss_fn = lambda x=x, y=y: loss_of(model)(x, y)  # noqa: E731
        fogzo(quantized(model), loss_fn, beta=1 - NOISE, generator=generator)
        optimizer.step()


def train(
    model: nn.Module, data: list[tuple[Tensor, Tensor]], **options: Any
) -> tuple[nn.Module, FogzoStep]:
    step = FogzoStep(model, sgd(model), quantized(model), **{"noise": NOISE, **options})
    for x, y in data:
        step.loss(loss_of(model), x, y).backward()
        step.step()
    return model, step


def weights_of(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


def test_it_writes_what_the_function_writes() -> None:
    """With the streams that are functions of its seed and the step."""
    model = network()
    x, y = batches(1)[0]
    step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE, n=3, seed=7)
    step.loss(loss_of(model), x, y).backward()
    ste = [p.grad.clone() for p in model.parameters()]
    told = step.estimate()
    found = [p.grad.clone() for p in model.parameters()]
    for p, g in zip(model.parameters(), ste, strict=True):
        p.grad.copy_(g)
    directions, signs = (
        torch.Generator().manual_seed(derive_seed(7, 0, name)) for name in ("directions", "signs")
    )
    expected = fogzo(
        quantized(model), lambda: loss_of(model)(x, y), beta=1 - NOISE, n=3,
        generator=directions, signs=signs,
    )  # fmt: skip
    assert told.coefficient == expected.coefficient and told.guide_norm == expected.guide_norm
    assert same(found, [p.grad for p in model.parameters()])
    assert not same(found, ste)


def test_batchnorm_takes_its_statistics_once_a_step() -> None:
    data = batches(3)
    plain = network(nn.BatchNorm1d(8))
    plain(data[0][0])
    first = deepcopy(plain[1].state_dict())
    counts = {}
    for name, run in {"naive": naive, "object": train}.items():
        model = network(nn.BatchNorm1d(8))
        run(model, data[:1])
        same_mean = torch.equal(model[1].running_mean, first["running_mean"])
        run(model, data[1:])
        counts[name] = same_mean, model[1].num_batches_tracked.item()
    assert counts == {"naive": (False, 9), "object": (True, 3)}


class Counter(nn.Module):
    """Counts its passes in a buffer: written in place, or another tensor each time."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.calls = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.in_place:
            self.calls += 1
        else:
            self.calls = self.calls + 1
        return x


@pytest.mark.parametrize("in_place", [True, False], ids=["in_place", "another_tensor"])
def test_other_buffers_are_as_after_the_first_pass_alone(in_place: bool) -> None:
    found = []
    for run in (naive, train):
        model = network(Counter(in_place))
        run(model, batches(2))
        found.append(model[1].calls.item())
    assert found == [6, 2]


def test_buffers_that_were_cast_since_are_still_as_after_the_first_pass_alone() -> None:
    model = network(Counter(in_place=True))
    weights = [QuantizedWeight(w.parameter, torch.ones(()), LAW) for w in quantized(model)]
    step = FogzoStep(model, sgd(model), weights)
    x, y = batches(1)[0]
    step.loss(loss_of(model), x, y).backward()
    step.step()
    model.double()
    step.loss(loss_of(model), x.double(), y).backward()
    step.step()
    assert model[1].calls == 2


def test_all_passes_of_a_step_see_the_same_dropout_masks() -> None:
    naive(model := network(Masks()), batches(1))
    assert not same(model[1].seen, [model[1].seen[0]] * 3)
    model, step = train(network(Masks()), batches(2))
    first, second = model[1].seen[:5], model[1].seen[5:]  # two of the check, two of the probes
    assert same(first, [first[0]] * 5) and same(second, [second[0]] * 3)
    assert not torch.equal(first[0], second[0])
    assert step.null_level == 0


def test_random_numbers_go_on_as_if_there_had_been_no_probes() -> None:
    drawn = []
    for run in (train, naive):
        torch.manual_seed(3)
        run(network(nn.Dropout(0.5)), batches(2))
        drawn.append(torch.rand(4))
    torch.manual_seed(3)
    model = network(nn.Dropout(0.5))
    for x, y in batches(2):
        loss_of(model)(x, y)
    expected = torch.rand(4)
    assert torch.equal(drawn[0], expected) and not torch.equal(drawn[1], expected)


def test_what_is_drawn_between_loss_and_step_is_not_drawn_again() -> None:
    model = network(nn.Dropout(0.5))
    step = FogzoStep(model, sgd(model), quantized(model))
    step.loss(loss_of(model), *batches(1)[0]).backward()
    torch.rand(5)
    expected = torch.get_rng_state()
    step.step()
    assert torch.equal(torch.get_rng_state(), expected)


def test_each_step_has_directions_of_its_own() -> None:
    model = network()
    step = FogzoStep(model, sgd(model, lr=0.0), quantized(model), noise=NOISE)
    found = []
    for x, y in batches(1) * 3:
        step.loss(loss_of(model), x, y).backward()
        found.append(step.step().coefficient.item())
    assert len(set(map(abs, found))) == 3


SCALE = 2.0**16


@pytest.mark.parametrize("order", ["step", "before unscale_", "after unscale_"])
def test_a_grad_scaler_changes_nothing(order: str) -> None:
    """Bit for bit: the scale is a power of 2, so that gradients are scaled without rounding."""
    expected, _ = train(network(), batches(3))
    model = network()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu", init_scale=SCALE)
    step = FogzoStep(model, optimizer, quantized(model), noise=NOISE, scaler=scaler)
    plain = FogzoStep(other := network(), sgd(other), quantized(other), noise=NOISE)
    for x, y in batches(3):
        scaler.scale(step.loss(loss_of(model), x, y)).backward()
        plain.loss(loss_of(other), x, y).backward()
        told = plain.step()
        if order == "step":
            found = step.step()
        else:
            if order == "after unscale_":
                scaler.unscale_(optimizer)
            found = step.estimate()
            if order == "before unscale_":
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        assert (found.coefficient, found.guide_norm) == (told.coefficient, told.guide_norm)
    assert same(weights_of(model), weights_of(expected))


def test_a_step_that_the_scaler_skips_leaves_the_weights_and_goes_on() -> None:
    model = network()
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
    step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE, scaler=scaler)
    before = weights_of(model)
    x, y = batches(1)[0]
    scaler.scale(step.loss(loss_of(model), x, y) * 1e38).backward()  # overflows float32
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step.step()
    assert same(weights_of(model), before) and scaler.get_scale() == SCALE / 2
    scaler.scale(step.loss(loss_of(model), x, y)).backward()
    step.step()
    assert not same(weights_of(model), before)


def test_a_scaler_that_is_not_given_is_noticed() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    x, y = batches(1)[0]
    torch.amp.GradScaler("cpu").scale(step.loss(loss_of(model), x, y)).backward()
    with pytest.raises(ValueError, match=r"multiplied by 65536 before backward; give the GradSc"):
        step.step()


def test_many_micro_batches_are_not_taken_for_a_scaler() -> None:
    """A Trainer of transformers divides by their tokens in the loss, so that each counts once."""
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    for x, y in batches(128, size=2):
        step.loss(lambda x, y: loss_of(model)(x, y) / 128, x, y).backward()
    step.step()


def test_a_scaler_that_is_given_and_not_used_is_noticed() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model), scaler=torch.amp.GradScaler("cpu"))
    x, y = batches(1)[0]
    step.loss(loss_of(model), x, y).backward()
    with pytest.warns(RuntimeWarning, match=r"multiplied by 1 before backward and not by its scal"):
        step.step()


def micro_batches(parts: int) -> list[tuple[Tensor, Tensor]]:
    x, y = batches(1)[0]
    return list(zip(x.double().chunk(parts), y.chunk(parts), strict=True))


@pytest.mark.parametrize("divided_in", ["the loop", "loss_fn"])
def test_accumulated_micro_batches_are_the_whole_batch(divided_in: str) -> None:
    def gradients(parts: int) -> list[Tensor]:
        model = network().double()
        step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
        for a, b in micro_batches(parts):
            if divided_in == "the loop":
                (step.loss(loss_of(model), a, b) / parts).backward()
            else:
                step.loss(lambda a, b: loss_of(model)(a, b) / parts, a, b).backward()
        step.estimate()
        return [p.grad.clone() for p in model.parameters()]

    for one, four in zip(gradients(1), gradients(4), strict=True):
        assert torch.allclose(one, four, rtol=1e-9, atol=1e-12)


def test_a_closure_that_looks_up_its_batch_is_noticed() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    for x, y in batches(2):
        (step.loss(lambda: loss_of(model)(x, y)) / 2).backward()  # noqa: B023
    with pytest.warns(RuntimeWarning, match=r"micro-batch 1 of 2 .* Give the batch as arguments"):
        step.step()


@pytest.mark.parametrize(
    "copied",
    [copy, deepcopy, lambda x: pickle.loads(pickle.dumps(x))],
    ids=["shallow", "deep", "pickled"],
)
def test_a_copy_says_that_it_has_no_hooks(copied: Callable[[Any], Any]) -> None:
    """It may be made: whoever copies a model may copy a step that is its attribute."""
    model, step = train(network(), batches(1))
    other = copied(step)
    with pytest.raises(RuntimeError, match="this FogzoStep is a copy"):
        other.loss(loss_of(other.model), *batches(1)[0])
    with pytest.raises(RuntimeError, match="this FogzoStep is a copy"):
        other.estimate()
    step.loss(loss_of(model), *batches(1)[0]).backward()
    step.step()


def test_the_estimate_is_what_is_clipped() -> None:
    """Clipping before the estimate lets it pass at any size."""
    bound, x, y = 1e-3, *batches(1)[0]
    model = network()
    optimizer = sgd(model)
    loss_of(model)(x, y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), bound)
    fogzo(
        quantized(model), lambda: loss_of(model)(x, y), beta=1 - NOISE,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert nn.utils.get_total_norm([p.grad for p in model.parameters()]) > 10 * bound

    model = network()
    before = weights_of(model)
    optimizer = sgd(model, lr=1.0)
    step = FogzoStep(model, optimizer, quantized(model), noise=NOISE, clip_norm=bound)
    step.loss(loss_of(model), x, y).backward()
    step.step()
    moved = [a - b for a, b in zip(weights_of(model), before, strict=True)]
    assert nn.utils.get_total_norm(moved) == pytest.approx(bound, rel=1e-2)


@pytest.mark.parametrize("size", [1.0, 1e25], ids=["ordinary", "squares_overflow"])
def test_clipping_bounds_the_update_at_any_size_of_the_gradients(size: float) -> None:
    model = network()
    before = weights_of(model)
    step = FogzoStep(model, sgd(model, lr=1.0), quantized(model), clip_norm=1e-3)
    x, y = batches(1)[0]
    step.loss(lambda x, y: size * loss_of(model)(x, y), x, y).backward()
    step.step()
    moved = [a - b for a, b in zip(weights_of(model), before, strict=True)]
    assert nn.utils.get_total_norm(moved) == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [1.0, 1e-3, math.inf, math.nan])
def test_clipping_is_that_of_torch_to_the_bit_at_ordinary_norms(
    value: float, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(0)
    gradients = [torch.randn(size, generator=g).to(dtype) for size in (7, 500)]
    gradients[0][0] *= value
    ours, theirs = ([nn.Parameter(torch.zeros_like(g)) for g in gradients] for _ in range(2))
    for parameters in (ours, theirs):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
    nn.utils.clip_grad_norm_(theirs, 0.7)
    _clip(ours, 0.7)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0, atol=0, equal_nan=True)


def test_sparse_gradients_are_clipped_like_dense_ones() -> None:
    """With a row that was looked up twice, whose gradients are to be added before the norm."""
    moved = []
    for sparse in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(5, 6, sparse=sparse), Rounded(6, 3))
        before = [p.detach().clone() for p in model.parameters()]
        step = FogzoStep(model, sgd(model, lr=1.0), quantized(model), clip_norm=1e-1)
        x, y = torch.tensor([1, 1, 4]), torch.tensor([0, 1, 2])
        step.loss(loss_of(model), x, y).backward()
        step.step()
        moved.append([p.detach() - b for p, b in zip(model.parameters(), before, strict=True)])
    assert nn.utils.get_total_norm(moved[1]) == pytest.approx(1e-1, rel=1e-2)
    torch.testing.assert_close(moved[1], moved[0], rtol=1e-4, atol=1e-6)


def test_complex_gradients_are_clipped_with_the_others() -> None:
    """As of a layer that works on a Fourier transform."""
    parameters = [nn.Parameter(torch.zeros(9, dtype=d)) for d in (torch.complex64, torch.float32)]
    parameters[0].grad = torch.full((9,), 3 - 4j)
    parameters[1].grad = torch.full((9,), 12.0)
    _clip(parameters, 1.0)  # their norm is 39
    torch.testing.assert_close(parameters[0].grad, torch.full((9,), (3 - 4j) / 39))
    torch.testing.assert_close(parameters[1].grad, torch.full((9,), 12 / 39))


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(3e4, torch.float16), (1e38, torch.float32), (3e38, torch.bfloat16)],
    ids=["float16", "float32", "bfloat16"],
)
def test_clipping_bounds_a_norm_that_the_type_cannot_hold(value: float, dtype: torch.dtype) -> None:
    parameters = [nn.Parameter(torch.zeros(size, dtype=dtype)) for size in (30, 70)]
    for parameter, sign in zip(parameters, (1, -1), strict=True):
        parameter.grad = torch.full_like(parameter, sign * value)
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert nn.utils.get_total_norm(gradients).isinf()
    _clip(parameters, 1.0)
    found = torch.cat(gradients).double()
    torch.testing.assert_close(found.norm().item(), 1.0, rtol=1e-2, atol=0)
    assert (found[:30] == -found[-1]).all() and found[0] > 0


@pytest.mark.parametrize("half_first", [True, False], ids=["half_first", "half_last"])
def test_clipping_bounds_gradients_whose_norm_float16_cannot_hold(half_first: bool) -> None:
    parameters = [nn.Parameter(torch.zeros(100).half()), nn.Parameter(torch.zeros(100))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 3e4)
    _clip(parameters if half_first else parameters[::-1], 1.0)
    found = torch.cat([p.grad for p in parameters])
    torch.testing.assert_close(found, torch.full((200,), 200**-0.5), rtol=2e-2, atol=0)


def test_epsilon_follows_a_learned_scale() -> None:
    model = network(learned=True)
    _, step = train(model, batches(3))
    assert model[0].scale.grad is None  # zero_grad came; it was trained by the STE's gradient:
    assert not torch.equal(model[0].scale, network(learned=True)[0].scale)
    for w, layer in zip(step.weights, (model[0], model[2]), strict=True):
        assert w.epsilon() == pytest.approx(layer.scale.item() * LAW.epsilon_bar)


def test_a_scale_that_has_become_zero_leaves_the_gradient_of_its_weights() -> None:
    model = network()
    scale = torch.ones(8, 1)
    weights = [QuantizedWeight(model[0].weight, scale, LAW)]
    step = FogzoStep(model, sgd(model), weights, noise=NOISE, n=2)
    scale[2] = 0
    step.loss(loss_of(model), *batches(1)[0]).backward()
    ste = model[0].weight.grad.clone()
    step.estimate()
    estimated = (model[0].weight.grad != ste).all(1)
    assert estimated.tolist() == [row != 2 for row in range(8)]
    assert model[0].weight.grad.isfinite().all()


def test_the_same_autocast_holds_for_the_probes() -> None:
    """Around `loss` in the user's code; the estimate comes outside of it."""
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
    types = []
    model.register_forward_hook(lambda module, inputs, output: types.append(output.dtype))
    for x, y in batches(2):
        with torch.autocast("cpu", torch.bfloat16):
            loss = step.loss(loss_of(model), x, y)
        loss.backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert step.step().coefficient != 0
    assert set(types) == {torch.bfloat16} and len(types) == 5 + 3


def test_a_step_inside_autocast_keeps_no_cast_of_a_weight() -> None:
    """Autocast remembers that of a parameter which a layer takes as it is, without a quantizer."""
    model = nn.Linear(6, 3)
    weights = [QuantizedWeight(model.weight, torch.tensor(0.1), LAW)]
    step = FogzoStep(model, sgd(model), weights, noise=NOISE)
    with torch.autocast("cpu", torch.bfloat16):
        step.loss(loss_of(model), *batches(1)[0]).backward()
        assert step.estimate().coefficient != 0


OWN, MORE = torch.Generator(), iter(batches(9))
UNSTEADY = {
    "Python's random": (lambda x: x * random.random(), "it draws from Python's random"),
    "numpy": (lambda x: x * np.random.rand(), r"it draws from numpy\.random"),
    "own generator": (lambda x: x * torch.rand(1, generator=OWN), "from a generator of its own"),
    "next batch": (lambda x: next(MORE)[0], "does it fetch a new batch"),
}


@pytest.mark.parametrize("name", UNSTEADY)
def test_a_loss_that_comes_out_otherwise_is_noticed_at_the_first_step(name: str) -> None:
    change, said = UNSTEADY[name]
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    x, y = batches(1)[0]
    step.loss(lambda x, y: loss_of(model)(change(x), y), x, y).backward()
    with pytest.warns(RuntimeWarning, match=said):
        step.step()
    assert step.null_level != 0
    with warnings.catch_warnings():  # once is enough
        warnings.simplefilter("error")
        step.loss(loss_of(model), x, y).backward()
        step.step()


class Observed(nn.Module):
    """Rounds by a range that it moves first."""

    def __init__(self) -> None:
        super().__init__()
        self.range = nn.Buffer(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        scale = self.range.lerp_(x.detach().abs().max(), 0.1) / 8
        return x + ((x / scale).round() * scale - x).detach()


def test_a_range_that_each_pass_moves_is_told_of() -> None:
    model = network(Observed())
    step = FogzoStep(model, sgd(model), quantized(model))
    step.loss(loss_of(model), *batches(1)[0]).backward()
    with pytest.warns(RuntimeWarning, match="or does each pass move a range that it rounds by"):
        step.step()


def test_a_loss_that_does_not_see_the_probes_is_told_of() -> None:
    layer = Rounded(6, 3)
    step = FogzoStep(layer, sgd(layer), quantized(layer))
    rounded_before = layer.weight * 1.0
    step.loss(lambda x, y: F.cross_entropy(x @ rounded_before.T, y), *batches(1)[0]).backward()
    with pytest.warns(RuntimeWarning, match=r"same on both sides of the weights, .*cached\(\)"):
        step.step()


def test_a_loss_of_a_narrow_type_is_told_of() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    with torch.autocast("cpu", torch.bfloat16):
        step.loss(lambda x, y: model(x).square().mean(), *batches(1)[0]).backward()
    with pytest.warns(
        RuntimeWarning, match="the loss is a torch.bfloat16, in which the difference"
    ):
        step.step()


class Counting(nn.Module):
    """Counts its passes in a number of Python, as brevitas does while it calibrates."""

    passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return x


def test_what_a_module_counts_in_python_is_noticed_at_the_first_step() -> None:
    model = network(Counting())
    step = FogzoStep(model, sgd(model), quantized(model))
    for index, (x, y) in enumerate(batches(2)):
        step.loss(loss_of(model), x, y).backward()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            step.step()
        assert len(told) == (index == 0)
        assert index or "1.passes went from 1 to 3 while the loss was taken" in str(told[0].message)


@pytest.mark.parametrize("factor", [math.nan, math.inf], ids=str)
def test_a_first_loss_that_is_not_finite_is_said_to_be_so(factor: float) -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    step.loss(lambda x, y: loss_of(model)(x, y) * factor, *batches(1)[0]).backward()
    with pytest.warns(RuntimeWarning, match="which is not finite, and leaves the STE's") as told:
        step.step()
    assert len(told) == 1 and "fetch a new batch" not in str(told[0].message)


def first_weight(change: Callable[[nn.Module, QuantizedWeight], Any]) -> None:
    model = network()
    weights = quantized(model)
    changed = change(model, weights[0])
    FogzoStep(model, sgd(model), changed if isinstance(changed, list) else [changed, weights[1]])


def scaled(make: Callable[[Tensor], Any]) -> Callable[[nn.Module, QuantizedWeight], Any]:
    return lambda model, w: QuantizedWeight(w.parameter, make(w.scale), LAW)


def cast(model: nn.Module, w: QuantizedWeight) -> QuantizedWeight:
    model.bfloat16()
    return QuantizedWeight(w.parameter, w.scale.bfloat16(), LAW)


def complex_(model: Any, w: QuantizedWeight) -> QuantizedWeight:
    model[0].weight = nn.Parameter(torch.ones(8, 6, dtype=torch.complex64))
    return QuantizedWeight(model[0].weight, w.scale, LAW)


def frozen(model: nn.Module, w: QuantizedWeight) -> QuantizedWeight:
    w.parameter.requires_grad_(False)
    return w


def shared(model: Any, w: QuantizedWeight) -> list[QuantizedWeight]:
    model[2].weight = nn.Parameter(w.parameter.data[:3])  # a part of the first layer's memory
    return [w, QuantizedWeight(model[2].weight, w.scale, LAW)]


def expanded(model: Any, w: QuantizedWeight) -> QuantizedWeight:
    model[0].weight = nn.Parameter(torch.ones(8, 1).expand(8, 6))
    return QuantizedWeight(model[0].weight, w.scale, LAW)


def overlapping(model: Any, w: QuantizedWeight) -> QuantizedWeight:
    model[0].weight = nn.Parameter(torch.ones(20).as_strided((8, 6), (1, 2)))
    return QuantizedWeight(model[0].weight, w.scale, LAW)


def on_meta(model: Any, w: QuantizedWeight) -> list[QuantizedWeight]:
    return quantized(model.to("meta"))


WRONG = {
    "none": (lambda model, w: [], "the list of quantized weights is empty"),
    "parameter": (lambda model, w: w.parameter, r"weights\[0\] is a Parameter; give a Quant"),
    "named law": (
        lambda model, w: QuantizedWeight(w.parameter, w.scale, "round"),  # type: ignore[arg-type]
        "the law of 0.weight is a str; give smoothing_law",
    ),
    "float scale": (scaled(float), "the scale of 0.weight is a float, not a tensor"),
    "zero scale": (scaled(torch.zeros_like), "the scale of 0.weight is zero or not finite"),
    "nan scale": (scaled(lambda s: s * torch.nan), "the scale of 0.weight is zero or not finite"),
    "scale a row": (
        scaled(lambda s: s.expand(8).clone()),
        r"scale of 0.weight has shape \(8,\) and the weight \(8, 6\), .* one scale a row as \(8, 1",
    ),
    "wrong size": (
        scaled(lambda s: s.expand(7, 1).clone()),
        r"scale of 0.weight has shape \(7, 1\), which does not go with the weight's \(8, 6\)",
    ),
    "computed scale": (
        scaled(lambda s: nn.Parameter(s.clone()).exp()),
        "the scale of 0.weight was computed from something that is trained",
    ),
    "bfloat16": (cast, "0.weight is kept in torch.bfloat16, in which a perturbation is lost"),
    "complex": (complex_, "0.weight is complex, and is perturbed along real numbers"),
    "frozen": (frozen, "0.weight does not require a gradient"),
    "expanded": (expanded, r"several elements of 0.weight share one place .*\.contiguous\(\)"),
    "overlapping": (overlapping, r"several elements of 0.weight share one place in memory"),
    "shared": (shared, r"\d.weight and \d.weight share memory"),
    "meta": (on_meta, "0.weight is on the meta device, without values"),
    "another model's": (
        lambda model, w: quantized(network()),
        r"weights\[0\], of shape \(8, 6\), is not a parameter of the model",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_could_not_be_perturbed_is_refused_in_one_line(name: str) -> None:
    change, said = WRONG[name]
    with pytest.raises(ValueError, match=said) as caught:
        first_weight(change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "weight",
    [torch.ones(4, 6).t(), torch.ones(9, 8)[1:7, 2:6:2], torch.ones(1, 1).expand(1, 1)],
    ids=["transposed", "part", "single"],
)
def test_a_weight_of_any_layout_that_does_not_overlap_is_taken(weight: Tensor) -> None:
    layer = nn.Linear(1, 1)
    layer.weight = nn.Parameter(weight)
    weights = (QuantizedWeight(p, torch.ones(()), LAW) for p in [layer.weight])  # any iterable
    assert FogzoStep(layer, sgd(layer), weights).d == weight.numel()


def test_a_scale_of_a_square_weight_along_the_wrong_axis_is_refused() -> None:
    """It would broadcast: along the columns, without a word."""
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match=r"one scale a row as \(4, 1\)"):
        FogzoStep(layer, sgd(layer), [QuantizedWeight(layer.weight, torch.ones(4), LAW)])


@pytest.mark.parametrize("name", ["model", "optimizer"])
def test_what_is_no_model_or_optimizer_is_refused(name: str) -> None:
    model = network()
    given: dict[str, Any] = {"model": model, "optimizer": sgd(model), name: object()}
    with pytest.raises(TypeError, match=f"the {name} is a object; give a torch "):
        FogzoStep(**given, weights=quantized(model))


def test_a_model_of_torchscript_is_refused() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model = nn.Sequential(nn.Linear(6, 3), torch.jit.script(nn.Linear(3, 3)))
    weights = [QuantizedWeight(model[0].weight, torch.ones(()), LAW)]
    with pytest.raises(TypeError, match=r"1 was made by torch.jit, .* use torch.compile"):
        FogzoStep(model, sgd(model), weights)


def test_a_weight_that_the_optimizer_lacks_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"2\.weight is not among the optimizer's"):
        FogzoStep(model, sgd(model[0]), quantized(model))


@pytest.mark.parametrize(
    ("loss_fn", "error", "said"),
    [
        (lambda x, y: None, TypeError, "returned a NoneType; return the loss"),
        (lambda x, y: x, TypeError, r"returned a Tensor of shape \(16, 6\); return the loss"),
        (lambda x, y: x.mean(), ValueError, "the loss has no gradient"),
    ],
    ids=["nothing", "many numbers", "no graph"],
)
def test_what_is_not_a_loss_is_refused(loss_fn: Any, error: Any, said: str) -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    with pytest.raises(error, match=said):
        step.loss(loss_fn, *batches(1)[0])


def freeze(model: Any) -> None:
    model[0].weight.requires_grad_(False)


def replace_weights(model: nn.Module) -> None:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def replace_scale(model: Any) -> None:
    model[0].scale = model[0].scale.clone()


CHANGED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "frozen": (freeze, "0.weight does not require a gradient, .* leave it out of the weights"),
    "bfloat16": (nn.Module.bfloat16, "0.weight is kept in torch.bfloat16"),
    "double": (nn.Module.double, "another tensor in place of the scale of 0.weight .* anew"),
    "assigned": (replace_weights, r"another tensor in place of 0.weight .* load this one's state"),
    "scale": (replace_scale, r"in place of the scale of 0.weight .* scale=lambda weight"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_weights_that_have_changed_between_two_steps_are_refused(name: str) -> None:
    """Gradients of zero are left there, with which none of these would be an error."""
    change, said = CHANGED[name]
    model = network()
    optimizer = sgd(model)
    step = FogzoStep(model, optimizer, quantized(model))
    x, y = batches(1)[0]
    step.loss(loss_of(model), x, y).backward()
    step.estimate()
    optimizer.zero_grad(set_to_none=False)
    change(model)
    before = weights_of(model)
    x = x.to(model[2].weight.dtype)
    step.loss(loss_of(model), x, y).backward()
    with pytest.raises(ValueError, match=said) as caught:
        step.step()
    assert same(weights_of(model), before) and "\n" not in str(caught.value)


def test_a_scale_whose_axes_have_become_doubtful_is_refused() -> None:
    """As that of torch.ao's fake quantization: one number, until its first pass has looked."""
    layer = nn.Linear(6, 6)
    scale = torch.tensor([0.1])
    for given in (scale, lambda weight: scale):
        step = FogzoStep(layer, sgd(layer), [QuantizedWeight(layer.weight, given, LAW)])
        scale.resize_(6).fill_(0.1)
        step.loss(loss_of(layer), *batches(1)[0]).backward()
        with pytest.raises(ValueError, match=r"has shape \(6,\) and the weight \(6, 6\), so that"):
            step.estimate()
        scale.resize_(1)


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_is_another_one_at_the_step_is_refused(training: bool) -> None:
    """A loss may be taken in either; a validation in between has to set it back."""
    model = network(nn.Dropout(0.5)).train(training)
    step = FogzoStep(model, sgd(model), quantized(model))
    for index, (x, y) in enumerate(batches(3)):
        step.loss(loss_of(model), x, y).backward()
        model.train(not training)
        if index < 2:
            model.train(training)
            step.step()
    said = "taken in train mode .* call model.train" if training else "in eval .* call model.eval"
    with pytest.raises(ValueError, match=said):
        step.step()


def test_a_layer_that_finds_its_shape_in_the_first_pass_is_no_fault() -> None:
    model = network(nn.LazyLinear(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = FogzoStep(model, optimizer, quantized(model))
    for x, y in batches(2):
        step.loss(loss_of(model), x, y).backward()
        step.step()


def test_two_objects_of_one_model_make_their_estimates_before_either_optimizer_steps() -> None:
    """As docs/library.md has it; the first puts the weights back to the bit for the second."""
    model = network(nn.LayerNorm(8))
    first, second = quantized(model)
    optimizers = [torch.optim.SGD([w.parameter], lr=0.1) for w in (first, second)]
    steps = [FogzoStep(model, o, [w]) for o, w in zip(optimizers, (first, second), strict=True)]
    for x, y in batches(3):
        losses = [step.loss(loss_of(model), x, y) for step in steps]
        losses[0].backward(inputs=[first.parameter])
        losses[1].backward(inputs=[second.parameter])
        for step in steps:
            step.estimate()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert [step.steps for step in steps] == [3, 3]


def test_gradients_that_another_hook_takes_are_told_of() -> None:
    """As where each weight has an optimizer that steps during the backward pass."""
    for first in (True, False):
        model = network()
        step = None if first else FogzoStep(model, sgd(model), quantized(model))
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        step = step or FogzoStep(model, sgd(model), quantized(model))
        step.loss(loss_of(model), *batches(1)[0]).backward()
        with pytest.raises(ValueError, match="something has set their gradients to None before"):
            step.step()


@pytest.mark.parametrize("zeroed", [True, False])
def test_an_estimate_for_each_micro_batch_is_refused(zeroed: bool) -> None:
    """The second would take the first for a part of the STE's gradient; so without zero_grad."""
    model = network()
    optimizer = sgd(model)
    step = FogzoStep(model, optimizer, quantized(model))
    one, other = batches(2)
    step.loss(loss_of(model), *one).backward()
    step.estimate()
    if zeroed:
        optimizer.zero_grad(set_to_none=False)
        step.loss(loss_of(model), *other).backward()
        step.estimate()
        return
    with pytest.raises(ValueError, match="hold the last step's estimate still"):
        step.loss(loss_of(model), *other).backward()


class Held:
    """An optimizer in another object, as accelerate and Lightning hand it out."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


def test_an_optimizer_that_is_held_is_stepped_by_what_holds_it() -> None:
    """Accelerate's does nothing before the last micro-batch, and Lightning's counts the steps."""
    model = network()
    x, y = batches(1)[0]
    step = FogzoStep(model, Held(sgd(model)), quantized(model), noise=NOISE)  # type: ignore[arg-type]
    step.loss(loss_of(model), x, y).backward()
    with pytest.raises(RuntimeError, match=r"the Held that was given .* call FogzoStep.estimate"):
        step.step()
    step.estimate()
    step.optimizer.step()
    assert same(weights_of(model), weights_of(train(network(), [(x, y)])[0]))


def test_the_closure_of_an_optimizer_may_take_the_estimate() -> None:
    """So Lightning does, and takes all micro-batches but the last before the optimizer's step."""
    data = batches(4)

    def accumulated(model: nn.Module, in_closure: bool) -> list[Tensor]:
        optimizer = sgd(model)
        step = FogzoStep(model, optimizer, quantized(model), noise=NOISE)

        def last(x: Tensor, y: Tensor) -> Tensor:
            loss = step.loss(loss_of(model), x, y)
            loss.backward()
            step.estimate()
            return loss

        for first, second in (data[:2], data[2:]):
            step.loss(loss_of(model), *first).backward()
            if in_closure:
                optimizer.step(lambda second=second: last(*second))
            else:
                last(*second)
                optimizer.step()
            optimizer.zero_grad()
        return weights_of(model)

    assert same(accumulated(network(), True), accumulated(network(), False))


def test_a_closure_that_takes_no_estimate_is_noticed_at_the_first_step() -> None:
    model = network()
    optimizer = sgd(model)
    step = FogzoStep(model, optimizer, quantized(model))

    def closure() -> Tensor:
        loss = step.loss(loss_of(model), *batches(1)[0])
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) came before the estimate"):
        optimizer.step(closure)


def test_an_optimizer_that_takes_the_loss_itself_takes_the_estimate_too() -> None:
    model = network()
    x, y = batches(1)[0]
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    step = FogzoStep(model, optimizer, quantized(model), noise=NOISE)
    step.loss(loss_of(model), x, y).backward()
    with pytest.raises(TypeError, match="LBFGS takes the loss itself; take it by loss"):
        step.step()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = step.loss(loss_of(model), x, y)
        loss.backward()
        step.estimate()
        return loss

    first = optimizer.step(closure)
    assert step.steps == 5 and loss_of(model)(x, y) < first


def test_a_loss_that_depends_on_no_quantized_weight_is_refused() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    step.loss(lambda x, y: F.cross_entropy(x[:, :3] + model[2].bias, y), *batches(1)[0]).backward()
    with pytest.raises(ValueError, match="no quantized weight has a gradient after backward"):
        step.step()


def test_a_layer_that_takes_no_part_in_a_step_keeps_its_weights_and_is_named_once() -> None:
    """The others have the estimate that they would have without it."""

    def without_first(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model[2](x.repeat(1, 2)[:, :8]), y)

    found, told = [], []
    for leave_out in (False, True):
        model = network()
        weights = quantized(model)[leave_out:]
        step = FogzoStep(model, sgd(model), weights, noise=NOISE)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for x, y in batches(2):
                step.loss(without_first, x, y).backward()
                step.step()
        found.append(weights_of(model))
        told.append([str(w.message) for w in caught])
    assert same(*found) and torch.equal(found[0][0], network()[0].weight)
    assert len(told[0]) == 1 and "0.weight has no gradient after backward" in told[0][0]
    assert not told[1]


@pytest.mark.parametrize("when", ["before the loss", "before backward"])
@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zero"])
def test_a_batch_that_is_skipped_after_backward_is_not_in_the_next_estimate(
    to_none: bool, when: str
) -> None:
    model = network()
    optimizer = sgd(model)
    step = FogzoStep(model, optimizer, quantized(model))
    skipped, taken = batches(2)
    step.loss(loss_of(model), *skipped).backward()
    if when == "before the loss":
        optimizer.zero_grad(to_none)
    loss = step.loss(loss_of(model), *taken)
    if when == "before backward":
        optimizer.zero_grad(to_none)
    loss.backward()
    alone = FogzoStep(other := network(), sgd(other), quantized(other))
    alone.loss(loss_of(other), *taken).backward()
    assert step.step().coefficient == alone.step().coefficient
    assert same(weights_of(model), weights_of(other))


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_micro_batch_that_was_not_recorded_is_refused_at_any_step(first: bool) -> None:
    """The gradients are changed in place in between, as by clipping or DistributedDataParallel."""
    model, step = train(network(), batches(1))
    plain, recorded = batches(2)
    before = weights_of(model)
    if first:
        loss_of(model)(*plain).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-2)
    step.loss(loss_of(model), *recorded).backward()
    if not first:
        loss_of(model)(*plain).backward()
    with pytest.raises(ValueError, match=r"of a loss that FogzoStep\.loss did not take") as said:
        step.step()
    assert same(weights_of(model), before) and "\n" not in str(said.value)


@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zero"])
@pytest.mark.parametrize("uses", [1, 2], ids=["used once", "used twice"])
def test_gradients_that_the_estimate_does_not_hold_are_no_fault(uses: int, to_none: bool) -> None:
    """Those of a warm-up without FOGZO, those that are forgotten, and those added afterwards."""
    model = network()
    optimizer = sgd(model)
    step = FogzoStep(model, optimizer, quantized(model))
    for _ in range(2):
        for x, y in batches(2):
            loss_of(model)(x, y).backward()
            optimizer.step()
        loss = step.loss(lambda x, y: sum(loss_of(model)(x, y) for _ in range(uses)), x, y)
        optimizer.zero_grad(to_none)
        loss.backward()
        step.estimate()
        loss_of(model)(x, y).backward()
        optimizer.step()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # in the probes
def test_a_weight_in_two_reentrant_checkpoints_is_no_fault() -> None:
    """Autograd then adds to its gradient twice in one backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(Rounded(6, 6))
    step = FogzoStep(model, sgd(model), quantized(model))

    def loss_fn(x: Tensor, y: Tensor) -> Tensor:
        x = x.requires_grad_()
        for _ in range(2):
            x = checkpoint(model, x, use_reentrant=True)
        return F.cross_entropy(x, y)

    for x, y in batches(2):
        step.loss(loss_fn, x, y).backward()
        step.step()


@pytest.mark.slow
def test_a_compiled_backward_pass_is_no_fault() -> None:
    found = []
    for compiled in (False, True):
        model = network()
        step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
        backward = torch.compile(Tensor.backward, backend="eager") if compiled else Tensor.backward
        with torch._dynamo.config.patch(compiled_autograd=compiled):
            for x, y in batches(2):
                backward(step.loss(loss_of(model), x, y))
                step.step()
        found.append(weights_of(model))
    assert same(*found)


def test_losses_that_go_backward_together_are_all_in_the_estimate() -> None:
    data, found = batches(2), []
    for together in (True, False):
        model = network()
        step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
        if together:
            sum(step.loss(loss_of(model), *batch) for batch in data).backward()
        else:
            for batch in data:
                step.loss(loss_of(model), *batch).backward()
        found.append(step.step().coefficient)
    torch.testing.assert_close(*found)


def estimate_of(
    backward: Callable[[FogzoStep, nn.Sequential, Tensor], Any],
) -> list[Tensor]:
    """Return the estimate after a backward pass of the first batch's loss that is done so."""
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
    backward(step, model, step.loss(loss_of(model), *batches(1)[0]))
    step.estimate()
    return [w.parameter.grad for w in step.weights]


def halved_in_place(step: FogzoStep, model: nn.Sequential, loss: Tensor) -> None:
    loss /= 2
    loss.backward()


def looked_at(step: FogzoStep, model: nn.Sequential, loss: Tensor) -> None:
    for p in (model[0].weight, model[2].bias):
        torch.autograd.grad(loss, p, retain_graph=True)
    loss.backward(retain_graph=True)
    torch.autograd.grad(loss, model[0].weight)


def by_hand(step: FogzoStep, model: nn.Sequential, loss: Tensor) -> None:
    for p, g in zip(model.parameters(), torch.autograd.grad(loss, model.parameters()), strict=True):
        p.grad = g


def begun_anew(step: FogzoStep, model: nn.Sequential, loss: Tensor) -> None:
    loss.backward(retain_graph=True)
    model.zero_grad()
    loss.backward()


def after_zeros_of_old(step: FogzoStep, model: nn.Sequential, loss: Tensor) -> None:
    loss_of(model)(*batches(1)[0]).backward()
    for p in model.parameters():
        p.grad.data.zero_()
    loss.backward()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("backward", "factor"),
    [
        (halved_in_place, 0.5),
        (looked_at, 1),
        (by_hand, 1),
        (begun_anew, 1),
        (after_zeros_of_old, 1),
    ],
)
def test_a_loss_counts_as_the_gradient_holds_it(backward: Any, factor: float) -> None:
    usual = estimate_of(lambda step, model, loss: loss.backward())
    for one, other in zip(estimate_of(backward), usual, strict=True):
        torch.testing.assert_close(one, other * factor)


def test_micro_batches_whose_gradients_are_added_up_elsewhere_all_count() -> None:
    data, found = batches(2), []
    for elsewhere in (True, False):
        model = network()
        step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
        parts = [step.loss(loss_of(model), *batch) for batch in data]
        if elsewhere:
            gradients = [torch.autograd.grad(loss, model.parameters()) for loss in parts]
            for p, both in zip(model.parameters(), zip(*gradients, strict=True), strict=True):
                p.grad = sum(both)
        else:
            for loss in parts:
                loss.backward()
        found.append(step.step().coefficient)
    torch.testing.assert_close(*found)


def test_an_unrecorded_loss_on_any_quantized_weight_is_refused() -> None:
    def penalty_on_last(step: FogzoStep, model: nn.Sequential, loss: Tensor) -> None:
        loss.backward()
        model[2].weight.square().sum().backward()

    with pytest.raises(ValueError, match=r"of a loss that FogzoStep\.loss did not take"):
        estimate_of(penalty_on_last)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        raise KeyboardInterrupt


@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zero"])
def test_a_batch_whose_backward_pass_has_failed_is_not_in_the_next_estimate(to_none: bool) -> None:
    """The last layer had its gradient by then, and the first had none yet."""
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
    failed, taken = batches(2)[::-1]
    hidden = lambda x: Failing.apply(model[:2](x))  # noqa: E731
    loss = step.loss(lambda x, y: F.cross_entropy(model[2](hidden(x)), y), *failed)
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    step.optimizer.zero_grad(to_none)
    step.loss(loss_of(model), *taken).backward()
    step.estimate()
    usual = estimate_of(lambda step, model, loss: loss.backward())
    assert same([w.parameter.grad for w in step.weights], usual)


def test_a_loss_function_that_takes_a_gradient_is_told_how() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))

    def loss_fn(x: Tensor, enabled: bool) -> Tensor:
        with torch.enable_grad() if enabled else nullcontext():
            x = x.clone().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
            return slope.square().sum()

    x, _ = batches(1)[0]
    step.loss(loss_fn, x, False).backward()
    with pytest.raises(RuntimeError, match="takes a gradient itself") as said:
        step.step()
    assert "\n" not in str(said.value)
    step.loss(loss_fn, x, True).backward()
    step.step()


def test_a_loss_that_is_kept_does_not_keep_its_batch() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    x, y = batches(1)[0]
    loss = step.loss(loss_of(model), x, y)
    loss.backward()
    step.step()
    left = weakref.ref(x)
    del x
    gc.collect()
    assert left() is None


@pytest.mark.parametrize("to_none", [True, False], ids=["none", "zero"])
def test_two_networks_against_each_other_are_no_fault(to_none: bool) -> None:
    """The first's loss adds to the gradients of the second, which forgets them before its own."""
    one, two = network(), network()
    steps = [
        FogzoStep(nn.ModuleList([one, two]), sgd(one), quantized(one), noise=0.9),
        FogzoStep(two, sgd(two), quantized(two), noise=0.9),
    ]
    losses = [
        lambda x: F.softplus(two(one(x).repeat(1, 2))).mean(),
        lambda x: F.softplus(-two(one(x).detach().repeat(1, 2))).mean(),
    ]
    for x, _ in batches(3):
        for step, loss_fn in zip(steps, losses, strict=True):
            step.optimizer.zero_grad(to_none)
            step.loss(loss_fn, x).backward()
            step.estimate()
            step.optimizer.step()


def test_a_sparse_gradient_is_refused_in_one_line() -> None:
    model = nn.Embedding(4, 3, sparse=True)
    step = FogzoStep(model, sgd(model), [QuantizedWeight(model.weight, torch.ones(()), LAW)])
    step.loss(lambda i: model(i).square().mean(), torch.arange(3)).backward()
    with pytest.raises(ValueError, match="sparse=False") as said:
        step.step()
    assert "\n" not in str(said.value)


def test_a_model_that_was_trained_is_collected() -> None:
    model, step = train(network(), batches(1))
    left = weakref.ref(model), weakref.ref(step)
    del model, step
    gc.collect()
    assert left[0]() is None and left[1]() is None


@pytest.mark.parametrize("nested", [False, True], ids=["tensor", "nested"])
def test_a_batch_that_is_changed_in_place_before_the_step_is_noticed(nested: bool) -> None:
    """As where the next batch is copied into the same memory; after the first step, too."""
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    loss_fn = loss_of(model) if not nested else lambda b: loss_of(model)(b["x"], b["more"][0])
    for _ in range(2):
        x, y = batches(1)[0]
        step.loss(loss_fn, *((x, y) if not nested else ({"x": x, "more": [y]},))).backward()
        if step.steps == 0:
            step.step()
    before = weights_of(model)
    x.copy_(torch.ones_like(x))
    with pytest.raises(ValueError, match="a tensor of the batch was changed in place since its"):
        step.step()
    assert same(weights_of(model), before)


def test_a_batch_may_lie_in_a_tensor_whose_other_part_is_filled_meanwhile() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    places, y = torch.zeros(2, 16, 6), batches(1)[0][1]
    for index in range(3):
        step.loss(loss_of(model), places[index % 2], y).backward()
        places[(index + 1) % 2].copy_(torch.ones(16, 6))
        step.step()


@pytest.mark.parametrize("kind", [dict, UserDict])
def test_a_loss_function_may_take_the_labels_out_of_its_batch(kind: Callable[..., Any]) -> None:
    """As a Trainer of transformers does with smoothed labels, from one of its own mappings."""
    model = network()
    x, y = batches(1)[0]
    step = FogzoStep(model, sgd(model), quantized(model), noise=NOISE)
    step.loss(lambda b: F.cross_entropy(model(b["x"]), b.pop("y")), kind(x=x, y=y)).backward()
    step.step()
    assert same(weights_of(model), weights_of(train(network(), [(x, y)])[0]))


def test_what_a_loss_function_does_to_its_batch_itself_is_no_change() -> None:
    """Here it comes out the same each time."""
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for x, y in batches(2):
            step.loss(lambda x, y: loss_of(model)(x.clamp_(0, 1), y), x, y).backward()
            step.step()


def test_a_parameter_that_the_optimizer_lists_twice_is_clipped_once() -> None:
    gradients = []
    for more in (1, 2):
        model = network()
        listed = [*model.parameters()] * more
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of the parameters listed twice
            optimizer = torch.optim.SGD(listed, lr=0.0)
        step = FogzoStep(model, optimizer, quantized(model), clip_norm=1e-3)
        optimizer.register_step_post_hook(
            lambda o, *_: gradients.append([p.grad.clone() for p in o.param_groups[0]["params"]])
        )
        step.loss(loss_of(model), *batches(1)[0]).backward()
        step.step()
    assert same(gradients[0], gradients[1][: len(gradients[0])])


def test_a_loss_that_has_many_numbers_only_when_it_is_taken_again_is_refused() -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model))
    kinds = iter(["mean", "none"])
    loss_fn = lambda x, y: F.cross_entropy(model(x), y, reduction=next(kinds))  # noqa: E731
    step.loss(loss_fn, *batches(1)[0]).backward()
    with pytest.raises(TypeError, match=r"returned a Tensor of shape \(16,\); return the loss"):
        step.step()


def test_the_order_of_calls_is_checked() -> None:
    model = network()
    optimizer = sgd(model)
    step = FogzoStep(model, optimizer, quantized(model))
    with pytest.raises(ValueError, match="no loss was recorded for this step"):
        step.step()
    loss = step.loss(loss_of(model), *batches(1)[0])
    with pytest.raises(ValueError, match="backward was not called on a loss of this step"):
        step.estimate()
    step.loss(loss_of(model), *batches(1)[0]).backward()
    with pytest.raises(RuntimeError, match=r"optimizer.step\(\) came before the estimate"):
        optimizer.step()
    del loss


def test_a_micro_batch_without_backward_is_noticed_at_any_step() -> None:
    model, step = train(network(), batches(1))
    before = weights_of(model)
    first, second = batches(2)
    step.loss(loss_of(model), *first).backward()
    step.loss(loss_of(model), *second)
    with pytest.raises(ValueError, match="backward was not called on a loss of this step"):
        step.step()
    assert same(weights_of(model), before)


WRONG_ARGUMENTS: list[tuple[dict[str, Any], str]] = [
    *[
        ({"clip_norm": bound}, f"clip_norm={bound!r} must be a number above 0, or None")
        for bound in (0, -1.0, math.nan, "1")
    ],
    *[
        ({"schedule": "linear", "total_steps": total}, f"total_steps={total!r} must be a whole n")
        for total in (0, -3, 2.5, "9")
    ],
    *[({"n": n}, f"n={n!r} must be a whole number, at least 1") for n in (0, -1, 1.5, "1")],
    *[({"rho": rho}, f"rho={rho} must be a finite number") for rho in (math.inf, math.nan)],
    ({"rho": -72.0}, "rho=-72.0 must be at least 0"),  # as many as there are weights
    *[({"noise": noise}, f"noise={noise!r} must be a finite n") for noise in ("x", math.nan)],
    *[({"seed": seed}, f"seed={seed!r} must be a whole n") for seed in (None, -1, "a", 1.5)],
    ({"beta": 0.999}, "beta=0.999: give noise, which is 1 - beta, or rho"),
]


@pytest.mark.parametrize(("options", "said"), WRONG_ARGUMENTS, ids=str)
def test_a_wrong_argument_is_refused_when_the_object_is_made(
    options: dict[str, Any], said: str
) -> None:
    model = network()
    with pytest.raises(ValueError, match=said):
        FogzoStep(model, sgd(model), quantized(model), **options)


@pytest.mark.parametrize(
    "state",
    [{}, {"steps": 3}, None, {"steps": "3", "seed": 0}, {"steps": 3, "seed": 1.0}],
    ids=str,
)
def test_a_state_that_is_none_is_refused_and_changes_nothing(state: Any) -> None:
    model = network()
    step = FogzoStep(model, sgd(model), quantized(model), seed=4)
    with pytest.raises(
        ValueError, match=r"lacks steps or seed|(steps='3'|seed=1\.0) must be a whole number"
    ):
        step.load_state_dict(state)
    assert step.state_dict() == {"steps": 0, "seed": 4}


def test_rho_noise_and_schedule() -> None:
    model, total = network(), 3
    d = 6 * 8 + 8 * 3

    def noises(**options: Any) -> list[float]:
        step = FogzoStep(model, sgd(model, lr=0.0), quantized(model), **options)
        found = []
        for x, y in batches(total):
            step.loss(loss_of(model), x, y).backward()
            step.step()
            found.append(step.estimator.noise)
        return found

    assert noises() == [noise_from_rho(RHO, d)] * 3 == [RHO / (RHO + d)] * 3
    assert noises(rho=2.0) == [2 / (2 + d)] * 3
    assert noises(noise=0.25) == [0.25] * 3
    assert noises(noise=0.25, schedule="linear", total_steps=3) == [0, 0.125, 0.25]
    assert noises(noise=0.25, schedule="linear", total_steps=2) == [0, 0.25, 0.25]  # stays there
    assert rho_from_noise(noise_from_rho(2.0, d), d) == pytest.approx(2)
    for options, said in [
        ({"rho": 1.0, "noise": 0.1}, "rho and noise say the same"),
        ({"noise": 1.5}, r"noise=1.5 is outside \[0, 1\]"),
        ({"rho": -1.0}, "rho=-1.0 must be at least 0"),
        ({"schedule": "cosine"}, "options: constant, linear"),
        ({"schedule": "linear"}, "schedule=linear needs total_steps"),
    ]:
        with pytest.raises(ValueError, match=said):
            noises(**options)


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit() -> None:
    data = batches(4)
    whole, _ = train(network(), data, schedule="linear", total_steps=4)
    model, step = train(network(), data[:2], schedule="linear", total_steps=4)
    state = step.state_dict()
    again = FogzoStep(
        model, sgd(model), quantized(model), noise=NOISE, seed=5, schedule="linear", total_steps=4
    )
    again.load_state_dict(state)
    for x, y in data[2:]:
        again.loss(loss_of(model), x, y).backward()
        again.step()
    assert same(weights_of(model), weights_of(whole))


def ranks(work: Callable[[int], None], folder: Path) -> None:
    """Do `work` as two processes of one training."""
    import os

    check_forkable()
    children = []
    for rank in range(2):
        pid = os.fork()
        if not pid:
            status = 1
            try:
                torch.set_num_threads(1)
                dist.init_process_group(
                    "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2
                )
                work(rank)
                status = 0
            finally:
                if status:
                    import traceback

                    traceback.print_exc()
                os._exit(status)
        children.append(pid)
    assert [finish(pid) for pid in children] == [0, 0]


def test_replicas_stay_equal_and_follow_the_whole_batch(tmp_path: Path) -> None:
    """Without the object each process follows its own loss, and their weights drift apart."""
    data = [(x.double(), y) for x, y in batches(3)]

    def work(rank: int) -> None:
        mine = [(x.chunk(2)[rank], y.chunk(2)[rank]) for x, y in data]
        for name in ("naive", "object"):
            inner = network().double()
            model = DistributedDataParallel(inner)
            naive(model, mine) if name == "naive" else train(model, mine)
            torch.save(weights_of(inner), tmp_path / f"{name}{rank}")

    ranks(work, tmp_path)
    found = {p.name: torch.load(p) for p in tmp_path.glob("*[01]")}
    assert not same(found["naive0"], found["naive1"])
    assert same(found["object0"], found["object1"])
    alone, _ = train(network().double(), data)
    for a, b in zip(found["object0"], weights_of(alone), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_replicas_that_have_drifted_are_noticed(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        model = network()
        with torch.no_grad():
            model[0].weight[0, 0] += rank
        with pytest.raises(RuntimeError, match="step 0: the processes hold different weights"):
            train(model, batches(1))

    ranks(work, tmp_path)


def test_replicas_of_float64_weights_may_have_any_layout(tmp_path: Path) -> None:
    """As a transposed weight, a convolution's in channels_last, or one of a single number."""

    def work(rank: int) -> None:
        del rank
        for weight in (torch.ones(3, 6).T, torch.ones(())):
            layer = nn.ParameterDict({"weight": weight.double()})
            weights = [QuantizedWeight(layer["weight"], torch.ones(()), LAW)]
            step = FogzoStep(layer, sgd(layer), weights)
            step.loss(lambda layer=layer: layer["weight"].square().sum()).backward()
            step.step()

    ranks(work, tmp_path)


def test_replicas_whose_directions_would_differ_are_noticed(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        with pytest.raises(RuntimeError, match=r"step 0: the processes hold different .* seeds"):
            train(network(), batches(1), seed=rank)

    ranks(work, tmp_path)


def test_weights_that_are_split_over_the_processes_are_refused(tmp_path: Path) -> None:
    def work(rank: int) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        model = network()
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(ValueError, match=r"0.weight is split over the processes, as FSDP"):
            FogzoStep(model, sgd(model), quantized(model))

    ranks(work, tmp_path)


def test_after_the_first_step_no_number_is_asked_of_the_device(monkeypatch: Any) -> None:
    """Each of these would wait for a GPU."""
    model = network(nn.Dropout(0.5), nn.BatchNorm1d(8))
    _, step = train(model, batches(1), clip_norm=1.0)
    x, y = batches(1)[0]
    step.loss(loss_of(model), x, y).backward()

    def waits(*_: Any) -> Any:
        raise AssertionError("the device was waited for")

    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "__index__", "numpy"):
        monkeypatch.setattr(Tensor, name, waits)
    step.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("scaler", [False, True], ids=["plain", "scaler"])
def test_no_step_but_the_first_waits_for_the_device(scaler: bool) -> None:
    model = network(nn.Dropout(0.5), nn.BatchNorm1d(8)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    given = torch.amp.GradScaler() if scaler else None
    step = FogzoStep(model, optimizer, quantized(model), clip_norm=1.0, scaler=given)
    data = [(x.cuda(), y.cuda()) for x, y in batches(3)]
    before = weights_of(model)
    for index, (x, y) in enumerate(data):
        loss = step.loss(loss_of(model), x, y)
        (given.scale(loss) if given else loss).backward()
        torch.cuda.set_sync_debug_mode("default" if index == 0 or scaler else "error")
        try:
            step.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert not same(weights_of(model), before)
