"""Where a run's weights begin: at those of another network, by `recipe.start_from`.

That is a finished run, or a safetensors file whose tensors have the names of the network's own:
parameters and buffers without those of quantizers. The scales of a quantized run are left behind:
as at the start of any run, quantizers take theirs from the weights that they are given.

Which weights these are is part of a run's identity by their content, `Start.digest`; where they lie
is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import RunConfig, UserError, load_stored
from fogzo_repro.config.parts import BITS, FULL_PRECISION
from fogzo_repro.terminal import path_of
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.checkpoint import (
    digest_of,
    load_checkpoint,
    model_tensors,
    read_tensors,
)
from fogzo_repro.training.optimizers import QUANTIZERS


@dataclass(frozen=True)
class Start:
    """The weights that a run begins with.

    Attributes:
        source: what `recipe.start_from` names, for errors.
        tensors: on the CPU, by their names in the network; no quantizer's among them.
    """

    source: str
    tensors: Mapping[str, Tensor]

    @cached_property
    def digest(self) -> str:
        """The sha256 of all names, shapes, types and values."""
        return digest_of(self.tensors)

    def load_into(self, model: nn.Module) -> None:
        """Give a network without quantizers these weights.

        Raises:
            UserError: where they are another network's or not finite, with the first tensor that
                tells.
        """
        wanted = model.state_dict()
        for said, names in {
            "it lacks": wanted.keys() - self.tensors.keys(),
            "the network does not have its": self.tensors.keys() - wanted.keys(),
        }.items():
            if names:
                more = f" and {len(names) - 1} more" if len(names) > 1 else ""
                raise UserError(f"{self.source} is of another network: {said} {min(names)}{more}")
        for name, tensor in wanted.items():
            given = self.tensors[name]
            if given.shape != tensor.shape:
                raise UserError(
                    f"{self.source} is of another network: its {name} has shape "
                    f"{tuple(given.shape)}, and this network's has {tuple(tensor.shape)}"
                )
            if _kind(given) != _kind(tensor):
                raise UserError(
                    f"{self.source} has {_kind(given)} values ({given.dtype}) in {name}, and this "
                    f"network has {_kind(tensor)} ones ({tensor.dtype}); store them as the latter"
                )
            if not given.to(tensor.dtype).isfinite().all():
                raise UserError(
                    f"{self.source} has values in {name} that are not finite in {tensor.dtype}; "
                    "begin with weights from before they diverged"
                )
        model.load_state_dict(dict(self.tensors))


def _kind(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "floating-point"
    if tensor.is_complex():
        return "complex"
    return "boolean" if tensor.dtype == torch.bool else "whole"


def read_start(config: RunConfig) -> Start | None:
    """Read what `recipe.start_from` names; None where it is null.

    Raises:
        UserError: where it is not a finished run of such a model, nor a whole file of tensors, or
            its weights lie in another basis than this run's.
    """
    given = config.recipe.start_from
    if given is None:
        return None
    path, source = path_of("recipe.start_from", given), f"recipe.start_from={given}"
    if path.is_dir():
        tensors = _of_run(path, source, config)
    elif path.is_file():
        if _unrotated(config) is not None:
            raise UserError(
                f"{source} is a file, which does not tell in which basis its weights lie, and "
                f"{ROTATED} keeps them rotated; give the folder of such a run, or "
                "quantizer.hadamard=full"
            )
        tensors = read_tensors(path)
    else:
        raise UserError(
            f"{source} is not there; give the folder of a finished run, <output_root>/<run_id>, "
            "or a safetensors file"
        )
    named = model_tensors(tensors) or tensors  # a checkpoint has other state too
    kept = {k: v for k, v in named.items() if not QUANTIZERS & set(k.split("."))}
    return Start(source, kept)


ROTATED = "quantizer.hadamard=half with either weights or inputs quantized alone"


def _unrotated(config: RunConfig) -> frozenset[str] | None:
    """Return which layers keep unrotated weights; None where all do.

    With `hadamard=half` one of a layer's operands is rotated. Unless the quantizer of the other
    rotates it too, the weights that are trained, and stored, lie in the rotated basis.
    """
    quantizer: Any = config.quantizer
    on = {getattr(quantizer, key, FULL_PRECISION) != FULL_PRECISION for key in BITS}
    if getattr(quantizer, "hadamard", "none") != "half" or on != {True, False}:
        return None
    spared = config.model.first_last if quantizer.first_last == "float" else ()
    return frozenset(spared)


def _of_run(folder: Path, source: str, config: RunConfig) -> dict[str, Tensor]:
    if not (folder / "config.yaml").is_file():
        raise UserError(
            f"{source} is not a run folder (it has no config.yaml); give the folder that a run has "
            "written, <output_root>/<run_id>"
        )
    if not (folder / "record.json").is_file():
        raise UserError(f"{source} is not finished; run its command again, it goes on")
    record = read_record(folder / "record.json")
    if record["status"] != "finished":
        raise UserError(f"{source} has {record['status']}: its weights are no start")
    stored = load_stored(folder / "config.yaml")
    theirs, ours = vars(stored.model), vars(config.model)
    for key in theirs.keys() & ours.keys() - {"name", "first_last"}:
        # Rates do not belong to the weights; what is counted or named does, as the heads of a
        # transformer, which no shape shows.
        if theirs[key] != ours[key] and not isinstance(ours[key], float):
            raise UserError(
                f"{source} is of another network: it has model.{key}={theirs[key]}, and this run "
                f"{ours[key]}"
            )
    if _unrotated(stored) != _unrotated(config):
        raise UserError(
            f"{source} has weights in another basis than this run's: {ROTATED} keeps them rotated; "
            "give both runs the same quantizer.hadamard=half and first and last layers, or neither "
            "(quantizer.hadamard=full)"
        )
    found = load_checkpoint(folder)
    if found is None or found[0] != record["steps"]:
        raise UserError(
            f"{source} has no whole checkpoint of its last step, {record['steps']}; run its "
            "command again with force=true"
        )
    return found[1]
