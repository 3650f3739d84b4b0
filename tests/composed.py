"""The cells of the paper's tables, composed once for all tests: it takes a few seconds a table."""

from functools import cache

from fogzo_repro.sweeps.jobs import Cell
from scripts.table_cells import table_cells

TABLES = ("table1", "table2", "table3", "table4")


@cache
def composed(table: str) -> list[Cell]:
    """Return the cells of a table, of those that differ in several values a part."""
    return table_cells(table, [], each_value_once=True)
