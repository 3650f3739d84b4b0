"""The configuration: types here, values in configs/. `parse_config` is the only door.

Every section is a frozen dataclass without defaults; its `name` selects the schema. A model,
quantizer or estimator that is added as one file and one YAML needs no schema here: it gets the
section's shared fields and a free mapping `options` (README, "Adding an estimator").

This module imports neither torch nor hydra, so that a configuration error is printed at once.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fogzo_repro import METHOD_VERSION

CompositionError = OmegaConfBaseException  # what Hydra lets through while it composes


class UserError(Exception):
    """Something the user can mend: one line that names the remedy; exit status 2."""


class ConfigError(UserError):
    """A setting that is unknown, missing, of the wrong type or against a rule."""


def _require(rule: bool, message: str) -> None:
    if not rule:
        raise ConfigError(message)


def _choice(key: str, value: str, options: tuple[str, ...]) -> None:
    _require(value in options, f"{key}={value} is not an option; options: {', '.join(options)}")


def _finite(key: str, value: float | None, low: float, *, strict: bool = False) -> None:
    if value is None:
        return
    good = math.isfinite(value) and (value > low if strict else value >= low)
    _require(good, f"{key}={value} must be {'above' if strict else 'at least'} {low:g}")


# --- model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MlpConfig:
    """Two-layer perceptron 784-hidden-classes (PAPER 2, "Shallow networks")."""

    name: str
    hidden: int
    first_last: list[str]

    def __post_init__(self) -> None:
        _finite("model.hidden", self.hidden, 1)


@dataclass(frozen=True)
class ResNetConfig:
    """ResNet-18 or -50 by torchvision (RECIPES A)."""

    name: str
    depth: int
    width: int
    first_last: list[str]

    def __post_init__(self) -> None:
        _require(self.depth in (18, 50), f"model.depth={self.depth} must be 18 or 50")
        _finite("model.width", self.width, 1)


@dataclass(frozen=True)
class DeiTConfig:
    """DeiT-Tiny or -Small by timm (RECIPES B.4)."""

    name: str
    depth: int
    heads: int
    head_dim: int
    patch_size: int
    small_patch_size: int
    drop_path: float
    first_last: list[str]

    def __post_init__(self) -> None:
        for key in ("depth", "heads", "head_dim", "patch_size", "small_patch_size"):
            _finite(f"model.{key}", getattr(self, key), 1)
        _require(0 <= self.drop_path < 1, f"model.drop_path={self.drop_path} is outside [0, 1)")


@dataclass(frozen=True)
class LlamaConfig:
    """A LLaMA by its dimensions, with what its recipe depends on (PAPER 3, RECIPES C.1).

    Attributes:
        hidden: width of the MLP, 8/3 of the width rounded up to a multiple of 256.
        context: tokens a sequence.
        quest_lr: QuEST's peak learning rate for this size, at 512 sequences a step.
        tokens: the length of the paper's run.
    """

    name: str
    layers: int
    width: int
    heads: int
    hidden: int
    context: int
    vocabulary: int
    norm_eps: float
    rope_theta: float
    init_std: float
    first_last: list[str]
    quest_lr: float
    tokens: float

    def __post_init__(self) -> None:
        for key in ("layers", "width", "heads", "hidden", "context", "vocabulary"):
            _finite(f"model.{key}", getattr(self, key), 1)
        for key in ("norm_eps", "rope_theta", "init_std", "quest_lr", "tokens"):
            _finite(f"model.{key}", getattr(self, key), 0, strict=True)
        _require(
            self.width % (2 * self.heads) == 0,
            f"model.width={self.width} is not a multiple of 2 x model.heads={self.heads}, which "
            "rotary embeddings need; change one of them",
        )
        _require(
            self.vocabulary <= 2**16,
            f"model.vocabulary={self.vocabulary} exceeds 65536, what uint16 shards hold",
        )

    def smoke(self) -> LlamaConfig:
        """Return the same network with widths / 8, for scale=smoke."""
        return replace(self, width=self.width // 8, hidden=self.hidden // 8)


@dataclass(frozen=True)
class AddedModel:
    """A model that is one file in fogzo_repro/models and one YAML."""

    name: str
    first_last: list[str]
    options: dict[str, Any]


# --- dataset -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ImagesConfig:
    """MNIST or scikit-learn's digits: small images held in memory."""

    name: str


