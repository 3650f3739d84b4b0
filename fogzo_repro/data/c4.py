"""Tokenised C4: uint16 shards and a manifest, read in windows of T + 1 tokens.

scripts/prepare_c4.py writes them under data_dir/c4. The shards of a split are one stream of tokens,
documents one after another, each with BOS in front and no mask at the boundaries (RECIPES C.4).

Shapes: B windows, T tokens of context.
"""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.project import script

MANIFEST = "manifest.json"
LEAST_WINDOWS = 64  # a validation split with fewer says nothing, PAPER 4
TOKENIZER = "meta-llama/Llama-2-7b-hf"  # QuEST's (RECIPES C.2)
AGAIN = f"run {script('prepare_c4')} again"


def prepare_command(out: str | Path, tokens: str) -> str:
    """Return the command that writes a corpus of so many tokens to a folder."""
    where = "--source", "hub", "--tokenizer", TOKENIZER, "--out", out, "--tokens", tokens
    return script("prepare_c4", *where)


class TokenBatch(NamedTuple):
    """Windows (B, T + 1) int64: T inputs and the T tokens that follow them."""

    windows: Tensor


@dataclass(frozen=True)
class Corpus:
    """A prepared corpus: its folder, its manifest, and the manifest's sha256."""

    folder: Path
    manifest: dict[str, Any]
    sha256: str

    @property
    def name(self) -> str:
        """What records and tables call it, such as `C4 (en)`."""
        return self.manifest["corpus"]


def build(data_dir: Path) -> Corpus:
    """Read data_dir/c4/manifest.json.

    Raises:
        UserError: where it is missing or not a manifest, with the command that writes it.
    """
    path = data_dir / "c4" / MANIFEST
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
        _ = manifest["corpus"], [manifest["tokenizer"][key] for key in ("sha256", "vocabulary")]
        for split in manifest["splits"].values():
            _ = split["documents"], split["tokens"], [_said(shard) for shard in split["shards"]]
    except FileNotFoundError:
        command = prepare_command(path.parent, "N")
        raise UserError(
            f"{path} is not there; write it with {command} (docs/data.md: how many), or give "
            "data_dir="
        ) from None
    except Exception as error:  # whatever may be wrong with a file
        raise UserError(f"{path} is not a manifest ({error!r}); delete it and {AGAIN}") from None
    return Corpus(path.parent, manifest, hashlib.sha256(content).hexdigest())


def check_tokenizer(corpus: Corpus, vocabulary: int) -> None:
    """Check that a model can take the corpus.

    Raises:
        UserError: where the tokenizer has more entries than the model.
    """
    entries = corpus.manifest["tokenizer"]["vocabulary"]
    if entries > vocabulary:
        raise UserError(
            f"{corpus.folder / MANIFEST}: the tokenizer has {entries} entries, more than "
            f"model.vocabulary={vocabulary}; give model.vocabulary={entries}"
        )


def open_split(corpus: Corpus, split: str, vocabulary: int) -> TokenStream:
    """Open the shards of a split: `train`, `heldout`, `tuning` or `c4`.

    Raises:
        UserError: where it is not in the manifest, or a shard is missing or of another size.
    """
    if split not in corpus.manifest["splits"]:
        known = ", ".join(s for s in corpus.manifest["splits"] if s != "train")
        raise UserError(
            f"dataset.validation={split} is not in {corpus.folder / MANIFEST}; options: {known}; "
            "C4's own split is prepared from a --source with its validation files"
        )
    shards = corpus.manifest["splits"][split]["shards"]
    named = [(corpus.folder / name, tokens, sha256) for name, tokens, sha256 in map(_said, shards)]
    return TokenStream(named, vocabulary)


def _said(shard: dict[str, Any]) -> tuple[str, int, str]:
    """Return what a manifest says of a shard: its file, its tokens, its checksum."""
    return shard["file"], shard["tokens"], shard["sha256"]


def enough_documents(documents: int, tokens: int, context: int) -> int:
    """Return how many documents make LEAST_WINDOWS windows of T inputs and T targets.

    Their mean length is that of so many documents with so many tokens; `context` is T.

    >>> enough_documents(10, 5120, 512)
    65
    """
    return math.ceil((LEAST_WINDOWS * context + 1) * documents / tokens)


