"""A finished run, or one that has a checkpoint: `load_run` gives its model back.

The folder is enough to rebuild the network: resolved.json holds the arguments that the data gave.
Only its task needs the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fogzo_repro import files
from fogzo_repro.config import RunConfig, UserError, added_files, load_stored
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.terminal import stderr
from fogzo_repro.training.checkpoint import load_checkpoint, load_weights, model_tensors
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
            UserError: where there is no checkpoint, or it is another network's.
        """
        found = load_checkpoint(self.folder)
        if found is None:
            raise UserError(f"{self.folder} has no checkpoint yet; run its command again to go on")
        step, tensors, _, damaged = found
        for line in damaged:
            print(line, file=stderr())
        network = self.network(device)
        load_weights(network.model, model_tensors(tensors), self.folder)
        network.model.eval()
        return network, step

    def task(self, data_dir: str | Path | None, device: torch.device) -> Task:
        """Load the run's data, from where the run found them unless told otherwise."""
        task = build_task(replace(self.config, data_dir=str(data_dir or self.config.data_dir)))
        task.load(device)
        return task


def tell_skipped(task: Task) -> None:
    """Say which examples were replaced in what a tool has measured, before it tells the result.

    Raises:
        UserError: where the data were damaged.
    """
    for line in task.skipped():
        print(f"warning: replaced {line}", file=stderr())


def open_run(path: str | Path) -> StoredRun:
    """Read a run folder's configuration.

    Raises:
        UserError: where the path is not a run folder, or one of its files was changed.
    """
    folder = Path(path)
    settings, resolved = folder / "config.yaml", folder / "resolved.json"
    if not (settings.is_file() and resolved.is_file()):
        raise UserError(
            f"{folder} is not a run folder (config.yaml and resolved.json are not both there); "
            "give the folder that a run has written, <output_root>/<run_id>"
        )
    try:
        written = files.parse_json(resolved.read_bytes())
        facts = written["resolved"]
        model_arguments, parts = facts["model_arguments"], facts.get("parts", {})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{resolved} is damaged ({error!r}); run the run's command again, it writes it anew"
        ) from None
    if differing := _differing(read_yaml(settings), written):
        raise UserError(
            f"{settings} and {resolved.name} beside it differ in {', '.join(differing)}: one was "
            "changed after the run had written both; run the run's command again, it writes them "
            "anew"
        )
    config = load_stored(settings)
    now = added_files(config)
    if changed := [section for section in parts if now.get(section) != parts[section]]:
        said = f"the file of its {' and '.join(changed)} in {config.parts_dir} has changed since"
        print(f"warning: {folder}: {said}; what follows is by the file as it is", file=stderr())
    return StoredRun(folder, config, model_arguments)


def _differing(settings: dict[str, Any], written: dict[str, Any]) -> list[str]:
    """Return the settings that stand in both files of a run folder with different values."""
    both = [name for name in written if name in settings]
    sections = [name for name in both if isinstance(written[name], dict)]
    lost = [k for k in both if isinstance(settings[k], dict) != isinstance(written[k], dict)]
    return lost or [
        f"{name}.{key}"
        for name in sections
        for key, value in settings[name].items()
        if key in written[name] and written[name][key] != value
    ]


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
