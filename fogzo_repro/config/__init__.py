"""The configuration: types here, values in configs/. `parse_config` is the only door.

Every section is a frozen dataclass without defaults; its `name` selects the schema. A model,
quantizer or estimator that is added as one file and one YAML needs no schema here: it gets the
section's shared fields and a free mapping `options` (README, "Adding an estimator").

This module imports neither torch nor hydra, so that a configuration error is printed at once.
"""

from fogzo_repro.config.estimators import SteConfig
from fogzo_repro.config.hardware import HardwareConfig
from fogzo_repro.config.identity import cell_id, config_hash, result_fields, run_id
from fogzo_repro.config.parse import CompositionError, parse_config, setting_names, to_yaml
from fogzo_repro.config.quantizers import (
    LsqConfig,
    NoQuantizer,
    QuestConfig,
    RoundConfig,
    quantizer_label,
)
from fogzo_repro.config.recipes import RecipeConfig, VisionRecipe
from fogzo_repro.config.rules import ConfigError, did_you_mean
from fogzo_repro.config.run import RunConfig
from fogzo_repro.config.yaml_files import CONFIGS, read_yaml
from fogzo_repro.terminal import UserError

__all__ = [
    "CONFIGS",
    "CompositionError",
    "ConfigError",
    "HardwareConfig",
    "LsqConfig",
    "NoQuantizer",
    "QuestConfig",
    "RecipeConfig",
    "RoundConfig",
    "RunConfig",
    "SteConfig",
    "UserError",
    "VisionRecipe",
    "cell_id",
    "config_hash",
    "did_you_mean",
    "parse_config",
    "quantizer_label",
    "read_yaml",
    "result_fields",
    "run_id",
    "setting_names",
    "to_yaml",
]
