"""From a composed Hydra config to a checked `RunConfig`."""

from __future__ import annotations

import difflib
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fogzo_repro.config.rules import ConfigError, choice, require
from fogzo_repro.config.run import ADDED, RECIPE_KINDS, SCHEMAS, UNIFORM_SECTIONS, RunConfig

CompositionError = OmegaConfBaseException  # what Hydra lets through while it composes


def _schema(section: str, node: Any) -> type:
    """Return the dataclass for a section, by its `name`."""
    require(isinstance(node, DictConfig), f"{section} is missing; give {section}=<option>")
    if section == "recipe":
        kind = node.get("kind")
        choice("recipe.kind", kind, tuple(RECIPE_KINDS))
        return RECIPE_KINDS[kind]
    if section in UNIFORM_SECTIONS:
        return UNIFORM_SECTIONS[section]
    name = node.get("name")
    known = SCHEMAS[section]
    if name in known:
        return known[name]
    if section in ADDED:
        package, shared = ADDED[section]
        if (Path(__file__).parents[1] / package / f"{name}.py").is_file():
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


def _steps_between_evaluations(dataset: str, max_steps: int | None, batch: int) -> int | None:
    """Return QuEST's 200 steps of 512 sequences for C4 (RECIPES C.5), but at least ten a run."""
    if dataset != "c4":
        return None
    quest = max(1, 200 * 512 // batch)
    return min(quest, max(1, max_steps // 10)) if max_steps else quest


OmegaConf.register_new_resolver(
    "steps_between_evaluations", _steps_between_evaluations, replace=True
)


def parse_config(config: DictConfig) -> RunConfig:
    """Turn a composed Hydra config into a checked `RunConfig`.

    Raises:
        ConfigError: with one line that names the key, the rule and, where there is one, the remedy.
    """
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
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


def to_yaml(config: RunConfig) -> str:
    """Return a run's settings as YAML that `parse_config` takes back."""
    return OmegaConf.to_yaml(OmegaConf.create(asdict(config)))


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
    if value is None and kind.endswith(" | None"):
        return None
    kind = kind.removesuffix(" | None")
    wanted = _SCALARS[kind]
    if wanted is float and type(value) is int:
        value = float(value)
    if wanted is str and value is not None:
        value = str(value)
    require(type(value) is wanted, f"{key}={value} is not of type {kind}")
    return value
