"""``python -m fogzo_repro``: one run, or a Hydra multirun sweep.

Exit status: 0 finished or skipped; 2 an error that the user can mend, in one line; 3 a run
diverged; 75 stopped by a signal with the checkpoint written, run the same command again.
"""

from __future__ import annotations

import difflib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra._internal.utils import get_args  # knows which words belong to Hydra's own flags
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException

from fogzo_repro.config import (
    CompositionError,
    ConfigError,
    UserError,
    parse_config,
    setting_names,
)
from fogzo_repro.terminal import outlive_terminal

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
DIVERGED_STATUS = 3
SUBMITIT = "SUBMITIT_EXECUTOR"  # set in the jobs of hydra/launcher=submitit_*


def check(overrides: list[str]) -> None:
    """Compose and parse before anything else; each value of a sweep once.

    Raises:
        ConfigError: in one line.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
        keys = {o.get_key_element() for o in parsed}
        if {"estimator.beta_min", "estimator.noise"} <= keys:
            raise ConfigError("give either estimator.beta_min or estimator.noise, not both")
        plain = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        sweeps = [
            [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
            for o in parsed
            if o.is_sweep_override()
        ]
        first = [values[0] for values in sweeps]
        with initialize_config_dir(str(CONFIGS), version_base=None):
            for position, values in enumerate(sweeps or [[""]]):
                for value in values:
                    chosen = [*first[:position], value, *first[position + 1 :]]
                    parse_config(compose("config", [*plain, *filter(None, chosen)]))
    except OverrideParseException as error:
        raise ConfigError(f"{error.override}: {_readable(str(error))}") from None
    except (HydraException, CompositionError) as error:
        _check_names(parsed)
        raise ConfigError(_readable(str(error))) from None


def _check_names(overrides: list[Override]) -> None:
    """Name the nearest setting to one that does not exist; Hydra's own message has none."""
    groups = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    chosen = [o for o in overrides if o.get_key_element() in groups]
    with initialize_config_dir(str(CONFIGS), version_base=None):
        try:
            lines = [str(o.input_line) for o in chosen if not o.is_sweep_override()]
            config = compose("config", lines)
        except (HydraException, CompositionError):
            return  # an unknown option: Hydra's message has the list
    known = groups | setting_names(config)
    for override in overrides:
        key = override.get_key_element()
        if key not in known and not key.startswith(("hydra", "+", "~")):
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
            section = key.split(".")[0]
            of = f" of {section}={config[section].name}" if f"{section}.name" in known else ""
            raise ConfigError(f"{key} is not a setting{of}; did you mean {near[0]}?")


def _readable(message: str) -> str:
    """Put Hydra's several lines about a group option into one."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(
        line for line in lines if not line.startswith(("Config search path", "provider="))
    )


def main() -> int:
    """Run what the command line says; return the exit status."""
    outlive_terminal("stderr")
    arguments = get_args()
    if not (arguments.help or arguments.hydra_help):
        try:
            check(arguments.overrides)
        except ConfigError as error:
            if os.environ.get("RANK", "0") == "0":  # torchrun: all processes find the same
                error.tell()
            return 2
    statuses = [0]

    @hydra.main(version_base=None, config_path=str(CONFIGS), config_name="config")
    def job(composed: Any) -> None:
        try:
            config = parse_config(composed)
            from fogzo_repro.plan import describe
            from fogzo_repro.run import execute
            from fogzo_repro.training.preemption import REQUEUE_STATUS, Preempted
            from fogzo_repro.training.ranks import current_ranks

            if config.dry_run:
                print(describe(config))
                return
            outlive_terminal("stdout")
            try:
                record = execute(config)
            except Preempted:
                if SUBMITIT in os.environ:
                    signal.raise_signal(signal.SIGUSR2)  # its handler is back: it requeues the job
                sys.exit(REQUEUE_STATUS)
            if current_ranks().first:
                print(summary(record))
            statuses.append(DIVERGED_STATUS if record["status"] != "finished" else 0)
        except UserError as error:
            error.tell()
            statuses.append(2)
            if SUBMITIT in os.environ:  # another process waits for the status
                raise

    job()
    if 2 not in statuses:
        from fogzo_repro.training.ranks import leave

        leave()
    return max(statuses)


def summary(record: dict) -> str:
    """Return the last line of a run."""
    parts = [f"{record['run_id']}: {record['status']}"]
    for split, values in record["metrics"]["last"].items():
        parts += [f"{split} {k} {v:.4f}" for k, v in values.items() if k != "step"]
    for split, values in record["metrics"]["best"].items():
        shown = [f"{k} {v:.4f}" for k, v in values.items() if k not in ("step", "split")]
        parts += [f"best {split}: {' '.join(shown)} at step {values['step']}"]
    return "  ".join([*parts, f"{record['wall_seconds']:.1f} s", record["notes"]]).rstrip()


if __name__ == "__main__":
    sys.exit(main())
