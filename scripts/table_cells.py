"""The cells of a table, composed: for the scripts that run cells, count them or try them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from omegaconf import OmegaConf

from fogzo_repro.__main__ import compose_config, parse_composed
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.tables import Entry, find_entries, table_files


def table_cells(
    table: str, overrides: Sequence[str], seeds: tuple[int, ...] | None = None
) -> list[Cell]:
    """Compose the cells of a table.

    Args:
        table: its name, or `table/cell`, where * stands for any letters.
        overrides: Hydra overrides for every cell.
        seeds: in place of the evaluation seeds of the cells; one that has none, of a sweep on the
            tuning seeds, gets none.

    Raises:
        ConfigError: in one line.
    """
    entries = find_entries(table, table_files())
    return [cell for e in entries for cell in _compose(e.with_seeds(seeds), overrides)]


def _compose(entry: Entry, overrides: Sequence[str]) -> list[Cell]:
    """Compose an entry once, then put in the values of each of its cells: composing takes long."""
    scale = [f"scale={entry.settings['scale']}"] if "scale" in entry.settings else []
    whole = compose_config([f"experiment={entry.path}", *scale, *overrides])
    given = {word.partition("=")[0] for word in overrides}  # replaces the cells' own values
    cells = []
    for values in entry.without(given).combinations():
        one = copy.deepcopy(whole)
        for key, value in values.items():
            OmegaConf.update(one, key, value)
            one.hydra.overrides.task.append(f"{key}={value}")  # as if it had been typed
        cells.append(Cell(parse_composed(one, one.hydra), entry.seeds))
    return cells
