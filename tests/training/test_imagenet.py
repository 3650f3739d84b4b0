"""Runs on the sample images through the real loader: each model with each estimator, and resume."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from fogzo_repro import run
from fogzo_repro.__main__ import CONFIGS
from fogzo_repro.config import RunConfig, parse_config
from fogzo_repro.training.loop import Training
from fogzo_repro.training.randomness import generator_for

MODELS = {
    "resnet18": "imagenet_resnet", "resnet50": "imagenet_resnet",
    "deit_tiny": "imagenet_deit", "deit_small": "imagenet_deit",
}  # fmt: skip


def configure(data_dir: Path, model: str, estimator: str, *more: str) -> RunConfig:
    overrides = [
        "scale=smoke", f"model={model}", f"recipe={MODELS[model]}", f"estimator={estimator}",
        "dataset=imagenet1k", "dataset.allow_partial=true", "dataset.image_size=64",
        "recipe.global_batch_size=8", "hardware.workers=0", f"data_dir={data_dir}", *more,
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return parse_config(compose("config", overrides))


@pytest.fixture(scope="module")
def images(data_dir: Path) -> Path:
    if not (data_dir / "imagenet" / "train").is_dir():
        pytest.skip(f"no sample of ImageNet under {data_dir}")
    return data_dir


@pytest.mark.parametrize("estimator", ["nspsa", "fogzo"], ids=str)
@pytest.mark.parametrize("model", MODELS, ids=str)
def test_probes_move_the_loss_and_leave_the_weights(
    images: Path, model: str, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = run.prepare(configure(images, model, estimator))
    prepared.task.load(torch.device("cpu"))
    step = run._build_step(prepared)
    step.model.train()
    batches: Any = prepared.task.batches(8)
    # the weights do not move within a step but by the probes
    monkeypatch.setattr(step.optimizer, "step", lambda: None)
    for t, batch in zip(range(2), batches.epoch(generator_for(0, 0, "order")), strict=False):
        before = {k: v.clone() for k, v in step.model.state_dict().items()}
        step.prepare(t, 2, 0.1)
        step(batch, False)
        ste = [w.parameter.grad.clone() for w in step.weights if w.parameter.grad is not None]
        after_ste = {k: v.clone() for k, v in step.model.state_dict().items()}
        row = dict(zip(run_rows(), step(batch, True).tolist(), strict=True))
        assert row["coefficient"] != 0 and row["flips"] > 0 and not row["bad_probes"]
        for w, gradient in zip(step.weights, ste, strict=True):
            assert w.parameter.grad is not None
            assert not torch.allclose(w.parameter.grad, gradient)
        for name, value in step.model.named_parameters():
            assert torch.equal(value, before[name]), name
        for name, value in step.model.named_buffers():
            # the second step's own pass updates BatchNorm once, its probes do not
            counted = name.endswith("num_batches_tracked")
            assert not counted or value == after_ste[name] + 1
    assert len(ste) == len(step.weights) > 10


def run_rows() -> tuple[str, ...]:
    from fogzo_repro.training.step import ROW

    return ROW


@pytest.mark.parametrize(
    ("model", "estimator"),
    [("resnet18", "ste"), ("resnet18", "fogzo"), ("deit_tiny", "nspsa"), ("deit_tiny", "fogzo")],
    ids=lambda value: value,
)
def test_a_run_that_is_stopped_in_mid_epoch_ends_with_the_same_bytes(
    images: Path, tmp_path: Path, model: str, estimator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["recipe.max_steps=4", "recipe.eval_every_epochs=1000"]
    whole = configure(images, model, estimator, *more, f"output_root={tmp_path / 'whole'}")
    run.execute(whole, quiet=True)

    class Killed(Exception):
        pass

    original = Training._one_step

    def stop_after_two(self: Training, batch: Any) -> None:
        if self.done == 2:
            self.flush(quiet_progress())
            self.save()
            raise Killed
        original(self, batch)

    parts = replace(whole, output_root=str(tmp_path / "parts"))
    monkeypatch.setattr(Training, "_one_step", stop_after_two)
    with pytest.raises(Killed):
        run.execute(parts, quiet=True)
    monkeypatch.setattr(Training, "_one_step", original)
    record = run.execute(parts, quiet=True)
    assert record["status"] == "finished" and record["metrics"]["last"]["val"]["top5"] >= 0
    for name in ("metrics.jsonl", "checkpoint-00000004.safetensors"):
        files = [next((tmp_path / f).glob(f"*/{name}")).read_bytes() for f in ("whole", "parts")]
        assert files[0] == files[1], name
    lines = (next((tmp_path / "parts").glob("*")) / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines if "split" not in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert record["metrics"]["last"]["train"]["loss"] == pytest.approx(
        sum(line["loss"] for line in steps) / 4
    )


def quiet_progress() -> Any:
    from fogzo_repro.tracking.progress import RunProgress

    return RunProgress("", 1, 0, quiet=True)
