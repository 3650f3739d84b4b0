"""Cells for two steps on the CPU, in this process: does it run?

Nothing is downloaded. Images are scikit-learn's digits. Language is an invented corpus, written
here in the format of scripts/prepare_c4.py: each token is one of two successors of the one before.
Its vocabulary and windows are small, so the language models are cut to them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fogzo_repro.config import RunConfig
from fogzo_repro.config.parts import said_with_place
from fogzo_repro.data.c4 import LEAST_WINDOWS, MANIFEST
from fogzo_repro.run import execute
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.training.preemption import Preempted

VOCABULARY = 256
CONTEXT = 32
HELD_OUT = (LEAST_WINDOWS + 1) * CONTEXT
TOKENS = {"train": 40 * CONTEXT, "tuning": HELD_OUT, "heldout": HELD_OUT}


@dataclass(frozen=True)
class Tried:
    """How a cell went: `why` is empty where it finished with a finite train loss."""

    cell: Cell
    seconds: float
    why: str


def write_invented_corpus(data_dir: Path) -> None:
    """Write data_dir/c4: three splits of one shard each."""
    folder = data_dir / "c4"
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    splits = {}
    for split, count in TOKENS.items():
        tokens = generator.integers(1, 3, count).cumsum() % VOCABULARY
        data = tokens.astype("<u2").tobytes()
        (folder / f"{split}.bin").write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        shard = {"file": f"{split}.bin", "tokens": count, "documents": 1, "sha256": digest}
        splits[split] = {"documents": 1, "tokens": count, "shards": [shard]}
    tokenizer = {"sha256": "0" * 64, "vocabulary": VOCABULARY}
    manifest = {
        "format": 2, "corpus": "invented", "tokenizer": tokenizer, "settings": {},
        "splits": splits,
    }  # fmt: skip
    (folder / MANIFEST).write_text(json.dumps(manifest))


def smoke_config(config: RunConfig, folder: Path) -> RunConfig:
    """Return a cell's configuration at scale=smoke, in `folder`, on data that are always there."""
    if config.dataset.name == "c4":
        small = replace(config.model, context=CONTEXT, vocabulary=VOCABULARY)
        config = replace(config, model=small, data_dir=str(folder / "data"))
    return replace(config, output_root=str(folder / "runs"), checkpoint_minutes=1e9)


def try_cells(cells: Sequence[Cell], folder: Path) -> Iterator[Tried]:
    """Run cells composed at scale=smoke, with their first seeds; nothing stops the rest.

    The folder gets their runs and the invented corpus.
    """
    if not (folder / "data" / "c4").is_dir():
        write_invented_corpus(folder / "data")
    for cell in cells:
        config = smoke_config(replace(cell.config, seed=cell.seeds[0]), folder)
        started, why = time.monotonic(), ""
        try:
            with contextlib.redirect_stderr(io.StringIO()):  # the run's own lines
                record = execute(config, quiet=True)
            if record["status"] == "finished":
                loss = record["metrics"]["last"]["train"]["loss"]
                why = "" if math.isfinite(loss) else f"train loss {loss}"
            else:
                why = f"{record['status']}, {record['notes']}"
        except Preempted:
            raise
        except Exception as error:  # one cell must not hide the others
            why = said_with_place(error)
        yield Tried(cell, time.monotonic() - started, why)
