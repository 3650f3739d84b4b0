"""Write results/, and the results in README.md, from the committed records alone.

    python scripts/make_tables.py

The same records give the same bytes. Records that may not stand in a table are named on stderr.
Exit status: 0, or 2 with one line for a record that is damaged or out of place.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from fogzo_repro.config import UserError  # noqa: E402
from fogzo_repro.reporting.figures import write_figure  # noqa: E402
from fogzo_repro.reporting.mini_figures import write_mini_figure  # noqa: E402
from fogzo_repro.reporting.overview import write_overview  # noqa: E402
from fogzo_repro.reporting.paper_form import write_paper_table  # noqa: E402
from fogzo_repro.reporting.readme import update_readme  # noqa: E402
from fogzo_repro.reporting.results import MINIS, TableResults, ran  # noqa: E402
from fogzo_repro.reporting.tables import write_table  # noqa: E402

TABLES = {  # in the order of results/README.md
    "figure-shallow": write_table,
    **dict.fromkeys(MINIS, write_table),
    **{f"table{k}": write_paper_table for k in (1, 2, 3, 4)},
}
FIGURES = {"figure-shallow": write_figure, **dict.fromkeys(MINIS, write_mini_figure)}


def write_all(results: Path) -> list[TableResults]:
    """Write every table, figure and the overview; return what the tables were made from."""
    found = []
    for name, write in TABLES.items():
        table = write(results, name)
        found.append(table)
        for line in table.refused:
            print(f"{name}: refused {line}", file=sys.stderr)
        drawn = FIGURES[name](results, table) if name in FIGURES else False
        print(f"{name}: {ran(table)} of {len(table.cells)} cells" + ", figure" * drawn)
    write_overview(results, found)
    return found


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
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
