"""Tokenise files in parallel until there are tokens enough: one process a file.

Processes, not a pool: a worker that has finished its file is gone, and one whose parent was killed
notices it and goes too, so nothing is left to write into the folder beside the next attempt.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError
from fogzo_repro.data.c4_documents import SourceFile
from fogzo_repro.data.c4_shards import (
    Part,
    cut_part,
    load_tokenizer,
    read_part,
    tokenize_file,
)

POLL_SECONDS = 0.5


def tokenize_files(
    files: Sequence[SourceFile],
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

    Parts that are there are kept, so the same call goes on after an interruption.

    Args:
        files: in the order in which they are used.
        tokenizer: path of the sentencepiece model.
        out: the folder.
        prefix: of the file names.
        wanted: training tokens.
        every: one document of so many is held out; 0 for none.
        workers: processes at a time.
        progress: called with the number of tokens so far.

    Raises:
        UserError: what a worker raised first.
    """
    context = multiprocessing.get_context("fork")
    counter = context.Value("q", 0)
    parts: dict[int, Part] = {}
    running: dict[Any, tuple[int, Any, Any]] = {}  # sentinel: (index, process, pipe)
    upcoming = 0
    try:
        while True:
            total = sum(p.train.tokens for p in parts.values())
            known = [p.train.tokens for p in parts.values() if not p.stopped]
            each = sum(known) / len(known) if known else files[0].expected_tokens
            while upcoming < len(files) and len(running) < workers:
                if total + len(running) * each >= wanted:
                    break
                found = read_part(out, prefix, upcoming)
                if found is not None:
                    parts[upcoming] = found
                    total += found.train.tokens
                    with counter.get_lock():
                        counter.value += found.train.tokens
                else:
                    receive, send = context.Pipe(duplex=False)
                    arguments = (files[upcoming], tokenizer, out, prefix, upcoming)
                    process = context.Process(
                        target=_work, args=(*arguments, every, wanted, counter, send)
                    )
                    process.start()
                    send.close()
                    running[process.sentinel] = (upcoming, process, receive)
                upcoming += 1
            progress(counter.value)
            if not running:
                break
            for sentinel in wait(list(running), POLL_SECONDS):
                index, process, receive = running.pop(sentinel)
                parts[index] = _result(out, prefix, index, process, receive, files[index])
    finally:
        for _, process, _ in running.values():
            process.kill()
    return _first(parts, out, prefix, wanted)


def _result(out: Path, prefix: str, index: int, process: Any, pipe: Any, file: SourceFile) -> Part:
    process.join()
    try:
        raise UserError(pipe.recv())
    except EOFError:
        part = read_part(out, prefix, index)
    if process.exitcode or part is None:
        raise UserError(
            f"{file.name}: the worker ended with status {process.exitcode}; run the same command "
            "again, with fewer --workers if memory is short"
        )
    return part


def _first(parts: dict[int, Part], out: Path, prefix: str, wanted: int) -> list[Part]:
    """Return the parts in order up to the wanted tokens, the last one cut; drop the rest."""
    chosen: list[Part] = []
    left = wanted
    for index in sorted(parts):
        part = parts[index]
        if left <= 0:
            for name in (part.train.file, part.heldout.file, f"part-{prefix}-{index:05d}.json"):
                (out / name).unlink()
            continue
        if part.train.tokens > left:
            part = cut_part(out, prefix, index, part, left)
        left -= part.train.tokens
        chosen.append(part)
    return chosen


def _work(
    file: SourceFile,
    tokenizer: Path,
    out: Path,
    prefix: str,
    index: int,
    every: int,
    limit: int,
    counter: Any,
    pipe: Any,
) -> None:
    parent = os.getppid()

    def report(tokens: int) -> None:
        if os.getppid() != parent:  # the parent was killed
            os._exit(1)
        with counter.get_lock():
            counter.value += tokens

    try:
        model = load_tokenizer(tokenizer)
        tokenize_file(file, model, out, prefix, index, every=every, limit=limit, report=report)
    except UserError as error:
        pipe.send(str(error))
    except KeyboardInterrupt:
        sys.exit(1)
