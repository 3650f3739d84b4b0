"""``python -m fogzo_repro``: one run, or a Hydra multirun sweep.

A cell of configs/table/*.yaml is run by ``experiment=TABLE/CELL``; with ``-m`` several, by a list
or a glob. The flag ``--plain`` prints the command that a cell stands for, and starts nothing.

Exit status: 0 finished or skipped; 2 an error that the user can mend, in one line; 3 a run
diverged, and none had an error; 75 stopped by a signal with the checkpoint written, run the same
command again; 130 ended by INT before the run began, or by a second one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser  # knows which words belong to Hydra's own flags
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from fogzo_repro.composition import (
    compose_run,
    in_one_line,
    named_cells,
    parse_composed,
    setting_of,
    several_cells,
    with_place,
    words_for,
)
from fogzo_repro.config import (
    CONFIGS,
    ConfigError,
    RunConfig,
    UserError,
    check_given_once,
    check_own_parts,
    own_files_named,
)
from fogzo_repro.config.explained import help_text
from fogzo_repro.config.identity import FREE
from fogzo_repro.config.parts import names, own_parts
from fogzo_repro.sweeps.tables import GROUPS, Entry, option_files, shown_seeds, table_files
from fogzo_repro.terminal import of_a_file, outlive_terminal, output_status, say_interrupted, stderr

DIVERGED_STATUS = 3
SUBMITIT = "SUBMITIT_EXECUTOR"  # set in the jobs of hydra/launcher=submitit_*
BASIC_SWEEPER = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own: set to 1, it raises errors instead of printing them


@dataclass
class Sweep:
    """The jobs of a command, and what is known of them while they are composed and run.

    Attributes:
        command: the command line.
        typed: its words but for flags.
        words: what Hydra is given of these: other ones where a cell is named.
        cells: that these name.
        seeds: of the jobs that one of a dry run stands for, by its other words.
        composing: the words of the job that is being composed.
        launched: whether all are composed, so that an error is no longer the user's.
        statuses: of the runs; the first says only that nothing has failed yet.
        told: errors, each with the number of jobs that it ended.
    """

    command: list[str]
    typed: Sequence[str]
    words: Sequence[str]
    cells: Sequence[Entry] = ()
    seeds: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    composing: Sequence[str] = ()
    launched: bool = False
    statuses: list[int] = field(default_factory=lambda: [0])
    told: Counter[str] = field(default_factory=Counter)

    def run(self, composed: Any, tracebacks: bool) -> None:
        """Run one job that Hydra has composed, and note how it ended."""
        sys.argv = self.command  # for the record
        task = HydraConfig.get().overrides.task
        try:
            config = parse_composed(composed, HydraConfig.get(), self.typed)
            self.launched = True
            label = label_of(task, [*self.words, *self.typed])
            self.statuses.append(run_one(config, label, self.seeds.get(_but_seed(task), [])))
        except (UserError, OSError) as error:
            if tracebacks:
                raise
            error = of_a_file(error) if isinstance(error, OSError) else error
            said = with_place(error, task, self.typed)
            if str(said) not in self.told:  # all seeds of a sweep lack the same data
                tell(said)
            self.told[str(said)] += 1
            self.statuses.append(2)
            if SUBMITIT in os.environ:  # another process waits for the status
                raise

    def status(self) -> int:
        """Say what failed; return the exit status, that of the output where nothing was run."""
        jobs = len(self.statuses) - 1
        say_failed(self.told, jobs)
        if not jobs:  # the configuration was shown, by Hydra
            return output_status()
        return 2 if 2 in self.statuses else max(self.statuses)


def main() -> int:
    """Run what the command line says; return the exit status."""
    outlive_terminal("stdout", "stderr")
    plain, command = "--plain" in sys.argv, sys.argv
    # Hydra's parser wants the settings in one piece, behind the flags.
    given = sorted(
        (word for word in command[1:] if word != "--plain"),
        key=lambda word: "=" in word and not word.startswith("-"),
    )
    parser = get_args_parser()
    parser.error = refuse_flag  # type: ignore[method-assign,assignment]
    try:
        arguments = parser.parse_args(given)
    except ConfigError as error:
        tell(error)
        return 2
    typed = arguments.overrides
    flags = [word for word in given if word not in typed]
    changes = {FULL_ERROR: "1"}
    if arguments.config_dir:  # Hydra finds a user's options there, we find tables
        changes["FOGZO_PARTS"] = os.path.abspath(os.path.expanduser(arguments.config_dir))
    sweep, tracebacks = Sweep(command, typed, typed), os.environ.get(FULL_ERROR) == "1"

    def job(composed: Any) -> None:  # a plain function, as Hydra's launchers pickle
        sweep.run(composed, tracebacks)

    with environment(**changes):
        try:
            check_own_parts()
            cells = sweep.cells = named_cells(typed)
            check_given_once(typed)
            if plain:
                print("\n".join(plain_commands(cells, typed)))
                return output_status()
            if cells:
                if len(cells) > 1 and not (arguments.multirun and arguments.cfg is None):
                    raise several_cells(typed, cells)
                sweep.words = words_for(cells[0], typed)
            if arguments.help:
                print(help_of(sweep.words))
                return output_status()
            sys.argv = [command[0], *flags, *sweep.words]
            with sweeps_checked(sweep):
                hydra.main(version_base=None, config_path=str(CONFIGS), config_name="config")(job)()
        except KeyboardInterrupt:
            return say_interrupted()
        except Exception as error:
            if tracebacks:
                raise
            if sweep.told:
                return 1
            if sweep.launched and not isinstance(error, UserError):
                raise
            tell(in_one_line(error, sweep.composing or sweep.words, typed))
            return 2
    ranks = sys.modules.get("fogzo_repro.training.ranks")  # only a run has brought it, and torch
    if ranks and 2 not in sweep.statuses:
        ranks.leave()
    return sweep.status()


def help_of(words: Sequence[str]) -> str:
    """Return what --help prints: every setting with the value that the command line gives it."""
    options = {group: sorted(option_files(group)) for group in (*GROUPS, "scale")}
    options["experiment"] = [f"{table}/CELL" for table in table_files()]
    return help_text(asdict(compose_run(*words)), options, names("surrogate", own_parts()))


def refuse_flag(said: str) -> NoReturn:
    """Raise what Hydra's parser has to say of a flag; argparse's own way prints its usage too.

    Raises:
        ConfigError: always.
    """
    raise ConfigError(f"{said}; --help lists flags and settings, --hydra-help those of Hydra")


def tell(error: UserError) -> None:
    """Print an error; of a run's processes, which all compose the same, the first one does."""
    if not isinstance(error, ConfigError) or os.environ.get("RANK", "0") == "0":
        error.tell()


