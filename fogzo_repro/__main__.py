"""``python -m fogzo_repro``: one run, or a Hydra multirun sweep.

Every cell of configs/table/*.yaml is offered to Hydra as ``experiment=TABLE/CELL``; the flag
``--plain`` prints the command that such a cell stands for, and starts nothing.

Exit status: 0 finished or skipped; 2 an error that the user can mend, in one line; 3 a run
diverged; 75 stopped by a signal with the checkpoint written, run the same command again; 130 ended
by INT before the run began, or by a second one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args  # knows which words belong to Hydra's own flags
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.sweeper import Sweeper

from fogzo_repro.config import (
    CONFIGS,
    ConfigError,
    RunConfig,
    UserError,
    check_own_parts,
    did_you_mean,
    parse_config,
    quoted,
    setting_names,
)
from fogzo_repro.config.explained import help_text
from fogzo_repro.config.identity import FREE
from fogzo_repro.config.parts import own_parts
from fogzo_repro.project import script
from fogzo_repro.sweeps.tables import (
    GROUPS,
    Entry,
    find_entries,
    read_table,
    table_files,
)
from fogzo_repro.terminal import outlive_terminal, say_interrupted

DIVERGED_STATUS = 3
SUBMITIT = "SUBMITIT_EXECUTOR"  # set in the jobs of hydra/launcher=submitit_*
TABLE_NAMES = re.compile(r"([\w.-]+)/")  # in a value of `experiment`
CELL_NAMES = re.compile(r"[\w.*?-]+/[\w.*?-]+")  # likewise, or patterns of them
FULL_ERROR = "HYDRA_FULL_ERROR"  # Hydra's own: set to 1, it raises errors instead of printing them


def main() -> int:
    """Run what the command line says; return the exit status."""
    outlive_terminal("stderr")
    plain = "--plain" in sys.argv
    sys.argv = [word for word in sys.argv if word != "--plain"]
    arguments = get_args()
    words = arguments.overrides
    changes = {FULL_ERROR: "1"}
    if arguments.config_dir:  # Hydra finds a user's options there, we find tables
        changes["FOGZO_PARTS"] = os.path.abspath(os.path.expanduser(arguments.config_dir))
    statuses = [0]  # of the runs; the first says only that nothing has failed yet
    launched: list[bool] = []  # not empty: all is composed, an error is no longer the user's
    told: set[str] = set()

    def job(composed: Any) -> None:
        try:
            config = parse_composed(composed, HydraConfig.get(), words)
            launched.append(True)
            statuses.append(run_one(config, label_of(HydraConfig.get().overrides.task, words)))
        except UserError as error:
            if str(error) not in told:  # all seeds of a sweep lack the same data
                tell(error)
            told.add(str(error))
            statuses.append(2)
            if SUBMITIT in os.environ:  # another process waits for the status
                raise

    tracebacks = os.environ.get(FULL_ERROR) == "1"
    with environment(**changes), sweeps_checked(words, lambda: launched.append(True)):
        try:
            check_own_parts()
            if plain:
                print("\n".join(plain_commands(words)))
                return 0
            if scale := offer_tables(words):
                words = [*words, *scale]
                sys.argv[1:] = [more for word in sys.argv[1:] for more in _with(scale, word)]
            if arguments.help:
                print(help_of(words))
                return 0
            hydra.main(version_base=None, config_path=str(CONFIGS), config_name="config")(job)()
        except KeyboardInterrupt:
            return say_interrupted()
        except Exception as error:
            if told:
                return 1
            if tracebacks or (launched and not isinstance(error, UserError)):
                raise
            tell(in_one_line(error, words))
            return 2
    ranks = sys.modules.get("fogzo_repro.training.ranks")  # only a run has brought it, and torch
    if ranks and 2 not in statuses:
        ranks.leave()
    return max(statuses)


def help_of(words: Sequence[str]) -> str:
    """Return what --help prints: every setting with the value that the command line gives it."""
    folders = [CONFIGS, *(Path(folder) for folder in [own_parts()] if folder)]
    options = {
        group: sorted({path.stem for folder in folders for path in folder.glob(f"{group}/*.yaml")})
        for group in (*GROUPS, "scale")
    }
    return help_text(asdict(compose_run(*words)), options)


def tell(error: UserError) -> None:
    """Print an error; of a run's processes, which all compose the same, the first one does."""
    if not isinstance(error, ConfigError) or os.environ.get("RANK", "0") == "0":
        error.tell()


def label_of(overrides: Sequence[str], words: Sequence[str]) -> str:
    """Return what tells a run of a sweep from the others: what differs, but the seed.

    Args:
        overrides: of this run.
        words: of the command line; those of a sweep have several values.

    >>> label_of(["estimator=ste", "seed=1", "recipe.lr=0.1"], ["estimator=ste", "recipe.lr=0.1,1"])
    'recipe.lr=0.1'
    """
    silent = {*FREE, "seed"}  # the seed stands in the run id
    parsed = OverridesParser.create().parse_overrides(list(words))
    same = {override.key_or_group for override in parsed if not override.is_sweep_override()}
    keys = ((word, word.partition("=")[0]) for word in overrides)
    return " ".join(w for w, key in keys if key not in same and key.split(".")[0] not in silent)


