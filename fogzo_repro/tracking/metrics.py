"""metrics.jsonl and timing.jsonl: one JSON object a line, always written.

metrics.jsonl holds only functions of the training state, so that a resumed run ends with the same
bytes; seconds, throughput and memory go to timing.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fogzo_repro import files


class MetricsFile:
    """An append-only file of JSON lines, each with a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Cut the lines of later steps, and a torn last line."""
        if not self.path.exists():
            return
        kept = (x for x in files.whole_lines(self.path) if json.loads(x)["step"] <= step)
        files.cut(self.path, sum(map(len, kept)))

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add lines."""
        files.append(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a metrics file."""
    return list(stream_metrics(path))


def stream_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a metrics file one by one: a long run has a million."""
    return (json.loads(line) for line in files.whole_lines(path))
