"""A whole run, which schema each section has, and the sections `hardware`, `tracker` and `cell`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fogzo_repro.config.estimators import AveragedConfig, FogzoConfig, SpsaConfig
from fogzo_repro.config.models import (
    C4Config,
    DeiTConfig,
    ImageNetConfig,
    LlamaConfig,
    MlpConfig,
    ResNetConfig,
)
from fogzo_repro.config.parts import FULL_PRECISION, names, own_folder_hint
from fogzo_repro.config.quantizers import (
    LsqConfig,
    NoQuantizer,
    QuestConfig,
    RoundConfig,
    SignConfig,
    has_learned_scales,
)
from fogzo_repro.config.recipes import RecipeConfig, VisionRecipe
from fogzo_repro.config.rules import MOST, choice, finite, require


@dataclass(frozen=True)
class HardwareConfig:
    """Where and how to compute; never what."""

    name: str
    device: str
    precision: str
    compile: bool | None
    channels_last: bool | None
    sync_batchnorm: bool
    workers: int
    augmentation: str
    cuda_graph: bool | None
    exact_products: bool | None
    probe_memory_mb: int

    def __post_init__(self) -> None:
        kind = self.device.split(":")[0]
        choice("hardware.device", kind, ("auto", "cpu", "cuda"))
        choice("hardware.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        choice("hardware.augmentation", self.augmentation, ("auto", "cpu", "device"))
        finite("hardware.probe_memory_mb", self.probe_memory_mb, 256)  # directions take up to 192
        finite("hardware.workers", self.workers, 0, most=MOST)


@dataclass(frozen=True)
class NoTracker:
    """metrics.jsonl alone."""

    name: str


@dataclass(frozen=True)
class WandbConfig:
    """An optional mirror of metrics.jsonl."""

    name: str
    project: str
    group: str | None


@dataclass(frozen=True)
class CellConfig:
    """Labels: where the run stands in a table. They change nothing in the run."""

    table: str
    row: str
    column: str


@dataclass(frozen=True)
class RunConfig:
    """One run, complete and checked."""

    model: Any
    dataset: Any
    quantizer: Any
    estimator: Any
    recipe: RecipeConfig
    hardware: HardwareConfig
    tracker: Any
    cell: CellConfig
    seed: int
    scale: str
    data_dir: str
    output_root: str
    parts_dir: str | None
    force: bool
    dry_run: bool
    snapshots: int
    checkpoint_minutes: float
    eval_every_steps: int | None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, f"seed={self.seed} is outside [0, 2^31)")
        choice("scale", self.scale, ("full", "mini", "smoke"))
        finite("snapshots", self.snapshots, 0, most=MOST)
        finite("checkpoint_minutes", self.checkpoint_minutes, 0)
        finite("eval_every_steps", self.eval_every_steps, 1)
        self._check_inputs()
        self._check_surrogate()
        require(
            not self.recipe.decay_scales or has_learned_scales(self.quantizer),
            f"recipe.decay_scales=true decays learned scales and quantizer={self.quantizer.name} "
            "has none; use quantizer=lsq",
        )
        none = self.quantizer.name == "none"
        if none or self.quantizer.weight_bits == FULL_PRECISION:
            require(
                self.estimator.name == "ste",
                f"estimator={self.estimator.name} perturbs quantized weights and "
                f"{'quantizer=none' if none else 'quantizer.weight_bits=16'} has none; "
                f"add {'quantizer=round' if none else 'quantizer.weight_bits=2'} or estimator=ste",
            )

    def _check_inputs(self) -> None:
        """Refuse a model of tokens on images, and the other way round."""
        takes, gives = (getattr(part, "inputs", "images") for part in (self.model, self.dataset))
        require(
            takes == gives,
            f"model={self.model.name} does not go with dataset={self.dataset.name}: the model "
            f"takes {takes} and the data are {gives}",
        )
        for key in ("context", "vocabulary"):
            require(
                takes != "tokens" or hasattr(self.model, key),
                f"model.{key} is missing: a model with inputs: tokens has it in its YAML file",
            )

    def _check_surrogate(self) -> None:
        """Refuse a surrogate without a file for the quantizer's operator."""
        operator = getattr(self.quantizer, "operator", None)
        if operator is not None:
            start = f"{operator}_"
            known = names("surrogate", self.parts_dir)
            options = tuple(n.removeprefix(start) for n in known if n.startswith(start))
            name = self.quantizer.surrogate
            hint = own_folder_hint(self.parts_dir, f"surrogate/{start}{name}.py")
            choice("quantizer.surrogate", name, options, hint)


# The rules of built-in families; a part of another family has its YAML file's keys and types.
FAMILIES: dict[str, dict[str, type]] = {
    "model": {"mlp": MlpConfig, "resnet": ResNetConfig, "deit": DeiTConfig, "llama": LlamaConfig},
    "dataset": {"imagenet": ImageNetConfig, "c4": C4Config},
    "quantizer": {
        "none": NoQuantizer,
        "uniform": RoundConfig,
        "sign": SignConfig,
        "lsq": LsqConfig,
        "quest": QuestConfig,
    },
    "estimator": {"spsa": SpsaConfig, "fogzo": FogzoConfig, "averaged": AveragedConfig},
}
TRACKERS: dict[str, type] = {"none": NoTracker, "wandb": WandbConfig}
RECIPE_KINDS: dict[str, type] = {"plain": RecipeConfig, "vision": VisionRecipe}
SECTIONS = (*FAMILIES, "recipe", "hardware", "tracker", "cell")
