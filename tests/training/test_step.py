"""One training step: its order, its two sides, its odd cases (PAPER 4)."""

import copy
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import gradient, quantize
from torch import Tensor, nn

from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.protocol import Estimator
from fogzo_repro.estimators.spsa import Nspsa
from fogzo_repro.estimators.ste import Ste
from fogzo_repro.training.step import MAX_BAD_STREAK, ROW, TrainStep

CPU = torch.device("cpu")
Loss = Callable[[nn.Module, Any], Tensor]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Net(nn.Module):
    """BatchNorm and dropout: everything that a probe could disturb or see differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))


def cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    return F.cross_entropy(model(batch.x).float(), batch.y)


def fogzo(noise: float = 0.1, n: int = 1) -> Fogzo:
    return Fogzo(n, noise, "constant", 0.0, CPU)


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "ste": Ste,
    "nspsa": lambda: Nspsa(1, 0.0),
    "fogzo": fogzo,
}
PROBED = pytest.mark.parametrize("name", ["nspsa", "fogzo"])
EACH = pytest.mark.parametrize("name", ESTIMATORS)


class Rig:
    """A step with everything around it, the same for the same seed."""

    def __init__(
        self, estimator: Estimator, loss: Loss = cross_entropy, sgd: bool = True, **options: Any
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = Net()
            self.batch = Pair(torch.randn(16, 6), torch.randint(3, (16,)))
        self.weights = quantize(self.model)
        kind: Any = torch.optim.SGD if sgd else torch.optim.AdamW
        optimizer = kind(self.model.parameters(), lr=0.1, fused=True)
        self.step = TrainStep(
            self.model.train(), loss, optimizer, estimator, self.weights, seed=3, **options
        )

    def take(self, t: int = 0, lr: float = 0.1) -> dict[str, float]:
        row = self.step(self.batch, self.step.prepare(t, 100, lr))
        return dict(zip(ROW, row.tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.model.state_dict().items()}

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def gradients(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))


QUANTIZED = {"first.weight", "last.weight"}


@PROBED
def test_both_losses_count_and_the_weights_are_bitwise_restored(name: str) -> None:
    ste, rig = Rig(Ste()), Rig(ESTIMATORS[name]())
    ste.take(lr=0.0)
    before = rig.parameters()
    row = rig.take(lr=0.0)
    assert row["coefficient"] != 0 and row["flips"] > 0 and row["flat_probes"] == 0
    assert same(rig.parameters(), before)
    for key, g in rig.gradients().items():
        assert torch.equal(g, ste.gradients()[key]) == (key not in QUANTIZED), key


@PROBED
def test_probes_leave_batchnorm_as_the_ste_pass_left_it(name: str) -> None:
    ste, rig = Rig(Ste()), Rig(ESTIMATORS[name]())
    ste.take(lr=0.0), rig.take(lr=0.0)
    expected, found = ste.state(), rig.state()
    assert expected["norm.num_batches_tracked"] == 1
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_buffers_are_put_back_when_a_probe_raises() -> None:
    def loss(model: nn.Module, batch: Pair) -> Tensor:
        value = cross_entropy(model, batch)
        if not torch.is_grad_enabled():
            raise RuntimeError("out of memory")
        return value

    rig, ste = Rig(fogzo(), loss), Rig(Ste())
    ste.take(lr=0.0)
    with pytest.raises(RuntimeError, match="out of memory"):
        rig.take(lr=0.0)
    expected, found = ste.state(), rig.state()
    assert all(torch.equal(found[k], expected[k]) for k in expected)


def test_probes_use_batch_statistics() -> None:
    rig = Rig(fogzo())
    rig.step.prepare(0, 100, 0.1)
    plain = rig.step.probe_loss(rig.batch)()
    norm: Any = rig.model.norm
    norm.running_mean.fill_(-1e3)
    norm.running_var.fill_(1e-3)
    assert torch.equal(rig.step.probe_loss(rig.batch)(), plain)
    rig.model.eval()  # the running statistics would show
    assert rig.step.probe_loss(rig.batch)() > plain + 1


def test_ste_pass_and_probes_see_the_same_batch() -> None:
    rig, inputs = Rig(fogzo(n=2)), []
    rig.model.register_forward_pre_hook(lambda module, x: inputs.append(x[0]))
    rig.take()
    assert len(inputs) == 5 and same(inputs, [rig.batch.x] * 5)


def test_dropout_masks_are_equal_in_all_passes_of_a_step_and_differ_between_steps() -> None:
    rig = Rig(fogzo(n=2))
    masks: list[Tensor] = []

    class Ones(nn.Module):
        """Shows the mask itself: dropout of ones, which no weight influences."""

        def forward(self, x: Tensor) -> Tensor:
            mask = F.dropout(torch.ones_like(x), 0.5, self.training)
            masks.append(mask)
            return x * mask

    rig.model.drop = Ones()
    rig.take(0)
    assert len(masks) == 5 and same(masks, [masks[0]] * 5)
    assert 0 < (masks[0] == 0).float().mean() < 1
    rig.take(1)
    assert not torch.equal(masks[5], masks[0])


@pytest.mark.parametrize(("fraction", "seen"), [(0.25, 4), (0.5, 8), (0.01, 1)], ids=str)
def test_probes_see_the_first_part_of_the_batch(fraction: float, seen: int) -> None:
    batches: list[Pair] = []

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        batches.append(batch)
        return model(batch.x).square().mean()

    rig = Rig(fogzo(), loss, probe_fraction=fraction)
    rig.model.norm = nn.Identity()
    rig.take()
    assert torch.equal(batches[0].x, rig.batch.x)
    for batch in batches[1:]:
        assert torch.equal(batch.x, rig.batch.x[:seen])
        assert torch.equal(batch.y, rig.batch.y[:seen])
    assert len(batches) == 3


def test_null_level_is_zero_with_batchnorm_and_dropout() -> None:
    rig = Rig(fogzo())
    rig.step.prepare(0, 100, 0.1)
    before = rig.state()
    assert rig.step.null_level(rig.batch) == 0.0
    after = rig.state()
    assert all(torch.equal(after[k], before[k]) for k in before)


@EACH
def test_step_is_a_function_of_state_seed_and_step_number(name: str) -> None:
    first, second, other = (Rig(ESTIMATORS[name]()) for _ in range(3))
    torch.rand(5)  # the global generator's position must not matter
    assert first.take(4) == second.take(4)
    assert same(first.parameters(), second.parameters())
    other.take(5)
    assert not same(first.parameters(), other.parameters())


def test_random_sign_control_keeps_the_size_of_c_and_changes_its_sign_sometimes() -> None:
    signs = []
    for t in range(12):
        plain, control = Rig(fogzo()), Rig(fogzo(), random_sign=True)
        a, b = plain.take(t)["coefficient"], control.take(t)["coefficient"]
        assert abs(a) == abs(b)
        signs.append(a == b)
    assert True in signs and False in signs  # all alike: 2 in 4096, and the seed is fixed


def not_finite_loss(model: nn.Module, batch: Pair) -> Tensor:
    return cross_entropy(model, batch) * math.nan


def not_finite_gradient(model: nn.Module, batch: Pair) -> Tensor:
    first: Any = model
    return cross_entropy(model, batch) + (0 * first.first.weight.sum()).abs().sqrt()  # 0 * inf


@EACH
@pytest.mark.parametrize("sgd", [True, False], ids=["sgd", "adamw"])
@pytest.mark.parametrize("loss", [not_finite_loss, not_finite_gradient], ids=["loss", "gradient"])
def test_what_is_not_finite_stops_before_the_update(name: str, loss: Loss, sgd: bool) -> None:
    bad = [False]

    def sometimes(model: nn.Module, batch: Pair) -> Tensor:
        return (loss if bad[0] else cross_entropy)(model, batch)

    rig = Rig(ESTIMATORS[name](), sometimes, sgd, clip_norm=1.0)
    assert rig.take(0)["failed"] == 0
    before, bad[0] = rig.parameters(), True
    row = rig.take(1)
    assert row["failed"] == 1 and row["skipped"] == 1
    assert row["bad_probes"] == 0 and row["coefficient"] == 0  # no estimate rests on a NaN guide
    assert same(rig.parameters(), before)
    bad[0] = False  # once failed, later steps of the unfetched rows move nothing either
    assert rig.take(2)["failed"] == 1
    assert same(rig.parameters(), before)


def probes_fail_while(failing: list[bool]) -> Loss:
    def loss(model: nn.Module, batch: Pair) -> Tensor:
        value = cross_entropy(model, batch)
        return value if torch.is_grad_enabled() or not failing[0] else value * math.nan

    return loss


@PROBED
def test_bad_probe_takes_the_ste_gradient(name: str) -> None:
    ste, rig = Rig(Ste()), Rig(ESTIMATORS[name](), probes_fail_while([True]))
    ste.take()
    row = rig.take()
    assert row["bad_probes"] == 1 and row["failed"] == 0 and row["skipped"] == 0
    assert same(rig.parameters(), ste.parameters())


def test_ten_bad_probes_in_a_row_stop_the_run_and_a_good_one_starts_again() -> None:
    failing = [True]
    rig = Rig(fogzo(), probes_fail_while(failing))
    assert MAX_BAD_STREAK == 10
    for t in range(9):
        assert rig.take(t)["failed"] == 0
    failing[0] = False
    assert rig.take(9)["failed"] == 0
    failing[0] = True
    for t in range(10, 19):
        before = rig.parameters()
        assert rig.take(t)["failed"] == 0
        assert not same(rig.parameters(), before)
    before = rig.parameters()
    row = rig.take(19)
    assert row["failed"] == 1 and row["bad_probes"] == 1
    assert same(rig.parameters(), before)


class Overflow(Estimator):
    """An estimate that is not finite although every probe was."""

    def prepare(self, step: int, total_steps: int) -> bool:
        return True

    def __call__(self, weights: Any, probes: Any, generator: Any, signs: Any) -> Any:
        said = fogzo_once(weights, probes, generator, signs)
        gradient(weights[0]).fill_(math.inf)
        return said


def fogzo_once(weights: Any, probes: Any, generator: Any, signs: Any) -> Any:
    estimator = fogzo()
    estimator.prepare(0, 10)
    return estimator(weights, probes, generator, signs)


def test_estimate_that_is_not_finite_stops_before_the_update() -> None:
    rig = Rig(Overflow())
    before = rig.parameters()
    assert rig.take()["failed"] == 1
    assert same(rig.parameters(), before)


def total_norm(gradients: dict[str, Tensor]) -> float:
    return torch.stack([g.norm() for g in gradients.values()]).norm().item()


@EACH
def test_clipping_follows_the_estimate_and_covers_all_parameters(name: str) -> None:
    free, clipped = Rig(ESTIMATORS[name]()), Rig(ESTIMATORS[name](), clip_norm=1e-3)
    a, b = free.take(), clipped.take()
    assert a == b  # guide, probes and logged norms are those of the unclipped gradient
    norm = math.hypot(a["grad_norm_quantized"], a["grad_norm_other"])
    assert total_norm(free.gradients()) == pytest.approx(norm, rel=1e-5)
    assert total_norm(clipped.gradients()) == pytest.approx(1e-3, rel=1e-3)
    for key, g in free.gradients().items():
        assert torch.allclose(clipped.gradients()[key], g * 1e-3 / norm, rtol=1e-3, atol=1e-9)


def test_logged_norms_are_of_the_estimate_and_of_the_other_parameters() -> None:
    rig = Rig(Nspsa(1, 0.0))
    row = rig.take()
    found = rig.gradients()
    quantized = total_norm({k: g for k, g in found.items() if k in QUANTIZED})
    other = total_norm({k: g for k, g in found.items() if k not in QUANTIZED})
    assert row["grad_norm_quantized"] == pytest.approx(quantized, rel=1e-5)
    assert row["grad_norm_other"] == pytest.approx(other, rel=1e-5)


def scaler(scale: float) -> torch.amp.GradScaler:
    return torch.amp.GradScaler("cpu", init_scale=scale)


def test_guide_and_estimate_do_not_depend_on_the_loss_scale() -> None:
    plain = Rig(fogzo())
    expected = plain.take()
    for scale in (2.0**4, 2.0**16):  # powers of two: float32 gradients scale without rounding
        rig = Rig(fogzo())
        rig.step.scaler = scaler(scale)
        assert rig.take() == expected
        assert same(rig.parameters(), plain.parameters())


@EACH
def test_step_whose_scaled_gradient_overflows_is_skipped(name: str) -> None:
    rig = Rig(ESTIMATORS[name](), lambda model, batch: 100 * cross_entropy(model, batch), sgd=False)
    rig.take(0)
    before = rig.parameters()
    state = copy.deepcopy(rig.step.optimizer.state_dict()["state"])
    for t in range(1, MAX_BAD_STREAK + 3):
        rig.step.scaler = scaler(2.0**127)
        row = rig.take(t)
        assert row["skipped"] == 1 and row["failed"] == 0, "a lower scale mends this"
        assert row["bad_probes"] == 0 and row["coefficient"] == 0
    assert same(rig.parameters(), before)
    for key, values in rig.step.optimizer.state_dict()["state"].items():
        assert all(torch.equal(values[k], state[key][k]) for k in values)
    assert rig.step.scaler.get_scale() == 2.0**126
    rig.step.scaler = scaler(2.0**10)
    assert rig.take(20)["skipped"] == 0
    assert not same(rig.parameters(), before)


@PROBED
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast_step_measures_its_losses_in_float32(name: str, dtype: torch.dtype) -> None:
    losses: list[Tensor] = []

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        logits = model(batch.x)
        assert logits.dtype == dtype
        losses.append(F.cross_entropy(logits.float(), batch.y))
        return losses[-1]

    rig = Rig(ESTIMATORS[name](), loss, autocast=dtype)
    assert rig.step.scaler.is_enabled() == (dtype == torch.float16)
    before = rig.parameters()
    row = rig.take()
    assert row["skipped"] == row["failed"] == 0 and row["coefficient"] != 0
    assert all(value.dtype == torch.float32 for value in losses)
    assert not same(rig.parameters(), before)
    single = Rig(ESTIMATORS[name]()).take()
    assert row["guide_norm"] == pytest.approx(single["guide_norm"], rel=0.1)


def test_loss_that_is_not_finite_stops_under_the_scaler_too() -> None:
    rig = Rig(fogzo(), not_finite_loss)
    rig.step.scaler = scaler(2.0**4)
    before = rig.parameters()
    assert rig.take()["failed"] == 1
    assert same(rig.parameters(), before)
