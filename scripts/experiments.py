"""The experiment files as cells: composed by Hydra, checked by `parse_config`.

For the scripts that run cells, count them or smoke-test them; configs/experiment/<table>/*.yaml.
"""

from __future__ import annotations

import copy
import itertools
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from fogzo_repro.config import ConfigError, parse_config
from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps.jobs import Cell

ROOT = Path(__file__).resolve().parents[1]
EXPERIMENTS = ROOT / "configs" / "experiment"


def tables() -> list[str]:
    """Return the names of all tables."""
    return sorted(path.name for path in EXPERIMENTS.iterdir() if path.is_dir())


def experiment_files(table: str) -> list[Path]:
    """Return the experiment files of a table, or those that are named, as table3/95m-*.

    Raises:
        ConfigError: with the list of tables, or of the table's files.
    """
    path = EXPERIMENTS / table
    named = "/" in table
    files = sorted(path.parent.glob(path.name + ".yaml") if named else path.glob("*.yaml"))
    if files:
        return files
    if named and path.parent.is_dir():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml")))
        raise ConfigError(f"{table} has no experiment files; {path.parent.name} has: {known}")
    raise ConfigError(f"{table} has no experiment files; tables: {', '.join(tables())}")


def table_cells(
    table: str, overrides: list[str], seeds: tuple[int, ...] | None = None
) -> list[Cell]:
    """Compose the cells of a table: each file once or twice, then its sweep's values put in.

    Args:
        table: a folder of configs/experiment, or folder/file, where * stands for any letters.
        overrides: Hydra overrides for every cell.
        seeds: in place of the evaluation seeds of the files; a file that has none, a sweep on the
            tuning seeds alone, gets none.

    Raises:
        ConfigError: in one line.
    """
    cells = []
    try:
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            for file in experiment_files(table):
                cells += _file_cells(f"{file.parent.name}/{file.stem}", overrides, seeds)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from None
    return cells


def _file_cells(name: str, overrides: list[str], seeds: tuple[int, ...] | None) -> list[Cell]:
    given = [f"experiment={name}", *overrides]
    whole = compose("config", given, return_hydra_config=True)
    sweep = dict(whole.hydra.sweeper.params or {})
    parser = OverridesParser.create()

    def values(key: str, text: Any) -> list[Any]:
        override = parser.parse_override(f"{key}={text}")
        return list(override.sweep_iterator()) if override.is_sweep_override() else [text]

    for word in overrides:  # what is given replaces the file's sweep over it
        sweep.pop(word.split("=")[0], None)
    of_file = tuple(int(s) for s in values("seed", sweep.pop("seed", 0)))
    if seeds is not None and set(of_file) - set(TUNING_SEEDS):
        of_file = (*seeds, *(s for s in of_file if s in TUNING_SEEDS))
    # Composing takes longer than all else here. Only a group, as scale, has to be composed anew.
    groups = [f"{key}={sweep.pop(key)}" for key in list(sweep) if "." not in key]
    if groups:
        whole = compose("config", [given[0], *groups, *overrides], return_hydra_config=True)
    with open_dict(whole):
        del whole["hydra"]
    cells = []
    for combination in itertools.product(*(values(key, text) for key, text in sweep.items())):
        one = copy.deepcopy(whole)
        for key, value in zip(sweep, combination, strict=True):
            OmegaConf.update(one, key, value)
        cells.append(Cell(parse_config(one), of_file))
    return cells
