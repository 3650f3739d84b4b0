"""metrics.jsonl and timing.jsonl: one JSON object a line, always written.

metrics.jsonl holds only functions of the training state, so that a resumed run ends with the same
bytes; seconds go to timing.jsonl.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fogzo_repro import files

if TYPE_CHECKING:
    from fogzo_repro.tracking.wandb import WandbMirror

TIMING = "timing.jsonl"
CHUNK_BYTES = 2**20
BINS = 40  # of a run's history
DIGITS = 5  # significant, in there; enough for a curve, and records stay small

History = dict[str, list[float | None]]
Line = Mapping[str, Any]
Quantities = Callable[[Line], Mapping[str, float | None]]


class Journal:
    """What a run writes as it goes: its metrics and its times, step by step.

    Every line has a `step`, and steps never fall.

    Args:
        folder: the run folder.
        writes: whether this process is the one that writes; the others read along.
    """

    def __init__(self, folder: Path, writes: bool = True) -> None:
        self.metrics, self.timing = folder / "metrics.jsonl", folder / TIMING
        self.writes = writes
        self.mirrors: list[WandbMirror] = []
        self.sizes: dict[Path, int] = {}  # of both files, once this process has written them
        self.summed = self.crc32 = 0  # so many bytes of the metrics, and their checksum
        self.seconds_before = 0.0  # wall time of earlier processes of this run
        self.started = time.monotonic()

    def lacks(self, step: int, state: Mapping[str, Any]) -> str | None:
        """Return what is wrong with the metrics up to a checkpoint, if anything.

        They are on the disk before the checkpoint is, but not every disk keeps its promise. Times
        that are missing hold no run back: `rewind` notes them.

        Args:
            step: of the checkpoint.
            state: in it, what `sync` has returned; a checkpoint of earlier code may lack it.
        """
        name = self.metrics.name
        size, last = _reach(self.metrics, step)
        if last < step:
            return f"{name} ends after step {last}"
        if size < (state.get("metrics_bytes") or 0):
            return f"{name} has lost lines up to step {step}"
        crc32 = state.get("metrics_crc32")
        if crc32 is not None and _crc32(self.metrics, 0, state["metrics_bytes"]) != crc32:
            return f"{name} is not as it was written up to step {step}"
        return None

    def rewind(self, step: int, state: Mapping[str, Any]) -> None:
        """Cut what came after a checkpoint, and what is no line.

        Args:
            step: of the checkpoint.
            state: as for `lacks`; an evaluation that came later goes too.
        """
        for path in (self.metrics, self.timing):
            if self.writes and path.exists():
                size = _reach(path, step)[0]
                if path is self.metrics:
                    size = state.get("metrics_bytes", size)
                files.cut(path, size)
        self.sizes, self.summed, self.crc32 = {}, 0, 0
        last = _reach(self.timing, step)[1]
        if self.writes and last < step:
            seconds = max((line["seconds"] for line in self._times()), default=0.0)
            found = {"step": step, "seconds": seconds, "pause": "resume", "lost_from": last + 1}
            self._append(self.timing, [found])

    def lost_times(self) -> str:
        """Return which steps have no times, for people; nothing where all have."""
        lost = [f"{x['lost_from']} to {x['step']}" for x in self._times() if "lost_from" in x]
        if not lost:
            return ""
        return (
            f"{self.timing.name} has lost the times of the steps {', '.join(lost)}; wall_seconds "
            "and gpu_hours are without them"
        )

    def start_clock(self) -> None:
        """Go on from the wall time of the last line."""
        self.seconds_before = max((line["seconds"] for line in self._times()), default=0.0)
        self.started = time.monotonic()

    def seconds(self) -> float:
        """Return the wall time of the run so far, over all its processes."""
        return self.seconds_before + time.monotonic() - self.started

    def append(self, lines: list[dict[str, Any]]) -> None:
        """Add lines to metrics.jsonl."""
        if self.writes:
            self._append(self.metrics, lines)
            for mirror in self.mirrors:
                mirror.append(lines)

    def time(self, step: int, **more: str) -> None:
        """Add a line to timing.jsonl.

        `more` is a `pause` where no steps are taken for a while, so that it is not a hang.
        """
        if self.writes:
            line = {"step": step, "seconds": round(self.seconds(), 4), **more}
            self._append(self.timing, [line])

    def sync(self) -> dict[str, int]:
        """Bring both files onto the disk; return size and checksum of the metrics."""
        files.sync(self.metrics)
        files.sync(self.timing)
        size = self.metrics.stat().st_size
        self.crc32 = _crc32(self.metrics, self.summed, size, self.crc32)
        self.summed = size
        return {"metrics_bytes": size, "metrics_crc32": self.crc32}

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of metrics.jsonl, of steps and of evaluations, one by one."""
        return stream_metrics(self.metrics) if self.metrics.exists() else iter(())

    def mean_loss(self, after: int, seen: Callable[[int], int]) -> float | None:
        """Return the mean loss of the examples that were trained on in the steps after one.

        `seen` tells how many examples the first steps of the run take, by their number.
        """
        steps = [x for x in self.lines() if "split" not in x and x["step"] > after]
        sizes = [seen(x["step"]) - seen(x["step"] - 1) for x in steps]
        losses = (x["loss"] * size for x, size in zip(steps, sizes, strict=True))
        return sum(losses) / sum(sizes) if steps else None

    def _times(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of timing.jsonl, up to the first that is none."""
        for line in files.whole_lines(self.timing) if self.timing.exists() else ():
            found = _parse(line, timed=True)
            if found is None:
                return
            yield found

    def _append(self, path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self.sizes[path] = files.append(path, text, self.sizes.get(path))

    def finish(self, record: dict[str, Any] | None) -> None:
        """Let the mirrors go, with the record of a run that is over; None where it was stopped."""
        for mirror in self.mirrors:
            mirror.finish(record)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return all whole lines of a metrics file."""
    return list(stream_metrics(path))


def stream_metrics(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the whole lines of a metrics file one by one: a long run has a million.

    Raises:
        ValueError: at a line that is none of a run's.
    """
    for line in files.whole_lines(path):
        if (found := _parse(line, timed=False)) is None:
            raise ValueError(f"its line {line[:40]!r} is none of a run's")
        yield found


def _crc32(path: Path, begin: int, end: int, crc32: int = 0) -> int:
    """Return the checksum of a file's bytes up to `end`, of which those to `begin` have one."""
    with open(path, "rb") as file:
        file.seek(begin)
        while piece := file.read(min(CHUNK_BYTES, end - file.tell())):
            crc32 = zlib.crc32(piece, crc32)
    return crc32


def _reach(path: Path, step: int) -> tuple[int, int]:
    """Return the bytes of the lines up to a step, and the step of the last of them.

    The file ends for us at the first line that is none: a power cut may leave zeros, or half a
    line.
    """
    size = last = 0
    for line in files.whole_lines(path) if path.exists() else ():
        found = _parse(line, timed=path.name == TIMING)
        if found is None or found["step"] > step:
            break
        size, last = size + len(line), found["step"]
    return size, last


def _parse(line: bytes, timed: bool) -> dict[str, Any] | None:
    """Return a line with a step, and with seconds where it is `timed`; None for anything else."""
    try:
        found: dict[str, Any] = files.parse_json(line)
        steps = [found["step"], found.get("lost_from", 1)]
        is_one = all(type(step) is int for step in steps)
        if timed:
            is_one &= type(found["seconds"]) in (int, float) and math.isfinite(found["seconds"])
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        return None
    return found if is_one else None


def binned_history(
    lines: Iterable[Line], steps: int, quantities: Quantities, bins: int = BINS
) -> History:
    """Return the course of a run in some forty numbers: means over equal bins, in one pass.

    It goes into the record, so that curves over time can be drawn from committed records alone.

    Step t = 1 .. T falls into bin floor((t - 1) bins / T); where T < bins, each step has its own.

    Args:
        lines: of metrics.jsonl, those of evaluations among them, which are left out.
        steps: T, the steps that were taken.
        quantities: from a line to its numbers by name; None for one that is unknown.
        bins: how many.

    Returns:
        For each quantity its mean in each bin, None for a bin without one that is finite; what no
        line has is left out.
    """
    bins = min(bins, steps)
    sums: dict[str, list[float]] = {}
    counts: dict[str, list[int]] = {}
    for line in lines:
        if "split" in line or line["step"] > steps:
            continue
        place = (line["step"] - 1) * bins // steps
        for name, value in quantities(line).items():
            if value is None or not math.isfinite(value):
                continue
            sums.setdefault(name, [0.0] * bins)[place] += value
            counts.setdefault(name, [0] * bins)[place] += 1
    return {
        name: [
            float(f"{t / n:.{DIGITS}g}") if n else None
            for t, n in zip(total, counts[name], strict=True)
        ]
        for name, total in sums.items()
    }
