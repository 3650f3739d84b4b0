"""How long runs take, and how much memory, that are like those which have a committed record.

For what the benches do not time: runs at scale mini, and runs that train side by side, where a
run's time is its share of the group's. A quantizer without a record is estimated by another one's,
an estimator without one by FOGZO's where it takes probes and by the STE's where not, more probe
pairs than were recorded in proportion, probes on a part of the batch or of the steps by those on a
larger one; all are marked, and so are times of runs that shared their card, where none had it to
itself: it would take less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fogzo_repro import files
from fogzo_repro.config import RunConfig, quantizer_label
from fogzo_repro.reporting.results import probed_share, ran_alone
from fogzo_repro.sweeps.benched import Hours, Peak
from fogzo_repro.sweeps.lanes import group_key


class Kind(NamedTuple):
    """What the time of a step depends on."""

    scale: str
    model: str
    estimator: str
    side_by_side: bool
    pairs: int
    quantizer: str
    share: float  # of the batches and steps, on which probes are taken


class Took(NamedTuple):
    """The median seconds of a step, whether of runs that shared their card; the most memory."""

    seconds: float
    shared: bool
    memory: float


Seconds = dict[Kind, Took]


def recorded_seconds(records: Path) -> dict[str, Seconds]:
    """Return by card the median seconds of a step of each kind of run that has a record."""
    found: dict[str, dict[Kind, list[Took]]] = {}
    for path in sorted(records.glob("*/*.json")):
        try:
            record = files.parse_json(path.read_bytes())
            hours = record["gpu_hours"] / len(record.get("seeds", [0]))
            kind = _kind(record["config"], "seeds" in record)
            shared = not (kind.side_by_side or ran_alone(record))
            took = Took(3600 * hours / record["steps"], shared, 2**20 * record["peak_memory_mb"])
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # a bench, a diagnosis, or damaged: tables say so
        over_early = record.get("status") == "diverged"  # its start is much of its time
        if 0 < took.seconds < math.inf and took.memory < math.inf and not over_early:
            found.setdefault(record["hardware"], {}).setdefault(kind, []).append(took)
    return {
        card: {kind: _typical(runs) for kind, runs in kinds.items()}
        for card, kinds in found.items()
    }


def _typical(runs: Sequence[Took]) -> Took:
    """Return the median time, of runs that had their card to themselves where there are any."""
    shared = all(run.shared for run in runs)
    seconds = median(run.seconds for run in runs if run.shared == shared)
    return Took(seconds, shared, max(run.memory for run in runs))


def hours_by_records(config: RunConfig, steps: int, seconds: Mapping[Kind, Took]) -> Hours | None:
    """Return how long so many steps of a run take on a card; None where no record is near."""
    wanted = _kind(asdict(config), group_key(config) is not None)
    if wanted in seconds:
        took = seconds[wanted]
        return Hours(steps * took.seconds / 3600, False, shared=took.shared)
    if config.estimator.probe_gradients:  # passes of the STE, 1 + 2n a step
        steps *= 1 + 2 * wanted.pairs
        wanted = wanted._replace(estimator="ste", pairs=0, share=1.0)
    elif all(kind.estimator != wanted.estimator for kind in seconds):
        wanted = wanted._replace(estimator="fogzo" if wanted.pairs else "ste")
    near = {
        kind: took
        for kind, took in seconds.items()
        if kind[:4] == wanted[:4] and kind.pairs <= wanted.pairs and kind.share >= wanted.share
    }
    if not near:
        return None
    pairs = max(kind.pairs for kind in near)
    likest = {k: t for k, t in near.items() if k.pairs == pairs}
    own = [t for k, t in likest.items() if k.quantizer == wanted.quantizer]
    slowest = max(own or likest.values(), key=lambda took: (not took.shared, took))
    hours = steps * slowest.seconds * (wanted.pairs / pairs if pairs else 1) / 3600
    return Hours(hours, True, shared=slowest.shared)


def peak_by_records(config: RunConfig, recorded: Mapping[str, Seconds]) -> Peak | None:
    """Return the most that runs of this network took on any card; None without a record of one.

    Those of its own estimator and quantizer alone count where there are any, and none of more probe
    pairs, which train at once in the shallow network.
    """
    wanted = _kind(asdict(config), group_key(config) is not None)
    most = max(1, wanted.pairs)  # an estimator may take a pair and not say so
    near = [
        (kind, took.memory)
        for seconds in recorded.values()
        for kind, took in seconds.items()
        if (kind[:2], kind.side_by_side) == (wanted[:2], False) and not wanted.side_by_side
        if kind.pairs <= most
    ]
    same = [memory for kind, memory in near if kind == wanted]
    memory = max(same or [memory for _, memory in near], default=None)
    return None if memory is None else Peak(memory, not same)


def _kind(config: Mapping[str, Any], side_by_side: bool) -> Kind:
    estimator = config["estimator"]
    return Kind(
        config["scale"], config["model"]["name"], estimator["name"], side_by_side,
        estimator.get("n", 0), quantizer_label(config["quantizer"]), probed_share(estimator),
    )  # fmt: skip
