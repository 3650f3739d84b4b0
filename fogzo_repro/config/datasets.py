"""The `dataset` section."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fogzo_repro.config.parts import Part
from fogzo_repro.config.rules import choice, finite


@dataclass(frozen=True)
class ImageNetConfig(Part):
    """A subset of the classes of an ImageNet tree `data_dir`/imagenet/{train,val}/<wnid>/."""

    classes: str | None
    allow_partial: bool
    image_size: int
    on_bad_image: str
    decoded: int | None

    def __post_init__(self) -> None:
        finite("dataset.decoded", self.decoded, 16)
        finite("dataset.image_size", self.image_size, 16)
        choice("dataset.on_bad_image", self.on_bad_image, ("error", "skip"))


@dataclass(frozen=True)
class C4Config(Part):
    """Tokenised C4 or another corpus, as scripts/prepare_c4.py writes it."""

    inputs: ClassVar[str] = "tokens"

    validation: str
    interim_windows: int
    train_windows: int

    def __post_init__(self) -> None:
        choice("dataset.validation", self.validation, ("heldout", "tuning", "c4"))
        finite("dataset.interim_windows", self.interim_windows, 1)
        finite("dataset.train_windows", self.train_windows, 1)

    def smoke(self) -> C4Config:
        """Return the same data with short evaluations, for scale=smoke."""
        return replace(self, interim_windows=8, train_windows=8)