def run_one(config: RunConfig, label: str = "") -> int:
    """Run, or describe, what is configured; return the exit status."""
    from fogzo_repro.run import execute
    from fogzo_repro.training.preemption import REQUEUE_STATUS, Preempted, hurry
    from fogzo_repro.training.ranks import current_ranks

    if config.dry_run:
        print(described(config))
        return 0
    outlive_terminal("stdout")
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
    from fogzo_repro.plan import describe

    try:
        return describe(config)
    except UserError:
        from fogzo_repro.sweeps.dry_run import describe_without_data

        found = describe_without_data(config)
        if found is None:
            raise
        return found


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


def compose_config(overrides: Sequence[str]) -> Any:
    """Compose as the command line does, for scripts and tests; Hydra's own section is left in.

    Raises:
        ConfigError: in one line.
    """
    overrides = [*overrides, *offer_tables(overrides)]
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            return compose("config", overrides, return_hydra_config=True)
    except Exception as error:
        raise in_one_line(error, overrides) from None


def compose_run(*overrides: str) -> RunConfig:
    """Compose and check one run.

    Raises:
        ConfigError: in one line.
    """
    composed = compose_config(overrides)
    return parse_composed(composed, composed.hydra)


def parse_composed(composed: Any, hydra_section: Any, typed: Sequence[str] = ()) -> RunConfig:
    """Parse what Hydra has composed.

    Args:
        composed: the settings.
        hydra_section: Hydra's own.
        typed: the words of the command line, which tell how the values of a sweep were spelled.

    Raises:
        ConfigError: in one line; with the file of the table where the cell has set what is wrong.
    """
    words = as_typed(hydra_section.overrides.task, typed)
    try:
        return parse_config(composed, words, hydra_section.runtime.choices)
    except ConfigError as error:
        cell = hydra_section.runtime.choices.get("experiment")
        key = re.match(r"[\w.]*", str(error))
        if cell and key and key[0] not in {word.partition("=")[0] for word in words}:
            for entry in find_entries(cell, table_files()):
                if key[0] in entry.settings:
                    raise ConfigError(f"{entry.file}, {entry.name}: {error}") from None
        raise


def as_typed(overrides: Sequence[str], words: Sequence[str]) -> list[str]:
    """Return the overrides of one job of a sweep in the spelling of the command line.

    >>> as_typed(["cell.row=10", "seed=1"], ["cell.row=1_0,1_1", "seed=1"])
    ['cell.row=1_0', 'seed=1']
    """
    parser = OverridesParser.create()
    spelled = {}
    for key, _, values in (word.partition("=") for word in words):
        for value in values.split(",") if "," in values else ():
            with contextlib.suppress(HydraException):  # a part of a text or list with commas
                parsed = parser.parse_override(f"{key}={value}")
                spelled[f"{key}={parsed.get_value_element_as_str()}"] = f"{key}={value}"
    return [spelled.get(override, override) for override in overrides]


def offer_tables(words: Sequence[str]) -> list[str]:
    """Offer cells to Hydra, if one is asked for: those of the table, or of all where it is unclear.

    Returns:
        `scale=...`, where the words have none and the cells have another one than `full`. It must
        be a word of its own: the scale has the last word in the defaults, which a cell in them
        cannot change.

    Raises:
        ConfigError: for a mistake in a table's file, and for cells of several scales.
    """
    files = table_files()
    scales: dict[str, str] = {}  # and the first cell that has each
    for value in _given("experiment", words):
        named = [table for table in TABLE_NAMES.findall(value) if table in files]
        patterns = CELL_NAMES.findall(value) or (["*"] if "*" in value else [])
        for table in named or files:
            for entry in _offer(files[table], files[table].stat().st_mtime_ns):
                if any(fnmatchcase(entry.path, pattern) for pattern in patterns):
                    scales.setdefault(entry.settings.get("scale", "full"), entry.path)
    if _given("scale", words) or {*scales} <= {"full"}:
        return []
    if len(scales) > 1:
        each = " and ".join(f"{path} has scale={scale}" for scale, path in scales.items())
        raise ConfigError(f"{each}; give the cells of each scale by a command of their own")
    return [f"scale={scale}" for scale in scales]


def _with(scale: Sequence[str], word: str) -> list[str]:
    """Return a word of the command line, and the scale behind the cell."""
    return [word, *scale] if word.startswith("experiment=") else [word]


