"""Write results/, and the results in README.md, from the committed records alone.

    python scripts/make_tables.py

The same records give the same bytes. Records that may not stand in a table are named on stderr.
Exit status: 0, or 2 with one line for a record that is damaged or out of place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro.config import UserError
from fogzo_repro.reporting.curves import write_curves
from fogzo_repro.reporting.figures import write_accuracy, write_figure
from fogzo_repro.reporting.overview import write_overview
from fogzo_repro.reporting.paper_form import write_paper_table
from fogzo_repro.reporting.readme import update_readme
from fogzo_repro.reporting.results import TableResults, ran
from fogzo_repro.reporting.sweep_figures import write_sweeps
from fogzo_repro.reporting.tables import write_table
from fogzo_repro.reporting.tradeoff import write_tradeoff

ROOT = Path(__file__).resolve().parents[1]

TABLES = {  # in the order of results/README.md
    "figure-shallow": write_table,
    **{f"table{k}": write_paper_table for k in (1, 2, 3, 4)},
}
PAPER_FIGURES = {"curves": write_curves, "sweeps": write_sweeps, "time": write_tradeoff}


def write_all(results: Path) -> list[TableResults]:
    """Write every table, figure and the overview; return what the tables were made from."""
    found, figures = [], []
    for name, write in TABLES.items():
        table = write(results, name)
        found.append(table)
        for line in table.refused:
            print(f"{name}: refused {line}", file=sys.stderr)
        drawn = draw(results, table)
        figures += drawn
        said = f"figures {', '.join(drawn)}" if drawn else "no figure: there is nothing to draw"
        print(f"{name}: {ran(table)} of {len(table.cells)} cells, {said}")
    write_overview(results, found, figures)
    return found


def draw(results: Path, table: TableResults) -> list[str]:
    """Draw what there is of a table; return the names of the figures.

    The shallow figure's records have no history.
    """
    name, folder = table.table, results / "figures"
    if name != "figure-shallow":
        return [f"{name}-{kind}" for kind, w in PAPER_FIGURES.items() if w(folder, name, table)]
    drawn = [name] if write_figure(results, table) else []
    return [*drawn, f"{name}-accuracy"] if write_accuracy(results, table) else drawn


def main() -> int:
    """Write everything; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=ROOT / "results")
    results = parser.parse_args().results
    try:
        write_all(results)
        if results == ROOT / "results":
            update_readme(ROOT / "README.md", results)
    except UserError as error:
        error.tell()
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