def say_failed(told: Counter[str], jobs: int) -> None:
    """Say at the end of a sweep what ended how many of its jobs: an error is told once in it."""
    if jobs > 1 and os.environ.get("RANK", "0") == "0":
        for said, count in told.items():
            print(f"{count} of {jobs} jobs failed:", " ".join(said.split()), file=stderr())


def label_of(overrides: Sequence[str], words: Sequence[str]) -> str:
    """Return what tells a run, of these overrides, from the others of the words of a sweep.

    >>> label_of(["estimator=ste", "seed=1", "recipe.lr=0.1"], ["estimator=ste", "recipe.lr=0.1,1"])
    'recipe.lr=0.1'
    """
    silent = {*FREE, "seed"}  # the seed stands in the run id
    parsed = OverridesParser.create().parse_overrides(list(words))
    swept = {override.key_or_group for override in parsed if override.is_sweep_override()}
    same = {override.key_or_group for override in parsed} - swept
    keys = ((word, word.partition("=")[0]) for word in overrides)
    return " ".join(w for w, key in keys if key not in same and key.split(".")[0] not in silent)


@own_files_named
def run_one(config: RunConfig, label: str, seeds: Sequence[int]) -> int:
    """Run, or describe, what is configured; return the exit status.

    A dry run may stand for others, which differ in the seed alone: `seeds` are those of all.
    """
    from fogzo_repro.run import execute
    from fogzo_repro.training.preemption import REQUEUE_STATUS, Preempted, hurry
    from fogzo_repro.training.ranks import current_ranks

    if config.dry_run:
        print(described(config))
        if len(seeds) > 1:
            print(f"seeds: {shown_seeds(seeds)}, a run each; above is the first")
        return output_status()
    try:
        record = execute(config, label=label)
    except Preempted:
        if SUBMITIT in os.environ:
            signal.raise_signal(signal.SIGUSR2)  # its handler is back: it requeues the job
        hurry()
        sys.exit(REQUEUE_STATUS)
    if current_ranks().first:
        print(summary(record, label))
    return DIVERGED_STATUS if record["status"] != "finished" else 0


def described(config: RunConfig) -> str:
    """Return what `dry_run=true` prints, also where the data or the card are not here."""
    from fogzo_repro.plan import describe, make_plan
    from fogzo_repro.sweeps.dry_run import describe_on_cards, describe_without_data

    try:
        plan = make_plan(config)
    except UserError:
        found = describe_without_data(config)
        if found is None:
            raise
        return found
    return "\n".join([describe(plan), *describe_on_cards(plan.config, plan.total_steps)])


