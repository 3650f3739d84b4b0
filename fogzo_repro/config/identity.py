"""What identifies a run: all that changes its result, and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fogzo_repro import METHOD_VERSION
from fogzo_repro.config.parts import added_files
from fogzo_repro.config.quantizers import has_learned_scales
from fogzo_repro.config.run import FAMILIES, RunConfig

# Where things lie on the machine of a run: in its folder, but in no record and no export.
PLACES = ("data_dir", "output_root", "parts_dir")
# Likewise; the run's identity has what is in there, as `resolved.start_from`.
START = "start_from"  # of the recipe
# What changes neither a weight nor the last metrics, and so is not part of a run's identity.
FREE = {
    *PLACES, "tracker", "cell", "force", "dry_run", "snapshots",
    "checkpoint_minutes", "eval_every_steps", "hardware",
}  # fmt: skip

# Of `resolved` in a record what is no part of the identity: how it was computed, to rounding.
HOW_COMPUTED = ("head", "head_gradients", "inputs")

# Settings that came when runs had been recorded already, with the value that the code had before:
# with that value they are not part of the identity, so that a run keeps its name.
NEUTRAL: dict[str, Any] = {
    "model.stem": "imagenet",  # every ResNet had torchvision's stem, whatever the images' size
    "quantizer.scale_factor": 1.0,  # the levels were one standard deviation apart
    "estimator.rho": None,  # the noise was given as such; the identity has what rho amounts to
    "dataset.decoded": None,  # training images were decoded from their files
    "recipe.start_from": None,  # every run began with weights of its own
}


def published(config: RunConfig) -> dict[str, Any]:
    """Return a run's settings without where things lie: for its record and its export."""
    kept = {key: value for key, value in asdict(config).items() if key not in PLACES}
    start = kept["recipe"].pop(START)
    if start is not None:  # the run's own name, of a link to it
        kept["recipe"][START] = Path(start).expanduser().resolve().name
    return kept


def as_recorded(config: RunConfig) -> dict[str, Any]:
    """Return a run's settings as they are read from its record."""
    found: dict[str, Any] = json.loads(json.dumps(published(config)))
    return found


def result_fields(config: RunConfig, resolved: dict[str, Any]) -> dict[str, Any]:
    """Return all that determines the result: settings, resolved facts, method version.

    `resolved` is what only the machine or files can say: precision, world size, evaluator, the
    data's fingerprint, what a user's Python files and the weights that it begins with contain.
    """
    kept = {k: v for k, v in asdict(config).items() if k not in FREE}
    for section in FAMILIES:  # two parts of one name differ in the fingerprint or that content
        del kept[section]["family"]
    for dotted, value in NEUTRAL.items():
        section, key = dotted.split(".")
        if key in kept[section] and kept[section][key] == value:
            del kept[section][key]
    kept["recipe"].pop(START, None)
    if not has_learned_scales(config.quantizer):  # it is false then and decides nothing
        del kept["recipe"]["decay_scales"]
    return {**kept, "resolved": resolved, "method_version": METHOD_VERSION}


def difference(record: Mapping[str, Any], config: RunConfig) -> str | None:
    """Return in what a recorded run is another one than its configuration gives now, if anything.

    Looked at are the settings of its parts and recipe and the files of added parts. Data, device
    and the network that it begins with are not.
    """
    now = as_recorded(config)
    for section in (*FAMILIES, "recipe"):
        there = record["config"].get(section, {})
        for key in sorted(now[section].keys() - {"family", START}):
            value = now[section][key]
            had = there.get(key, NEUTRAL.get(f"{section}.{key}", value))
            if had != value:
                return f"{section}.{key}={had}, not {value}"
    parts, had = added_files(config), record["resolved"].get("parts", {})
    changed = [section for section in parts if had.get(section) != parts[section]]
    return f"another Python file of its {changed[0]}" if changed else None


def config_hash(result: dict[str, Any]) -> str:
    """Return 8 hexadecimal digits over `result_fields`."""
    text = json.dumps(result, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_id(config: RunConfig, result: dict[str, Any]) -> str:
    """Return `{model}-{dataset}-{quantizer}-{estimator}-s{seed}-{hash8}`."""
    return f"{_names(config)}-s{config.seed}-{config_hash(result)}"


def cell_id(config: RunConfig, result: dict[str, Any], seeds: Sequence[int]) -> str:
    """Return `{model}-{dataset}-{quantizer}-{estimator}-{count}seeds-{hash8}`, see `records`.

    `config` and `result` are those of any of the runs.
    """
    shared = {key: value for key, value in result.items() if key != "seed"}
    return f"{_names(config)}-{len(seeds)}seeds-{config_hash({**shared, 'seeds': list(seeds)})}"


def _names(config: RunConfig) -> str:
    parts = (config.model, config.dataset, config.quantizer, config.estimator)
    return "-".join(part.name for part in parts)
