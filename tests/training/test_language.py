"""Language modelling: perplexity, accumulation, probes, resume."""

import json
import math
import os
import signal
import threading
import time
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fogzo_repro import diagnose, run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError, build_part
from fogzo_repro.data.c4 import TokenBatch, _check, build, open_split
from fogzo_repro.models.head_loss import linear_cross_entropy
from fogzo_repro.stored import open_run
from fogzo_repro.training.compilation import compile_network
from fogzo_repro.training.language import Language, c4_language
from fogzo_repro.training.network import build_network
from fogzo_repro.training.optimizers import build_optimizer
from fogzo_repro.training.preemption import EvaluationStopped, StopRequest
from fogzo_repro.training.step import TrainStep
from tests.c4_corpus import write_corpus
from tests.conftest import compiles

VOCABULARY = 48
TINY = [
    "model=llama_9m", "hardware=cpu", "model.layers=2", "model.width=32", "model.heads=2",
    "model.hidden=48", "model.context=16", f"model.vocabulary={VOCABULARY}",
    "dataset.interim_windows=64", "dataset.train_windows=8",
]  # fmt: skip
QUANTIZERS = {
    "round": ["quantizer=round"],
    "sign": ["quantizer=sign"],
    "lsq-w2a2": ["quantizer=lsq", "quantizer.weight_bits=2", "quantizer.activation_bits=2"],
    "quest-w2a2": ["quantizer=quest", "quantizer.weight_bits=2", "quantizer.activation_bits=2"],
}
ESTIMATORS = {
    "ste": ["estimator=ste"],
    "nspsa": ["estimator=nspsa"],
    "fogzo": ["estimator=fogzo", "estimator.noise=0.01"],
}


