"""The cells of the paper's tables, composed once for all tests: it takes a few seconds a table."""

from functools import cache
from pathlib import Path

from fogzo_repro.sweeps.jobs import Cell
from scripts.experiments import experiment_files, table_cells

TABLES = ("table1", "table2", "table3", "table4")


@cache
def composed_files(table: str) -> dict[Path, list[Cell]]:
    """Return the cells of each file of a table at the paper's scale."""
    return {file: table_cells(f"{table}/{file.stem}", []) for file in experiment_files(table)}


def composed(table: str) -> list[Cell]:
    """Return the cells of a table at the paper's scale."""
    return [cell for cells in composed_files(table).values() for cell in cells]
