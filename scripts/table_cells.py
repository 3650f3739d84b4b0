"""The cells of a table, composed: for the scripts that run cells, count them or try them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from omegaconf import OmegaConf

from fogzo_repro.composition import blamed, compose_config, parse_composed
from fogzo_repro.config import ConfigError, did_you_mean, setting_names
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.tables import Entry, as_word, find_entries, table_files


def table_cells(
    table: str,
    overrides: Sequence[str],
    seeds: tuple[int, ...] | None = None,
    each_value_once: bool = False,
) -> list[Cell]:
    """Compose the cells of a table, or those of `table/cell`, where * stands for any letters.

    The seeds stand in place of a cell's evaluation seeds, see `Entry.with_seeds`; overrides are for
    every cell; see `Entry.combinations` for `each_value_once`.
    """
    entries = [entry.with_seeds(seeds) for entry in find_entries(table, table_files())]
    return [cell for entry in entries for cell in _compose(entry, overrides, each_value_once)]


def _compose(entry: Entry, overrides: Sequence[str], each_value_once: bool) -> list[Cell]:
    """Compose an entry once, then put in the values of each of its cells: composing takes long."""
    whole = compose_config([f"experiment={entry.path}", *overrides])
    given = {word.partition("=")[0] for word in overrides}  # replaces the cells' own values
    names = {name for name in setting_names(whole) if not name.startswith("hydra")}
    for key in entry.over:
        if key not in names:
            error = ConfigError(f"{key} is not a setting{did_you_mean(key, names)}")
            words = [*whole.hydra.overrides.task, f"{key}={as_word(entry.over[key][0])}"]
            raise blamed(error, words, overrides)
    cells = []
    for values in entry.without(given).combinations(each_value_once):
        one = copy.deepcopy(whole)
        for key, value in values.items():
            OmegaConf.update(one, key, value)
            one.hydra.overrides.task.append(f"{key}={value}")  # as if it had been typed
        try:
            cells.append(Cell(parse_composed(one, one.hydra, overrides), entry.seeds))
        except ConfigError as error:
            raise blamed(error, one.hydra.overrides.task, overrides) from None
    return cells
