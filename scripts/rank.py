"""Rank parts of your own beside the STE and FOGZO on Section 4.1 or a mini.

    python scripts/rank.py rivals --config-dir examples/rivals          show the ranking
    python scripts/rank.py rivals --config-dir examples/rivals --run    first run what is missing
    python scripts/rank.py rivals/cage --run hardware=cpu               one row; FOGZO_PARTS is set
    python scripts/rank.py rivals/cage --dry-run                        what --run takes

The table is a file of your folder, DIR/table/NAME.yaml, with a section `rank` (docs/ranking.md).
The ranking is made from records alone, those under --results. With --run the tuning seeds are run
first, and then, on the other seeds, what they have chosen; interrupted anywhere, the same command
goes on. Options as those of run_cells.py, and so is the exit status.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

    __package__ = "scripts"

from fogzo_repro import files
from fogzo_repro.config import ConfigError, UserError, check_own_parts, own_files_named
from fogzo_repro.config.identity import as_recorded, difference
from fogzo_repro.project import working_folder
from fogzo_repro.reporting.ranking import (
    TUNED,
    Rules,
    check_places,
    chosen_place,
    data_beside,
    foreseen,
    page,
    rank,
    read_rules,
    tuned_row,
)
from fogzo_repro.reporting.results import TUNING_SEEDS, Place, read_recorded
from fogzo_repro.sweeps.claimed import tuning_part
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.tables import Entry, find_entries, table_files
from fogzo_repro.terminal import command_parser, one_line_errors, stderr
from fogzo_repro.tracking.records import read_runs
from fogzo_repro.training.preemption import REQUEUE_STATUS

from .run_cells import parse, run_tuned
from .table_cells import table_cells


@one_line_errors
@own_files_named
def main() -> int:
    """Run and rank what the command line says; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument("table", help="a table of your folder, or <table>/<row or pattern>")
    parser.add_argument("--config-dir", type=Path, help="your folder, in place of FOGZO_PARTS")
    parser.add_argument("--run", action="store_true", help="run what is missing of your rows")
    parser.add_argument("--dry-run", action="store_true", help="say what --run takes")
    parser.add_argument("--out", type=Path, help="write the ranking into this file too")
    parser.add_argument(
        "--results", type=Path, default=working_folder() / "results",
        help="folder with paper/ and records/",
    )  # fmt: skip
    arguments, overrides = parse(parser)
    arguments.records = arguments.results / "records"
    if arguments.config_dir is not None:
        # And for the processes that train.
        os.environ["FOGZO_PARTS"] = str(arguments.config_dir)
    check_own_parts()
    known = table_files()
    entries = find_entries(arguments.table, known)
    name = arguments.table.partition("/")[0]
    rules = read_rules(known[name])
    check_places(rules, labels(find_entries(rules.beside, known)))
    rows = labels(entries)
    seeds = {e.settings["cell.row"]: evaluated(e.seeds) for e in entries}
    check_seeds(entries, rows, rules, known[name])
    if overrides and not (arguments.dry_run or arguments.run):
        raise ConfigError(
            f"{overrides[0]}: settings are for --run and --dry-run; a ranking has none"
        )
    cells = table_cells(arguments.table, overrides)
    tuning = tuning_cells(arguments.table, overrides, rules, rows)
    changed = changed_rows(arguments.records / name, [*tuning, *cells])
    if arguments.dry_run or arguments.run:
        if said := "; ".join(f"{row}: {why}" for row, why in changed.items()):
            raise ConfigError(f"{said}; delete them, or give the row another label")
        settings = {
            row: [as_recorded(c.config) for c in cells if c.config.cell.row == row] for row in rows
        }
        runs = tuning_runs(entries, rows)
        for row, why in foreseen(arguments.results, rules, seeds, runs, settings).items():
            print(f"{row} will not be ranked: {why}", file=stderr())
        check_data(cells, data_beside(arguments.results, rules), rules)

    def chosen() -> dict[str, Place | None]:
        own = read_recorded(arguments.results, name)
        return {row: chosen_place(own, row, columns, rules) for row, columns in rows.items()}

    status = 0
    if arguments.dry_run:
        places = chosen()
        to_run = [*tuning, *reporting_cells(cells, places)]
        print("\n".join(say_missing(arguments, to_run, places, seeds)))
        return 0
    if arguments.run:
        status = run_tuned(arguments, tuning, lambda: reporting_cells(cells, chosen()))
        if status in (1, REQUEUE_STATUS):
            return status
    text = page(rank(arguments.results, name, rules, rows, seeds, changed))
    print(text)
    if arguments.out:
        files.write(arguments.out, text)
    return status


def labels(entries: Sequence[Entry]) -> dict[str, list[str]]:
    """Return the labels of the rows of entries, each with those of its columns."""
    found: dict[str, list[str]] = {}
    for entry in entries:
        for cell in entry.cells():
            found.setdefault(cell.row, []).append(cell.column)
    return found


