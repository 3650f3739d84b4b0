"""How long runs take that are like those which have a committed record.

For what the benches do not time: runs at scale mini, and runs that train side by side, where a
run's time is its share of the group's. A quantizer without a record is estimated by another one's,
more probe pairs than were recorded in proportion; both are marked, and so are times of runs that
shared their card, where none had it to itself: it would take less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from fogzo_repro import files
from fogzo_repro.config import RunConfig, quantizer_label
from fogzo_repro.reporting.results import ran_alone
from fogzo_repro.sweeps.forecast import Hours
from fogzo_repro.sweeps.lanes import group_key


class Kind(NamedTuple):
    """What the time of a step depends on."""

    scale: str
    model: str
    estimator: str
    side_by_side: bool
    pairs: int
    quantizer: str


class Took(NamedTuple):
    """The median seconds of a step, and whether they are of runs that shared their card."""

    seconds: float
    shared: bool


Seconds = dict[Kind, Took]


def recorded_seconds(records: Path) -> dict[str, Seconds]:
    """Return by card the median seconds of a step of each kind of run that has a record."""
    found: dict[str, dict[Kind, dict[bool, list[float]]]] = {}
    for path in sorted(records.glob("*/*.json")):
        try:
            record = files.parse_json(path.read_bytes())
            hours = record["gpu_hours"] / len(record.get("seeds", [0]))
            kind = _kind(record["config"], "seeds" in record)
            seconds = 3600 * hours / record["steps"]
            shared = not (kind.side_by_side or ran_alone(record))
        except (OSError, ValueError, KeyError, TypeError, ZeroDivisionError):
            continue  # a bench, a diagnosis, or damaged: tables say so
        if hours:
            of_kind = found.setdefault(record["hardware"], {}).setdefault(kind, {})
            of_kind.setdefault(shared, []).append(seconds)
    return {
        card: {kind: Took(median(v[min(v)]), min(v)) for kind, v in kinds.items()}
        for card, kinds in found.items()
    }


def hours_by_records(config: RunConfig, steps: int, seconds: Mapping[Kind, Took]) -> Hours | None:
    """Return how long so many steps of a run take on a card; None where no record is near."""
    wanted = _kind(asdict(config), group_key(config) is not None)
    if wanted in seconds:
        took = seconds[wanted]
        return Hours(steps * took.seconds / 3600, False, shared=took.shared)
    if getattr(config.estimator, "probe_gradients", False):  # passes of the STE, 1 + 2n a step
        steps *= 1 + 2 * wanted.pairs
        wanted = wanted._replace(estimator="ste", pairs=0)
    near = {k: s for k, s in seconds.items() if k[:4] == wanted[:4] and k.pairs <= wanted.pairs}
    if not near:
        return None
    pairs = max(kind.pairs for kind in near)
    slowest = max((t for k, t in near.items() if k.pairs == pairs), key=lambda t: (not t.shared, t))
    hours = steps * slowest.seconds * (wanted.pairs / pairs if pairs else 1) / 3600
    return Hours(hours, True, shared=slowest.shared)


def _kind(config: Mapping[str, Any], side_by_side: bool) -> Kind:
    estimator = config["estimator"]
    return Kind(
        config["scale"], config["model"]["name"], estimator["name"], side_by_side,
        estimator.get("n", 0), quantizer_label(config["quantizer"]),
    )  # fmt: skip
