"""From the words of the command line to checked runs, by Hydra.

What is wrong with them, also what Hydra says of it, is a `ConfigError` in one line.

A cell of a table is offered to Hydra as `experiment=TABLE/CELL` where the words name it, so that
overrides, sweeps and `--cfg job` work with it as with a file.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from hydra.errors import HydraException, MissingConfigException, OverrideParseException

from fogzo_repro.config import (
    CONFIGS,
    ConfigError,
    RunConfig,
    UserError,
    check_own_parts,
    did_you_mean,
    parse_config,
    quoted,
    setting_names,
)
from fogzo_repro.config.parse import BROUGHT, brings_none
from fogzo_repro.config.parts import own_folder_hint, own_parts
from fogzo_repro.config.rules import spelled
from fogzo_repro.project import script
from fogzo_repro.sweeps.tables import GROUPS, Entry, find_entries, table_files
from fogzo_repro.terminal import of_a_file


def compose_config(overrides: Sequence[str]) -> Any:
    """Compose as the command line does, for scripts and tests; Hydra's own section is left in.

    Raises:
        UserError: in one line, also for what Hydra refuses.
    """
    check_own_parts()
    words = list(overrides)
    if cells := named_cells(words):
        if len(cells) > 1:
            raise several_cells(words, cells)
        words = words_for(cells[0], words)
    try:
        return _compose(words)
    except Exception as error:
        raise in_one_line(error, words, overrides) from None


def _compose(words: Sequence[str]) -> Any:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("config", list(words), return_hydra_config=True)


def compose_run(*overrides: str) -> RunConfig:
    """Compose and check one run.

    Raises:
        UserError: as `compose_config`, and for a setting against a rule.
    """
    composed = compose_config(overrides)
    try:
        return parse_composed(composed, composed.hydra, overrides)
    except ConfigError as error:
        raise blamed(error, composed.hydra.overrides.task, overrides) from None


def parse_composed(composed: Any, hydra_section: Any, typed: Sequence[str]) -> RunConfig:
    """Parse what Hydra has composed; `typed` tells how the values of a sweep were spelled."""
    words = as_typed(hydra_section.overrides.task, typed)
    return parse_config(composed, words, hydra_section.runtime.choices)


def as_typed(overrides: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the overrides of one job of a sweep in the spelling of the command line.

    >>> as_typed(["cell.row=10", "seed=1"], ["cell.row=1_0,1_1", "seed=1"])
    ['cell.row=1_0', 'seed=1']
    """
    parser = OverridesParser.create()
    spelled = {}
    for key, _, values in (word.partition("=") for word in words):
        for value in values.split(",") if "," in values else ():
            with contextlib.suppress(HydraException):  # a part of a text or list with commas
                parsed = parser.parse_override(f"{key}={value}")
                spelled[f"{key}={parsed.get_value_element_as_str()}"] = f"{key}={value}"
    return [spelled.get(override, override) for override in overrides]


def named_cells(words: Sequence[str]) -> list[Entry]:
    """Return the cells that `experiment=` names, one, a list or a glob; offer them to Hydra.

    Raises:
        ConfigError: for a mistake in a table's file; for what names no cell, with what there is.
    """
    given = [word for word in words if setting_of(word) == "experiment"]
    if not given:
        return []
    if len(given) > 1:
        raise ConfigError(f"{' and '.join(given)} are given together; give one, or a list with -m")
    (override,), files = OverridesParser.create().parse_overrides(given), table_files()
    value: Any = override.value()
    if isinstance(value, Glob):
        found = _matching(given[0], value, files)
    else:
        names = value if isinstance(value, list) else [value]
        if override.is_sweep_override():
            names = [*override.sweep_iterator(lambda name: getattr(name, "text", name))]  # unquoted
        names = [spelled(name) for name in names]
        if all(map(_own_file, names)):
            return []  # Hydra knows what to do
        found = [_cell(name, files) for name in dict.fromkeys(names)]
    for entry in found:
        group = f"experiment/{entry.file.stem}"
        ConfigStore.instance().store(
            group=group, name=entry.name, node=entry.node(), package="_global_"
        )
    return found


