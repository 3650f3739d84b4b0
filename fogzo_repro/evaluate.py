"""Evaluate a finished run, on data that may lie elsewhere by now.

    python -m fogzo_repro.evaluate runs/<run_id> [data_dir=...] [device=cpu]

Exit status 2: an error that the user can mend, in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fogzo_repro.config import UserError, check_given_once, did_you_mean, own_files_named
from fogzo_repro.config.models import ImageNetConfig
from fogzo_repro.stored import open_run, tell_skipped
from fogzo_repro.terminal import command_parser, one_line_errors, typed_path


def parse_settings(given: list[str], **more: Callable[[str], Any]) -> dict[str, Any]:
    """Return the `key=value` arguments of a tool by key, converted: data_dir, device and `more`.

    Raises:
        UserError: for a key that is not known or has two values, or a value that cannot be
            converted.
    """
    check_given_once(given)
    known = {"data_dir": typed_path, "device": read_device, **more}
    settings: dict[str, Any] = {"data_dir": None, "device": read_device("auto")}
    for argument in given:
        key, _, value = argument.partition("=")
        if key not in known:
            said = ", ".join(f"{name}=" for name in known)
            raise UserError(f"{key} is not a setting here, as {said}{did_you_mean(key, known)}")
        try:
            settings[key] = known[key](value)
        except ValueError as error:
            raise UserError(f"{argument}: {error}") from None
    return settings


def read_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU where there is one.

    Raises:
        ValueError: for another name, or a GPU where there is none.
    """
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError("must be auto, cpu or cuda")
    if name.startswith("cuda") and not available:
        raise ValueError("no CUDA device is here; use device=cpu")
    return torch.device(name)


@one_line_errors
@own_files_named
def main() -> None:
    """Evaluate a run and print its metrics."""
    parser = command_parser(__doc__, "fogzo_repro.evaluate")
    parser.add_argument("run", type=Path, help="a run folder, as runs/RUN_ID")
    parser.add_argument(
        "settings", nargs="*", help="data_dir=DIR, where the data lie now; device=auto|cpu|cuda"
    )
    arguments = parser.parse_args()
    settings = parse_settings(arguments.settings)
    run = open_run(arguments.run)
    dataset = run.config.dataset
    if isinstance(dataset, ImageNetConfig):  # a decoded tree has training images alone
        run = replace(run, config=replace(run.config, dataset=replace(dataset, decoded=None)))
    network, step = run.trained_network(settings["device"])
    task = run.task(**settings)
    metrics = task.evaluate(network.model, last=True)
    tell_skipped(task)
    print(f"{run.folder.resolve().name} after step {step}")
    for split, values in metrics.items():
        print(f"  {split:<6}", *(f"{name} {value!r}" for name, value in values.items()), sep="  ")


if __name__ == "__main__":
    sys.exit(main())
