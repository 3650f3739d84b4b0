"""Whole runs with learned and recomputed scales: resume; and one without a gradient."""

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from safetensors.torch import load_file

from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.quantization.uniform import Round
from fogzo_repro.run import execute
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.preemption import Preempted
from tests.short_runs import train

SETTINGS = {
    "lsq": ["quantizer=lsq", "quantizer.activation_bits=2", "quantizer.unsigned_inputs=[fc2]"],
    "quest": ["quantizer=quest", "quantizer.activation_bits=2"],
}


def run(output: Path, *overrides: str) -> Path:
    """Run 6 steps of the digits with a checkpoint at each; return the run folder."""
    settings = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=6", "hardware=cpu"]
    settings += ["estimator.noise=0.01", "checkpoint_minutes=0", f"output_root={output}"]
    record = execute(compose_run(*settings, *overrides), quiet=True)
    assert record["status"] == "finished"
    return output / record["run_id"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_one(name, tmp_path):
    folder = run(tmp_path, *SETTINGS[name])
    whole = {p.name: p.read_bytes() for p in folder.glob("*") if p.name == "metrics.jsonl"}
    last = folder / "checkpoint-00000006.safetensors"
    whole[last.name] = last.read_bytes()
    for path in [last, last.with_suffix(".json"), folder / "record.json"]:
        path.unlink()  # as if it had been killed after step 5

    assert run(tmp_path, *SETTINGS[name]) == folder
    assert "resumed after step 5" in (folder / "log.txt").read_text()
    for file, content in whole.items():
        assert (folder / file).read_bytes() == content, file


def test_a_checkpoint_holds_the_starts_of_the_activation_steps(tmp_path):
    folder = run(tmp_path, *SETTINGS["lsq"])
    tensors = load_file(folder / "checkpoint-00000006.safetensors")
    starts = [v for k, v in tensors.items() if k.endswith("input_quantizer.start")]
    assert len(starts) == 2
    assert all(start > 0 for start in starts)


@pytest.mark.parametrize("estimator", ["ste", "fogzo"])
def test_a_run_whose_quantized_weights_have_no_gradient_is_refused(
    estimator, tmp_path, monkeypatch
):
    """As a compiler could leave them; biases would train all the same."""
    monkeypatch.setattr(Round, "forward", lambda self, weight: self.scale + 0 * weight)
    with pytest.raises(UserError, match="gradient of all quantized weights together is exactly"):
        train(tmp_path, "quantizer=round", f"estimator={estimator}")


@pytest.mark.parametrize("interrupted", [False, True], ids=["at-once", "interrupted"])
def test_a_run_without_a_gradient_for_a_whole_epoch_has_diverged(
    interrupted, tmp_path, monkeypatch
):
    forward, calls = Round.forward, []

    def dies_at_step_3(self, weight):
        calls.append(1)  # two a step
        if interrupted and len(calls) == 2 * 30:
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, weight) if len(calls) < 5 else self.scale + 0 * weight

    monkeypatch.setattr(Round, "forward", dies_at_step_3)
    run_it = partial(train, tmp_path, "quantizer=round", "estimator=ste", "recipe.max_steps=100")
    if interrupted:
        with pytest.raises(Preempted):
            run_it()
    record = read_record(run_it() / "record.json")
    assert (record["status"], record["steps"]) == (
        "diverged",
        2 * 22,
    )  # the first epoch had two gradients
    assert "in a whole epoch no quantized weight had a gradient" in record["notes"]


def test_an_estimator_that_needs_no_ste_gradient_may_have_none(tmp_path, monkeypatch):
    def without_derivative(self, weight):
        return self.scale * self.levels(self.units(weight.detach())) + 0 * weight

    monkeypatch.setattr(Round, "forward", without_derivative)
    folder = train(tmp_path, "quantizer=round", "estimator=nspsa", "recipe.max_steps=60")
    assert read_record(folder / "record.json")["status"] == "finished"
