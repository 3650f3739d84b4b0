"""Is a run alive? Judged from outside, by the lines that it adds to its timing.jsonl.

Lines come every FLUSH_STEPS steps, at the end of an epoch, and before a pause (an evaluation or a
checkpoint). So a run that takes its steps is silent for at most FLUSH_STEPS of them, and one that
hangs is noticed STEPS of its median step later.
"""

from __future__ import annotations

import itertools
import json
import statistics
from pathlib import Path
from typing import Any

FLUSH_STEPS = 100  # training.loop's; not imported from there, which would import torch
STEPS = 50  # further steps without a line
LEAST_SECONDS = 60.0
PAUSE_SECONDS = 1800.0  # an evaluation or a checkpoint
START_SECONDS = 3600.0  # before the first line: reading data, compiling


class HangWatch:
    """Watches one run.

    Args:
        folder: the run folder.
        now: when the run was started, on the clock that `look` is given.
    """

    def __init__(self, folder: Path, now: float) -> None:
        self.path = folder / "timing.jsonl"
        self.size = self._size()
        self.changed = now
        self.has_begun = False

    def look(self, now: float) -> str | None:
        """Return why the run counts as hanging, or None.

        Args:
            now: seconds, of any clock that only goes forwards.
        """
        size = self._size()
        if size > self.size:  # a resumed run first cuts the file, which is no sign of life
            self.changed, self.has_begun = now, True
        self.size = size
        silent = now - self.changed
        if silent <= LEAST_SECONDS:
            return None
        allowed = allowed_silence(self._lines()) if self.has_begun else START_SECONDS
        if silent <= allowed:
            return None
        return f"hangs: no metrics line for {silent:.0f} s, where {allowed:.0f} s are the limit"

    def _size(self) -> int:
        try:
            return self.path.stat().st_size
        except OSError:
            return 0

    def _lines(self) -> list[dict[str, Any]]:
        try:
            text = self.path.read_text()
        except OSError:
            return []
        return [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("\n")]


def allowed_silence(lines: list[dict[str, Any]]) -> float:
    """Return how many seconds may pass after the last line.

    The median step is taken over the intervals between lines, but those that hold a pause; the
    first one, which holds the compilation, counts only where there is no other.

    >>> allowed_silence([{"step": 100, "seconds": 300}, {"step": 200, "seconds": 400}])
    150.0
    """
    if not lines:
        return START_SECONDS
    if "pause" in lines[-1]:
        return PAUSE_SECONDS
    steps = [
        (b["seconds"] - a["seconds"]) / (b["step"] - a["step"])
        for a, b in itertools.pairwise(lines)
        if b["step"] > a["step"] and "pause" not in a
    ]
    last = lines[-1]
    median = statistics.median(steps) if steps else last["seconds"] / max(1, last["step"])
    return max(LEAST_SECONDS, (FLUSH_STEPS + STEPS) * median)
