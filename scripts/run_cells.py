"""Run the missing cells of a table, several at a time.

    python scripts/run_cells.py figure-shallow                     every cell, the seeds of its file
    python scripts/run_cells.py figure-shallow/ste --seeds 0,1     one file, other evaluation seeds
    python scripts/run_cells.py figure-shallow hardware=h200 --workers 8
    python scripts/run_cells.py mini-llama/2bit-fogzo estimator.noise=1e-9   in place of its sweep

Cells stand in configs/experiment/<table>/*.yaml. A run that is finished, under output_root or by a
committed record, is skipped; interrupted anywhere, the same command goes on. In the end the records
of all runs that are over are copied to results/records/<table>/.

Exit status: 0 all runs finished; 1 some failed; 2 an error that the user can mend, in one line;
3 some diverged; 75 interrupted, run the same command again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the package need not be installed

from fogzo_repro.config import ConfigError, RunConfig, UserError, parse_config
from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps.cells import Cell, collect, missing_jobs, plan_jobs
from fogzo_repro.sweeps.overview import Overview
from fogzo_repro.sweeps.queue import Outcome, run_queue

EXPERIMENTS = ROOT / "configs" / "experiment"
INTERRUPTED_STATUS = 75


def main() -> int:
    """Run what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("table", help="a folder of configs/experiment, or <folder>/<file>")
    parser.add_argument("--seeds", help="evaluation seeds, as 0,1,2; tuning seeds stay")
    parser.add_argument("--workers", type=int, help="runs at a time")
    parser.add_argument("--gpus", default="", help="cards to deal to the workers, as 0,1")
    parser.add_argument("--records", type=Path, default=ROOT / "results" / "records")
    arguments, overrides = parser.parse_known_args()
    try:
        for word in overrides:
            if word.startswith("-") or "=" not in word:
                raise ConfigError(f"{word} is neither an option nor an override key=value")
            if word.startswith("seed="):
                raise ConfigError(f"{word} would run one seed of no cell; give --seeds {word[5:]}")
        seeds = None if arguments.seeds is None else parse_seeds(arguments.seeds)
        cells = table_cells(arguments.table, overrides, seeds)
        return run_table(arguments, cells)
    except UserError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def parse_seeds(text: str) -> tuple[int, ...]:
    """Return evaluation seeds from a comma list.

    Raises:
        ConfigError: where one is not a number, or is a tuning seed.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"--seeds={text} is not a list of numbers, as 0,1,2") from None
    for seed in seeds:
        if seed in TUNING_SEEDS:
            raise ConfigError(f"--seeds={text}: {seed} is a tuning seed, it reports nothing")
    return seeds


def experiment_files(table: str) -> list[Path]:
    """Return the experiment files of a table, or the one that is named.

    Raises:
        ConfigError: with the list of tables.
    """
    path = EXPERIMENTS / table
    files = [path.with_name(path.name + ".yaml")] if "/" in table else sorted(path.glob("*.yaml"))
    if not files or not all(file.is_file() for file in files):
        known = ", ".join(sorted(p.name for p in EXPERIMENTS.iterdir() if p.is_dir()))
        raise ConfigError(f"{table} has no experiment files; tables: {known}")
    return files


def table_cells(
    table: str, overrides: list[str], seeds: tuple[int, ...] | None = None
) -> list[Cell]:
    """Compose each cell of a table once.

    Args:
        table: a folder of configs/experiment, or folder/file.
        overrides: Hydra overrides for every cell.
        seeds: in place of the evaluation seeds of the files.

    Raises:
        ConfigError: in one line.
    """
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    cells = []
    try:
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            for file in experiment_files(table):
                cells += _file_cells(f"{file.parent.name}/{file.stem}", overrides, seeds)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from None
    return cells


def _file_cells(name: str, overrides: list[str], seeds: tuple[int, ...] | None) -> list[Cell]:
    from hydra import compose
    from hydra.core.override_parser.overrides_parser import OverridesParser

    given = [f"experiment={name}", *overrides]
    sweep = dict(compose("config", given, return_hydra_config=True).hydra.sweeper.params or {})
    parser = OverridesParser.create()

    def values(key: str, text: Any) -> list[str]:
        override = parser.parse_override(f"{key}={text}")
        return list(override.sweep_string_iterator()) if override.is_sweep_override() else [text]

    for word in overrides:  # what is given replaces the file's sweep over it
        sweep.pop(word.split("=")[0], None)
    of_file = tuple(int(s) for s in values("seed", sweep.pop("seed", 0)))
    if seeds is not None:
        of_file = (*seeds, *(s for s in of_file if s in TUNING_SEEDS))
    choices = [[f"{key}={v}" for v in values(key, text)] for key, text in sweep.items()]
    return [
        Cell(parse_config(compose("config", [given[0], *combination, *overrides])), of_file)
        for combination in itertools.product(*choices)
    ]


def run_table(arguments: argparse.Namespace, cells: list[Cell]) -> int:
    """Run the missing runs, collect the records, say what happened; return the exit status."""
    from fogzo_repro.tracking.environment import git_state

    jobs = plan_jobs(cells)
    missing = missing_jobs(jobs, arguments.records)
    gpus = [name for name in arguments.gpus.split(",") if name]
    workers = arguments.workers or default_workers(cells[0].config, gpus)
    over = len(jobs) - len(missing)
    overview = Overview(arguments.table, len(jobs), over)
    overview.say(
        f"{arguments.table}: {len(cells)} cells, {len(jobs)} runs, {over} over, "
        f"{len(missing)} to run with {min(workers, len(missing))} workers"
    )
    if missing and git_state()["dirty"] is not False:
        overview.say("the working tree is not a clean commit: tables will refuse these records")
    outcome = Outcome()
    if missing:
        logs = Path(cells[0].config.output_root) / "workers"
        outcome = run_queue(
            missing, workers=min(workers, len(missing)), gpus=gpus, logs=logs, overview=overview
        )
    for line in collect(jobs, arguments.records):
        overview.say(f"not filed: {line}")
    return conclude(outcome, len(missing), overview)


def default_workers(config: RunConfig, gpus: list[str]) -> int:
    """Return how many runs go side by side.

    The MLP is bound by kernel launches, so up to eight share a card; any other network has a card
    to itself. On the CPU: one for every two cores.
    """
    import torch

    cores = os.cpu_count() or 1
    if config.hardware.device == "cpu" or not torch.cuda.is_available():
        return max(1, cores // 2)
    cards = len(gpus) or 1
    return cards * max(1, min(8, cores // (2 * cards))) if config.model.name == "mlp" else cards


def conclude(outcome: Outcome, wanted: int, overview: Overview) -> int:
    """Say how the runs ended, and which did not and why; return the exit status."""
    for title, ended in (("failed", outcome.failed), ("diverged", outcome.diverged)):
        for job, why in ended:
            cell = job.config.cell
            place = f"{cell.row} | {cell.column}, seed {job.config.seed}"
            overview.say(f"{title}: {place} ({job.run_id}): {why}")
    left = wanted - len(outcome.finished) - len(outcome.diverged) - len(outcome.failed)
    overview.say(
        f"{len(outcome.finished)} finished, {len(outcome.diverged)} diverged, "
        f"{len(outcome.failed)} failed, {left} not run"
    )
    if outcome.interrupted:
        overview.say("interrupted; run the same command again to go on")
        return INTERRUPTED_STATUS
    return 1 if outcome.failed else 3 if outcome.diverged else 0


if __name__ == "__main__":
    sys.exit(main())
