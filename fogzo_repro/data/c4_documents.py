"""Where documents come from: local *.json.gz files, or allenai/c4 on the Hugging Face hub."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError
from fogzo_repro.terminal import first_line, of_a_file

HUB = "allenai/c4"
REVISION = "1588ec454efa1a09f29cd18ddd04fe05fc8653a2"  # choice: the main branch since 2023
HUB_TRAIN = [f"en/c4-train.{i:05d}-of-01024.json.gz" for i in range(1024)]
HUB_VALIDATION = [f"en/c4-validation.{i:05d}-of-00008.json.gz" for i in range(8)]
HUB_FILE_TOKENS = 170e6  # RECIPES C.4; for the estimate before the start
HUB_FILE_BYTES = 319e6
TOKENS_PER_BYTE = 0.58  # of a .json.gz, measured on a sample of C4


@dataclass(frozen=True)
class SourceFile:
    """One file of documents.

    Attributes:
        name: relative to the source; also what decides which documents are held out.
        path: where it is, or None on the hub.
        expected_tokens: for estimates only.
    """

    name: str
    path: Path | None
    expected_tokens: float

    def documents(self) -> Iterator[str]:
        """Yield the texts in the file's order.

        Raises:
            UserError: with file and line where it cannot be read.
        """
        return _hub_documents(self.name) if self.path is None else _local_documents(self.path)


def source_files(source: str) -> tuple[list[SourceFile], list[SourceFile]]:
    """Return training and validation files of `hub` or of a folder.

    In a folder, files with `validation` in their name are the validation split.

    Raises:
        UserError: where a folder has no training files.
    """
    if source == "hub":
        both = [SourceFile(name, None, HUB_FILE_TOKENS) for name in HUB_TRAIN + HUB_VALIDATION]
        return both[: len(HUB_TRAIN)], both[len(HUB_TRAIN) :]
    folder = Path(source)
    files = [
        SourceFile(str(p.relative_to(folder)), p, TOKENS_PER_BYTE * p.stat().st_size)
        for p in _documents_below(folder)
    ]
    train = [f for f in files if "validation" not in Path(f.name).name]
    if not train:
        raise UserError(
            f"--source {source} holds no *.json.gz with training documents; give hub or a folder "
            "of such files, one JSON document with a `text` a line"
        )
    return train, [f for f in files if f not in train]


def _documents_below(folder: Path) -> list[Path]:
    """Return the *.json.gz below a folder, links to folders followed; hidden ones do not count.

    Raises:
        UserError: for a folder below it that cannot be read.
    """

    def refuse(error: OSError) -> None:
        if error.filename != str(folder):  # else nothing is there, of which the caller tells
            raise of_a_file(error)

    found, seen = [], set()
    for where, folders, names in os.walk(folder, onerror=refuse, followlinks=True):
        if os.path.realpath(where) in seen:  # a link may lead to where we were, or above
            folders.clear()
            continue
        seen.add(os.path.realpath(where))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = [name for name in names if name.endswith(".json.gz") and not name.startswith(".")]
        found += [Path(where, name) for name in names]
    return sorted(found)


def _local_documents(path: Path) -> Iterator[str]:
    number = 0
    try:
        with gzip.open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():  # some tools end a file with an empty line
                    yield _text(line, f"{path} line {number}")
    except UserError:
        raise
    except Exception as error:  # gzip alone has three kinds
        raise UserError(
            f"{path} line {number + 1}: the file cannot be unpacked ({error or repr(error)}); "
            "fetch it again"
        ) from None


def _text(line: bytes, where: str) -> str:
    try:
        document: Any = json.loads(line)
    except Exception as error:  # deep nesting is a RecursionError, wrong bytes a UnicodeError
        raise UserError(f"{where}: not valid JSON ({error}); fetch the file again") from None
    if not isinstance(document, dict) or not isinstance(document.get("text"), str):
        raise UserError(f"{where}: no key `text` with a string; is this a file of documents?")
    try:
        document["text"].encode()
    except UnicodeEncodeError as error:
        code = f"U+{ord(document['text'][error.start]):04X}"
        raise UserError(
            f"{where}: half of a character ({code}) in `text`, which no tokenizer takes; fetch the "
            "file again or remove the line"
        ) from None
    return document["text"]


def _hub_documents(name: str) -> Iterator[str]:
    from datasets import load_dataset

    read = 0
    try:
        rows = load_dataset(
            HUB, data_files=name, revision=REVISION, split="train", streaming=True
        ).select_columns("text")
        for row in rows:
            yield row["text"]
            read += 1
    except Exception as error:  # network, hub and JSON errors have no common type
        raise UserError(
            f"{HUB} {name} line {read + 1}: cannot be read ({first_line(error)}); run the "
            "same command again: finished shards stay"
        ) from None
