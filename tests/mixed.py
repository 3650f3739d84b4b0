"""Recipes that say how batches are mixed, and nothing else."""

from types import SimpleNamespace
from typing import Any

from fogzo_repro.config import VisionRecipe
from fogzo_repro.data.mixing import Mix, mixer


def mixer_of(
    classes: int, mixup: float, cutmix: float, probability: float, share: float, smoothing: float
) -> Mix | None:
    recipe: Any = SimpleNamespace(
        mixup=mixup, cutmix=cutmix, mix_probability=probability, cutmix_share=share,
        label_smoothing=smoothing,
    )  # fmt: skip
    recipe.mixes = VisionRecipe.mixes.fget(recipe)  # type: ignore[attr-defined]
    return mixer(recipe, classes)