def _own_file(name: str) -> bool:
    """Return whether the user has a file of settings with the name of an experiment."""
    folder = own_parts()
    return folder is not None and (Path(folder) / "experiment" / f"{name}.yaml").is_file()


def _cell(name: str, files: Mapping[str, Path]) -> Entry:
    """Return the cell of a name."""
    found = find_entries(name, files)
    if found[0].path == name:
        return found[0]
    raise ConfigError(
        f"experiment={name} stands for {len(found)} cells; give one, as experiment="
        f"{found[0].path}, or run all by `{script('run_cells', name)}`"
    )


def _matching(word: str, glob: Glob, files: Mapping[str, Path]) -> list[Entry]:
    """Return the cells that a glob finds, each of its patterns at least one."""
    found: dict[str, Entry] = {}
    for pattern in glob.include:
        table = pattern.partition("/")[0] if "/" in pattern else "*"
        tables = [name for name in files if fnmatchcase(name, table)]
        entries = [entry for name in tables for entry in find_entries(name, files)]
        matching = {e.path: e for e in entries if fnmatchcase(e.path, pattern)}
        if not matching:
            if len(tables) < 2 and "/" in pattern:
                find_entries(pattern, files)  # says what there is
            there = ", ".join(f"{name}/*" for name in sorted(files))
            raise ConfigError(f"{word}: {pattern} is no cell; there are {there}")
        found |= matching
    kept = [e for path, e in found.items() if not any(fnmatchcase(path, p) for p in glob.exclude)]
    if not kept:
        raise ConfigError(f"{word} leaves none of {', '.join(found)}")
    return kept


def several_cells(words: Sequence[str], cells: Sequence[Entry]) -> ConfigError:
    """Return the error of who names several cells where one is meant."""
    (given,) = (word for word in words if setting_of(word) == "experiment")
    return ConfigError(
        f"{given} is {len(cells)} cells; -m runs them all, --cfg and a command without -m take "
        f"one, as experiment={cells[0].path}"
    )


def words_for(entry: Entry, words: Sequence[str]) -> list[str]:
    """Return words of the command line as they are for one of its cells.

    A scale that is not `full` must be a word of its own: it has the last word in the defaults,
    which a cell in them cannot change.
    """
    own, scale = [f"experiment={entry.path}"], entry.settings.get("scale", "full")
    if scale != "full" and not any(setting_of(word) == "scale" for word in words):
        own.append(f"scale={scale}")
    return [*own, *(word for word in words if setting_of(word) != "experiment")]


def setting_of(word: str) -> str:
    """Return the setting that a word of the command line gives."""
    return word.partition("=")[0].lstrip("+~")


def in_one_line(error: Exception, words: Sequence[str], typed: Sequence[str]) -> UserError:
    """Return in one line what Hydra, or a parser that it uses, raised while it composed `words`."""
    return blamed(_in_one_line(error, words), words, typed)


