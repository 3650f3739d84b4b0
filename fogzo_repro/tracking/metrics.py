"""metrics.jsonl and timing.jsonl: one JSON object a line, always written.

metrics.jsonl holds only functions of the training state, so that a resumed run ends with the same
bytes; seconds, throughput and memory go to timing.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class MetricsFile:
    """An append-only file of JSON lines, each with a `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def rewind(self, step: int) -> None:
        """Cut the lines of later steps, and a torn last line."""
        if not self.path.exists():
            return
        kept = [line for line in _whole_lines(self.path) if json.loads(line)["step"] <= step]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(kept))
        temporary.replace(self.path)

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add lines."""
        with open(self.path, "a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a metrics file."""
    return list(stream_metrics(path))


def stream_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a metrics file one by one: a long run has a million."""
    return (json.loads(line) for line in _whole_lines(path))


def _whole_lines(path: Path) -> Iterator[str]:
    with open(path) as file:
        yield from (line for line in file if line.endswith("\n"))
