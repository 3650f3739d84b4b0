"""The configuration: types here, values in configs/. `parse_config` is the only door.

Every section is a frozen dataclass without defaults; explained.py says what each setting means. The
rules of built-in parts are written out here; a part of the user's has the keys and types of its
YAML file (parts.py).

This module imports neither torch nor hydra, so that a configuration error is printed at once.
"""

from fogzo_repro.config.earlier import load_stored, parse_stored
from fogzo_repro.config.estimators import FogzoConfig
from fogzo_repro.config.identity import PLACES, cell_id, published, result_fields, run_id
from fogzo_repro.config.own_errors import own_files_named
from fogzo_repro.config.parse import parse_config, quoted, setting_names, to_yaml
from fogzo_repro.config.parts import (
    added_files,
    build_part,
    build_surrogate,
    check_own_parts,
    is_own,
)
from fogzo_repro.config.quantizers import RoundConfig, quantizer_label
from fogzo_repro.config.recipes import RecipeConfig, VisionRecipe
from fogzo_repro.config.rules import ConfigError, check_given_once, did_you_mean
from fogzo_repro.config.run import HardwareConfig, RunConfig
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.project import CONFIGS
from fogzo_repro.terminal import UserError
