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
from fogzo_repro.config.run import FAMILIES, RunConfig
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.project import CONFIGS

# What a stored run may lack beside the settings of `NEUTRAL`, and what it had instead.
EARLIER: dict[str, Any] = {
    "data_dir": ".",  # a record does not say where
    "output_root": ".",
    "hardware.exact_products": False,  # every product was one in autocast's type
    "eval_every_steps": None,  # a run was evaluated at the ends of epochs alone
    "hardware.augmentation": "auto",  # the pixels are the same
    "recipe.decay_scales": False,  # no recorded run had learned scales to decay
    "recipe.crop_padding": 0,  # small images were not cropped
    "recipe.micro_batch_size": None,  # no recipe accumulated
    "recipe.decay": "weights",  # biases and gains were not decayed
    "recipe.no_decay": [],
    "quantizer.activation_bits": 16,  # inputs were not quantized
    "hardware.channels_last": None,  # there were no convolutions yet, nor photographs
    "hardware.sync_batchnorm": False,
    "hardware.workers": 0,
}
# Settings that have gone.
GONE = (
    "dataset.tokenizer_sha256",  # the data's fingerprint says which tokenizer
    "recipe.inert",  # had no effect
    "model.small_patch_size",  # see `_of_small_images`
)
SMALL_IMAGE = 64  # pixels a side; images in memory have fewer, and their datasets no image_size
PHOTOGRAPHS_ONLY = {
    "augmentation": "none",
    "rand_augment": None,
    "erase_probability": 0.0,
    "repeats": 1,
}


def parse_stored(stored: Mapping[str, Any]) -> RunConfig:
    """Turn the settings of a run that is over into a `RunConfig`, also those of an earlier code.

    A setting that has gone is left out, one that came later has the value that the code had before.

    Raises:
        ConfigError: where this code does not know the settings.
    """
    settings = copy.deepcopy(dict(stored))
    settings.setdefault("parts_dir", own_parts())
    for section in FAMILIES:
        part = settings.get(section, {})
        part.setdefault("family", _family(section, part.get("name")))
    settings.get("recipe", {}).setdefault("kind", "plain")
    _of_small_images(settings)
    for dotted in GONE:
        section, key = dotted.split(".")
        settings.get(section, {}).pop(key, None)
    for dotted, value in {**NEUTRAL, **EARLIER}.items():
        section, _, key = dotted.rpartition(".")
        if key in setting_types(section, settings):
            node: Any = settings[section] if section else settings
            node.setdefault(key, value)
    return parse_settings(settings)


def _of_small_images(settings: dict[str, Any]) -> None:
    """Give a run on images in memory the settings that it followed.

    The recipe's settings for photographs, and a DeiT's patch size, were stored with such runs and
    had no effect.
    """
    model, recipe = settings.get("model", {}), settings.get("recipe", {})
    if settings.get("dataset", {}).get("image_size", 0) >= SMALL_IMAGE:
        return
    if "small_patch_size" in model:
        model["patch_size"] = model["small_patch_size"]
    if "crop_padding" not in recipe:
        recipe.update({k: v for k, v in PHOTOGRAPHS_ONLY.items() if k in recipe})


def load_stored(path: Path) -> RunConfig:
    """Read a run's config.yaml, see `parse_stored`."""
    return parse_stored(read_yaml(path))


@cache
def _family(section: str, name: str) -> str | None:
    """Return the family of a built-in part; runs were stored without it once."""
    path = CONFIGS / section / f"{name}.yaml"
    return read_yaml(path).get("family") if path.is_file() else None
