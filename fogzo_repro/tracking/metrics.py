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
    """An append-only file of JSON lines, each with a `step`; steps never fall."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def reach(self, step: int) -> tuple[int, int]:
        """Return the bytes of the lines up to a step, and the step of the last of them.

        The file ends for us at the first line that is none: a power cut may leave zeros, or half a
        line.
        """
        size = last = 0
        for line in files.whole_lines(self.path) if self.path.exists() else ():
            try:
                found = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError):
                break
            if found > step:
                break
            size, last = size + len(line), found
        return size, last

    def rewind(self, step: int) -> None:
        """Cut the lines of later steps, and what is no line."""
        if self.path.exists():
            files.cut(self.path, self.reach(step)[0])

    def append(self, rows: list[dict[str, Any]]) -> None:
        """Add lines."""
        files.append(self.path, "".join(json.dumps(row) + "\n" for row in rows))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a metrics file."""
    return list(stream_metrics(path))


def stream_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a metrics file one by one: a long run has a million."""
    return (json.loads(line) for line in files.whole_lines(path))
