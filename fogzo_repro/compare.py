"""What differs between two runs: settings, environment, metrics.

    python -m fogzo_repro.compare RUN_A RUN_B

RUN is a run folder or a record (record.json, or a file of results/records/). Equal parts are only
counted. Where both folders have their metrics.jsonl, the first step at which these differ is said
too. Exit status 2: an error that the user can mend, in one line.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError
from fogzo_repro.reporting.results import SHARED, ran_alone
from fogzo_repro.terminal import aligned, command_parser, one_line_errors
from fogzo_repro.tracking.metrics import read_metrics
from fogzo_repro.tracking.records import read_record

ABSENT = "-"
# Labels and switches that change nothing in a run; `hardware` is compared as it was resolved.
LABELS = ("tracker", "cell", "force", "dry_run", "snapshots", "checkpoint_minutes", "hardware")
ENVIRONMENT = ("hardware", "commit", "dirty", "method_version", "schema_version", "versions")
OUTCOME = (
    "status", "notes", "metrics", "steps", "perturbed_weights", "wall_seconds", "gpu_hours",
    "peak_memory_mb",
)  # fmt: skip
TIMES = ("wall_seconds", "gpu_hours")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, with dotted keys.

    >>> flat({"a": {"b": 1}, "c": [2]})
    {'a.b': 1, 'c': [2]}
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else None
        found |= inner if inner is not None else {prefix + key: value}
    return found


def sections(record: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what is compared, by section and dotted key."""
    settings = {k: v for k, v in record["config"].items() if k not in LABELS}
    environment = {k: record[k] for k in ENVIRONMENT}
    shared = dict.fromkeys(TIMES, SHARED)  # such a time says nothing of the run
    return {
        "config": flat(settings),
        "environment": flat({**environment, "resolved": record["resolved"]}),
        "metrics": flat({k: record[k] for k in OUTCOME} | ({} if ran_alone(record) else shared)),
    }


def report(a: Mapping[str, Any], b: Mapping[str, Any]) -> str:
    """Return the differences of two records as aligned columns; equal parts are counted."""
    blocks = [f"A  {a['run_id']}\nB  {b['run_id']}"]
    theirs = sections(b)
    for name, mine in sections(a).items():
        lines = [_line(*found) for found in _differing(mine, theirs[name])]
        said = f"{len(lines)} differ, {len({**mine, **theirs[name]}) - len(lines)} equal"
        titled = [["", "A", "B", "B - A" if any(line[3] for line in lines) else ""], *lines]
        shown = aligned(titled) if lines else []
        blocks.append("\n".join([f"{name}: {said}", *(f"  {line}" for line in shown)]))
    return "\n\n".join(blocks)


def _differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Return the keys whose values differ, with both values."""
    both = ((key, a.get(key, ABSENT), b.get(key, ABSENT)) for key in {**a, **b})
    return [(key, x, y) for key, x, y in both if x != y]


def _line(key: str, a: Any, b: Any) -> list[str]:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (a, b))
    shown = [_shown(a), _shown(b)]
    if shown[0] == shown[1]:  # beta = 1 - 1e-9 is not 1
        shown = [repr(a), repr(b)]
    return [key, *shown, f"{b - a:+.4g}" if numbers else ""]


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value) if value != "" else '""'


def first_difference(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> str:
    """Return one line: the first step at which two metrics files differ, and in what."""
    for mine, other in zip(a, b, strict=False):
        if mine == other:
            continue
        step = min(mine["step"], other["step"])
        if mine.get("step") != other.get("step") or mine.get("split") != other.get("split"):
            return f"metrics.jsonl: differ in what is logged at step {step}"
        values = (f"{key} {x!r} / {y!r}" for key, x, y in _differing(mine, other))
        split = f"{mine['split']} " if "split" in mine else ""
        return f"metrics.jsonl: first differ at step {step}: {split}{', '.join(values)}"
    if len(a) != len(b):
        shorter, name = (a, "A") if len(a) < len(b) else (b, "B")
        end = shorter[-1]["step"] if shorter else 0
        return f"metrics.jsonl: equal until {name} ends, at step {end}"
    return f"metrics.jsonl: equal, {len(a)} lines"


def load(path: Path) -> tuple[dict[str, Any], Path | None]:
    """Return a run's record, and its metrics.jsonl where that is at hand.

    Raises:
        UserError: where there is no record, or a damaged one.
    """
    if path.is_dir():
        if not (path / "record.json").is_file():
            raise UserError(
                f"{path} has no record.json: not a run folder, or the run is not over; repeat its "
                "command to end it"
            )
        path /= "record.json"
    if not path.exists():
        raise UserError(f"{path} is not there; give a run folder or a record")
    metrics = path.with_name("metrics.jsonl")
    return read_record(path), metrics if path.name == "record.json" and metrics.is_file() else None


def compare(a: Path, b: Path) -> str:
    """Return the whole comparison of two runs.

    Raises:
        UserError: where one of them cannot be read.
    """
    (mine, my_metrics), (other, other_metrics) = load(a), load(b)
    text = report(mine, other)
    if my_metrics is None or other_metrics is None:
        return text
    lines = []
    for path in (my_metrics, other_metrics):
        try:
            lines.append(read_metrics(path))
        except ValueError as error:
            raise UserError(f"{path} is damaged ({error}); compare the record.json files") from None
    return f"{text}\n\n{first_difference(*lines)}"


@one_line_errors
def main() -> None:
    """Print the comparison."""
    parser = command_parser(__doc__, "fogzo_repro.compare")
    parser.add_argument("runs", nargs=2, type=Path, metavar="RUN", help="a run folder or a record")
    first, second = parser.parse_args().runs
    print(compare(first, second))


if __name__ == "__main__":
    sys.exit(main())