@dataclass(frozen=True)
class ImageNetConfig:
    """A subset of the classes of an ImageNet tree `data_dir`/imagenet/{train,val}/<wnid>/."""

    name: str
    classes: str | None
    allow_partial: bool
    image_size: int
    on_bad_image: str

    def __post_init__(self) -> None:
        _finite("dataset.image_size", self.image_size, 16)
        _choice("dataset.on_bad_image", self.on_bad_image, ("error", "skip"))


@dataclass(frozen=True)
class C4Config:
    """Tokenised C4, as scripts/prepare_c4.py writes it.

    Attributes:
        validation: `heldout`, a slice of the training documents as in QuEST, or `c4`, C4's own
            validation split.
        interim_windows: windows of the evaluations before the last one; the last takes all.
        train_windows: training windows in the final report's train loss.
        tokenizer_sha256: refuse data of another tokenizer; null takes any.
    """

    name: str
    validation: str
    interim_windows: int
    train_windows: int
    tokenizer_sha256: str | None

    def __post_init__(self) -> None:
        _choice("dataset.validation", self.validation, ("heldout", "c4"))
        _finite("dataset.interim_windows", self.interim_windows, 1)
        _finite("dataset.train_windows", self.train_windows, 1)

    def smoke(self) -> C4Config:
        """Return the same data with short evaluations, for scale=smoke."""
        return replace(self, interim_windows=8, train_windows=8)


# --- quantizer -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class NoQuantizer:
    """Full precision."""

    name: str


_FIRST_LAST = ("float", "8bit", "quantized")


def _bits(key: str, value: int) -> None:
    _require(
        1 <= value <= 8 or value == 16, f"{key}={value} is outside 1..8 (16 is full precision)"
    )


def _no_activations(name: str, bits: int) -> None:
    _require(
        bits == 16,
        f"quantizer.activation_bits={bits}: quantizer={name} takes its fixed scale from the "
        "initial weights and has none for activations; use quantizer=lsq or quantizer=quest",
    )


@dataclass(frozen=True)
class RoundConfig:
    """Fixed scale, rounding to 2^b levels (PAPER 4, "Grid of round")."""

    name: str
    weight_bits: int
    activation_bits: int
    surrogate: str
    grid: str
    clip_gradient: bool
    first_last: str

    def __post_init__(self) -> None:
        _no_activations("round", self.activation_bits)
        _require(
            2 <= self.weight_bits <= 8,
            f"quantizer.weight_bits={self.weight_bits} is outside 2..8 for quantizer=round"
            + (" (for 1 bit use quantizer=sign)" if self.weight_bits == 1 else ""),
        )
        _choice("quantizer.surrogate", self.surrogate, ("identity",))
        _choice("quantizer.grid", self.grid, ("integer", "half_integer"))
        _choice("quantizer.first_last", self.first_last, _FIRST_LAST)


@dataclass(frozen=True)
class SignConfig:
    """Fixed scale, one bit (PAPER 1, "Smoothing law")."""

    name: str
    activation_bits: int
    surrogate: str
    first_last: str

    def __post_init__(self) -> None:
        _no_activations("sign", self.activation_bits)
        _choice("quantizer.surrogate", self.surrogate, ("hardtanh", "tanh", "approxsign"))
        _choice("quantizer.first_last", self.first_last, _FIRST_LAST)


@dataclass(frozen=True)
class LsqConfig:
    """Learned step size (RECIPES D.4)."""

    name: str
    weight_bits: int
    activation_bits: int
    grid: str
    per_channel: bool
    unsigned_inputs: list[str]
    first_last: str

    def __post_init__(self) -> None:
        _bits("quantizer.weight_bits", self.weight_bits)
        _bits("quantizer.activation_bits", self.activation_bits)
        _choice("quantizer.grid", self.grid, ("integer", "half_integer"))
        _choice("quantizer.first_last", self.first_last, _FIRST_LAST)
        _require(
            not (self.per_channel and self.weight_bits == 16),
            "quantizer.per_channel=true is a step for each output channel of a weight, and "
            "quantizer.weight_bits=16 leaves the weights alone; an activation has one step",
        )
        _require(
            not (self.unsigned_inputs and self.activation_bits == 16),
            f"quantizer.unsigned_inputs={self.unsigned_inputs} needs quantized activations, and "
            "quantizer.activation_bits=16 leaves them alone",
        )


