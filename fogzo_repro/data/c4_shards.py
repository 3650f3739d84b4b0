"""From files of documents to shards of tokens, several files at a time.

A part is what one source file gives: the tokens of its training documents and of two slices that
are held out of training, one to choose settings by, one to report on. Each is a file of uint16 LE,
such as `train-00000.bin`, `train-tuning-00000.bin` and `train-heldout-00000.bin`; beside them lies
`part-train-00000.json`, which is written last, so that a part exists only when it is whole. Its
content depends on the file and the settings alone: an interrupted preparation, run again, ends with
the same bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.c4_documents import SourceFile
from fogzo_repro.data.workers import worker_pool
from fogzo_repro.randomness import hash64
from fogzo_repro.terminal import first_line

BOS = 1
BATCH = 256  # documents encoded at a time
HELD_OUT_SEED = 2357  # QuEST's, RECIPES C.4
SPLITS = ("train", "tuning", "heldout")
POLL_SECONDS = 0.5


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
    """The shards of one source file, by split."""

    shards: dict[str, Shard]
    stopped: bool  # at the wanted tokens, before the end of the file

    @property
    def train_tokens(self) -> int:
        """Training tokens."""
        return self.shards["train"].tokens


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
    except Exception as error:
        raise UserError(f"{path} is not a sentencepiece model ({first_line(error)})") from None
    if tokenizer.bos_id() != BOS or tokenizer.vocab_size() > 2**16:
        raise UserError(
            f"{path}: BOS has id {tokenizer.bos_id()} and there are {tokenizer.vocab_size()} "
            "entries; a LLaMA-style tokenizer has BOS 1 and at most 65,536"
        )
    return tokenizer


def split_of(name: str, index: int, every: int) -> str:
    """Return the split of document `index` of a file: `train`, `tuning` or `heldout`.

    Of each `every` documents in a row, one drawn at random is held out to report on, as QuEST holds
    out a random 0.05% of all documents, and another one to choose settings by. Drawn block by
    block, a document's fate does not depend on the other files. 0 holds out none.
    """
    if not every:
        return "train"
    block, place = divmod(index, every)
    rest, heldout = divmod(hash64(f"{HELD_OUT_SEED}/{name}/{block}".encode()), every)
    tuning = (heldout + 1 + rest % (every - 1)) % every
    return {heldout: "heldout", tuning: "tuning"}.get(place, "train")


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
    """Write the part of one source file, see `tokenize_files`.

    The file is left after `limit` training tokens; `report` is told the number of new ones now and
    then.
    """
    between = {split: "" if split == "train" else f"{split}-" for split in SPLITS}
    names = {split: f"{prefix}-{word}{index:05d}.bin" for split, word in between.items()}
    with contextlib.ExitStack() as stack:
        writers = {s: _ShardWriter(stack.enter_context(files.whole(out / names[s]))) for s in names}
        train = writers["train"]
        documents = enumerate(source.documents())
        while batch := list(islice(documents, BATCH)):
            encoded = tokenizer.encode([text for _, text in batch], add_bos=True, num_threads=1)
            before = train.tokens
            for (number, _), tokens in zip(batch, encoded, strict=True):
                split = split_of(source.name, number, every)
                writers[split].add(np.array(tokens, dtype="<u2"), limit)
            report(train.tokens - before)
            if train.tokens >= limit:
                break
    shards = {split: writers[split].shard(names[split], source.name) for split in names}
    part = Part(shards, train.tokens >= limit)
    write_json(_part_path(out, prefix, index), asdict(part))
    return part


def _part_path(out: Path, prefix: str, index: int) -> Path:
    return out / f"part-{prefix}-{index:05d}.json"


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
    """Return a part that is whole, its tokens as they were written, or None."""
    try:
        stored = files.parse_json(_part_path(out, prefix, index).read_bytes())
        part = Part({s: Shard(**shard) for s, shard in stored["shards"].items()}, stored["stopped"])
        if all(files.sha256_of(out / s.file) == s.sha256 for s in part.shards.values()):
            return part
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # not there, or damaged
        pass
    return None


def remove_part(out: Path, prefix: str, index: int, part: Part) -> None:
    """Remove a part's files."""
    _part_path(out, prefix, index).unlink()
    for shard in part.shards.values():
        (out / shard.file).unlink()


