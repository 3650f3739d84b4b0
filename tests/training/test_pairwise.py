"""Quantizers x models x estimators, pairwise, at smoke width through the real training step.

Every quantizer meets every model; the estimators go round, so that each meets every model and every
quantizer too.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fogzo_repro import run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig
from fogzo_repro.randomness import generator_for
from fogzo_repro.training.row import ROW
from fogzo_repro.training.step import TrainStep
from tests.c4_corpus import write_corpus

VOCABULARY, CONTEXT = 64, 16
QUANTIZERS = {
    "round-w2": ["quantizer=round"],
    "sign-tanh": ["quantizer=sign"],
    "sign-approxsign": ["quantizer=sign", "quantizer.surrogate=approxsign"],
    "lsq-w2": ["quantizer=lsq"],
    "lsq-w2a2": ["quantizer=lsq", "quantizer.activation_bits=2"],
    "lsq-w1": ["quantizer=lsq", "quantizer.weight_bits=1"],
    "quest-w2a2": ["quantizer=quest", "quantizer.activation_bits=2"],
    "quest-w1a1": ["quantizer=quest", "quantizer.weight_bits=1", "quantizer.activation_bits=1"],
}
MODELS = {
    "mlp": ["model=mlp", "dataset=digits", "recipe=digits_mlp"],
    "resnet18": ["model=resnet18"],
    "resnet50": ["model=resnet50"],
    "deit_tiny": ["model=deit_tiny", "model.depth=4"],
    "deit_small": ["model=deit_small", "model.depth=4"],
    "llama_9m": ["model=llama_9m", f"model.vocabulary={VOCABULARY}", f"model.context={CONTEXT}"],
}
ESTIMATORS = {
    "ste": ["estimator=ste"],
    "nspsa": ["estimator=nspsa"],
    "fogzo": ["estimator=fogzo", "estimator.noise=0.1", "estimator.beta_schedule=constant"],
}
ROWS = [
    (quantizer, model, list(ESTIMATORS)[(i + j) % len(ESTIMATORS)])
    for (i, quantizer), (j, model) in product(enumerate(QUANTIZERS), enumerate(MODELS))
]


def test_every_pair_of_two_factors_occurs() -> None:
    factors = QUANTIZERS, MODELS, ESTIMATORS
    for a, b in combinations(range(3), 2):
        assert {(row[a], row[b]) for row in ROWS} == set(product(factors[a], factors[b]))


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    drawn = torch.randint(VOCABULARY, (2400,), generator=torch.Generator().manual_seed(0)).tolist()
    splits = {"train": [drawn[:1200]], "heldout": [drawn[1200:]]}
    return write_corpus(tmp_path_factory.mktemp("data"), splits, VOCABULARY)


@cache
def configured(*overrides: str) -> RunConfig:
    settings = ["scale=smoke", "recipe.global_batch_size=8", "hardware.workers=0", *overrides]
    return compose_run(*settings)


def build_step(quantizer: str, model: str, estimator: str, data_dir: Path) -> tuple[TrainStep, Any]:
    """Return the step that a run takes, whose optimizer moves nothing, and a batch."""
    config = replace(  # to compose each section once is much faster than each row
        configured(*MODELS[model]),
        quantizer=configured(*QUANTIZERS[quantizer]).quantizer,
        estimator=configured(*ESTIMATORS[estimator]).estimator,
        data_dir=str(data_dir),
    )
    plan = run.make_plan(config)
    plan.task.load(torch.device("cpu"))
    step = plan.build_step()
    step.model.train()
    step.optimizer.step = lambda *_: None  # type: ignore[method-assign, assignment]
    return step, next(iter(plan.task.batches(8).epoch(generator_for(0, 0, "order"))))


def gradients(step: TrainStep) -> list[Tensor]:
    found = [w.parameter.grad for w in step.weights]
    return [g.clone() for g in found if g is not None]


@pytest.mark.slow
@pytest.mark.parametrize(("quantizer", "model", "estimator"), ROWS, ids=map("-".join, ROWS))
def test_probes_move_the_loss_and_leave_the_weights(
    tokens: Path, quantizer: str, model: str, estimator: str
) -> None:
    step, batch = build_step(quantizer, model, estimator, tokens)
    measured, original = [], step.probes

    def recording(part: Any, **given: Any) -> Any:
        probes = original(part, **given)

        def measure(here: Any, directions: Any) -> Any:
            measured.append(probes(here, directions))
            return measured[-1]

        return measure

    step.probes = recording  # type: ignore[method-assign]
    probing = step.begin(0, 10, 0.1)
    step(batch, False)  # also starts LSQ's steps for activations
    straight = gradients(step)
    before = [p.detach().clone() for p in step.parameters]
    step.begin(0, 10, 0.1)
    row = dict(zip(ROW, step(batch, probing).tolist(), strict=True))

    assert torch.tensor(row["loss"]).isfinite() and not row["failed"]
    assert all(map(torch.equal, step.parameters, before))
    assert len(straight) == len(step.weights) > 1
    assert all(g.norm() > 0 and g.isfinite().all() for g in gradients(step))
    if estimator == "ste":
        assert not measured
        assert all(map(torch.equal, gradients(step), straight))
    else:
        assert all((m.plus != m.minus).all() and m.plus.isfinite().all() for m in measured)
        assert len(measured) == 1
        assert row["flips"] > 0
        assert not any(map(torch.allclose, gradients(step), straight))


@pytest.mark.parametrize("model", MODELS, ids=str)
def test_two_identical_probes_have_the_same_loss(tokens: Path, model: str) -> None:
    """Drop-path included: its masks are those of the step, not of the pass."""
    step, batch = build_step("round-w2", model, "fogzo", tokens)
    step.begin(0, 10, 0.1)
    step.asks_null_level = True
    step.null_level = torch.tensor(torch.nan)
    step(batch, True)
    assert step.null_level == 0