def evaluated(seeds: Sequence[int]) -> list[int]:
    """Return the seeds that report."""
    return [seed for seed in seeds if seed not in TUNING_SEEDS]


def tuning_runs(entries: Sequence[Entry], rows: Mapping[str, list[str]]) -> dict[str, int]:
    """Return how many runs choose among the cells of each row."""
    choosing = {e.settings["cell.row"]: len({*e.seeds} & {*TUNING_SEEDS}) for e in entries}
    return {row: len(cells) * choosing[row] * (len(cells) > 1) for row, cells in rows.items()}


def check_seeds(
    entries: Sequence[Entry], rows: dict[str, list[str]], rules: Rules, file: Path
) -> None:
    """Refuse a row that no seed of its table reports, or among whose cells none chooses."""
    choosing = ", ".join(map(str, TUNING_SEEDS))
    for entry in entries:
        row, tuned = entry.settings["cell.row"], {*entry.seeds} & {*TUNING_SEEDS}
        if not evaluated(entry.seeds):
            raise ConfigError(
                f"{file}: {row} has no seed that reports; give some of those of {rules.beside} "
                f"under seeds, beside {choosing}, which choose"
            )
        if len(rows[row]) > 1 and not tuned:
            raise ConfigError(
                f"{file}: {row} has {len(rows[row])} cells and no seed that chooses among them; "
                f"add {choosing} to seeds"
            )


def changed_rows(folder: Path, cells: Sequence[Cell]) -> dict[str, str]:
    """Return the rows with records that are not of what their cells are now, and what they are of.

    A record is filed by row, column and seed: after a change of settings or of a file of yours, the
    ranking would be that of before, and new runs would not be filed beside it.
    """
    now = {cell.place: cell for cell in cells}
    found: dict[str, dict[Path, str]] = {}
    for path in sorted(folder.glob("*.json")):
        for record in read_runs(path):
            cell = now.get((record["row"], record["column"]))
            if cell is None or record["seed"] not in cell.seeds:
                continue
            if why := difference(record, cell.config):
                found.setdefault(record["row"].removesuffix(TUNED), {})[path] = why
    return {
        row: f"{len(paths)} records in {folder} ({min(paths).name}, ...) are of another run than "
        f"the table's: {paths[min(paths)]}"
        for row, paths in found.items()
    }


def check_data(cells: Sequence[Cell], beside: tuple[str, str] | None, rules: Rules) -> None:
    """Refuse to run on other data than the records beside them had, as on another text.

    Raises:
        ConfigError: where they are other data; what is not there, the runs tell.
    """
    from fogzo_repro.training.tasks import build_task

    configs = {repr((c.data_dir, c.dataset)): c for c in (cell.config for cell in cells)}
    for config in configs.values():
        if beside is None or config.dataset.name != beside[0]:
            continue
        try:
            data = build_task(config).fingerprint
        except UserError:
            continue
        if data != beside[1]:
            raise ConfigError(
                f"data_dir={config.data_dir} holds {data}, the records of {rules.beside} had "
                f"{beside[1]}: {config.cell.row} would not be ranked; give the data_dir of theirs"
            )


def say_missing(
    arguments: argparse.Namespace,
    cells: Sequence[Cell],
    places: Mapping[str, Place | None],
    seeds: Mapping[str, Sequence[int]],
) -> list[str]:
    """Return the lines of a dry run of cells, and how many runs the rows that are open add."""
    from fogzo_repro.sweeps.dry_run import dry_run  # torch, once it is needed

    lines = dry_run(arguments.table, cells, arguments.records)
    if open_rows := [row for row, place in places.items() if place is None]:
        runs = sum(len(seeds[row]) for row in open_rows)
        lines.append(
            f"then {runs} more runs, of what the tuning chooses of {', '.join(open_rows)}: it is "
            "not complete"
        )
    return lines


def tuning_cells(
    table: str, overrides: list[str], rules: Rules, rows: Mapping[str, Sequence[str]]
) -> list[Cell]:
    """Return the cells of rows that choose among several, with the tuning seeds alone."""
    alone = [f"{key}={value}" for key, value in rules.tuning.items()]
    found = []
    for cell in tuning_part(table_cells(table, [*overrides, *alone])):
        label = replace(cell.config.cell, row=tuned_row(cell.config.cell.row, rules))
        if len(rows[cell.config.cell.row]) > 1:
            found.append(replace(cell, config=replace(cell.config, cell=label)))
    return found


def reporting_cells(cells: Sequence[Cell], places: Mapping[str, Place | None]) -> list[Cell]:
    """Return the chosen cells, of rows whose tuning is complete, with the seeds that report."""
    found = []
    for cell in cells:
        if cell.place == places[cell.config.cell.row]:
            found.append(replace(cell, seeds=tuple(evaluated(cell.seeds))))
    return found


if __name__ == "__main__":
    sys.exit(main())
