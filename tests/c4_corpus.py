"""Writes small prepared corpora for the tests."""

import hashlib
import json

import numpy as np


def write_corpus(data_dir, splits, vocabulary, sha256="0" * 64):
    """Write data_dir/c4 from {split: [tokens of a shard, ...]}."""
    folder = data_dir / "c4"
    folder.mkdir(parents=True)
    entries = {}
    for split, shards in splits.items():
        named = []
        for index, tokens in enumerate(shards):
            name = f"{split}-{index:05d}.bin"
            content = np.asarray(tokens, dtype="<u2").tobytes()
            (folder / name).write_bytes(content)
            digest = hashlib.sha256(content).hexdigest()
            named.append({"file": name, "tokens": len(tokens), "documents": 1, "sha256": digest})
        entries[split] = {
            "documents": len(shards),
            "tokens": sum(map(len, shards)),
            "shards": named,
        }
    manifest = {
        "format": 2,
        "corpus": "invented",
        "tokenizer": {"sha256": sha256, "vocabulary": vocabulary},
        "settings": {},
        "splits": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return data_dir