@dataclass(frozen=True)
class QuestConfig:
    """QuEST (RECIPES D.1 to D.3)."""

    name: str
    weight_bits: int
    activation_bits: int
    hadamard: str
    trust_width: float | None
    clip_scale: float
    first_last: str

    def __post_init__(self) -> None:
        _bits("quantizer.weight_bits", self.weight_bits)
        _bits("quantizer.activation_bits", self.activation_bits)
        _choice("quantizer.hadamard", self.hadamard, ("full", "half", "none"))
        _finite("quantizer.trust_width", self.trust_width, 0, strict=True)
        _finite("quantizer.clip_scale", self.clip_scale, 0, strict=True)
        _choice("quantizer.first_last", self.first_last, _FIRST_LAST)


@dataclass(frozen=True)
class AddedQuantizer:
    """A quantizer that is one file in fogzo_repro/quantization and one YAML."""

    name: str
    weight_bits: int
    activation_bits: int
    first_last: str
    options: dict[str, Any]


# --- estimator -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class SteConfig:
    """Straight-through estimator."""

    name: str


@dataclass(frozen=True)
class SpsaConfig:
    """n-SPSA (PAPER 1)."""

    name: str
    n: int
    start_fraction: float
    probe_fraction: float
    evaluator: str
    random_sign: bool

    def __post_init__(self) -> None:
        _require(
            self.n >= 1, f"estimator.n={self.n} must be at least 1; use estimator=ste for none"
        )
        for key in ("start_fraction", "probe_fraction"):
            value = getattr(self, key)
            _require(0 <= value <= 1, f"estimator.{key}={value} is outside [0, 1]")
        _require(self.probe_fraction > 0, "estimator.probe_fraction=0.0 must be above 0")
        _choice("estimator.evaluator", self.evaluator, ("auto", "sequential", "batched"))


@dataclass(frozen=True)
class FogzoConfig(SpsaConfig):
    """FOGZO (PAPER 1, Algorithm 1). `noise` is 1 - beta_min; both are always set after parsing."""

    beta_min: float
    noise: float | None
    beta_schedule: str

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.beta_min <= 1, f"estimator.beta_min={self.beta_min} is outside [0, 1]")
        if self.noise is None:  # exact in decimal: 1 - 0.999 is 0.001, not 0.0010000000000000009
            object.__setattr__(self, "noise", float(1 - Decimal(repr(self.beta_min))))
        else:
            _require(0 <= self.noise <= 1, f"estimator.noise={self.noise} is outside [0, 1]")
            object.__setattr__(self, "beta_min", float(1 - Decimal(repr(self.noise))))
        _choice("estimator.beta_schedule", self.beta_schedule, ("constant", "linear"))


@dataclass(frozen=True)
class AddedEstimator:
    """An estimator that is one file in fogzo_repro/estimators and one YAML."""

    name: str
    options: dict[str, Any]


# --- recipe, hardware, tracker -------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeConfig:
    """Optimizer, schedule, batch and length."""

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
    betas: list[float]
    eps: float
    momentum: float
    clip_norm: float | None
    accumulate: bool
    micro_batch_size: int | None
    autocast: bool
    eval_every_epochs: int

    def __post_init__(self) -> None:
        _choice("recipe.optimizer", self.optimizer, ("adamw", "sgd"))
        _choice("recipe.schedule", self.schedule, self.SCHEDULES)
        _choice("recipe.decay", self.decay, ("weights", "all"))
        _finite("recipe.lr", self.lr, 0, strict=True)
        _finite("recipe.weight_decay", self.weight_decay, 0)
        _finite("recipe.eps", self.eps, 0, strict=True)
        _finite("recipe.clip_norm", self.clip_norm, 0, strict=True)
        _require(0 <= self.momentum < 1, f"recipe.momentum={self.momentum} is outside [0, 1)")
        _require(
            len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas),
            f"recipe.betas={self.betas} must be two numbers in [0, 1)",
        )
        for key in ("global_batch_size", "epochs", "eval_every_epochs"):
            _finite(f"recipe.{key}", getattr(self, key), 1)
        _finite("recipe.max_steps", self.max_steps, 1)
        _finite("recipe.micro_batch_size", self.micro_batch_size, 1)
        _require(
            not self.accumulate or self.micro_batch_size is not None,
            "recipe.accumulate=true needs recipe.micro_batch_size, the examples of one pass",
        )
        if self.accumulate and self.micro_batch_size:
            _require(
                self.global_batch_size % self.micro_batch_size == 0,
                f"recipe.micro_batch_size={self.micro_batch_size} does not divide "
                f"recipe.global_batch_size={self.global_batch_size}",
            )


