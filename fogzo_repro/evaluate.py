"""Finished runs: `load_run` gives the model back, `fogzo_repro.evaluate` evaluates it.

    python -m fogzo_repro.evaluate runs/<run_id> [data_dir=...] [device=cpu]

The folder is enough to rebuild the network: resolved.json holds the arguments that the data gave.
Only evaluating needs the data. Exit status 2: an error that the user can mend, in one line.
"""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from fogzo_repro.config import RunConfig, UserError, parse_config
from fogzo_repro.training.checkpoint import load_checkpoint
from fogzo_repro.training.network import Network, build_network
from fogzo_repro.training.tasks import Task, build_task


@dataclass(frozen=True)
class StoredRun:
    """What a run folder says about its network.

    Attributes:
        folder: the run folder.
        config: as the run had it.
        model_arguments: what the data gave to the model.
    """

    folder: Path
    config: RunConfig
    model_arguments: dict[str, Any]

    def network(self, device: torch.device) -> Network:
        """Build the network as it was before its first step."""
        return build_network(self.config, self.model_arguments, device)

    def trained_network(self, device: torch.device) -> tuple[Network, int]:
        """Build the network with the weights of the last whole checkpoint, in evaluation mode.

        Returns:
            The network, and the steps that it has taken.

        Raises:
            UserError: where there is no checkpoint.
        """
        found = load_checkpoint(self.folder)
        if found is None:
            raise UserError(f"{self.folder} has no checkpoint yet; run its command again to go on")
        step, tensors, _, damaged = found
        for line in damaged:
            print(line, file=sys.stderr)
        network = self.network(device)
        prefix = "model/"
        model = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        network.model.load_state_dict(model)
        network.model.eval()
        return network, step

    def task(self, data_dir: str | None, device: torch.device) -> Task:
        """Load the run's data, from where the run found them unless told otherwise."""
        task = build_task(replace(self.config, data_dir=data_dir or self.config.data_dir))
        task.load(device)
        return task


def open_run(path: str | Path) -> StoredRun:
    """Read a run folder's configuration.

    Raises:
        UserError: where the path is not a run folder.
    """
    folder = Path(path)
    try:
        config = OmegaConf.load(folder / "config.yaml")
        resolved = json.loads((folder / "resolved.json").read_text())["resolved"]
    except (OSError, ValueError, KeyError):
        raise UserError(
            f"{folder} is not a run folder (config.yaml and resolved.json are not both there); "
            "give the folder that a run has written, <output_root>/<run_id>"
        ) from None
    assert isinstance(config, DictConfig)
    return StoredRun(folder, parse_config(config), resolved["model_arguments"])


def config_from(stored: dict[str, Any]) -> RunConfig:
    """Return the configuration that was stored as plain dictionaries.

    Raises:
        ConfigError: where this code does not know its settings.
    """
    return parse_config(OmegaConf.create(stored))


def load_run(path: str | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Return the trained model of a run, in evaluation mode; needs no data.

    Args:
        path: the run folder.
        device: where the model shall be.

    Returns:
        The quantized model with the weights of the last whole checkpoint. It takes what the run's
        model takes: normalised inputs for images.

    Raises:
        UserError: where the path is not a run folder or has no checkpoint.
    """
    return open_run(path).trained_network(torch.device(device))[0].model


def parse_settings(given: list[str], known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    """Return `key=value` arguments by key, converted.

    Raises:
        UserError: for a key that is not known or a value that cannot be converted.
    """
    settings = {}
    for argument in given:
        key, _, value = argument.partition("=")
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)[0]
            raise UserError(f"{key} is not a setting here; did you mean {near}=?")
        try:
            settings[key] = known[key](value)
        except ValueError as error:
            raise UserError(f"{argument}: {error}") from None
    return settings


def read_device(name: str) -> torch.device:
    """Return the device of a name; `auto` is a GPU where there is one."""
    available = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if available else "cpu"
    if name.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError("must be auto, cpu or cuda")
    if name.startswith("cuda") and not available:
        raise ValueError("no CUDA device is here; use device=cpu")
    return torch.device(name)


def one_line_errors(tool: Callable[[], None]) -> int:
    """Run a command-line tool; print an error that the user can mend in one line.

    Returns:
        The exit status: 0, or 2 after an error.
    """
    try:
        tool()
    except UserError as error:
        error.tell()
        return 2
    return 0


def main() -> None:
    """Evaluate a run and print its metrics."""
    parser = argparse.ArgumentParser("fogzo_repro.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("run", help="a run folder")
    parser.add_argument("settings", nargs="*", help="data_dir=..., device=auto|cpu|cuda")
    arguments = parser.parse_args()
    settings = parse_settings(arguments.settings, {"data_dir": str, "device": read_device})
    device = settings.get("device", read_device("auto"))

    run = open_run(arguments.run)
    network, step = run.trained_network(device)
    metrics = run.task(settings.get("data_dir"), device).evaluate(network.model, last=True)
    print(f"{run.folder.resolve().name} after step {step}")
    for split, values in metrics.items():
        print(f"  {split:<6}", *(f"{name} {value!r}" for name, value in values.items()), sep="  ")


if __name__ == "__main__":
    sys.exit(one_line_errors(main))
