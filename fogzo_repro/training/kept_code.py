"""Compiled code that is kept between runs, and taken to other machines of the same kind.

torch gives what it has compiled in a process as bytes, its portable cache artifacts, and takes them
back in another process before that compiles: what it then finds among them it does not compile. It
knows them by the code and the settings that they were made from, so that what has changed since is
compiled anew and nothing stale is run.

One file holds what a run of one shape has compiled (network, quantizer, batch, precision; not seed
or learning rate):

    FOGZO_COMPILED/torch-VERSION-CARD/NAME        FOGZO_COMPILED: ~/.cache/fogzo_repro by default

The first line of the file says for which torch and card it was made, and the checksum of the rest.
It is torch that reads the rest, by pickle: take files from nobody whose programs you would not run.

Kernels that are written in Triton are not among them. Triton keeps them itself, beside the file in
`triton`, unless TRITON_CACHE_DIR names another folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

from fogzo_repro import files
from fogzo_repro.terminal import UserError, path_of


def kept_folder() -> Path | None:
    """Return where compiled code is kept; None for nowhere, by an empty FOGZO_COMPILED."""
    given = os.environ.get("FOGZO_COMPILED")
    if given is not None:
        return path_of("FOGZO_COMPILED", given).absolute() if given else None
    try:
        return Path.home() / ".cache" / "fogzo_repro"
    except RuntimeError:  # a user without a home
        return None


class KeptCode:
    """What the runs of one shape have compiled.

    Args:
        folder: of all kept code; None to keep none.
        card: the name of the card or processor.
        shape: all that tells one shape from another, as JSON can hold it.
    """

    def __init__(self, folder: Path | None, card: str, shape: dict[str, Any]) -> None:
        self.made_for = {"torch": torch.__version__, "card": card}
        self.path: Path | None = None
        self.known: dict[str, set[str]] = {}  # by kind, the names of what the file holds
        if folder is not None:
            kind = re.sub(r"[^\w.+-]+", "-", f"torch-{torch.__version__}-{card}")
            shape_hash = hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
            self.path = folder / kind / shape_hash[:16]

    def load(self) -> list[str]:
        """Give torch what is kept, before anything is compiled; return what there is to say."""
        if self.path is None:
            return []
        _have_triton_keep(self.path.parent / "triton")
        _forget_earlier_runs()
        try:
            head, _, content = self.path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return []
        except OSError as error:
            return [self._not_used(f"it cannot be read ({error.strerror})")]
        try:
            said = files.parse_json(head)
            made_for = {key: said[key] for key in self.made_for}
            damaged = said["sha256"] != hashlib.sha256(content).hexdigest()
        except (ValueError, KeyError, TypeError):
            damaged = True
        if damaged:
            return [self._not_used("it is damaged")]
        if made_for != self.made_for:
            return [self._not_used("it is of torch {torch} on {card}".format(**made_for))]
        # It makes torch's cache folder. Where it cannot, that is the error: `load_cache_artifacts`
        # would pass over it, and the next import end in another.
        import torch._dynamo

        try:
            info = torch.compiler.load_cache_artifacts(content)
        except OSError as error:  # torch's own cache folder
            return [self._not_used(f"torch cannot unpack it ({error.strerror})")]
        if info is None:
            return [self._not_used("torch does not know its format")]
        self.known = _names(info)
        return [f"compiled code from {self.path}"]

    def save(self) -> list[str]:
        """Keep what was compiled in this run, if any of it is new; return what there is to say."""
        found = None if self.path is None else torch.compiler.save_cache_artifacts()
        if self.path is None or found is None:
            return []
        content, info = found
        if all(names <= self.known.get(kind, set()) for kind, names in _names(info).items()):
            return []
        head = {**self.made_for, "sha256": hashlib.sha256(content).hexdigest()}
        try:
            files.make_folder(self.path.parent, f"FOGZO_COMPILED={self.path.parent.parent}")
            files.remove_unfinished(self.path.parent)
            files.write(self.path, json.dumps(head).encode() + b"\n" + content)
        except UserError as error:
            return [f"warning: compiled code is not kept: {error}"]
        return [f"compiled code kept in {self.path}"]

    def _not_used(self, why: str) -> str:
        return f"warning: the compiled code in {self.path} is not used: {why}"


def _names(info: Any) -> dict[str, set[str]]:
    return {kind: set(names) for kind, names in info.artifacts.items()}


def _have_triton_keep(folder: Path) -> None:
    """Have Triton keep its kernels in a folder, where that can be written and none was named."""
    if "TRITON_CACHE_DIR" not in os.environ:
        with contextlib.suppress(UserError):
            files.make_folder(folder, "FOGZO_COMPILED")
            os.environ["TRITON_CACHE_DIR"] = str(folder)


def _forget_earlier_runs() -> None:
    """Let torch collect anew: a process may run many cells, each with a file of its own."""
    with contextlib.suppress(ImportError, AttributeError):  # it has no public name
        from torch.compiler._cache import CacheArtifactManager

        CacheArtifactManager.clear()