def summary(record: dict, label: str = "") -> str:
    """Return the last line of a run."""
    parts = [f"{record['run_id']}: {record['status']}", *([label] if label else [])]
    if record["scale"] == "smoke":
        said = "it runs; after two steps there is no result to tell"
        return "  ".join([*parts, said if record["status"] == "finished" else record["notes"]])
    for split, values in record["metrics"]["last"].items():
        parts += [f"{split} {k} {v:.4f}" for k, v in values.items() if k != "step"]
    for split, values in record["metrics"]["best"].items():
        shown = [f"{k} {v:.4f}" for k, v in values.items() if k not in ("step", "split")]
        parts += [f"best {split}: {' '.join(shown)} at step {values['step']}"]
    return "  ".join([*parts, f"{record['wall_seconds']:.1f} s", record["notes"]]).rstrip()


def plain_commands(cells: Sequence[Entry], words: Sequence[str]) -> list[str]:
    """Return the commands that cells stand for, with the other words of the command line."""
    if not cells:
        raise ConfigError("--plain prints what a cell stands for; give experiment=TABLE/CELL")
    more = [word for word in words if setting_of(word) != "experiment"]
    return [entry.command(more) for entry in cells]


@contextlib.contextmanager
def environment(**changes: str) -> Iterator[None]:
    """Set variables of the environment for a while."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def sweeps_checked(sweep: Sweep) -> Iterator[None]:
    """Have Hydra's sweepers parse the jobs where they look whether these can be composed.

    So a sweep with one bad value starts none of its runs, whatever launches them. Its basic sweeper
    makes of several cells the jobs of each: their values and seeds differ. Of jobs that differ in
    the seed alone one is parsed, and in a dry run one is left: there may be hundreds.
    """
    basic: Any = Plugins.instance().class_name_to_class[BASIC_SWEEPER]
    before, jobs_of_one = Sweeper.validate_batch_is_legal, basic.split_arguments

    def validate(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
        assert self.hydra_context is not None and self.config is not None
        launcher = self.config.hydra.launcher._target_.rpartition(".")[2]
        if launcher == "SlurmLauncher" and shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm needs srun, which is not on the PATH; start it on a "
                "machine of a Slurm cluster, or give hydra/launcher=submitit_local"
            )
        loader = self.hydra_context.config_loader
        for job in _but_for_seeds(batch):
            sweep.composing = job
            composed = loader.load_sweep_config(self.config, list(job))
            parse_composed(composed, composed.hydra, sweep.typed)
        sweep.composing, sweep.launched = (), True
        if "submitit_folder" in self.config.hydra.launcher:  # the jobs say nothing here
            where = os.path.dirname(self.config.hydra.launcher.submitit_folder)
            print(f"waiting for jobs ({len(batch)}), which write to {where}", file=stderr())

    def jobs_of_all(overrides: list[Override], most: int | None) -> list[list[list[str]]]:
        for override in overrides:
            _check_values(override)
        parser, jobs = OverridesParser.create(overrides[0].config_loader), []
        for cell in sweep.cells[1:] and sweep.cells:
            words = parser.parse_overrides(words_for(cell, [*cell.swept(), *sweep.typed]))
            jobs += jobs_of_one([word for word in words if not word.is_hydra_override()], None)[0]
        jobs = jobs or jobs_of_one(overrides, None)[0]
        if any(word.lower() == "dry_run=true" for word in sweep.typed):
            for job in jobs:
                found = sweep.seeds.setdefault(_but_seed(job), [])
                found += [int(word[5:]) for word in job if _is_plain_seed(word)]
            jobs = _but_for_seeds(jobs)
        return [*basic.split_overrides_to_chunks(jobs, most)]

    Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]
    basic.split_arguments = staticmethod(jobs_of_all)
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = before  # type: ignore[method-assign]
        basic.split_arguments = staticmethod(jobs_of_one)


def _but_for_seeds(jobs: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Return the first of the jobs that differ in the seed alone, and those whose seed is odd."""
    found: dict[tuple[str, ...], Sequence[str]] = {}
    for job in jobs:
        plain = all(map(_is_plain_seed, {*job} - {*_but_seed(job)}))
        found.setdefault(_but_seed(job) if plain else tuple(job), job)
    return [*found.values()]


def _but_seed(job: Sequence[str]) -> tuple[str, ...]:
    """Return the words of a job that say all but its seed."""
    return tuple(word for word in job if not word.startswith("seed="))


def _is_plain_seed(word: str) -> bool:
    """Return whether a word gives a seed that needs no look at it."""
    return bool(re.fullmatch(r"seed=\d{1,9}", word, re.ASCII))


def _check_values(override: Override) -> None:
    """Refuse a sweep over nothing, which would run nothing and say so nowhere."""
    if not override.is_discrete_sweep() or [*override.sweep_iterator()]:
        return
    loader, key = override.config_loader, override.key_or_group
    options = loader.get_group_options(key) if loader and isinstance(override.value(), Glob) else []
    there = f"; options: {', '.join(options)}" if options else ""
    raise ConfigError(f"{override.input_line} has no value{there}")


if __name__ == "__main__":
    sys.exit(main())
