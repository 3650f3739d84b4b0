"""A cell for two steps on the CPU, in this process: does it run?

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
from dataclasses import replace
from pathlib import Path

import numpy as np

from fogzo_repro.config.own_errors import said_with_place
from fogzo_repro.data.c4 import LEAST_WINDOWS, MANIFEST
from fogzo_repro.run import execute
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.training.preemption import Preempted

VOCABULARY = 256
CONTEXT = 32
HELD_OUT = (LEAST_WINDOWS + 1) * CONTEXT
TOKENS = {"train": 40 * CONTEXT, "tuning": HELD_OUT, "heldout": HELD_OUT}


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


def try_cell(cell: Cell, folder: Path) -> str:
    """Run a cell composed at scale=smoke, with its first seed; return what is wrong, if anything.

    The folder has the invented corpus under data/, and the run goes into it. It has to finish with
    a finite train loss.
    """
    config = replace(
        cell.config, seed=cell.seeds[0], output_root=str(folder / "runs"), checkpoint_minutes=1e9
    )
    if config.dataset.name == "c4":
        small = replace(config.model, context=CONTEXT, vocabulary=VOCABULARY)
        config = replace(config, model=small, data_dir=str(folder / "data"))
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the run's own lines
            record = execute(config, quiet=True)
    except Preempted:
        raise
    except Exception as error:  # one cell must not hide the others
        return said_with_place(error)
    if record["status"] != "finished":
        return f"{record['status']}, {record['notes']}"
    loss = record["metrics"]["last"]["train"]["loss"]
    return "" if math.isfinite(loss) else f"train loss {loss}"
