"""From a composed Hydra config to a checked `RunConfig`."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fogzo_repro.config.parts import based_on, labels, own_parts, schema
from fogzo_repro.config.rules import ConfigError, choice, did_you_mean, require, spelled
from fogzo_repro.config.run import (
    FAMILIES,
    RECIPE_KINDS,
    SECTIONS,
    TRACKERS,
    CellConfig,
    HardwareConfig,
    RunConfig,
)
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.project import CONFIGS
from fogzo_repro.terminal import typed_path

BROUGHT = ("dataset", "recipe")  # by a model


def _schema(section: str, settings: Any, parts_dir: str | None, typed: Mapping[str, str]) -> type:
    """Return the dataclass of a section."""
    require(isinstance(settings, dict), f"{section} is missing; give {section}=<option>")
    if section == "recipe":
        kind = settings.get("kind")
        choice("recipe.kind", kind, tuple(RECIPE_KINDS))
        return RECIPE_KINDS[kind]
    if section == "tracker":
        name = settings.get("name")
        choice("tracker.name", name, tuple(TRACKERS))
        return TRACKERS[name]
    if section in FAMILIES:
        for key in ("name", "family"):
            given = settings.get(key) is not None
            require(given, f"{section}.{key} is missing; the YAML file of {section} gives it")
            _convert(f"{section}.{key}", str, settings[key], typed)
        name, family = settings["name"], settings["family"]
        known = FAMILIES[section]
        if family in known:
            return known[family]
        return schema(section, name, family, parts_dir, known)
    return {"hardware": HardwareConfig, "cell": CellConfig}[section]


def _check_keys(where: str, given: Iterable[str], wanted: Iterable[str]) -> None:
    for key in sorted({*given} - {*wanted}):
        raise ConfigError(f"{where}{key} is not a setting{did_you_mean(key, wanted, where)}")
    for key in sorted({*wanted} - {*given}):
        raise ConfigError(f"{where}{key} is missing")


def _parse_section(
    section: str, settings: Any, parts_dir: str | None, typed: Mapping[str, str]
) -> Any:
    kind = _schema(section, settings, parts_dir, typed)
    hints = _hints(kind)
    _check_keys(f"{section}.", settings, hints)
    settings = _choose_one(section, getattr(kind, "ONE_OF", ()), settings, typed)
    return kind(
        **{k: _convert(f"{section}.{k}", hint, settings[k], typed) for k, hint in hints.items()}
    )


def setting_types(section: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the type of each setting of a section, or with section="" of the run itself."""
    if not section:
        return _hints(RunConfig)
    return _hints(_schema(section, settings.get(section), settings["parts_dir"], {}))


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass."""
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}


def _choose_one(
    section: str, alternatives: Iterable[str], settings: dict[str, Any], typed: Mapping[str, str]
) -> dict[str, Any]:
    """Of keys that say the same let the one that was typed stand against those of files."""
    chosen = [key for key in alternatives if f"{section}.{key}" in typed]
    if not chosen:
        return settings
    said = " and ".join(f"{section}.{key}" for key in chosen)
    require(len(chosen) == 1, f"{said} say the same; give one of them, not both")
    return {**settings, **{key: None for key in alternatives if key not in chosen}}


KINDS = {
    bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list",
    dict: "a mapping",
}  # fmt: skip


def _convert(key: str, hint: Any, value: Any, typed: Mapping[str, str]) -> Any:
    """Return a value as its setting has it; a whole number is a number too.

    A text is never made of something else: YAML and Hydra read 2024_1_12 as the number 2024112,
    and the spelling is lost.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if float in kinds and type(value) is int:
        value = float(value)
    if hint is Any or type(value) in kinds:
        return value
    if get_origin(hint) is list and isinstance(value, list):
        (of_items,) = get_args(hint)
        return [_convert(f"{key}[{i}]", of_items, item, typed) for i, item in enumerate(value)]
    if get_origin(hint) is dict and isinstance(value, dict):
        return value
    shown = typed.get(key, spelled(value))
    if {*kinds} - {NoneType} == {str} and not isinstance(value, (list, dict)):
        kind = KINDS.get(type(value), "nothing")
        raise ConfigError(
            f"{key} is a text, and {shown} without quotes is {kind}; its spelling is kept by "
            f"{quoted(key, shown)}"
        )
    wanted = " or ".join(KINDS[get_origin(kind) or kind] for kind in kinds if kind is not NoneType)
    raise ConfigError(f"{key}={shown} is not {wanted}")