def config(data_dir, *overrides):
    return compose_run(*TINY, f"data_dir={data_dir}", *overrides)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Text with something to learn: each token is one of two successors of the one before."""
    generator = torch.Generator().manual_seed(0)
    steps = torch.randint(1, 3, (4000,), generator=generator)
    tokens = (steps.cumsum(0) % VOCABULARY).tolist()
    splits = {"train": [tokens[:1000], tokens[1000:2900]], "heldout": [tokens[2900:]]}
    return write_corpus(tmp_path_factory.mktemp("data"), splits, VOCABULARY)


def build_step(data_dir, *overrides, dtype=torch.float32, micro_batch=None):
    settings = config(data_dir, *overrides)
    task = c4_language(settings, build(data_dir))
    network = build_network(settings, {}, torch.device("cpu"))
    network.model.to(dtype)
    network.model.train()
    step = TrainStep(
        network.model,
        task.loss,
        build_optimizer(replace(settings.recipe, lr=1e-3), network.model, capturable=False),
        build_part("estimator", settings.estimator, None, device=torch.device("cpu")),
        network.weights,
        seed=0,
        pairs=settings.estimator.n,
        clip_norm=1.0,
        micro_batch=micro_batch,
    )
    batch = next(task.batches(8).epoch(torch.Generator().manual_seed(0)))
    return step, batch


class Unigram(nn.Module):
    """Predicts the same distribution everywhere."""

    def __init__(self, probabilities):
        super().__init__()
        self.register_buffer("weight", torch.tensor(probabilities).log().unsqueeze(1))

    def forward(self, tokens, targets):
        ones = torch.ones(targets.numel(), 1)
        return linear_cross_entropy(ones, self.weight, targets.flatten())


def test_perplexity_of_a_known_distribution_is_the_exponential_of_its_entropy(tmp_path):
    probabilities = [0.5, 0.25, 0.125, 0.125]
    block = [0, 0, 0, 0, 1, 1, 2, 3]  # 8 targets with exactly these frequencies
    write_corpus(tmp_path, {"train": [block * 3], "heldout": [block * 70 + [0]]}, 4)
    corpus = build(tmp_path)
    train, heldout = (open_split(corpus, s, 4) for s in ("train", "heldout"))
    task = Language(
        train, heldout, context=8, interim_windows=10, train_windows=1, fingerprint="", corpus=""
    )
    for last in (False, True):
        found = task.evaluate(Unigram(probabilities), last)
        assert found["val"]["perplexity"] == pytest.approx(2**1.75, rel=1e-6)
    assert set(found) == {"val", "train"}


def test_the_last_evaluation_takes_all_windows_and_an_interim_one_its_share(data_dir):
    task = c4_language(config(data_dir), build(data_dir))
    seen = []

    class Counter(nn.Module):
        def forward(self, tokens, targets):
            seen.append(len(tokens))
            return torch.zeros(())

    task.evaluate(Counter(), last=False)
    assert sum(seen) == 64
    seen.clear()
    task.evaluate(Counter(), last=True)
    assert sum(seen) == (4000 - 2900 - 1) // 16 + 8


@pytest.mark.parametrize(
    ("split", "option"),
    [("heldout", "--held-out"), ("tuning", "--held-out"), ("c4", "--validation-tokens")],
    ids=["heldout", "tuning", "c4"],
)
def test_less_than_64_windows_are_refused_with_the_documents_that_suffice(tmp_path, split, option):
    shards = {"train": [list(range(40)) * 9], split: [list(range(40)) * 9]}  # 360 tokens each
    write_corpus(tmp_path, shards, VOCABULARY)
    said = f"{split} has 22 windows .* in 1 documents, at least 64 .* 3 documents; .* {option}$"
    with pytest.raises(UserError, match=said):  # 64 windows of 16 and one token: 1,025
        c4_language(config(tmp_path, f"dataset.validation={split}"), build(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("first_last", ["8bit", "quantized"])
@pytest.mark.parametrize("quantizer", QUANTIZERS.values(), ids=QUANTIZERS)
def test_a_quantized_head_gives_the_loss_of_its_own_logits(data_dir, quantizer, first_last):
    step, batch = build_step(
        data_dir, *quantizer, "estimator=ste", f"quantizer.first_last={first_last}"
    )
    tokens, targets = batch.windows[:, :-1], batch.windows[:, 1:]
    logits = step.model(tokens)
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    torch.testing.assert_close(step.model(tokens, targets), wanted, rtol=1e-5, atol=0)
    assert len(step.weights) == 2 * 7 + 1


@pytest.mark.slow
@pytest.mark.parametrize("overrides", ESTIMATORS.values(), ids=ESTIMATORS)
def test_accumulated_gradients_and_probes_are_those_of_the_whole_batch(data_dir, overrides):
    whole, batch = build_step(data_dir, *overrides, dtype=torch.float64)
    assert len(whole.weights) == 2 * 7  # q, k, v, o, gate, up, down of each block
    parts, _ = build_step(data_dir, *overrides, dtype=torch.float64, micro_batch=2)
    parts.model.load_state_dict(whole.model.state_dict())
    rows = []
    for step in (whole, parts):
        probing = step.begin(5, 10, 1e-3)
        rows.append(step(batch, probing))
    torch.testing.assert_close(rows[0], rows[1], rtol=1e-6, atol=1e-12)
    for a, b in zip(whole.parameters, parts.parameters, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-6, atol=1e-12)


def test_a_run_learns_resumes_to_the_same_bytes_and_says_what_it_evaluated(
    data_dir, tmp_path, monkeypatch
):
    overrides = [
        "recipe.max_steps=12", "estimator=fogzo", "estimator.noise=1e-6", "recipe.lr=0.01",
        "recipe.global_batch_size=8", "checkpoint_minutes=0", "eval_every_steps=3",
    ]  # fmt: skip
    whole = config(data_dir, *overrides, f"output_root={tmp_path / 'whole'}")
    broken = config(data_dir, *overrides, f"output_root={tmp_path / 'broken'}")
    record = run.execute(whole, quiet=True)

    class PowerCut(Exception):
        pass

    loss, calls = Language.loss, []

    def failing(model, batch: TokenBatch):
        calls.append(1)
        if len(calls) > 17:  # in the probes of a later step
            raise PowerCut
        return loss(model, batch)

    monkeypatch.setattr(Language, "loss", staticmethod(failing))
    with pytest.raises(PowerCut):
        run.execute(broken, quiet=True)
    monkeypatch.undo()
    run.execute(broken, quiet=True)

    def files(root):
        (folder,) = (p for p in root.iterdir() if p.is_dir())
        return [
            (folder / name).read_bytes()
            for name in ("metrics.jsonl", "checkpoint-00000012.safetensors")
        ]

    assert files(tmp_path / "whole") == files(tmp_path / "broken")
    lines = map(json.loads, files(tmp_path / "broken")[0].splitlines())
    evaluated = [(x["step"], x["windows"]) for x in lines if x.get("split") == "val"]
    assert evaluated == [(3, 64), (6, 64), (9, 64), (12, 68)]
    last = record["metrics"]["last"]
    assert last["val"]["perplexity"] == pytest.approx(math.exp(last["val"]["loss"]))
    assert last["val"]["perplexity"] < VOCABULARY
    assert record["tokens_seen"] == 12 * 8 * 16
    assert "heldout: 68 windows" in record["resolved"]["data"]
    assert json.loads(json.dumps(record)) == record


@pytest.fixture
def short(tmp_path):
    """A run of one step on a corpus of its own."""
    tokens = [n % VOCABULARY for n in range(1100)]
    write_corpus(tmp_path, {"train": [tokens], "heldout": [tokens]}, VOCABULARY)
    words = ["recipe.max_steps=1", "recipe.global_batch_size=8", "snapshots=1"]
    return config(tmp_path, *words, f"output_root={tmp_path / 'runs'}")


def change_a_byte(data_dir):
    shard = Path(data_dir) / "c4" / "train-00000.bin"
    shard.write_bytes(bytes([shard.read_bytes()[0] ^ 1]) + shard.read_bytes()[1:])


@pytest.mark.parametrize("lr", [1e-3, 1e37], ids=["finished", "diverged"])
def test_a_run_on_a_shard_with_other_bytes_ends_without_a_record(short, monkeypatch, lr):
    change_a_byte(short.data_dir)
    monkeypatch.setattr("fogzo_repro.data.c4._check", partial(later, _check))
    short = replace(short, recipe=replace(short.recipe, lr=lr, max_steps=3))
    with pytest.raises(UserError, match=r"train-00000.bin does not have the checksum"):
        run.execute(short, quiet=True)
    assert not [*Path(short.output_root).rglob("record.json")]


def later(check, shards, checked):
    """Check shards after what is read of them was used."""
    time.sleep(1)
    check(shards, checked)


def test_a_diagnosis_on_a_shard_with_other_bytes_has_no_result(short, monkeypatch):
    folder = Path(short.output_root) / run.execute(short, quiet=True)["run_id"]
    change_a_byte(short.data_dir)
    monkeypatch.setattr("fogzo_repro.data.c4._check", partial(later, _check))
    monkeypatch.setattr(diagnose, "SIZES", (1,))
    effort = diagnose.Effort(directions=4, batches=2, draws=2)
    with pytest.raises(UserError, match=r"train-00000.bin does not have the checksum"):
        diagnose.diagnose(open_run(folder), None, torch.device("cpu"), vars(effort))


def test_a_signal_ends_the_wait_for_the_checksums(data_dir):
    task = c4_language(config(data_dir), build(data_dir))
    task.train.checked = Future()
    late = threading.Timer(5, task.train.checked.set_result, [None])
    late.start()
    with StopRequest(), pytest.raises(EvaluationStopped):
        threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGTERM]).start()
        task.evaluate(Unigram([0.5, 0.5]), last=True)
    late.cancel()
    assert not task.train.checked.done()


@compiles
@pytest.mark.slow
def test_the_compiled_step_has_the_eager_gradients_and_its_probes_move_with_the_weights(data_dir):
    step, batch = build_step(data_dir, "estimator=fogzo", "estimator.noise=0.01")
    step.begin(5, 10, 1e-3)
    eager = step.passes.straight_through(batch, torch.Tensor.backward)
    wanted = [p.grad.clone() for p in step.parameters]
    step.optimizer.zero_grad(set_to_none=True)

    compile_network(step.model)
    compiled = step.passes.straight_through(batch, torch.Tensor.backward)
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=0)
    for p, gradient in zip(step.parameters, wanted, strict=True):
        torch.testing.assert_close(p.grad, gradient, rtol=1e-4, atol=1e-6)

    probe = step.passes.probe(batch)
    torch.testing.assert_close(probe(), eager, rtol=1e-5, atol=0)
    with torch.no_grad():
        for w in step.weights:
            w.parameter.neg_()
    assert abs(probe() - eager) > 1e-4
    with torch.no_grad():
        for w in step.weights:
            w.parameter.neg_()
    torch.testing.assert_close(probe(), eager, rtol=1e-5, atol=0)
