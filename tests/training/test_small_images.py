"""Runs on images in memory: crops under an interruption, what a recipe may ask for, dry runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro import run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.plan import describe, make_plan
from fogzo_repro.training.loop import Training


def configure(*words: str) -> RunConfig:
    return compose_run("hardware=cpu", *words)


class Killed(Exception):
    pass


def test_a_run_with_crops_and_mixing_that_is_killed_in_mid_epoch_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["model=deit_tiny", "scale=smoke", "recipe.max_steps=4", "model.depth=2"]
    whole = configure(*words, f"output_root={tmp_path / 'whole'}")
    recipe: Any = whole.recipe
    assert recipe.augmentation == "crop_flip" and recipe.crop_padding == 4 and recipe.mixes
    run.execute(whole, quiet=True)

    taken = Training._one_step

    def stop_after_two(self: Training, batch: Any) -> None:
        if self.done == 2:
            raise Killed
        taken(self, batch)

    parts = replace(whole, output_root=str(tmp_path / "parts"), checkpoint_minutes=0.0)
    monkeypatch.setattr(Training, "_one_step", stop_after_two)
    with pytest.raises(Killed):
        run.execute(parts, quiet=True)
    monkeypatch.undo()
    run.execute(parts, quiet=True)
    for name in ("metrics.jsonl", "checkpoint-00000004.safetensors"):
        files = [next((tmp_path / f).glob(f"*/{name}")).read_bytes() for f in ("whole", "parts")]
        assert files[0] == files[1], name


@pytest.mark.parametrize(
    "words",
    [["dataset=mnist"], ["model=resnet18", "scale=mini"], ["model=deit_small", "scale=mini"]],
    ids=["mnist", "resnet18", "deit_small"],
)
def test_a_dry_run_reads_and_downloads_nothing(tmp_path: Path, words: list[str]) -> None:
    data_dir = tmp_path / "data"
    folders = f"data_dir={data_dir}", f"output_root={tmp_path / 'runs'}"
    said = describe(make_plan(configure(*words, *folders)))
    assert "steps" in said and "training examples" in said
    assert not list(tmp_path.iterdir())


def test_the_mini_recipes_have_the_lengths_that_were_decided() -> None:
    expected = {"deit_tiny": (50_000, 60 * 97), "resnet18": (50_000, 60 * 97)}
    for model, (examples, steps) in expected.items():
        plan = make_plan(configure(f"model={model}", "scale=mini"))
        assert (plan.task.examples, plan.total_steps) == (examples, steps)
        tuning = make_plan(configure(f"model={model}", "scale=mini", "dataset.held_out=5000"))
        assert (tuning.task.examples, tuning.total_steps) == (45_000, 60 * 87)
        assert tuning.run_id != plan.run_id
        assert (plan.task.best_by[0], tuning.task.best_by[0]) == ("test", "val")


WRONG = {
    "photographs": (
        ["model=deit_tiny", "dataset=digits", "model.patch_size=4"],
        "recipe.augmentation=timm is for photographs, and dataset=digits is held in memory; use",
    ),
    "erasing": (
        ["model=deit_tiny", "scale=mini", "recipe.erase_probability=0.25"],
        "recipe.erase_probability=0.25 is for photographs",
    ),
    "repeats": (
        ["model=deit_tiny", "scale=mini", "recipe.repeats=3"],
        "recipe.repeats=3 is for photographs",
    ),
    "held-out": (
        ["model=resnet18", "scale=mini", "dataset.held_out=50000"],
        "dataset.held_out=50000 is not one of 0 .. 49999: dataset=cifar100 has 50,000 training",
    ),
    "negative": (["model=resnet18", "scale=mini", "dataset.held_out=-1"], "held_out=-1 is not one"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_what_a_recipe_or_dataset_cannot_be_asked_is_one_line(
    words: list[str], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        make_plan(configure(*words))
    assert message in str(caught.value)


def test_a_recipe_without_photographs_is_refused_for_them(tmp_path: Path) -> None:
    for split, images in (("train", 3), ("val", 1)):
        for c in range(2):
            folder = tmp_path / "imagenet" / split / f"n{c:08d}"
            folder.mkdir(parents=True)
            for i in range(images):
                (folder / f"{i}.JPEG").touch()
    words = ["model=resnet18", "dataset=imagenet1k", "dataset.allow_partial=true"]
    config = configure(*words, "recipe=cifar_resnet", f"data_dir={tmp_path}")
    with pytest.raises(UserError, match=r"recipe=cifar_resnet has no augmentation of photographs"):
        make_plan(config)
