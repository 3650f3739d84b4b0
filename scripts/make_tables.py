"""Write results/, and the tables in README.md and docs/, from the committed records alone.

    python scripts/make_tables.py

The same records give the same bytes. Records that may not stand in a table are named on stderr.
Exit status: 0, or 2 with one line for a record that is damaged or out of place.
"""

from __future__ import annotations

import sys
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro.project import INSTALLED, TOP, working_folder
from fogzo_repro.reporting.figures.curves import write_curves
from fogzo_repro.reporting.figures.minis import write_gain, write_noise
from fogzo_repro.reporting.figures.readings import write_figure
from fogzo_repro.reporting.figures.shallow import write_accuracy, write_shallow
from fogzo_repro.reporting.figures.sweeps import write_sweeps
from fogzo_repro.reporting.figures.time import write_cost, write_time
from fogzo_repro.reporting.minis import FINETUNED
from fogzo_repro.reporting.minis import TITLES as MINI_TITLES
from fogzo_repro.reporting.readings import write_readings
from fogzo_repro.reporting.readme import update_pages, write_overview
from fogzo_repro.reporting.results import TableResults, ran
from fogzo_repro.reporting.tables import FORMS, PAPER_TITLES, write_table
from fogzo_repro.terminal import command_parser, one_line_errors

OF_THE_PAPER = {"-curves": write_curves, "-sweeps": write_sweeps, "-time": write_time}
OF_THE_MINIS = {"-curves": write_curves, "-noise": write_noise, "-cost": write_cost}
FIGURES = {  # of each table: how a figure's name ends, and what draws it where there is enough
    "figure-shallow": {"": write_shallow, "-accuracy": write_accuracy},
    **dict.fromkeys(PAPER_TITLES, OF_THE_PAPER),
    **dict.fromkeys((*MINI_TITLES, *FINETUNED), OF_THE_MINIS),
}


def write_all(results: Path) -> list[TableResults]:
    """Write every table, figure and the overview; return what the tables were made from."""
    found, figures, folder = [], [], results / "figures"
    for name in FORMS:
        table = write_table(results, name)
        found.append(table)
        for line in table.refused:
            print(f"{name}: refused {line}", file=sys.stderr)
        ends = FIGURES[name].items()
        drawn = [f"{name}{end}" for end, draw in ends if draw(folder / f"{name}{end}", table)]
        figures += drawn
        said = f"figures {', '.join(drawn)}" if drawn else "no figure: there is nothing to draw"
        print(f"{name}: {ran(table)} of {len(table.cells)} cells, {said}")
    readings, tried = write_readings(results)
    for line in readings.refused:
        print(f"readings: refused {line}", file=sys.stderr)
    drawn = ["readings"] if write_figure(folder / "readings", tried) else []
    print(f"readings: {len(tried)} readings, {len(drawn)} figure")
    minis = [table for table in found if table.table in MINI_TITLES]
    drawn += ["gain"] if write_gain(folder / "gain", minis) else []
    write_overview(results, found, figures + drawn)
    return found


@one_line_errors
def main() -> int:
    """Write everything; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--results", type=Path, default=working_folder() / "results",
        help="folder with paper/ and records/, to which tables/ and figures/ are written",
    )  # fmt: skip
    results = parser.parse_args().results
    write_all(results)
    if results == TOP / "results" and not INSTALLED:
        update_pages(TOP, results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
