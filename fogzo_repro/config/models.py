"""The `model` and `dataset` sections."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from fogzo_repro.config.parts import ModelPart, Part
from fogzo_repro.config.rules import MOST, choice, finite, require


@dataclass(frozen=True)
class MlpConfig(ModelPart):
    """Two-layer perceptron 784-hidden-classes (PAPER 2, "Shallow networks")."""

    hidden: int

    def __post_init__(self) -> None:
        finite("model.hidden", self.hidden, 1)


@dataclass(frozen=True)
class ResNetConfig(ModelPart):
    """ResNet-18 or -50 by torchvision (RECIPES A); `stem=small` is usual for images of 32 px."""

    depth: int
    width: int
    stem: str

    def __post_init__(self) -> None:
        choice("model.stem", self.stem, ("imagenet", "small"))
        require(self.depth in (18, 50), f"model.depth={self.depth} must be 18 or 50")
        finite("model.width", self.width, 1)


@dataclass(frozen=True)
class DeiTConfig(ModelPart):
    """DeiT-Tiny or -Small by timm (RECIPES B.4)."""

    depth: int
    heads: int
    head_dim: int
    patch_size: int
    drop_path: float

    def __post_init__(self) -> None:
        finite("model.depth", self.depth, 1, most=MOST)
        for key in ("heads", "head_dim", "patch_size"):
            finite(f"model.{key}", getattr(self, key), 1)
        require(0 <= self.drop_path < 1, f"model.drop_path={self.drop_path} is outside [0, 1)")


@dataclass(frozen=True)
class LlamaConfig(ModelPart):
    """A LLaMA by its dimensions, with what its recipe depends on (PAPER 3, RECIPES C.1).

    `hidden`, the width of the MLP, is 8/3 of the width rounded up to a multiple of 256.
    """

    inputs: ClassVar[str] = "tokens"

    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    init_std: float
    quest_lr: float
    tokens: float

    def __post_init__(self) -> None:
        finite("model.layers", self.layers, 1, most=MOST)
        for key in ("width", "heads", "hidden", "context", "vocabulary"):
            finite(f"model.{key}", getattr(self, key), 1)
        for key in ("norm_eps", "rope_theta", "init_std", "quest_lr", "tokens"):
            finite(f"model.{key}", getattr(self, key), 0, strict=True)
        require(
            self.width % (2 * self.heads) == 0,
            f"model.width={self.width} is not a multiple of 2 x model.heads={self.heads}, which "
            "rotary embeddings need; change one of them",
        )
        require(
            self.vocabulary <= 2**16,
            f"model.vocabulary={self.vocabulary} exceeds 65536, what uint16 shards hold",
        )

    def smoke(self) -> LlamaConfig:
        """Return the same network with widths / 8, for scale=smoke."""
        return replace(self, width=self.width // 8, hidden=self.hidden // 8)


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
