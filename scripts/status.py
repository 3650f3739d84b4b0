"""Say per table how many runs are done, running, interrupted, failed, stale and missing.

A run that is not there counts as missing where a claim of its table needs it, that is where
`run_cells.py TABLE --claims` would run it; else as not needed. Cells of rows that no claim compares
are needed, and so are all of a claim whose tuning is not complete. Runs that are over on seeds that
the table does not name, as those of `--seeds`, are counted last; results/README.md counts them too.

    python scripts/status.py                     all tables
    python scripts/status.py --seeds 0,1 table1

From results/records and the run folders alone; imports no torch.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro.config import UserError
from fogzo_repro.project import working_folder
from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps.claimed import needed_cells
from fogzo_repro.sweeps.status import OVER, STATES, Run, known_runs, runs_of
from fogzo_repro.sweeps.tables import evaluation_seeds, find_entries, table_files
from fogzo_repro.terminal import aligned, command_parser, one_line_errors


def not_needed(results: Path, table: str, runs: list[Run], known: dict[Run, str]) -> set[Run]:
    """Return the runs that are not there and that no claim of the table looks at."""
    try:
        needed = needed_cells(results, table)
    except UserError:  # a record that cannot be read: what is needed is not known
        return set()
    absent = [run for run in runs if run not in known and run.seed not in TUNING_SEEDS]
    return {run for run in absent if (run.row, run.column) not in needed}


def over_on_others(runs: list[Run], known: dict[Run, str]) -> int:
    """Return how many runs of the same cells are over on other seeds."""
    cells = {run[:-1] for run in runs}  # all but the seed
    over = {run for run, state in known.items() if state in OVER}
    return sum(run[:-1] in cells for run in over - {*runs})


@one_line_errors
def main() -> None:
    """Print the table."""
    parser = command_parser(__doc__)
    parser.add_argument("tables", nargs="*", help="TABLE or TABLE/CELL; none: all tables")
    parser.add_argument("--seeds", help="evaluation seeds in place of the tables', as 0,1 or 0..4")
    parser.add_argument(
        "--records", type=Path, default=working_folder() / "results" / "records",
        help="folder of the committed records",
    )  # fmt: skip
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="output_root of the runs")
    arguments = parser.parse_args()
    seeds, files = evaluation_seeds(arguments.seeds), table_files()
    known = known_runs(arguments.records, [arguments.runs])
    lines = [["table", "cells", "runs", *STATES, "not needed", "other seeds"]]
    for name in arguments.tables or files:
        entries = [entry.with_seeds(seeds) for entry in find_entries(name, files)]
        cells = [cell for entry in entries for cell in entry.cells()]
        runs = [run for cell in cells for run in runs_of(cell, cell.scale, cell.seeds)]
        spare = not_needed(arguments.records.parent, name.split("/")[0], runs, known)
        states = Counter(known.get(run, "missing") for run in runs if run not in spare)
        others = over_on_others(runs, known)
        counts = [len(cells), len(runs), *(states[s] for s in STATES), len(spare), others]
        lines.append([name, *map(str, counts)])
    print("\n".join(aligned(lines, numbers=True)))


if __name__ == "__main__":
    sys.exit(main())
