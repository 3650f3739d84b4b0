"""estimator=ste_averaged: the mean of the STE's gradients at FOGZO's points, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fogzo_repro import diagnose, run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import ConfigError, UserError
from fogzo_repro.data import Batch
from fogzo_repro.diagnose import Effort
from fogzo_repro.estimators import directions
from fogzo_repro.estimators.averaged import averaged_gradient
from fogzo_repro.estimators.fogzo import Fogzo, algorithm_1
from fogzo_repro.estimators.protocol import Point, ProbeLosses
from fogzo_repro.models import mlp
from fogzo_repro.plan import evaluations_per_step, make_plan, needs_of
from fogzo_repro.quantization import Surrogate, quantize_layers
from fogzo_repro.quantization.sign import Sign
from fogzo_repro.quantization.surrogates.sign_hardtanh import build
from fogzo_repro.reporting.results import evaluations
from fogzo_repro.stored import open_run
from fogzo_repro.sweeps.lanes import group_key
from fogzo_repro.training.network import _perturbed_weight
from fogzo_repro.training.step import TrainStep

DIGITS = ("dataset=digits", "recipe=digits_mlp", "recipe.max_steps=8", "hardware=cpu")
AVERAGED = "estimator=ste_averaged"


def loss(model: nn.Module, batch: Batch) -> Tensor:
    return F.cross_entropy(model(batch.pixels), batch.labels)


class Spy:
    """Probes that note the directions that they are given."""

    def __init__(self, probes: Any, seen: list[list[Tensor]]) -> None:
        self.probes, self.seen = probes, seen

    def __call__(self, here: Point, along: Sequence[Tensor]) -> ProbeLosses:
        self.seen += [[v[k].clone() for v in along] for k in range(len(along[0]))]
        return self.probes(here, along)


def one_step(algorithm: Any, n: int, noise: float, **options: Any) -> tuple[nn.Module, Any]:
    """Take a step of rate 0 in float64, 1-bit weights by the hardtanh; return what it saw too."""
    torch.manual_seed(5)
    model = mlp.build((1, 4, 4), 3, hidden=5).double().train()
    batch = Batch(torch.randn(9, 1, 4, 4, dtype=torch.float64), torch.randint(3, (9,)))
    layers = quantize_layers(model, lambda name, w: Sign(w, Surrogate(*build())))
    weights = [_perturbed_weight(layer) for layer in layers.values()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, fused=True)
    estimator = Fogzo(n, noise, "constant", torch.device("cpu"), algorithm)
    gradients = algorithm is averaged_gradient
    step = TrainStep(
        model, loss, optimizer, estimator, weights,
        seed=7, pairs=n, probe_gradients=gradients, **options,
    )  # fmt: skip
    seen: list[list[Tensor]] = []
    probes = step.probes
    step.probes = lambda *a, **more: Spy(probes(*a, **more), seen)  # type: ignore[method-assign]
    step(batch, step.begin(0, 10, 0.0))
    return model, (batch, seen)


def by_hand(model: Any, batch: Batch, weights: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The STE's gradients of an MLP with weights alpha sign(w), derivative 1 within +-alpha."""
    x, leaves, alphas = batch.pixels.flatten(1), [], []
    for layer, w in zip((model.fc1, model.fc2), weights, strict=True):
        alphas.append(layer.weight_quantizer.scale)
        leaves.append((alphas[-1] * (1 - 2 * (w < 0).double())).requires_grad_())
    hidden = (x @ leaves[0].T + model.fc1.bias.detach()).clamp(min=0)
    logits = hidden @ leaves[1].T + model.fc2.bias.detach()
    value = -logits.log_softmax(1)[torch.arange(len(x)), batch.labels].mean()
    found = torch.autograd.grad(value, leaves)
    inside = [(w.abs() <= a).double() for w, a in zip(weights, alphas, strict=True)]
    return tuple(g * i for g, i in zip(found, inside, strict=True))


