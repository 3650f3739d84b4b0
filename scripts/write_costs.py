"""Write the cost line of every experiment file anew, from results/records/bench.

    python scripts/write_costs.py                 after a bench on the card that the lines are about

The shallow figure's lines are left alone: they are of its own records.
"""

from __future__ import annotations

import argparse
import re
import textwrap
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro.sweeps.forecast import forecast, read_benches, run_hours
from fogzo_repro.sweeps.jobs import Cell
from scripts.experiments import experiment_files, table_cells, tables

ROOT = Path(__file__).resolve().parents[1]

CARD = "NVIDIA H200"
MEASURED_OTHERWISE = ("figure-shallow",)


def main() -> None:
    """Rewrite the lines that differ."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    for table in tables():
        if table in MEASURED_OTHERWISE:
            continue
        for file in experiment_files(table):
            text = file.read_text()
            wanted = with_cost(text, cost(table_cells(f"{table}/{file.stem}", [])))
            if wanted != text:
                file.write_text(wanted)
                print(file.relative_to(ROOT))


def cost(cells: list[Cell]) -> str:
    """Return what a file's runs take: runs x card x hours a run, and where that is from."""
    runs = sum(len(cell.seeds) for cell in cells)
    benches = read_benches(ROOT / "results" / "records" / "bench")[CARD]
    found = [run_hours(c.config, forecast(c.config).steps, benches) for c in cells]
    hours = [each for each in found if each is not None]
    if len(hours) < len(cells):
        return f"{runs} runs; hours not measured for this network."
    ends = sorted({f"{each.hours:.2g}" for each in hours}, key=float)
    length = ends[0] if len(ends) == 1 else f"{ends[0]} to {ends[-1]}"
    rough = ", estimated from another size or quantizer" * any(each.scaled for each in hours)
    files = " and ".join(sorted({f"results/records/bench/{each.file}" for each in hours}))
    source = f"{files}{rough}; training steps alone"
    return f"{runs} runs x {CARD.split()[-1]} x {length} h ({source})."


def with_cost(text: str, said: str) -> str:
    """Return an experiment file with this cost in its header."""
    line = textwrap.fill(f"# Cost: {said}", 118, subsequent_indent="# ", break_on_hyphens=False)
    return re.sub(r"# Cost: .*?\n(?=# Ours: )", f"{line}\n", text, count=1, flags=re.S)


if __name__ == "__main__":
    main()
