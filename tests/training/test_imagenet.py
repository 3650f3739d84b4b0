"""Runs on the sample images through the real loader: each model with each estimator, and resume."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from ranks_worker import join

from fogzo_repro import evaluate, run
from fogzo_repro import plan as plan_module
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.data import photographs
from fogzo_repro.data.decoded import folder_of
from fogzo_repro.data.decoded_shards import plan_tree, write_tree
from fogzo_repro.data.imagenet import build
from fogzo_repro.training.imagenet import ImageNet
from fogzo_repro.training.loop import Training
from fogzo_repro.training.ranks import Ranks
from tests.forked import finish, free_port, start

MODELS = {
    "resnet18": "imagenet_resnet", "resnet50": "imagenet_resnet",
    "deit_tiny": "imagenet_deit", "deit_small": "imagenet_deit",
}  # fmt: skip


def configure(data_dir: Path, model: str, estimator: str, *more: str) -> RunConfig:
    overrides = [
        "scale=smoke", f"model={model}", f"recipe={MODELS[model]}", f"estimator={estimator}",
        "dataset=imagenet1k", "dataset.allow_partial=true",
        f"dataset.image_size={32 if 'deit' in model else 64}",
        "recipe.global_batch_size=8", "hardware.workers=0", f"data_dir={data_dir}", *more,
    ]  # fmt: skip
    return compose_run(*overrides)


@pytest.fixture(scope="module")
def images(data_dir: Path) -> Path:
    if not (data_dir / "imagenet" / "train").is_dir():
        pytest.skip(f"no sample of ImageNet under {data_dir}")
    return data_dir


@pytest.mark.slow
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


def tiny_tree(folder: Path) -> Path:
    """Write an ImageNet of 3 classes with 8 and 2 images each; return its data_dir."""
    for split, images in (("train", 8), ("val", 2)):
        for c in range(3):
            where = folder / "imagenet" / split / f"n{c:08d}"
            where.mkdir(parents=True)
            for i in range(images):
                Image.new("RGB", (70, 66), (80 * c, 30 * i, 9)).save(where / f"{split}_{i}.JPEG")
    return folder


ENTRY = [
    "scale=smoke", "model=deit_tiny", "recipe=imagenet_deit", "estimator=fogzo",
    "dataset=imagenet1k", "dataset.allow_partial=true", "dataset.image_size=32",
    "recipe.global_batch_size=4", "recipe.eval_every_epochs=1000",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1], ids=str
)
def test_a_signal_to_all_processes_of_a_run_saves_and_ends_it_with_its_loaders(
    tmp_path: Path, number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    # How often a loader looks whether its run is still there: every 5 s.
    monkeypatch.setattr(torch.utils.data._utils.worker, "MP_STATUS_CHECK_INTERVAL", 0.2)
    errors = tmp_path / "errors"
    arguments = [
        *ENTRY, "recipe.max_steps=100000", "checkpoint_minutes=0", "hardware.workers=2",
        f"data_dir={tiny_tree(tmp_path)}", f"output_root={tmp_path / 'runs'}",
    ]  # fmt: skip
    pid = start(arguments, errors, before=os.setsid)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/checkpoint-*.json")):
        assert time.monotonic() < deadline, errors.read_text()
        time.sleep(0.05)
    os.killpg(pid, number)
    assert finish(pid) == 75, errors.read_text()
    assert f"{number.name}: saved after step" in errors.read_text()
    while time.monotonic() < deadline:  # no loader outlives the run
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    raise AssertionError("a process of the run is still there")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_loses_its_loader_in_a_step_ends_both(tmp_path: Path, rank: int) -> None:
    """It left the step at once, in which the other one waits for its gradients."""
    errors, port = tmp_path / "errors", free_port()

    def lose(number: int) -> None:
        join(number, port)
        one_step = Training._one_step

        def step(self: Training, batch: Any) -> None:
            if number == rank and self.done == 1:
                for worker in multiprocessing.active_children():
                    worker.kill()
                time.sleep(1)
            one_step(self, batch)

        Training._one_step = step  # type: ignore[method-assign]

    arguments = [
        *ENTRY, "recipe.max_steps=100000", "hardware.workers=1",
        f"data_dir={tiny_tree(tmp_path)}", f"output_root={tmp_path / 'runs'}",
    ]  # fmt: skip
    both = [start(arguments, errors, before=partial(lose, number)) for number in (0, 1)]
    assert [finish(pid) for pid in both] == [2, 2], errors.read_text()
    said = errors.read_text()
    assert said.count("error: DataLoader worker (pid") == 1 and "Traceback" not in said


@pytest.mark.slow
def test_the_next_epochs_batches_are_asked_for_before_the_last_step_of_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of 3 steps, each followed by an evaluation; two workers have 4 batches at a time."""
    happened: list[str] = []
    samples, one_step = photographs.samples_of, Training._one_step

    def asked(*of: Any) -> Any:
        happened.append("asked")
        return samples(*of)

    def step(self: Training, batch: Any) -> None:
        happened.append(f"step {self.done + 1}")
        one_step(self, batch)

    monkeypatch.setattr(photographs, "samples_of", asked)
    monkeypatch.setattr(Training, "_one_step", step)
    more = ["recipe.max_steps=7", "hardware.workers=2", f"output_root={tmp_path / 'runs'}"]
    run.execute(configure(tiny_tree(tmp_path), "resnet18", "ste", *more), quiet=True)
    assert happened == [
        "asked", "asked", "step 1", "step 2", "asked", *(f"step {k}" for k in range(3, 8)),
    ]  # fmt: skip


