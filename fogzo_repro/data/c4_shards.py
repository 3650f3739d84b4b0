"""From one file of documents to its shards: tokens of the training and of the held-out documents.

A part is what one source file gives: `train-<index>.bin`, `train-heldout-<index>.bin` (uint16 LE)
and `part-<index>.json`, which is written last, so a part exists only when it is whole. Its content
depends on the file and the settings alone, so an interrupted preparation ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.c4_documents import SourceFile
from fogzo_repro.randomness import hash64

BOS = 1
BATCH = 256  # documents encoded at a time
HELD_OUT_SEED = 2357  # QuEST's, RECIPES C.4


@dataclass(frozen=True)
class Shard:
    """One file of tokens."""

    file: str
    source: str
    documents: int
    tokens: int
    sha256: str


@dataclass(frozen=True)
class Part:
    """The shards of one source file."""

    train: Shard
    heldout: Shard
    stopped: bool  # at the wanted tokens, before the end of the file


def load_tokenizer(path: Path) -> Any:
    """Load a sentencepiece model, LLaMA-style.

    `tokenizer.model` is read by sentencepiece itself: transformers' loaders give wrong ids or none
    at all for a folder that holds nothing else.

    Raises:
        UserError: where it is not one, has no BOS with id 1 or does not fit uint16.
    """
    from sentencepiece import SentencePieceProcessor

    try:
        tokenizer = SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path} is not a sentencepiece model ({str(error).splitlines()[0]})"
        ) from None
    if tokenizer.bos_id() != BOS or tokenizer.vocab_size() > 2**16:
        raise UserError(
            f"{path}: BOS has id {tokenizer.bos_id()} and there are {tokenizer.vocab_size()} "
            "entries; a LLaMA-style tokenizer has BOS 1 and at most 65,536"
        )
    return tokenizer


def held_out(name: str, index: int, every: int) -> bool:
    """Whether document `index` of a file is held out: one, drawn at random, of each `every`.

    QuEST holds out a random 0.05% of all documents; drawn block by block the share is the same and
    a document's fate does not depend on the other files.
    """
    if not every:
        return False
    block, place = divmod(index, every)
    return hash64(f"{HELD_OUT_SEED}/{name}/{block}".encode()) % every == place


def tokenize_file(
    source: SourceFile,
    tokenizer: Any,
    out: Path,
    prefix: str,
    index: int,
    *,
    every: int,
    limit: int,
    report: Callable[[int], None],
) -> Part:
    """Write the part of one source file.

    Args:
        source: the documents.
        tokenizer: from `load_tokenizer`.
        out: the folder.
        prefix: of the file names, `train` or `c4`.
        index: of the file.
        every: one document of so many is held out; 0 for none.
        limit: training tokens after which the file is left.
        report: called with the number of new tokens now and then.
    """
    names = f"{prefix}-{index:05d}.bin", f"{prefix}-heldout-{index:05d}.bin"
    with files.whole(out / names[0]) as first, files.whole(out / names[1]) as second:
        train, heldout = _ShardWriter(first), _ShardWriter(second)
        for batch in _batches(source.documents()):
            encoded = tokenizer.encode([text for _, text in batch], add_bos=True, num_threads=1)
            before = train.tokens
            for (number, _), tokens in zip(batch, encoded, strict=True):
                writer = heldout if held_out(source.name, number, every) else train
                writer.add(np.array(tokens, dtype="<u2"), limit)
            report(train.tokens - before)
            if train.tokens >= limit:
                break
    shards = [w.shard(n, source.name) for w, n in zip((train, heldout), names, strict=True)]
    part = Part(shards[0], shards[1], train.tokens >= limit)
    write_json(out / f"part-{prefix}-{index:05d}.json", asdict(part))
    return part


def _batches(documents: Iterable[str]) -> Iterator[list[tuple[int, str]]]:
    batch: list[tuple[int, str]] = []
    for numbered in enumerate(documents):
        batch.append(numbered)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


class _ShardWriter:
    """Writes documents to a file, and counts them."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.digest = hashlib.sha256()
        self.tokens = self.documents = 0

    def add(self, tokens: np.ndarray, limit: int) -> None:
        """Append a document, cut where the shard reaches `limit` tokens."""
        tokens = tokens[: max(0, limit - self.tokens)]
        if len(tokens):
            data = tokens.tobytes()
            self.file.write(data)
            self.digest.update(data)
            self.tokens += len(tokens)
            self.documents += 1

    def shard(self, name: str, source: str) -> Shard:
        """Return what was written."""
        return Shard(name, source, self.documents, self.tokens, self.digest.hexdigest())


def read_part(out: Path, prefix: str, index: int) -> Part | None:
    """Return a part that is whole, or None."""
    path = out / f"part-{prefix}-{index:05d}.json"
    if not path.is_file():
        return None
    stored = json.loads(path.read_text())
    part = Part(Shard(**stored["train"]), Shard(**stored["heldout"]), stored["stopped"])
    for shard in (part.train, part.heldout):
        file = out / shard.file
        if not file.is_file() or file.stat().st_size != 2 * shard.tokens:
            return None
    return part


def cut_part(out: Path, prefix: str, index: int, part: Part, tokens: int) -> Part:
    """Cut a part's training shard to its first `tokens` tokens."""
    path = out / part.train.file
    kept = np.fromfile(path, dtype="<u2", count=tokens)
    files.write(path, kept.tobytes())
    sha256 = hashlib.sha256(kept.tobytes()).hexdigest()
    documents = int((kept == BOS).sum())  # no text encodes to BOS, so it counts the documents
    shard = Shard(part.train.file, part.train.source, documents, tokens, sha256)
    part = Part(shard, part.heldout, True)
    write_json(out / f"part-{prefix}-{index:05d}.json", asdict(part))
    return part


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    files.write(path, json.dumps(value, indent=1) + "\n")
