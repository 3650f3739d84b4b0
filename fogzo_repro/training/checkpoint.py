"""Checkpoints: safetensors for the tensors, JSON for the rest; atomic and checksummed.

A checkpoint is `checkpoint-<step>.safetensors` and `checkpoint-<step>.json`. Each is written whole
or not at all; the JSON comes last and carries the checksum of both, so a checkpoint is there only
when it is whole. The last two are kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from fogzo_repro import files
from fogzo_repro.config import UserError

KEEP = 2
MODEL = "model/"  # before the names of the network's tensors
CHECKSUM = "fogzo_repro.sha256"  # in the header of a file of tensors


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, torch.Tensor], state: dict[str, Any]
) -> None:
    """Write tensors and a state that JSON holds into the run folder; keep the last two steps'."""
    content = pack_tensors(tensors)
    head = {"step": step, "state": state, "sha256": hashlib.sha256(content).hexdigest()}
    head["checksum"] = checksum_of(head)
    stem = folder / f"checkpoint-{step:08d}"
    files.write(stem.with_suffix(".safetensors"), content)
    files.write(stem.with_suffix(".json"), json.dumps(head, indent=1).encode())
    # Listed once: what appears later is another process's, which has this folder's name by now.
    there = sorted(folder.glob("checkpoint-*"))
    kept = {path.stem for path in [p for p in there if p.suffix == ".json"][-KEEP:]}
    # JSON first: tensors alone are no checkpoint, and those that a kill has left alone go too.
    for old in sorted(there, key=lambda path: path.suffix):
        if old.stem not in kept:
            with contextlib.suppress(OSError):  # one too many does no harm
                old.unlink()


def load_checkpoint(
    folder: Path, lacks: Callable[[int, dict[str, Any]], str | None] = lambda step, state: None
) -> tuple[int, dict[str, torch.Tensor], dict[str, Any], list[str]] | None:
    """Read the newest checkpoint that is whole.

    Args:
        folder: the run folder.
        lacks: from step and state to what is missing beside the checkpoint, None for nothing.

    Returns:
        Step, tensors, state, and a line for each damaged checkpoint that was passed over;
        None where there is none.

    Raises:
        UserError: where there are some, of which none is whole or can be read.
    """
    damaged, unreadable = [], None
    for path in sorted(folder.glob("checkpoint-*.json"), reverse=True):
        try:
            head = files.parse_json(path.read_bytes())
            if not isinstance(head, dict):
                raise ValueError("its JSON is no object")
            content = path.with_suffix(".safetensors").read_bytes()
            if head.pop("checksum") != checksum_of(head):
                raise ValueError("its JSON does not match its checksum")
            if hashlib.sha256(content).hexdigest() != head["sha256"]:
                raise ValueError("its tensors do not match their checksum")
            if missing := lacks(head["step"], head["state"]):
                raise ValueError(missing)
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{path.stem} is damaged ({error})")
            if isinstance(error, OSError):
                unreadable = unreadable or files.unreadable(Path(error.filename or path), error)
            continue
        said = [f"{line}; using the one before" for line in damaged]
        return head["step"], load(content), head["state"], said
    if unreadable:
        raise unreadable
    if damaged:
        raise UserError(
            f"no whole checkpoint in {folder}: {', '.join(damaged)}; start again with force=true"
        )
    return None


def pack_tensors(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Return tensors of any device and layout as a safetensors file that holds its checksum."""
    own = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    return save(own, {CHECKSUM: digest_of(own)})


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a file of tensors: a snapshot, an export, or one of the user's, without a checksum.

    Raises:
        UserError: where it is not there or not whole, or was changed since `pack_tensors` made it.
    """
    try:
        content = path.read_bytes()
        tensors = load(content)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is no whole file of tensors ({error})") from None
    head = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    stored = (head.get("__metadata__") or {}).get(CHECKSUM)
    if stored not in (None, digest_of(tensors)):
        raise UserError(f"{path} was changed since it was written; write it again")
    return tensors


def digest_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the sha256 of all names, shapes, types and values; the tensors lie on the CPU."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def model_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the network's part of a checkpoint's tensors, by their names in the network."""
    own = {name: t for name, t in tensors.items() if name.startswith(MODEL)}
    return {name.removeprefix(MODEL): t for name, t in own.items()}


def load_weights(model: nn.Module, tensors: Mapping[str, torch.Tensor], source: Path) -> None:
    """Give a network the tensors that were read from a run folder, a file in it or an export.

    Raises:
        UserError: where they are another network's, as after a change of a user's file.
    """
    try:
        model.load_state_dict(tensors)
    except RuntimeError:
        raise another_network(source) from None


def another_network(source: Path) -> UserError:
    """Return the error of weights that do not fit what the files of the parts build now."""
    return UserError(
        f"the weights of {source} are of another network than the files of its parts build now; "
        "give these back what they had"
    )


def checksum_of(head: Mapping[str, Any]) -> str:
    """Return the sha256 of what JSON holds, but for its own `checksum`."""
    text = json.dumps({k: v for k, v in head.items() if k != "checksum"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