def quoted(key: str, text: str) -> str:
    """Return how a shell's command line gives a text so that its spelling is kept.

    >>> print(quoted("output_root", "2024_1_12"))
    'output_root="2024_1_12"'
    """
    # Hydra takes a backslash for itself where a quotation mark follows.
    escaped = re.sub(r'(\\*)"', r'\1\1\\"', text)
    escaped += "\\" * (len(text) - len(text.rstrip("\\")))
    return shlex.quote(f'{key}="{escaped}"')


def _steps_between_evaluations(dataset: str, max_steps: int | None, batch: int) -> int | None:
    """Return QuEST's 200 steps of 512 sequences for C4 (RECIPES C.5), but at least ten a run."""
    if dataset != "c4":
        return None
    quest = max(1, 200 * 512 // batch)
    return min(quest, max(1, max_steps // 10)) if max_steps else quest


RESOLVERS: dict[str, Callable[..., Any]] = {
    # Arithmetic that a recipe needs, since YAML has none: batch, lr and steps go together.
    "scaled_lr": lambda lr, batch, of_batch: lr * batch / of_batch,
    "whole_steps": lambda tokens, batch, context: int(tokens // (batch * context)),
    "steps_between_evaluations": _steps_between_evaluations,
    # The paper has other values for deep networks than for the MLP.
    "deep": lambda model, deep, shallow: shallow if model == "mlp" else deep,
    # One of several ways to say the same, for who says it in none.
    "unless_given": lambda a, b, value: value if a is None and b is None else None,
    "home": os.path.expanduser,  # Hydra makes the folder of a sweep before anything is parsed
    "parts_dir": own_parts,
    "parts_searchpath": lambda: [f"file://{own_parts()}"] if own_parts() else [],  # for options too
}
for _name, _resolver in RESOLVERS.items():
    OmegaConf.register_new_resolver(_name, _resolver, replace=True)


def parse_config(
    config: DictConfig, typed: Iterable[str] = (), chosen: Mapping[str, Any] = MappingProxyType({})
) -> RunConfig:
    """Turn a composed Hydra config into a checked `RunConfig`.

    Args:
        config: as Hydra has composed it.
        typed: the words `key=value` of the command line, as they were typed.
        chosen: the option of each section that Hydra has composed; its file names the part.

    Raises:
        ConfigError: with one line that names the key, the rule and, where there is one, the remedy.
    """
    words = dict(word.split("=", 1) for word in typed if "=" in word)
    for section in SECTIONS:
        option = words.get(section, "")
        require(
            not option.startswith("["),
            f"{section}={option} is a list, of which the last option would win; give one, or with "
            f"-m several, {section}={option.strip('[]')}",
        )
    config = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    for section in BROUGHT:
        if section not in config and "model" in chosen:
            raise brings_none(chosen["model"], section)
    try:
        settings = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"{str(error).splitlines()[0]}; a recipe that needs it goes with the models that "
            "select it, else give recipe.lr and recipe.max_steps"
        ) from None
    assert isinstance(settings, dict)
    if settings.get("scale") == "smoke":
        settings["dataset"] = _known_to_its_file(settings["dataset"], words)
    for section in SECTIONS:
        if isinstance(settings.get(section), dict) and isinstance(chosen.get(section), str):
            _check_named(section, settings[section], chosen[section], settings.get("parts_dir"))
    values = {str(key): value for key, value in settings.items()}
    try:
        return _resolved(parse_settings(values, words), words)
    except ConfigError as error:
        raise _in_own_file(error, values, words, chosen) from None


def brings_none(model: str, section: str) -> ConfigError:
    """Return the error of a model whose YAML file is without its dataset or recipe."""
    return ConfigError(
        f"model={model} brings no {section}, so that none can be chosen either; name one in the "
        "defaults of its YAML file (docs/parts.md)"
    )


def _in_own_file(
    error: ConfigError,
    settings: Mapping[str, Any],
    typed: Mapping[str, str],
    chosen: Mapping[str, Any],
) -> ConfigError:
    """Say of an error of a setting in which YAML file of the user's it stands, if in one."""
    found, parts_dir = re.match(r"(\w+)\.(\w+)", str(error)), settings.get("parts_dir")
    if found is None or found[0] in typed or not isinstance(parts_dir, str):
        return error
    section, key = found.groups()
    path = Path(parts_dir) / section / f"{chosen.get(section)}.yaml"
    said = read_yaml(path) if path.is_file() else {}
    is_there = key in said and said[key] == settings[section].get(key)
    return ConfigError(f"{path}: {error}") if is_there else error


def _resolved(config: RunConfig, typed: Mapping[str, str]) -> RunConfig:
    """Apply what is applied once, where a run is composed: a stored run has it in its values.

    That is `smoke` of the parts that have it, at scale=smoke, and the user's home for `~`.
    """
    changed: dict[str, Any] = {}
    if config.scale == "smoke":
        parts = {section: getattr(config, section) for section in SECTIONS}
        changed = {k: part.smoke() for k, part in parts.items() if hasattr(part, "smoke")}
    for key in ("data_dir", "output_root"):
        given = getattr(config, key)
        try:
            changed[key] = str(typed_path(given))
        except ValueError as error:
            ours = key == "data_dir" and key not in typed  # a word of the command line comes first
            by = ", by FOGZO_DATA" if ours and os.environ.get("FOGZO_DATA") == given else ""
            raise ConfigError(f"{key}={given}{by} {error}") from None
    return replace(config, **changed)


def _known_to_its_file(dataset: dict[str, Any], words: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a dataset without those that a cell has for the one of its scale."""
    path = CONFIGS / "dataset" / f"{dataset.get('name')}.yaml"
    if not path.is_file():
        return dataset
    known = {key for content in based_on(path) for key in content}
    return {k: v for k, v in dataset.items() if k in known or f"dataset.{k}" in words}


def _check_named(section: str, settings: dict[str, Any], option: str, parts_dir: Any) -> None:
    """Refuse a name or a family that is not the chosen option's: a record would carry it."""
    said = labels(section, option, parts_dir)
    own = said.get("name", option)
    built_in = (CONFIGS / section / f"{option}.yaml").is_file()  # llama_95m is llama_30m
    require(  # a machine, a recipe or a tracker may keep the name of its base
        section not in FAMILIES or built_in or own in (option, option.rpartition("/")[2]),
        f"{section}.name={own} stands in the file of {section}={option}, and a part's file has "
        f"the part's name; write name: {option} there",
    )
    for key, wanted in said.items():
        given = settings.get(key)
        if isinstance(given, str) and given != wanted:
            other = given if key == "name" and labels(section, given, parts_dir) else "<option>"
            raise ConfigError(
                f"{section}.{key} names the part, which is {section}={option} here; choose "
                f"another one by {section}={other}"
            )


def parse_settings(
    settings: dict[str, Any], typed: Mapping[str, str] = MappingProxyType({})
) -> RunConfig:
    """Turn settings into a checked `RunConfig` as they stand; some were `typed`, by key.

    Raises:
        ConfigError: as `parse_config`.
    """
    hints = _hints(RunConfig)
    _check_keys("", settings, hints)
    values: dict[str, Any] = {
        key: _convert(key, hint, settings[key], typed)
        for key, hint in hints.items()
        if key not in SECTIONS
    }
    for section in SECTIONS:
        values[section] = _parse_section(section, settings[section], values["parts_dir"], typed)
    return RunConfig(**values)


def to_yaml(config: RunConfig) -> str:
    """Return a run's settings as YAML that `load_stored` takes back."""
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