@pytest.mark.slow
def test_replaced_images_are_counted_in_the_record_and_named_in_the_log(tmp_path: Path) -> None:
    bad = tiny_tree(tmp_path) / "imagenet/train/n00000001/train_2.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    more = ["dataset.on_bad_image=skip", "recipe.repeats=1", f"output_root={tmp_path / 'runs'}"]
    arguments = [*ENTRY, *more, "recipe.max_steps=6", "hardware.workers=0", f"data_dir={tmp_path}"]
    record = run.execute(compose_run(*arguments), quiet=True)
    assert record["notes"] == "1 unreadable images were replaced"
    assert f"replaced {bad}: " in next(tmp_path.glob("runs/*/log.txt")).read_text()


@pytest.mark.slow
def test_a_run_from_a_decoded_tree_is_evaluated_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name.decode() for name in build(tiny_tree(tmp_path), None, True).train.names]
    root = tmp_path / "imagenet"
    for _ in write_tree(root, 40, plan_tree(root, names, 40, 1), 1, None):
        pass
    more = ["recipe.max_steps=1", "dataset.decoded=40", f"output_root={tmp_path / 'runs'}"]
    record = run.execute(configure(tmp_path, "resnet18", "ste", *more), quiet=True)
    shutil.rmtree(folder_of(root, 40))
    (folder,) = (tmp_path / "runs").iterdir()
    monkeypatch.setattr("sys.argv", ["evaluate", str(folder), "device=cpu"])
    evaluate.main()
    assert f"loss {record['metrics']['last']['val']['loss']!r}" in capsys.readouterr().out


def test_what_one_rank_replaces_counts_for_all() -> None:
    class Two(Ranks):
        def union(self, lines: set[str]) -> set[str]:
            return lines | {"of the other rank"}

    task: Any = object.__new__(ImageNet)
    task.ranks = Two()
    task.loaders = {"train": SimpleNamespace(skipped={"a"}), "val": SimpleNamespace(skipped=set())}
    assert task.skipped() == ["a", "of the other rank"]


def test_a_share_that_mixup_cannot_pair_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_module, "current_ranks", lambda: Ranks(0, 2))
    config = configure(tiny_tree(tmp_path), "deit_tiny", "ste", "recipe.repeats=1")
    odd = replace(config, recipe=replace(config.recipe, global_batch_size=6))
    with pytest.raises(UserError, match=r"gives each of 2 processes 3 images, and mixup pairs"):
        run.make_plan(odd)
    for unmixed in (replace(odd.recipe, mix_probability=0.0), config.recipe):
        run.make_plan(replace(config, recipe=unmixed))


def quiet_progress() -> Any:
    from fogzo_repro.tracking.progress import RunProgress

    return RunProgress("", 1, 0, quiet=True)