@pytest.mark.parametrize("n", [1, 5], ids=["one_pair", "several_blocks"])
@pytest.mark.parametrize("noise", [0.0, 0.01, 0.5], ids=str)
def test_it_is_the_mean_of_the_gradients_at_fogzos_points(
    n: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    d = 4 * 4 * 5 + 5 * 3
    monkeypatch.setattr(directions, "BLOCK_NUMBERS", 2 * d)  # 5 pairs: blocks of 2, 2 and 1
    model, (batch, seen) = one_step(averaged_gradient, n, noise)
    fogzo, (_, of_fogzo) = one_step(algorithm_1, n, noise)
    assert len(seen) == n
    for u, v in zip(seen, of_fogzo, strict=True):
        assert all(map(torch.equal, u, v))
    layers: list[Any] = [model.fc1, model.fc2]
    theta = [layer.weight.detach() for layer in layers]
    epsilons = [layer.weight_quantizer.scale / 3**0.5 for layer in layers]
    expected = [torch.zeros_like(w) for w in theta]
    for v in seen:
        for side in (1, -1):
            moved = [w + side * e * u for w, e, u in zip(theta, epsilons, v, strict=True)]
            for total, g in zip(expected, by_hand(model, batch, moved), strict=True):
                total += g / (2 * n)
    here = by_hand(model, batch, theta)
    for layer, other, mean, g in zip(layers, (fogzo.fc1, fogzo.fc2), expected, here, strict=True):
        assert torch.allclose(layer.weight.grad, mean, rtol=0, atol=1e-14)
        assert noise < 0.1 or (mean - g).abs().max() > 1e-3 * g.abs().max()
        assert not torch.allclose(layer.weight.grad, other.weight.grad, rtol=0.1)
        assert torch.equal(layer.bias.grad, other.bias.grad)  # at theta, as FOGZO's
        assert torch.equal(layer.weight, other.weight)


def test_micro_batches_give_the_gradient_of_the_whole_batch() -> None:
    whole, _ = one_step(averaged_gradient, 2, 0.3)
    parts, _ = one_step(averaged_gradient, 2, 0.3, micro_batch=4)
    for a, b in zip(whole.parameters(), parts.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None
        assert torch.allclose(a.grad, b.grad, rtol=0, atol=1e-14)


def test_the_record_counts_three_passes_forward_and_backward(tmp_path: Path) -> None:
    folder = f"output_root={tmp_path}"
    config = compose_run(*DIGITS, AVERAGED, "estimator.noise=1e-3", folder)
    record = run.execute(config, quiet=True)
    assert record["evaluations_per_step"] == {"probes": 2, "total": 9}
    assert record["run_id"].startswith("mlp-digits-round-ste_averaged-s0-")
    lines = (tmp_path / record["run_id"] / "metrics.jsonl").read_text().splitlines()
    first = json.loads(lines[0])
    assert first["noise"] == 1e-3 and first["null_level"] == 0 and first["coefficient"] != 0
    ste, fogzo = (compose_run(*DIGITS, f"estimator={name}").estimator for name in ("ste", "fogzo"))
    counts = [evaluations_per_step(one)["total"] for one in (ste, fogzo)]
    assert counts == [3, 5]


PART = """
from fogzo_repro.estimators.averaged import averaged_gradient
from fogzo_repro.estimators.fogzo import Fogzo


def build(n, noise, beta_schedule, device):
    return Fogzo(n, noise, beta_schedule, device, averaged_gradient)
"""


def test_a_part_of_ones_own_with_the_key_has_gradients_at_its_probes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "mine" / "estimator"
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(PART)
    text = "defaults: [fogzo, _self_]\nname: own\nfamily: own\nprobe_gradients: true\n"
    (folder / "own.yaml").write_text(text)
    monkeypatch.setenv("FOGZO_PARTS", str(folder.parent))
    records = [
        run.execute(compose_run(*DIGITS, word, f"output_root={tmp_path}"), quiet=True)
        for word in (AVERAGED, "estimator=own")
    ]
    for key in ("metrics", "history", "evaluations_per_step"):
        assert records[0][key] == records[1][key]


def test_evaluations_of_a_run_that_averages_late_on_a_part_of_the_batch() -> None:
    half = {"start_fraction": 0.5, "probe_fraction": 0.25}
    record: dict[str, Any] = {"steps": 8, "config": {"estimator": half}}
    record["evaluations_per_step"] = {"probes": 2, "total": 9}
    assert evaluations(record, "probes") == 8 * 2 / 8
    assert evaluations(record, "total") == 8 * (3 + 6 / 8)
    record["evaluations_per_step"] = {"probes": 2, "total": 5}
    assert evaluations(record, "total") == 8 * (3 + 2 / 8)


def test_the_guide_is_kept_beside_the_sum() -> None:
    config = compose_run(*DIGITS, AVERAGED)
    fogzo = compose_run(*DIGITS, "estimator=fogzo")
    network = make_plan(config).network
    more = needs_of(config, network).estimator - needs_of(fogzo, network).estimator
    assert more == 4 * network.perturbed


def test_its_identity_has_the_noise_that_rho_amounts_to() -> None:
    plans = {
        word: make_plan(compose_run(*DIGITS, AVERAGED, word))
        for word in ("estimator.rho=8", "estimator.noise=1e-3", "estimator.noise=2e-3")
    }
    d = plans["estimator.rho=8"].network.perturbed
    noise = plans["estimator.rho=8"].config.estimator
    assert noise.noise == pytest.approx(8 / (8 + d))  # type: ignore[attr-defined]
    assert len({plan.run_id for plan in plans.values()}) == 3
    fogzo = make_plan(compose_run(*DIGITS, "estimator=fogzo", "estimator.noise=1e-3"))
    assert fogzo.run_id.split("-s0")[0] == "mlp-digits-round-fogzo"
    assert "probe_gradients" not in fogzo.result["estimator"]


def test_it_takes_its_points_one_after_another() -> None:
    config = compose_run(*DIGITS, AVERAGED, "estimator.n=50")
    assert group_key(config) is None
    assert make_plan(config).result["resolved"]["evaluator"] == "sequential"


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("estimator.evaluator=batched", "evaluator=batched"),
        ("estimator.random_sign=true", "random"),
    ],
    ids=["batched", "random_sign"],
)
def test_what_has_no_gradients_or_no_losses_is_refused(word: str, said: str) -> None:
    with pytest.raises(ConfigError, match=rf"ste_averaged takes the STE's gradient.*{said}"):
        compose_run(*DIGITS, AVERAGED, word)


def test_fp16_is_refused() -> None:
    config = compose_run(*DIGITS, AVERAGED, "recipe.autocast=true", "hardware.precision=fp16")
    with pytest.raises(UserError, match=r"ste_averaged.*give hardware.precision=bf16 or fp32"):
        make_plan(config)


@pytest.mark.slow
def test_diagnose_measures_it_beside_the_others(tmp_path: Path) -> None:
    """With a noise of 0 the points lie along the guide, and its direction is nearly the STE's."""
    words = [AVERAGED, "estimator.noise=1e-3", "snapshots=1", f"output_root={tmp_path}"]
    record = run.execute(compose_run(*DIGITS, *words), quiet=True)
    stored = open_run(tmp_path / record["run_id"])
    device = torch.device("cpu")
    rows = diagnose.diagnose(stored, None, device, vars(Effort(400, 2, 100)))
    found = {row.estimator: row for row in rows if row.noise is None}
    own, ste = found["ste_averaged"], found["ste"]
    assert own.cosine.value == pytest.approx(ste.cosine.value, abs=0.2)
    assert own.norm_ratio.value == pytest.approx(ste.norm_ratio.value, rel=0.3)
    assert own.variance.value > 0