def _in_one_line(error: Exception, words: Sequence[str]) -> UserError:
    if isinstance(error, UserError):
        return error
    if isinstance(error, OverrideParseException):
        key, _, text = error.override.partition("=")
        said = f"; a text with such letters is given as {quoted(key, text)}" if text else ""
        return ConfigError(f"{error.override}: {error}{said}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        if group == "experiment":
            try:
                _cell(name, table_files())
            except ConfigError as unknown:
                return unknown
        if error.options:
            near, options = did_you_mean(name, error.options), ", ".join(error.options)
            hint = "" if near else own_folder_hint(own_parts(), f"{group}/{name}.yaml")
            return ConfigError(f"{group}={name} is not an option{near}; options: {options}{hint}")
    elif isinstance(error, OSError) and error.filename:
        why = (error.strerror or "").lower()
        return ConfigError(f"{error.filename}: {why}; a sweep writes to output_root, give another")
    elif isinstance(error, FileNotFoundError):
        return of_a_file(error)
    override = re.match(rf"Could not override '({'|'.join(BROUGHT)})'", str(error))
    if override:
        models = [word.partition("=")[2] for word in words if setting_of(word) == "model"]
        return brings_none(models[-1] if models else "mlp", override[1])
    return _unknown_setting(words) or ConfigError(str(error) or str(error.__cause__ or ""))


def _unknown_setting(words: Sequence[str]) -> ConfigError | None:
    """Name the nearest setting to one that does not exist; Hydra's own message has none."""
    keys = [word.partition("=")[0] for word in words]
    groups = (*GROUPS, "scale", "experiment")
    chosen = [word.split(",")[0] for word in words if word.partition("=")[0] in groups]
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            config = compose("config", chosen)
    except Exception:
        return None  # one of these is to blame, and Hydra's own message says it
    known = {*groups, *setting_names(config)}
    for key in keys:
        if key == "table":  # Hydra's help takes the folder for a setting's options
            return ConfigError("table is not a setting; a cell is run by experiment=TABLE/CELL")
        if key not in known and not key.startswith(("hydra", "+", "~")):
            section = key.split(".")[0]
            of, hint = "", did_you_mean(key, known)
            if f"{section}.name" in known:
                of, kept = f" of {section}={config[section].name}", ("name", "family")
                its = sorted(k for k in known if k.startswith(f"{section}."))
                its = [k for k in its if k.partition(".")[2] not in kept]
                hint = hint or (f"; its settings: {', '.join(its)}" if its else "; it has none")
            return ConfigError(f"{key} is not a setting{of}{hint}")
    return None


def blamed(error: UserError, words: Sequence[str], typed: Sequence[str]) -> UserError:
    """Say of an error in a cell whether its table is wrong, or a word that cannot stand over it.

    Of the words of the run those that were typed on the command line stand over the cell's.
    """
    entry = _named_entry(words)
    if entry is None or str(error).startswith(str(entry.file)):
        return error
    given = {setting_of(word) for word in typed} - {"experiment"}
    over = [word for word in words if setting_of(word) in given]
    key = re.match(r"[\w./]*", str(error))
    wrong_by_itself = key and key[0] in given and not _is_right(over)
    if wrong_by_itself or _is_right(words):
        return error
    if not _is_right(words_for(entry, [word for word in words if word not in over])):
        return ConfigError(f"{entry.file}, {entry.name}: {error}")
    for word in over:
        if _is_right(words_for(entry, [each for each in words if each != word])):
            over = [word]
            break
    group, _, option = over[0].partition("=")
    cells = find_entries(entry.file.stem, table_files())
    alike = [cell.name for cell in cells if cell.settings.get(group) == option]
    near = difflib.get_close_matches(entry.name, alike, n=1, cutoff=0)
    other = f"a cell with {over[0]}, as {entry.file.stem}/{near[0]}, or " if near else ""
    return ConfigError(
        f"{' '.join(over)} cannot stand over experiment={entry.path}: {error}; give {other}what "
        f"`experiment={entry.path} --plain` prints, changed"
    )


def with_place(error: UserError, words: Sequence[str], typed: Sequence[str]) -> UserError:
    """Say of an error that names a setting, if it is the cell's, in which table that stands.

    The run, of these words, could be composed; `typed` are those of the command line.
    """
    entry, key = _named_entry(words), re.match(r"\w+\.[\w.]+", str(error))
    if entry and key and key[0] in {*entry.settings, *entry.over} - {*map(setting_of, typed)}:
        return type(error)(f"{entry.file}, {entry.name}: {error}")
    return error


def _named_entry(words: Sequence[str]) -> Entry | None:
    """Return the cell of a run; None without one, and where several are named."""
    with contextlib.suppress(UserError, HydraException):
        found = named_cells(words)
        return found[0] if len(found) == 1 else None
    return None


def _is_right(words: Sequence[str]) -> bool:
    """Return whether these are the words of a run."""
    try:
        composed = _compose(words)
        parse_config(composed, composed.hydra.overrides.task, composed.hydra.runtime.choices)
    except Exception:
        return False
    return True