def cut_part(out: Path, prefix: str, index: int, part: Part, tokens: int) -> Part:
    """Cut a part's training shard to its first `tokens` tokens."""
    train = part.shards["train"]
    path = out / train.file
    kept = np.fromfile(path, dtype="<u2", count=tokens)
    content = kept.tobytes()
    files.write(path, content)
    sha256 = hashlib.sha256(content).hexdigest()
    documents = int((kept == BOS).sum())  # no text encodes to BOS, so it counts the documents
    shard = Shard(train.file, train.source, documents, tokens, sha256)
    part = Part({**part.shards, "train": shard}, True)
    write_json(_part_path(out, prefix, index), asdict(part))
    return part


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    files.write(path, json.dumps(value, indent=1) + "\n")


def tokenize_files(
    sources: Sequence[SourceFile],
    tokenizer: Path,
    out: Path,
    prefix: str,
    *,
    wanted: int,
    every: int,
    workers: int,
    progress: Callable[[int], None],
) -> list[Part]:
    """Return the parts of the first files that hold `wanted` training tokens; the last one is cut.

    Parts that are there are kept, so the same call goes on after an interruption. Names of files
    begin with the `prefix`, `train` or `c4`; of `every` documents one goes to each slice that is
    held out, of 0 none. Each worker has one file at a time.

    Raises:
        UserError: what a worker raised first.
    """
    counter = multiprocessing.get_context("fork").Value("q", 0)
    parts: dict[int, Part] = {}
    running: dict[Future[Part], int] = {}
    upcoming = 0
    with worker_pool(workers, partial(_start_worker, tokenizer, counter)) as pool:
        try:
            while True:
                total = sum(p.train_tokens for p in parts.values())
                known = [p.train_tokens for p in parts.values() if not p.stopped]
                each = sum(known) / len(known) if known else sources[0].expected_tokens
                while upcoming < len(sources) and len(running) < workers:
                    if total + len(running) * each >= wanted:
                        break
                    found = read_part(out, prefix, upcoming)
                    if found is not None:
                        parts[upcoming] = found
                        total += found.train_tokens
                        with counter.get_lock():
                            counter.value += found.train_tokens
                    else:
                        task = (sources[upcoming], out, prefix, upcoming, every, wanted)
                        running[pool.submit(_work, *task)] = upcoming
                    upcoming += 1
                progress(counter.value)
                if not running:
                    break
                for future in wait(running, POLL_SECONDS, FIRST_COMPLETED).done:
                    parts[running.pop(future)] = future.result()
        except BrokenProcessPool:
            at = " or ".join(sources[index].name for index in sorted(running.values()))
            raise UserError(
                f"a worker was ended from outside, at {at}; run the same command again: finished "
                "files stay"
            ) from None
    return _first(parts, out, prefix, wanted)


def _first(parts: dict[int, Part], out: Path, prefix: str, wanted: int) -> list[Part]:
    """Return the parts in order up to the wanted tokens, the last one cut; drop the rest."""
    chosen: list[Part] = []
    left = wanted
    for index in sorted(parts):
        part = parts[index]
        if left <= 0:
            remove_part(out, prefix, index, part)
            continue
        if part.train_tokens > left:
            part = cut_part(out, prefix, index, part, left)
        left -= part.train_tokens
        chosen.append(part)
    return chosen


_WORKER: dict[str, Any] = {}  # what a worker process keeps from one file to the next


def _start_worker(tokenizer: Path, counter: Any) -> None:
    _WORKER.update(tokenizer=load_tokenizer(tokenizer), counter=counter)


def _work(file: SourceFile, out: Path, prefix: str, index: int, every: int, limit: int) -> Part:
    counter = _WORKER["counter"]

    def report(tokens: int) -> None:
        with counter.get_lock():
            counter.value += tokens

    tokenizer = _WORKER["tokenizer"]
    return tokenize_file(
        file, tokenizer, out, prefix, index, every=every, limit=limit, report=report
    )