@dataclass(frozen=True)
class VisionRecipe(RecipeConfig):
    """A recipe for image classification: schedules by epoch, augmentation, mixing (RECIPES A, B).

    What changes photographs (`augmentation` and the keys after it) is for ImageNet; small images
    that are held in memory are trained on as they are.
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
    interpolation: str
    test_resize: int
    rand_augment: str | None
    color_jitter: float
    erase_probability: float
    repeats: int
    repeat_ranks: int
    inert: dict[str, Any]

    def __post_init__(self) -> None:
        super().__post_init__()
        for key in ("step_epochs", "repeats", "repeat_ranks", "test_resize"):
            _finite(f"recipe.{key}", getattr(self, key), 1)
        for key in ("step_factor", "warmup_epochs", "warmup_lr", "min_lr", "mixup", "cutmix"):
            _finite(f"recipe.{key}", getattr(self, key), 0)
        shares = ("mix_probability", "cutmix_share", "label_smoothing", "erase_probability")
        for key in shares:
            value = getattr(self, key)
            _require(0 <= value <= 1, f"recipe.{key}={value} is outside [0, 1]")
        _choice("recipe.augmentation", self.augmentation, ("torchvision", "timm"))
        _choice("recipe.interpolation", self.interpolation, ("bilinear", "bicubic"))
        _require(
            not self.mixes or self.global_batch_size % 2 == 0,
            f"recipe.global_batch_size={self.global_batch_size} must be even: mixup pairs images",
        )
        _require(
            self.repeats == 1
            or (self.drop_last and self.global_batch_size % self.repeat_ranks == 0),
            f"recipe.repeats={self.repeats} needs recipe.drop_last=true and a global_batch_size "
            f"that is a multiple of recipe.repeat_ranks={self.repeat_ranks}",
        )

    @property
    def mixes(self) -> bool:
        """Whether mixup or CutMix is on."""
        return self.mix_probability > 0 and (self.mixup > 0 or self.cutmix > 0)


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
    cuda_graph: bool | None
    probe_memory_mb: int

    def __post_init__(self) -> None:
        kind = self.device.split(":")[0]
        _choice("hardware.device", kind, ("auto", "cpu", "cuda"))
        _choice("hardware.precision", self.precision, ("auto", "fp32", "bf16", "fp16"))
        _finite("hardware.probe_memory_mb", self.probe_memory_mb, 1)
        _finite("hardware.workers", self.workers, 0)


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
    force: bool
    dry_run: bool
    snapshots: int
    checkpoint_minutes: float

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 2**31, f"seed={self.seed} is outside [0, 2^31)")
        _choice("scale", self.scale, ("full", "mini", "smoke"))
        _finite("snapshots", self.snapshots, 0)
        _finite("checkpoint_minutes", self.checkpoint_minutes, 0)
        _require(
            isinstance(self.model, LlamaConfig) == (self.dataset.name == "c4"),
            f"model={self.model.name} does not go with dataset={self.dataset.name}: dataset=c4 "
            "trains model=llama_*, and nothing else does",
        )
        none = self.quantizer.name == "none"
        if none or getattr(self.quantizer, "weight_bits", 1) == 16:
            _require(
                self.estimator.name == "ste",
                f"estimator={self.estimator.name} perturbs quantized weights and "
                f"{'quantizer=none' if none else 'quantizer.weight_bits=16'} has none; "
                f"add {'quantizer=round' if none else 'quantizer.weight_bits=2'} or estimator=ste",
            )


LLAMAS = ("9m", "20m", "30m", "200m", "300m", "mini")
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


def _schema(section: str, node: Any) -> type:
    """Return the dataclass for a section, by its `name`."""
    _require(isinstance(node, DictConfig), f"{section} is missing; give {section}=<option>")
    if section == "recipe":
        kind = node.get("kind")
        _choice("recipe.kind", kind, tuple(RECIPE_KINDS))
        return RECIPE_KINDS[kind]
    if section in UNIFORM_SECTIONS:
        return UNIFORM_SECTIONS[section]
    name = node.get("name")
    known = SCHEMAS[section]
    if name in known:
        return known[name]
    if section in ADDED:
        package, shared = ADDED[section]
        if (Path(__file__).parent / package / f"{name}.py").is_file():
            return shared
    raise ConfigError(f"{section}={name} is not an option; options: {', '.join(sorted(known))}")


def _check_keys(where: str, given: set[str], wanted: set[str]) -> None:
    for key in sorted(given - wanted):
        near = difflib.get_close_matches(key, wanted, n=1, cutoff=0.0)
        raise ConfigError(f"{where}{key} is not a setting; did you mean {where}{near[0]}?")
    for key in sorted(wanted - given):
        raise ConfigError(f"{where}{key} is missing")


def _parse_section(section: str, node: Any) -> Any:
    schema = _schema(section, node)
    _check_keys(f"{section}.", set(node), {f.name for f in fields(schema)})
    try:
        values = OmegaConf.to_container(node, resolve=True)  # labels refer to other sections
        merged = OmegaConf.merge(OmegaConf.structured(schema), values)
        return OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{section}.{_one_line(error)}") from None


def _one_line(error: OmegaConfBaseException) -> str:
    key = getattr(error, "key", None)
    return f"{key}: {str(error).splitlines()[0]}"


# Arithmetic that a recipe needs, since YAML has none: batch, lr and steps go together.
OmegaConf.register_new_resolver(
    "scaled_lr", lambda lr, batch, of_batch: lr * batch / of_batch, replace=True
)
OmegaConf.register_new_resolver(  # the paper has other values for deep networks than for the MLP
    "deep", lambda model, deep, shallow: shallow if model == "mlp" else deep, replace=True
)
OmegaConf.register_new_resolver(
    "whole_steps", lambda tokens, batch, context: int(tokens // (batch * context)), replace=True
)


def parse_config(config: DictConfig) -> RunConfig:
    """Turn a composed Hydra config into a checked `RunConfig`.

    Raises:
        ConfigError: with one line that names the key, the rule and, where there is one, the remedy.
    """
    config = copy.deepcopy(config)
    try:
        OmegaConf.resolve(config)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{str(error).splitlines()[0]}; a recipe that needs it goes with the models that "
            "select it, else give recipe.lr and recipe.max_steps"
        ) from None
    sections = {*SCHEMAS, *UNIFORM_SECTIONS}
    names = {f.name for f in fields(RunConfig)}
    _check_keys("", set(config), names)
    scalars = OmegaConf.create({k: config[k] for k in sorted(names - sections)})
    values: dict[str, Any] = {s: _parse_section(s, config[s]) for s in sorted(sections)}
    for field in fields(RunConfig):
        if field.name not in sections:
            values[field.name] = _scalar(field.name, str(field.type), scalars[field.name])
    if values["scale"] == "smoke":
        for section in sections:
            if hasattr(values[section], "smoke"):
                values[section] = values[section].smoke()
    return RunConfig(**values)


def setting_names(config: DictConfig, prefix: str = "") -> set[str]:
    """Return the dotted names of all settings of a composed config."""
    found: set[str] = set()
    for key in config:
        name = prefix + str(key)
        found.add(name)
        node = config._get_node(key)
        if isinstance(node, DictConfig) and not node._is_none():
            found |= setting_names(node, f"{name}.")
    return found


_SCALARS = {"int": int, "str": str, "bool": bool, "float": float}


def _scalar(key: str, kind: str, value: Any) -> Any:
    wanted = _SCALARS[kind]
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is str and value is not None:
        value = str(value)
    _require(type(value) is wanted, f"{key}={value} is not of type {kind}")
    return value


# --- identity ------------------------------------------------------------------------------------

# What does not change the result, and so is not part of a run's identity.
_FREE = {
    "tracker", "cell", "data_dir", "output_root", "force", "dry_run", "snapshots",
    "checkpoint_minutes", "hardware",
}  # fmt: skip


def result_fields(config: RunConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return all that determines the result: settings, resolved hardware facts, method version.

    Args:
        config: the run.
        resolved: what only the machine or the data can say: precision, world size, evaluator,
            the data's fingerprint.
    """
    kept = {k: v for k, v in asdict(config).items() if k not in _FREE}
    return {**kept, "resolved": resolved, "method_version": METHOD_VERSION}


def config_hash(result: dict[str, Any]) -> str:
    """Return 8 hexadecimal digits over `result_fields`."""
    text = json.dumps(result, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_id(config: RunConfig, result: dict[str, Any]) -> str:
    """Return `{model}-{dataset}-{quantizer}-{estimator}-s{seed}-{hash8}`."""
    names = (config.model.name, config.dataset.name, config.quantizer.name, config.estimator.name)
    return f"{'-'.join(names)}-s{config.seed}-{config_hash(result)}"
