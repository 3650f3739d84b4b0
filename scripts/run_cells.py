"""Run the missing cells of a table, several at a time.

    python scripts/run_cells.py table1 --gpus 0,1,2,3                  one cell a card at a time
    python scripts/run_cells.py table3 --dry-run                       what it takes; starts nothing
    python scripts/run_cells.py table4 --minutes 60                    in pieces, on each call one
    python scripts/run_cells.py figure-shallow/ste --seeds 0..4        one cell, other seeds
    python scripts/run_cells.py 'table2/resnet50-*' --claims           some cells
    python scripts/run_cells.py figure-shallow hardware=h200 --workers 8
    python scripts/run_cells.py figure-shallow --claims                what the claims need, no more
    python scripts/run_cells.py figure-shallow/fogzo estimator.noise=1e-5   in place of its sweep

Cells stand in configs/table/*.yaml. A run that is finished, under output_root or by a committed
record, is skipped; interrupted anywhere, the same command goes on. In the end the records
of all runs that are over are copied to results/records/<table>/.

Runs of the shallow network with at most 100 probe pairs a step do not go through the queue: those
that differ in numbers alone train side by side as one batched network, on the first card, and leave
one record a cell. A group of them that is interrupted begins anew.

With --claims the tuning seeds are run first; they choose, and of a sweep only the chosen value is
then run on the evaluation seeds. A sweep that has none of its own gets those of --seeds.

Exit status: 0 all runs finished; 1 some failed or hung; 2 an error that the user can mend, in one
line; 3 some of those that it trained diverged; 75 interrupted, out of --minutes or some are another
process's, run the same command again.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

    __package__ = "scripts"

from fogzo_repro import files
from fogzo_repro.config import ConfigError, RunConfig, check_given_once, own_files_named
from fogzo_repro.project import working_folder
from fogzo_repro.sweeps.claimed import claimed_part, needed_part, tuning_part
from fogzo_repro.sweeps.jobs import (
    Cell,
    collect,
    device_here,
    distinct,
    missing_jobs,
    plan_jobs,
    read_images,
)
from fogzo_repro.sweeps.lanes import LaneCell, group_key, plan_lanes
from fogzo_repro.sweeps.overview import Overview
from fogzo_repro.sweeps.queue import Outcome, run_queue
from fogzo_repro.sweeps.status import (
    over_without_start,
    recorded_otherwise,
    recorded_runs,
    run_elsewhere,
    runs_in_folders,
    runs_of,
)
from fogzo_repro.sweeps.tables import evaluation_seeds
from fogzo_repro.terminal import at_least_one, command_parser, one_line_errors
from fogzo_repro.tracking.environment import git_state, why_refused
from fogzo_repro.tracking.records import make_good
from fogzo_repro.training.preemption import REQUEUE_STATUS, how_to_go_on, hurry

from .table_cells import table_cells


@one_line_errors
@own_files_named
def main() -> int:
    """Run what the command line says; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "table",
        help="TABLE or TABLE/CELL, in which * stands for any letters; then any setting=value",
    )
    parser.add_argument("--seeds", help="evaluation seeds, as 0,1 or 0..4; tuning seeds stay")
    parser.add_argument("--claims", action="store_true", help="only the runs that claims need")
    parser.add_argument("--dry-run", action="store_true", help="say what it takes, start nothing")
    parser.add_argument(
        "--records", type=Path, default=working_folder() / "results" / "records",
        help="folder of the committed records",
    )  # fmt: skip
    arguments, overrides = parse(parser)
    seeds = evaluation_seeds(arguments.seeds)
    cells = table_cells(arguments.table, overrides, seeds)
    table, results = arguments.table.split("/")[0], arguments.records.parent
    if arguments.dry_run:
        from fogzo_repro.sweeps.dry_run import dry_run  # torch, once it is needed

        if arguments.claims:
            cells, said = needed_part(cells, results, table, seeds)
            print("\n".join([*said, f"--claims: {len(cells)} cells"]))
            if not cells:
                return 0
        print("\n".join(dry_run(arguments.table, cells, arguments.records)))
        return 0
    if arguments.claims:
        claimed = partial(claimed_part, cells, results, table, seeds)
        return run_tuned(arguments, tuning_part(cells), claimed)
    return run_table(arguments, cells)


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line of what runs cells; return its options, and the settings."""
    started = time.monotonic()
    parser.add_argument(
        "--workers", type=at_least_one, help="runs at a time; 1 or more [by the cards]"
    )
    parser.add_argument("--gpus", default="", help="cards to deal to the workers, as 0,1")
    parser.add_argument(
        "--minutes", type=float, help="stop after so many minutes, with checkpoints"
    )
    arguments, overrides = parser.parse_known_args()
    minutes = math.inf if arguments.minutes is None else arguments.minutes
    arguments.deadline = started + 60 * minutes
    check_overrides(overrides)
    return arguments, overrides


def check_overrides(overrides: list[str]) -> None:
    """Refuse words that are no settings of a run, choose its seed or contradict each other."""
    for word in overrides:
        if word.startswith("-") or "=" not in word:
            where = "; for a folder of your own set FOGZO_PARTS" * word.startswith("--config-dir")
            raise ConfigError(f"{word} is neither an option nor an override key=value{where}")
        if word.startswith("seed="):
            raise ConfigError(f"{word} would run one seed of no cell; give --seeds {word[5:]}")
        if word.startswith("dry_run="):
            raise ConfigError(f"{word} is of a single run; give --dry-run")
    check_given_once(overrides)


def visible_gpus(text: str) -> list[str]:
    """Return names for CUDA_VISIBLE_DEVICES from a comma list of indices.

    Raises:
        ConfigError: for an index that is not there.
    """
    if not text:
        return []
    import torch

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = given.split(",") if given else []  # "" would hide the one card from its worker
    names = names if len(names) == count else [str(k) for k in range(count)]
    there = f"{count} CUDA devices are here" + (f", 0 to {count - 1}" if count else "")
    found = []
    for part in text.split(","):
        if not part.strip().isdigit() or int(part) >= count:
            raise ConfigError(
                f"--gpus={text}: there is no card {part}; {there}"
                + ("" if count else "; leave it out and give hardware=cpu")
            )
        found.append(names[int(part)])
    return found


def run_tuned(
    arguments: argparse.Namespace, tuning: list[Cell], find_chosen: Callable[[], list[Cell]]
) -> int:
    """Run the tuning sweeps, then what they have chosen; return the exit status."""
    status = run_table(arguments, tuning) if tuning else 0
    if status in (1, REQUEUE_STATUS):
        return status
    chosen = find_chosen()
    return (run_table(arguments, chosen) if chosen else 0) or status


def run_table(arguments: argparse.Namespace, cells: list[Cell]) -> int:
    """Run the missing runs, collect the records, say what happened; return the exit status."""
    gpus, first = visible_gpus(arguments.gpus), cells[0].config
    scale, kind = first.scale, device_here(first.hardware.device)
    recorded = recorded_runs(arguments.records, kind)
    asked, over = cells, over_without_start(cells, recorded)
    cells = [cell for cell in cells if cell not in over]
    side_by_side = [cell for cell in cells if group_key(cell.config) is not None]
    for table in {cell.config.cell.table for cell in cells}:  # committed since they were made
        for path in (arguments.records / table).glob("*.json"):
            make_good(path)
    lanes = plan_lanes(side_by_side, arguments.records)
    jobs, said = distinct(plan_jobs(cell for cell in cells if group_key(cell.config) is None))
    missing = missing_jobs(jobs, arguments.records)
    workers = min(arguments.workers or default_workers(first, gpus), len(missing))
    together = sum(len(cell.seeds) for cell in lanes)
    runs = len(jobs) + sum(len(cell.seeds) for cell in [*side_by_side, *over])
    wanted = together + len(missing)
    overview = Overview(arguments.table, runs, runs - wanted)
    overview.say(
        f"{arguments.table}: {len(asked)} cells, {runs} runs, {runs - wanted} over, {wanted} to run"
        + (f", {together} of them side by side" if together else "")
        + (f", with {workers} workers" if workers else "")
    )
    to_run = [run for cell in lanes for run in runs_of(cell.config.cell, scale, cell.seeds)]
    to_run += [run for j in missing for run in runs_of(j.config.cell, scale, [j.config.seed])]
    if not first.force:
        said += run_elsewhere(to_run, arguments.records, first.hardware.name, kind)
        said += recorded_otherwise(to_run, recorded)
    for start in sorted({str(cell.config.recipe.start_from) for cell in over}):
        said.append(
            f"recipe.start_from={start} is not here: cells that begin with it count as over where "
            "all their runs have a record, whatever settings are given"
        )
    for line in said:
        overview.say(line)
    if wanted and (why := why_refused(git_state())):
        overview.say(f"warning: {why}")
    if wanted and scale != "smoke":  # two steps are no result, and not filed
        for table in {cell.config.cell.table for cell in cells}:
            files.make_folder(arguments.records / table, str(arguments.records / table))
    read_images(missing)
    outcome = Outcome()
    if together:
        outcome = run_side_by_side(arguments, lanes, overview)
        overview.over += together
    if missing and not outcome.interrupted:
        logs = Path(first.output_root) / "workers"
        queued = run_queue(
            missing, workers=workers, gpus=gpus, logs=logs,
            overview=overview, deadline=arguments.deadline,
        )  # fmt: skip
        outcome = outcome.with_those_of(queued)
    if scale != "smoke":
        for line in collect(jobs, arguments.records):
            overview.say(f"not filed: {line}")
    known = runs_in_folders([Path(first.output_root)], kind) | recorded
    before = {run for c in asked for run in runs_of(c.config.cell, scale, c.seeds)} - {*to_run}
    status = conclude(outcome, wanted, overview)
    if diverged := sum(known.get(run) == "diverged" for run in before):
        overview.say(f"of the runs that were over before, {diverged} diverged")
    if outcome.interrupted:
        overview.say(f"interrupted; {how_to_go_on(first.force)}")
        hurry()
        return REQUEUE_STATUS
    return status


def run_side_by_side(
    arguments: argparse.Namespace, lanes: list[LaneCell], overview: Overview
) -> Outcome:
    """Train cells as one batched network on the first of the cards; return how their runs ended."""
    from fogzo_repro.sweeps.side_by_side import train_lanes  # torch, once the card is chosen

    if arguments.gpus:
        import torch

        torch.cuda.set_device(int(arguments.gpus.split(",")[0]))
    return train_lanes(lanes, arguments.records, overview.say, arguments.deadline)


def default_workers(config: RunConfig, gpus: list[str]) -> int:
    """Return how many runs go side by side.

    The MLP is bound by kernel launches, so up to eight share a card, and its threads on a CPU
    mostly wait for each other: one core a run, up to eight. Any other network has a card to
    itself, or two cores.
    """
    import torch

    cores = os.cpu_count() or 1
    mlp = config.model.name == "mlp"
    if config.hardware.device == "cpu" or not torch.cuda.is_available():
        return min(8, cores) if mlp else max(1, cores // 2)
    cards = len(gpus) or 1
    return cards * max(1, min(8, cores // (2 * cards))) if mlp else cards


def conclude(outcome: Outcome, wanted: int, overview: Overview) -> int:
    """Say how the runs ended, and which did not and why; return the exit status."""
    for title, ended in (
        ("failed", outcome.failed),
        ("diverged", outcome.diverged),
        ("elsewhere", outcome.elsewhere),
    ):
        for why in dict.fromkeys(why for _, why in ended):  # what all runs lack is said once
            places = [
                f"{job.config.cell.row} | {job.config.cell.column}, seed {job.config.seed} "
                f"({job.run_id})"
                for job, their in ended
                if their == why
            ]
            overview.say(f"{title}: {'; '.join(places)}: {why}")
    left = wanted - len(outcome.finished) - len(outcome.diverged) - len(outcome.failed)
    left -= len(outcome.elsewhere)
    overview.say(
        f"{len(outcome.finished)} finished, {len(outcome.diverged)} diverged, "
        f"{len(outcome.failed)} failed, {left} not run"
        + (f", {len(outcome.elsewhere)} elsewhere" if outcome.elsewhere else "")
    )
    if outcome.failed:
        return 1
    return REQUEUE_STATUS if outcome.elsewhere else 3 if outcome.diverged else 0


if __name__ == "__main__":
    sys.exit(main())