class TokenStream:
    """Shards as one stream of tokens, mapped into memory.

    Args:
        shards: paths, their numbers of tokens and their checksums, sha256.
        vocabulary: every token must be below it.

    Attributes:
        checked: what `check` has found so far; None before it.
    """

    def __init__(self, shards: Sequence[tuple[Path, int, str]], vocabulary: int) -> None:
        for path, tokens, _ in shards:
            size = path.stat().st_size if path.is_file() else 0
            if size != 2 * tokens:
                raise UserError(
                    f"{path} has {size} bytes, the manifest says {2 * tokens}; delete it and "
                    f"{AGAIN}"
                )
        kept = [shard for shard in shards if shard[1]]
        self.paths = [path for path, _, _ in kept]
        self.checksums = [checksum for _, _, checksum in kept]
        self.shards = [np.memmap(path, dtype="<u2", mode="r") for path in self.paths]
        self.ends = np.cumsum([tokens for _, tokens, _ in kept], dtype=np.int64)
        self.vocabulary = vocabulary
        self.checked: Future[None] | None = None

    def __len__(self) -> int:
        """Tokens in all shards."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def check(self, rank: int, world_size: int) -> None:
        """Begin to compare this rank's share of the shards with their checksums.

        It goes on beside the training: no start waits for it.
        """
        shards = [*zip(self.paths, self.checksums, strict=True)][rank::world_size]
        self.checked = Future()
        threading.Thread(target=_check, args=(shards, self.checked), daemon=True).start()

    def raise_damage(self, wait: bool) -> None:
        """Say what `check` has found; `wait` for its end.

        Raises:
            UserError: for a shard that cannot be read or is not the one of the manifest.
        """
        if self.checked is not None and (wait or self.checked.done()):
            self.checked.result()

    def window(self, start: int, length: int) -> np.ndarray:
        """Return `length` tokens from `start` on, int64, over as many shards as it takes.

        Raises:
            UserError: with shard and position of a token that is not below the vocabulary.
        """
        pieces: list[np.ndarray] = []
        index = int(np.searchsorted(self.ends, start, side="right"))
        position = start - (int(self.ends[index - 1]) if index else 0)
        while length > 0:
            piece = self.shards[index][position : position + length]
            if piece.max() >= self.vocabulary:
                at = int(np.argmax(piece >= self.vocabulary))
                raise UserError(
                    f"{self.paths[index]} token {position + at}: id {piece[at]} is not below "
                    f"model.vocabulary={self.vocabulary}; give a larger one or {AGAIN}"
                )
            pieces.append(piece)
            length -= len(piece)
            index, position = index + 1, 0
        return np.concatenate(pieces).astype(np.int64)

    def windows(self, starts: Sequence[int], context: int) -> Tensor:
        """Return the windows (B, T + 1) int64 that begin at `starts`."""
        self.raise_damage(wait=False)
        return torch.from_numpy(np.stack([self.window(s, context + 1) for s in starts]))


def _check(shards: Sequence[tuple[Path, str]], checked: Future[None]) -> None:
    """Compare shards with their checksums; stop at the first that differs."""
    try:
        for path, checksum in shards:
            if files.sha256_of(path) != checksum:
                raise UserError(
                    f"{path} does not have the checksum that {MANIFEST} says; {AGAIN}, then with "
                    "force=true what was trained on it"
                )
        checked.set_result(None)
    except OSError as error:
        checked.set_exception(files.cannot(f"read {path}", error))
    except Exception as error:  # whatever it is, somebody waits for an end
        checked.set_exception(error)


@dataclass(frozen=True)
class WindowBatches:
    """The batches of an epoch: windows every T tokens, permuted, cut into full global batches.

    As QuEST's reader, an epoch begins at an offset in [0, T) and takes each window once (RECIPES
    C.4). Order and offset are functions of the epoch's generator, the batch of (step, rank).
    """

    stream: TokenStream
    context: int  # T
    batch_size: int  # windows per step over all ranks
    device: torch.device  # where the batches go
    rank: int = 0
    world_size: int = 1

    @property
    def windows(self) -> int:
        """Windows in an epoch, the same for every offset."""
        return max(0, (len(self.stream) - self.context) // self.context)

    @property
    def order(self) -> EpochOrder:
        """Full global batches in an epoch, and their sizes."""
        return EpochOrder(self.windows, self.batch_size, world_size=self.world_size)

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[TokenBatch]:
        """Yield this rank's share of each batch from `start` on; all ranks pass the same stream."""
        offset = int(torch.randint(self.context, (), generator=generator))
        order = torch.randperm(self.windows, generator=generator)
        for index in range(start, self.order.steps):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            starts = (offset + self.context * chosen[self.rank :: self.world_size]).tolist()
            windows = self.stream.windows(starts, self.context)
            if self.device.type == "cuda":  # pinned, so that the copy does not wait for the device
                windows = windows.pin_memory().to(self.device, non_blocking=True)
            yield TokenBatch(windows)