@cache
def _offer(file: Path, changed: int) -> list[Entry]:
    """Put the cells of a table into Hydra's store; once, as long as the file is not changed."""
    store, entries = ConfigStore.instance(), read_table(file)
    for entry in entries:
        group, place = f"experiment/{file.stem}", {"package": "_global_", "provider": str(file)}
        store.store(group=group, name=entry.name, node=entry.node(), **place)
        # Only this makes the cells options of `experiment`, as glob(table1/*) looks for them.
        store.store(group="experiment", name=entry.path, node={}, **place)
    return entries


def _given(key: str, words: Sequence[str]) -> list[str]:
    """Return the values that the command line gives a setting."""
    return [word.partition("=")[2] for word in words if word.startswith(f"{key}=")]


def plain_commands(words: Sequence[str]) -> list[str]:
    """Return the commands that the cells on the command line stand for, other words at the end."""
    cells = [cell for value in _given("experiment", words) for cell in value.split(",")]
    more = [word for word in words if not word.startswith("experiment=")]
    if not cells:
        raise ConfigError("--plain prints what a cell stands for; give experiment=TABLE/CELL")
    files = table_files()
    return [entry.command(more) for cell in cells for entry in find_entries(cell, files)]


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
def sweeps_checked(words: Sequence[str], when_checked: Callable[[], None]) -> Iterator[None]:
    """Have Hydra's sweepers parse every job where they look whether it can be composed.

    So a sweep with one bad value starts none of its runs, whatever launches them.
    """
    before = Sweeper.validate_batch_is_legal

    def validate(self: Sweeper, batch: Sequence[Sequence[str]]) -> None:
        assert self.hydra_context is not None and self.config is not None
        launcher = self.config.hydra.launcher._target_.rpartition(".")[2]
        if launcher == "SlurmLauncher" and shutil.which("srun") is None:
            raise ConfigError(
                "hydra/launcher=submitit_slurm needs srun, which is not on the PATH; start it on a "
                "machine of a Slurm cluster, or give hydra/launcher=submitit_local"
            )
        for overrides in batch:
            loader = self.hydra_context.config_loader
            composed = loader.load_sweep_config(self.config, list(overrides))
            parse_composed(composed, composed.hydra, words)
        when_checked()

    Sweeper.validate_batch_is_legal = validate  # type: ignore[method-assign]
    try:
        yield
    finally:
        Sweeper.validate_batch_is_legal = before  # type: ignore[method-assign]


def in_one_line(error: Exception, words: Sequence[str]) -> UserError:
    """Return what Hydra, or a parser that it uses, has raised while it composed, in one line."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, OverrideParseException):
        key, _, text = error.override.partition("=")
        said = f"; a text with such letters is given as {quoted(key, text)}" if text else ""
        return ConfigError(f"{error.override}: {error}{said}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.partition("/")
        if group == "experiment":
            return _unknown_cell(name)
        if error.options:
            near, options = did_you_mean(name, error.options), ", ".join(error.options)
            return ConfigError(f"{group}={name} is not an option{near}; options: {options}")
    elif isinstance(error, OSError) and error.filename:
        why = (error.strerror or "").lower()
        return ConfigError(f"{error.filename}: {why}; a sweep writes to output_root, give another")
    lines = [str(error), str(error.__cause__ or "")] if not str(error) else [str(error)]
    return _unknown_setting(words) or ConfigError(" ".join(lines))


def _unknown_cell(name: str) -> ConfigError:
    try:
        cells = find_entries(name, table_files())
    except ConfigError as error:
        return error
    return ConfigError(
        f"experiment={name} stands for {len(cells)} cells; give one, as experiment="
        f"{cells[0].path}, or run all by `python {script('run_cells')} {name}`"
    )


def _unknown_setting(words: Sequence[str]) -> ConfigError | None:
    """Name the nearest setting to one that does not exist; Hydra's own message has none."""
    keys = [word.partition("=")[0] for word in words]
    groups = (*GROUPS, "scale", "experiment")
    chosen = [word.split(",")[0] for word in words if word.partition("=")[0] in groups]
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            config = compose("config", chosen)
    except Exception:
        return None  # one of these is to blame, and Hydra's own message says it
    known = {*groups, *setting_names(config)}
    cells = [cell for value in _given("experiment", words) for cell in value.split(",")]
    entries = [entry for cell in cells for entry in find_entries(cell, table_files())]
    over = {key: f"{entry.file}, {entry.name}: " for entry in entries for key in entry.over}
    for key in [*keys, *over]:
        if key == "table":  # Hydra's help takes the folder for a setting's options
            return ConfigError("table is not a setting; a cell is run by experiment=TABLE/CELL")
        if key not in known and not key.startswith(("hydra", "+", "~")):
            section = key.split(".")[0]
            of = f" of {section}={config[section].name}" if f"{section}.name" in known else ""
            said = f"{key} is not a setting{of}{did_you_mean(key, known)}"
            return ConfigError(f"{'' if key in keys else over[key]}{said}")
    return None


if __name__ == "__main__":
    sys.exit(main())
