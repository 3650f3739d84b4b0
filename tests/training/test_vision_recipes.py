"""One word on the command line brings a vision model's dataset, recipe and decay groups."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.data.mixup import Mixup

from fogzo_repro.composition import compose_run
from fogzo_repro.config import ConfigError, RunConfig, build_part
from fogzo_repro.data.images import Batch, ImageDataset, Images
from fogzo_repro.data.mixing import mixer
from fogzo_repro.training.classification import InMemoryImages
from fogzo_repro.training.optimizers import build_optimizer


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "dataset", "recipe", "batch"),
    [
        (["model=resnet18"], "imagenet100", "imagenet_resnet", 256),
        (["model=deit_small"], "imagenet100", "imagenet_deit", 1024),
        (["model=resnet50", "dataset=imagenet1k"], "imagenet1k", "imagenet_resnet", 256),
        (["model=deit_tiny", "scale=mini"], "cifar100", "cifar_deit", 512),
        (["model=resnet50", "scale=mini", "dataset=mnist"], "mnist", "cifar_resnet", 512),
        (["model=llama_20m", "scale=mini"], "c4", "c4_llama_mini", 64),
        (["model=deit_tiny", "scale=smoke"], "digits", "cifar_deit", 16),
        (["model=resnet18", "scale=smoke", "dataset=mnist"], "mnist", "cifar_resnet", 16),
        (
            ["model=resnet18", "scale=smoke", "dataset=imagenet100"],
            "imagenet100",
            "cifar_resnet",
            16,
        ),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)
def test_a_model_and_a_scale_bring_dataset_and_recipe(
    overrides: list[str], dataset: str, recipe: str, batch: int
) -> None:
    config = compose_run(*overrides, "estimator=fogzo")
    assert (config.dataset.name, config.recipe.name) == (dataset, recipe)
    assert config.recipe.global_batch_size == batch


def test_smoke_divides_the_widths_by_eight() -> None:
    models: list[Any] = [
        compose_run(f"model={m}", "scale=smoke").model for m in ("resnet18", "deit_small")
    ]
    assert models[0].width == 8
    assert models[1].heads * models[1].head_dim == 48


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("recipe.global_batch_size=1022", "multiple of recipe.repeat_ranks=4"),
        ("recipe.drop_last=false", "needs recipe.drop_last=true"),
        ("recipe.schedule=linear", "options: .*, step, epoch_cosine"),
        ("recipe.mixup=-1", "recipe.mixup=-1.0 must be at least 0"),
        ("+recipe.mixpu=1", "did you mean recipe.mixup"),
        ("recipe.kind=sound", "options: plain, vision"),
    ],
    ids=lambda value: value.split("=")[0] if "=" in value else None,
)
def test_a_wrong_recipe_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        compose_run("model=deit_tiny", override)


def undecayed(config: RunConfig) -> list[str]:
    model = build_part("model", config.model, None, image_shape=(1, 28, 28), classes=10)
    optimizer = build_optimizer(config.recipe, model, capturable=False)
    decayed = {p for g in optimizer.param_groups if g["weight_decay"] for p in g["params"]}
    assert all(g["weight_decay"] in (0, config.recipe.weight_decay) for g in optimizer.param_groups)
    assert sum(len(g["params"]) for g in optimizer.param_groups) == len(list(model.parameters()))
    return [name for name, p in model.named_parameters() if p not in decayed]


def test_resnet_decays_everything() -> None:
    assert undecayed(compose_run("model=resnet18", "model.width=8")) == []


def test_deit_decays_all_matrices_but_positions_and_class_token() -> None:
    config = compose_run(
        "model=deit_tiny", "model.head_dim=8", "model.depth=2", "model.patch_size=4"
    )
    free = undecayed(config)
    model = build_part("model", config.model, None, image_shape=(1, 28, 28), classes=10)
    expected = [n for n, p in model.named_parameters() if p.dim() == 1]
    assert sorted(free) == sorted([*expected, "pos_embed", "cls_token"])
    assert "patch_embed.proj.weight" not in free


def test_the_imagenet_recipe_of_deit_mixes_and_the_resnets_does_not() -> None:
    mix = mixer(compose_run("model=deit_tiny").recipe, 10)
    assert isinstance(mix, Mixup)
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.label_smoothing) == (0.8, 1, 0.1)
    assert mixer(compose_run("model=resnet18").recipe, 10) is None


def test_images_in_memory_are_mixed_by_the_recipe() -> None:
    data = Batch(torch.zeros(8, 1, 6, 6, dtype=torch.uint8), torch.arange(8))
    images = Images(data, data, 0.1, 0.3, 10)
    dataset = ImageDataset("x", 8, (1, 6, 6), 10, lambda: images)
    mix = mixer(compose_run("model=deit_tiny").recipe, 10)
    task = InMemoryImages(dataset, mix=mix, crop_padding=1)
    task.load(torch.device("cpu"))
    batch = next(iter(task.batches(4).epoch(torch.Generator().manual_seed(0))))
    assert batch.pixels.dtype == torch.float32 and batch.labels.shape == (4, 10)
    loss = task.loss(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(36, 10)), batch)
    assert loss.dtype == torch.float32 and loss > 0
