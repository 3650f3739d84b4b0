"""One training step: its order and its two sides (PAPER 4)."""

import math
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from step_rig import CPU, EACH, ESTIMATORS, PROBED, Pair, Rig, cross_entropy, fogzo, same
from torch import Tensor, nn

from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.schedule import start_step
from fogzo_repro.estimators.spsa import Nspsa
from fogzo_repro.estimators.ste import Ste
from fogzo_repro.models.steered import DropPath
from fogzo_repro.training.ranks import ALONE, Ranks

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
    rig.step.begin(0, 100, 0.1)
    plain = rig.step.passes.probe(rig.batch)()
    norm: Any = rig.model.norm
    norm.running_mean.fill_(-1e3)
    norm.running_var.fill_(1e-3)
    assert torch.equal(rig.step.passes.probe(rig.batch)(), plain)
    rig.model.eval()  # the running statistics would show
    assert rig.step.passes.probe(rig.batch)() > plain + 1


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


def drop_path_seen(ranks: Ranks) -> list[Tensor]:
    """Return which examples keep their branch in each pass of two steps, of three passes each."""
    seen: list[Tensor] = []

    def loss(model: nn.Module, batch: Pair) -> Tensor:
        seen.append(model.drop(torch.ones(16, 1)).detach().clone())
        return cross_entropy(model, batch)

    rig = Rig(fogzo(), loss, ranks=ranks, drop=DropPath(0.5))
    rig.take(0), rig.take(1)
    return seen


def test_drop_path_masks_are_equal_in_all_passes_of_a_step_and_differ_between_steps() -> None:
    seen = drop_path_seen(ALONE)
    assert len(seen) == 6 and same(seen, [seen[0]] * 3 + [seen[3]] * 3)
    assert set(seen[0].flatten().tolist()) == {0.0, 2.0}
    assert not torch.equal(seen[0], seen[3])


def test_each_rank_draws_drop_path_masks_of_its_own() -> None:
    first, second = drop_path_seen(ALONE), drop_path_seen(Ranks(rank=1))
    assert not torch.equal(first[0], second[0])
    assert same(second, [second[0]] * 3 + [second[3]] * 3)


@pytest.mark.parametrize("drop", [DropPath(0.5), nn.Dropout(0.5)], ids=["drop-path", "dropout"])
def test_null_level_is_zero_and_asking_for_it_changes_nothing(drop: nn.Module) -> None:
    plain, asked = (Rig(fogzo(), drop=deepcopy(drop)) for _ in range(2))
    asked.step.asks_null_level = True
    asked.step.null_level = torch.tensor(torch.nan)
    assert asked.take() == plain.take()
    assert asked.step.null_level == 0
    after, before = asked.state(), plain.state()
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
    rig = Rig(Nspsa(1))
    row = rig.take()
    found = rig.gradients()
    quantized = total_norm({k: g for k, g in found.items() if k in QUANTIZED})
    other = total_norm({k: g for k, g in found.items() if k not in QUANTIZED})
    assert row["grad_norm_quantized"] == pytest.approx(quantized, rel=1e-5)
    assert row["grad_norm_other"] == pytest.approx(other, rel=1e-5)


@pytest.mark.parametrize("start", [0.0, 0.07, 0.35, 1.0], ids=str)
@EACH
def test_the_steps_before_the_start_are_the_stes_and_the_schedule_counts_from_there(name, start):
    estimator = Fogzo(1, 0.3, "linear", CPU) if name == "fogzo" else ESTIMATORS[name]()
    rig = Rig(estimator, start_fraction=start)
    first = start_step(start, 10)
    for t in range(10):
        assert rig.step.begin(t, 10, 0.1) == (t >= first and name != "ste")
        if t >= first and name == "fogzo":
            assert estimator.noise == pytest.approx(0.3 * (t - first) / max(1, 9 - first))


class Pull(Ste):
    """Takes the share lr / 2 from the quantized weights at even steps; notes what it is given."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def begin_step(self, step, total_steps):
        return step % 2 == 0

    def after_update(self, weights, lr):
        assert not torch.is_grad_enabled()
        self.given.append(float(lr))
        for w in weights:
            w.parameter.sub_(lr / 2 * w.parameter)


@pytest.mark.parametrize("sgd", [True, False], ids=["SGD", "AdamW"])
def test_the_correction_comes_behind_the_update_and_is_not_scaled(sgd: bool) -> None:
    pulled, plain = Rig(Pull(), sgd=sgd), Rig(Ste(), sgd=sgd)
    for rig in (pulled, plain):
        rig.take(0, lr=0.25)
    quantized = {id(w.parameter) for w in pulled.weights}
    for p, q in zip(pulled.model.parameters(), plain.model.parameters(), strict=True):
        expected = q - 0.125 * q if id(p) in quantized else q
        assert torch.allclose(p, expected, rtol=1e-6, atol=0)


def test_it_is_called_at_its_steps_alone() -> None:
    rig = Rig(Pull())
    for t in range(4):
        rig.take(t, lr=0.1 * (t + 1))
    assert rig.step.estimator.given == pytest.approx([0.1, 0.3])


def test_where_the_update_is_skipped_nothing_is_corrected() -> None:
    def diverged(model, batch) -> Tensor:
        return cross_entropy(model, batch) * torch.nan

    rig = Rig(Pull(), loss=diverged)
    before = rig.parameters()
    assert rig.take(0)["failed"] == 1
    assert same(rig.parameters(), before) and rig.step.estimator.given == [0.0]
