"""Run the cells of every table for two steps on the CPU, in one process, without any download.

    python scripts/smoke.py                       all tables, a line a cell
    python scripts/smoke.py table1 table4/lsq-ste

Of cells that differ in several swept values so many are run that each value is there once; of a
whole table's tuning sweeps, which differ from its cells in numbers, one for each estimator.
Networks have an eighth of their widths (scale=smoke); images are scikit-learn's digits, language
is an invented corpus. Everything goes to a temporary folder. It shows that a cell runs: a loss
after two steps says nothing, and none is printed.

Exit status: 0; 1 some cells failed; 2 an error that the user can mend; 75 interrupted.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

    __package__ = "scripts"

import torch

from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.smoke import try_cell, write_invented_corpus
from fogzo_repro.sweeps.tables import table_files
from fogzo_repro.terminal import command_parser, one_line_errors
from fogzo_repro.training.preemption import REQUEUE_STATUS, Preempted

from .table_cells import table_cells


@one_line_errors
def main() -> int:
    """Run what the command line says; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument("tables", nargs="*", help="TABLE or TABLE/CELL; none: all tables")
    names = parser.parse_args().tables or table_files()
    started, failed, count = time.monotonic(), [], 0
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_invented_corpus(Path(folder, "data"))
            for name in names:
                done, bad = smoke_table(name, Path(folder))
                count, failed = count + done, failed + bad
    except Preempted:
        return REQUEUE_STATUS
    seconds = time.monotonic() - started
    print(f"{count} cells, {len(failed)} failed, {seconds:.0f} s")
    for line in failed:
        print(f"failed: {line}")
    return 1 if failed else 0


def smoke_table(name: str, folder: Path) -> tuple[int, list[str]]:
    """Run the cells of a table, a line each; return their number and what failed."""
    torch.set_num_threads(1)  # for networks so small, threads mostly wait for each other
    cells = table_cells(name, ["scale=smoke"], each_value_once=True)
    cells = cells if "/" in name else without_most_sweeps(cells)
    failed = []
    for cell in cells:
        started, why = time.monotonic(), try_cell(cell, folder)
        place = " | ".join([cell.config.cell.table, *cell.place])
        seconds = time.monotonic() - started
        print(f"{place}: {f'FAILED {why}' if why else 'runs'}, {seconds:.1f} s")
        failed += [f"{place}: {why}"] if why else []
    return len(cells), failed


def without_most_sweeps(cells: list[Cell]) -> list[Cell]:
    """Leave out cells that have tuning seeds alone, but the first of each estimator."""
    first: dict[str, Cell] = {}
    kept = []
    for cell in cells:
        swept = set(cell.seeds) <= set(TUNING_SEEDS)
        if not swept or first.setdefault(cell.config.estimator.name, cell) is cell:
            kept.append(cell)
    return kept


if __name__ == "__main__":
    sys.exit(main())
