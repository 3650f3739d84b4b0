"""Runs that are over, also those of an earlier code: their settings as this code has them.

What a run folder, a record or an export holds is as the run was, resolved already: nothing of what
is applied where a run is composed is applied again.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from fogzo_repro.config.identity import NEUTRAL
from fogzo_repro.config.parse import parse_settings, setting_types
from fogzo_repro.config.parts import own_parts
from fogzo_repro.config.rules import ConfigError
from fogzo_repro.config.run import FAMILIES, SECTIONS, RunConfig
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.project import CONFIGS

# What a committed record may lack beside the settings of `NEUTRAL`, and what its run had instead.
EARLIER: dict[str, Any] = {
    "data_dir": ".",  # a record does not say where
    "output_root": ".",
    "hardware.exact_products": False,  # every product was one in autocast's type
    "eval_every_steps": None,  # a run was evaluated at the ends of epochs alone
    "hardware.augmentation": "auto",  # the pixels are the same
    "recipe.decay_scales": False,  # no recorded run had learned scales to decay
}


def parse_stored(stored: Mapping[str, Any]) -> RunConfig:
    """Turn the settings of a run that is over into a `RunConfig`, also those of an earlier code.

    A setting that came later has the value that the code had before.

    Raises:
        ConfigError: where this code does not know the settings, or they are damaged.
    """
    settings = copy.deepcopy(dict(stored))
    settings.setdefault("parts_dir", own_parts())
    if not isinstance(settings["parts_dir"], str | None):
        raise ConfigError(f"parts_dir={settings['parts_dir']} is not a text")
    for name in SECTIONS:
        if not isinstance(settings.get(name, {}), dict):
            raise ConfigError(f"{name}={settings[name]} is not a section of settings")
    for section in FAMILIES:
        part = settings.get(section, {})
        part.setdefault("family", _family(section, part.get("name")))
    for dotted, value in {**NEUTRAL, **EARLIER}.items():
        section, _, key = dotted.rpartition(".")
        if key in setting_types(section, settings):
            node: Any = settings[section] if section else settings
            node.setdefault(key, value)
    return parse_settings(settings)


def load_stored(path: Path) -> RunConfig:
    """Read a run's config.yaml, see `parse_stored`.

    Raises:
        ConfigError: as `parse_stored`, with the file.
    """
    try:
        return parse_stored(read_yaml(path))
    except ConfigError as error:
        said = str(error)
        raise ConfigError(said if str(path) in said else f"{path}: {said}") from None


@cache
def _family(section: str, name: str) -> str | None:
    """Return the family of a built-in part; runs were stored without it once."""
    path = CONFIGS / section / f"{name}.yaml"
    return read_yaml(path).get("family") if path.is_file() else None
