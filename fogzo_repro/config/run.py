"""A whole run, and which schema each section has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fogzo_repro.config.datasets import C4Config, ImageNetConfig, ImagesConfig
from fogzo_repro.config.estimators import AddedEstimator, FogzoConfig, SpsaConfig, SteConfig
from fogzo_repro.config.hardware import CellConfig, HardwareConfig, NoTracker, WandbConfig
from fogzo_repro.config.models import AddedModel, DeiTConfig, LlamaConfig, MlpConfig, ResNetConfig
from fogzo_repro.config.quantizers import (
    AddedQuantizer,
    LsqConfig,
    NoQuantizer,
    QuestConfig,
    RoundConfig,
    SignConfig,
    has_learned_scales,
)
from fogzo_repro.config.recipes import RecipeConfig, VisionRecipe
from fogzo_repro.config.rules import choice, finite, require


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
    force: bool
    dry_run: bool
    snapshots: int
    checkpoint_minutes: float
    eval_every_steps: int | None

    def __post_init__(self) -> None:
        require(0 <= self.seed < 2**31, f"seed={self.seed} is outside [0, 2^31)")
        choice("scale", self.scale, ("full", "smoke"))
        finite("snapshots", self.snapshots, 0)
        finite("checkpoint_minutes", self.checkpoint_minutes, 0)
        finite("eval_every_steps", self.eval_every_steps, 1)
        require(
            isinstance(self.model, LlamaConfig) == (self.dataset.name == "c4"),
            f"model={self.model.name} does not go with dataset={self.dataset.name}: dataset=c4 "
            "trains model=llama_*, and nothing else does",
        )
        require(
            not self.recipe.decay_scales or has_learned_scales(self.quantizer),
            f"recipe.decay_scales=true decays learned scales and quantizer={self.quantizer.name} "
            "has none; use quantizer=lsq",
        )
        none = self.quantizer.name == "none"
        if none or getattr(self.quantizer, "weight_bits", 1) == 16:
            require(
                self.estimator.name == "ste",
                f"estimator={self.estimator.name} perturbs quantized weights and "
                f"{'quantizer=none' if none else 'quantizer.weight_bits=16'} has none; "
                f"add {'quantizer=round' if none else 'quantizer.weight_bits=2'} or estimator=ste",
            )


LLAMAS = ("9m", "20m", "30m", "200m", "300m")
SCHEMAS: dict[str, dict[str, type]] = {
    "model": {
        "mlp": MlpConfig,
        "resnet18": ResNetConfig,
        "resnet50": ResNetConfig,
        "deit_tiny": DeiTConfig,
        "deit_small": DeiTConfig,
        **{f"llama_{size}": LlamaConfig for size in LLAMAS},
    },
    "dataset": {
        "digits": ImagesConfig,
        "mnist": ImagesConfig,
        "imagenet100": ImageNetConfig,
        "imagenet1k": ImageNetConfig,
        "c4": C4Config,
    },
    "quantizer": {
        "none": NoQuantizer,
        "round": RoundConfig,
        "sign": SignConfig,
        "lsq": LsqConfig,
        "quest": QuestConfig,
    },
    "estimator": {"ste": SteConfig, "nspsa": SpsaConfig, "fogzo": FogzoConfig},
    "tracker": {"none": NoTracker, "wandb": WandbConfig},
}
RECIPE_KINDS: dict[str, type] = {"plain": RecipeConfig, "vision": VisionRecipe}
UNIFORM_SECTIONS: dict[str, type] = {
    "recipe": RecipeConfig,
    "hardware": HardwareConfig,
    "cell": CellConfig,
}
ADDED: dict[str, tuple[str, type]] = {  # section: (package that holds the file, shared fields)
    "model": ("models", AddedModel),
    "quantizer": ("quantization", AddedQuantizer),
    "estimator": ("estimators", AddedEstimator),
}
