"""The `recipe` section: optimizer, schedule, batch and length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fogzo_repro.config.rules import choice, finite, require


@dataclass(frozen=True)
class RecipeConfig:
    """Optimizer, schedule, batch and length.

    `start_from` is a finished run's folder or a safetensors file, whose weights a run begins with.
    """

    SCHEDULES: ClassVar[tuple[str, ...]] = ("cosine", "constant", "onecycle")

    name: str
    kind: str
    optimizer: str
    lr: float
    global_batch_size: int
    epochs: int
    max_steps: int | None
    schedule: str
    weight_decay: float
    decay: str
    no_decay: list[str]
    decay_scales: bool
    betas: list[float]
    eps: float
    momentum: float
    clip_norm: float | None
    accumulate: bool
    micro_batch_size: int | None
    autocast: bool
    eval_every_epochs: int
    start_from: str | None

    def __post_init__(self) -> None:
        choice("recipe.optimizer", self.optimizer, ("adamw", "sgd"))
        choice("recipe.schedule", self.schedule, self.SCHEDULES)
        choice("recipe.decay", self.decay, ("weights", "all"))
        finite("recipe.lr", self.lr, 0, strict=True)
        finite("recipe.weight_decay", self.weight_decay, 0)
        finite("recipe.eps", self.eps, 0, strict=True)
        finite("recipe.clip_norm", self.clip_norm, 0, strict=True)
        require(0 <= self.momentum < 1, f"recipe.momentum={self.momentum} is outside [0, 1)")
        require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"recipe.betas={self.betas} must be two numbers in [0, 1)",
        )
        for key in ("global_batch_size", "epochs", "eval_every_epochs"):
            finite(f"recipe.{key}", getattr(self, key), 1)
        finite("recipe.max_steps", self.max_steps, 1)
        finite("recipe.micro_batch_size", self.micro_batch_size, 1)
        require(
            not self.accumulate or self.micro_batch_size is not None,
            "recipe.accumulate=true needs recipe.micro_batch_size, the examples of one pass",
        )
        if self.accumulate and self.micro_batch_size:
            require(
                self.global_batch_size % self.micro_batch_size == 0,
                f"recipe.micro_batch_size={self.micro_batch_size} does not divide "
                f"recipe.global_batch_size={self.global_batch_size}",
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the optimizer steps of a run; `max_steps` overrules the epochs."""
        return self.max_steps or self.epochs * steps_per_epoch


@dataclass(frozen=True)
class VisionRecipe(RecipeConfig):
    """A recipe for image classification: schedules by epoch, augmentation, mixing (RECIPES A, B).

    `augmentation` is torchvision's or timm's for photographs, with the keys after `crop_padding`;
    for small images that are held in memory it is `crop_flip`, with `crop_padding`, or `none`.
    """

    SCHEDULES: ClassVar[tuple[str, ...]] = (*RecipeConfig.SCHEDULES, "step", "epoch_cosine")

    step_epochs: int
    step_factor: float
    warmup_epochs: int
    warmup_lr: float
    min_lr: float
    lagged: bool
    drop_last: bool
    mixup: float
    cutmix: float
    mix_probability: float
    cutmix_share: float
    label_smoothing: float
    augmentation: str
    crop_padding: int
    interpolation: str
    test_resize: int
    rand_augment: str | None
    color_jitter: float
    erase_probability: float
    repeats: int
    repeat_ranks: int

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("step_epochs", "repeats", "repeat_ranks", "test_resize"):
            finite(f"recipe.{key}", getattr(self, key), 1)
        floors = ("step_factor", "warmup_epochs", "warmup_lr", "min_lr", "mixup", "cutmix")
        for key in (*floors, "crop_padding"):
            finite(f"recipe.{key}", getattr(self, key), 0)
        shares = ("mix_probability", "cutmix_share", "label_smoothing", "erase_probability")
        for key in shares:
            value = getattr(self, key)
            require(0 <= value <= 1, f"recipe.{key}={value} is outside [0, 1]")
        kinds = ("none", "crop_flip", "torchvision", "timm")
        choice("recipe.augmentation", self.augmentation, kinds)
        choice("recipe.interpolation", self.interpolation, ("bilinear", "bicubic"))
        require(
            not self.mixes or self.global_batch_size % 2 == 0,
            f"recipe.global_batch_size={self.global_batch_size} must be even: mixup pairs images",
        )
        require(
            self.repeats == 1
            or (self.drop_last and self.global_batch_size % self.repeat_ranks == 0),
            f"recipe.repeats={self.repeats} needs recipe.drop_last=true and a global_batch_size "
            f"that is a multiple of recipe.repeat_ranks={self.repeat_ranks}",
        )
        require(
            not self.mixes or self.drop_last,
            "recipe.drop_last=false may leave a batch of an odd number of images, and "
            "recipe.mixup and recipe.cutmix pair images; give recipe.drop_last=true",
        )

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)
