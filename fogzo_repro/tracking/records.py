"""Records: what is kept of runs that are over. Tables are made from records alone.

A record is one JSON file. That of one run has the fields `FIELDS` and `OF_ONE`, among them

    "seed": 3, "status": "finished", "notes": "",
    "metrics": {"last": {"train": {"loss": 0.71, "top1": 80.5}, "test": {...}}, "best": {...}}

`beside` is how many other runs its queue had on the same card: `wall_seconds` counts where it is 0.

Runs of one cell that trained side by side as one batched network (`evaluator: lanes`) share one
record, so that ten thousand runs are not ten thousand files. It has the fields `FIELDS` and
`OF_SEVERAL`: `config` and `resolved` are without the seed, and columns have a value for each seed,

    "seeds": [0, 1, 2], "status": ["finished", "diverged", "finished"],
    "notes": {"1": "step 7: loss nan"},
    "metrics": {"train": {"loss": [0.71, null, 0.74], "top1": [80.5, null, 80.1]}, "test": {...}}

with the metrics of the final weights, null for a run that diverged, and notes only of those seeds
that have one. `lanes` is the number of runs that trained together, of whatever cells;
`wall_seconds`, `started` and `ended` are those of all of them, `gpu_hours` is this cell's share.
`run_id` is `{model}-{dataset}-{quantizer}-{estimator}-{count}seeds-{hash8}`, the hash over what
determines the result with the list `seeds` in place of `seed`: more seeds of a cell, trained later,
are another file beside the first. `split_seeds` gives back what single runs would have left.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.tracking.environment import git_state, tree_digest

SCHEMA_VERSION = 2  # 2 adds the records of several seeds; those of one run are as in 1
FIELDS = {  # what each record has, and all that is read of its settings; `object` may be anything
    "schema_version": int, "method_version": int, "run_id": str, "table": str, "row": str,
    "column": str, "scale": str, "config.model": dict, "config.dataset.name": str,
    "config.quantizer": dict, "config.estimator.name": str, "config.recipe.lr": float,
    "resolved": dict, "command": str, "commit": object, "dirty": object, "versions": dict,
    "hardware": str,
    "evaluations_per_step.probes": int, "evaluations_per_step.total": int,
    "perturbed_weights": int, "steps": int, "wall_seconds": float, "gpu_hours": float,
    "peak_memory_mb": float, "started": str, "ended": str, "metrics": dict,
}  # fmt: skip
OF_ONE = {
    "seed": int, "status": str, "metrics.last": dict, "metrics.best": dict, "notes": str,
}  # fmt: skip
OF_SEVERAL = {"seeds": list, "lanes": int, "status": list, "notes": dict}
WHERE_THERE = {  # what a record may lack; of an estimator, of those alone that come with the suite
    "beside": int, "history": dict, "resolved.data": str, "resolved.corpus": str,
    "resolved.start_from": str,
}  # fmt: skip
OF_PROBES = {
    f"config.estimator.{key}": float for key in ("noise", "start_fraction", "probe_fraction")
}
WITH_PROBES = ("fogzo", "nspsa")
WORDS = {
    int: "a whole number", float: "a number", str: "a text", dict: "an object", list: "a list",
}  # fmt: skip
REMEDY = "delete it and run the cell again"
COLUMNS = ("seeds", "lanes", "status", "metrics", "notes")  # what differs from a single run's


def read_record(path: Path) -> dict[str, Any]:
    """Read and check the record of one run.

    Raises:
        UserError: where it is not JSON, lacks a field, has a newer schema or is of several seeds.
    """
    record = _read(path)
    if "seeds" in record:
        raise UserError(f"{path} is the record of {len(record['seeds'])} runs; give that of one")
    return record


def read_runs(path: Path) -> list[dict[str, Any]]:
    """Read and check a record of either kind; return one record for each of its runs.

    Raises:
        UserError: where it is not JSON, lacks a field, has a newer schema or uneven columns.
    """
    record = _read(path)
    return split_seeds(record) if "seeds" in record else [record]


def split_seeds(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a record of several seeds as one for each run, in the form of a single run's."""
    shared = {key: value for key, value in record.items() if key not in COLUMNS}
    runs = []
    for place, (seed, status) in enumerate(zip(record["seeds"], record["status"], strict=True)):
        last = {
            split: {metric: values[place] for metric, values in columns.items()}
            for split, columns in record["metrics"].items()
        }
        metrics = {"last": last if status == "finished" else {}, "best": {}}
        note = record["notes"].get(str(seed), "")
        runs.append({**shared, "seed": seed, "status": status, "metrics": metrics, "notes": note})
    return runs


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record of either kind, whole or not at all; columns stand on one line each.

    Raises:
        UserError: for a record of several seeds that is not what `read_runs` takes.
    """
    text = json.dumps(record, indent=1)
    if "seeds" in record:
        _check(record, path)
        text = re.sub(r"\[[^][{}]*\]", lambda column: " ".join(column[0].split()), text)
    files.write(path, text + "\n")


def make_good(path: Path) -> dict[str, Any]:
    """Read a record of either kind; name the commit of the very files that it was made from.

    One that was made from files that were not committed is written anew, if they are now.

    Raises:
        UserError: where it cannot be read, see `read_record`.
    """
    record = _read(path)
    if not record["dirty"] or "tree" not in record:
        return record
    now = git_state()
    if now["dirty"] is not False or tree_digest() != record["tree"]:
        return record
    good = {**{k: v for k, v in record.items() if k != "tree"}, **now}
    write_record(path, good)
    return good


def file_record(record: dict[str, Any], records: Path) -> str | None:
    """Put a record of either kind among the committed ones, at records/<table>/<run_id>.json.

    A record of the same cell, scale and seed by an older method_version gives way.

    Returns:
        None, or one line that says why the record was not filed.
    """
    folder = records / record["table"]
    files.make_folder(folder, str(folder))
    files.remove_unfinished(folder)
    target = folder / f"{record['run_id']}.json"
    place = ("row", "column", "scale")
    seeds = set(_seeds(record))
    where = f"{record['row']} | {record['column']}, {_named(seeds)}"
    if target.exists():
        there = _read(target)
        if all(there[k] == record[k] for k in place) and set(_seeds(there)) == seeds:
            if there != record:
                write_record(target, record)
            return None
        return (
            f"{where} is the same run as {there['row']} | {there['column']} with these settings; "
            "its record stands for that cell alone"
        )
    names = [f"*-s{record['seed']}-*.json", "*seeds-*.json"] if "seed" in record else ["*.json"]
    for path in sorted(path for name in names for path in folder.glob(name)):
        there = _read(path)
        if any(there[k] != record[k] for k in place) or seeds.isdisjoint(_seeds(there)):
            continue
        if there["method_version"] >= record["method_version"]:
            return f"{where} has the record {path} already; delete it to file {target.name}"
        path.unlink()
    write_record(target, record)
    return None


def _read(path: Path) -> dict[str, Any]:
    try:
        record = files.parse_json(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        unreadable = files.unreadable(path, error) if isinstance(error, OSError) else None
        raise unreadable or _no_record(path, error) from None
    _check(record, path)
    return record


def _check(record: dict[str, Any], path: Path) -> None:
    """Refuse a record that cannot be used, in one line: its readers take each field as it is."""
    version = record.get("schema_version", 0)
    _check_type(path, "schema_version", version, int)
    if version > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {version}, this code reads up to {SCHEMA_VERSION}; update "
            "the code"
        )
    several = "seeds" in record
    for field, kind in {**FIELDS, **(OF_SEVERAL if several else OF_ONE)}.items():
        if not _check_field(path, record, field, kind):
            raise UserError(f"{path} lacks the field {field}; {REMEDY}")
    of_probes = OF_PROBES if record["config"]["estimator"]["name"] in WITH_PROBES else {}
    for field, kind in {**WHERE_THERE, **of_probes}.items():
        _check_field(path, record, field, kind)
    for status in record["status"] if several else [record["status"]]:
        if status not in ("finished", "diverged"):
            raise _no_record(path, f"status is {status!r}, neither finished nor diverged")
    if several:
        _check_columns(path, record)
    else:
        _check_history(path, record.get("history") or {})
        _check_metrics(path, record["metrics"], record["status"] == "finished")


def _check_field(path: Path, record: dict[str, Any], field: str, kind: type) -> bool:
    """Refuse a field that is not of its kind; return whether it is there, null for not."""
    value: Any = record
    names = field.split(".")
    for k, name in enumerate(names):
        _check_type(path, ".".join(names[:k]), value, dict)
        if name not in value:
            return False
        value = value[name]
        if value is None and kind is not object:
            return False
    _check_type(path, field, value, kind)
    if kind is float:
        _check_finite(path, field, value)
    return True


def _check_metrics(path: Path, metrics: dict[str, Any], finished: bool) -> None:
    """Refuse the metrics of one run where a reader cannot take them for numbers."""
    for which in ("last", "best"):
        for split, values in metrics[which].items():
            name = f"metrics.{which}.{split}"
            _check_type(path, name, values, dict)
            for metric, value in values.items():
                _check_type(path, f"{name}.{metric}", value, str if metric == "split" else float)
                if finished and which == "last":
                    _check_finite(path, f"{name}.{metric}", value)
            if which == "best":
                _check_type(path, f"{name}.step", values.get("step"), int)


def _check_columns(path: Path, record: dict[str, Any]) -> None:
    """Refuse columns that have not one value for each seed."""
    seeds, status, count = record["seeds"], record["status"], len(record["seeds"])
    for seed in seeds:
        _check_type(path, "seeds", seed, int)
    if not count or len(set(seeds)) != count:
        raise UserError(f"{path} has no seed, or one twice; {REMEDY}")
    if len(status) != count:
        raise UserError(f"{path} has {count} seeds and {len(status)} status; {REMEDY}")
    for seed, note in record["notes"].items():
        _check_type(path, f"notes.{seed}", note, str)
    for split, columns in record["metrics"].items():
        _check_type(path, f"metrics.{split}", columns, dict)
        for metric, values in columns.items():
            name = f"metrics.{split}.{metric}"
            _check_type(path, name, values, list)
            if len(values) != count:
                raise UserError(f"{path} has {count} seeds and {len(values)} {name}; {REMEDY}")
            for value, ended in zip(values, status, strict=True):
                if ended == "finished":
                    _check_type(path, name, value, float)
                    _check_finite(path, name, value)


def _check_history(path: Path, history: dict[str, Any]) -> None:
    """Refuse the columns of a run's course where they are none; early records have no course."""
    if history and not {"step", "loss"} <= history.keys():
        raise _no_record(path, "history has no step or no loss")
    for name, values in history.items():
        _check_type(path, f"history.{name}", values, list)
        for value in values:
            if value is not None:
                _check_type(path, f"history.{name}", value, float)
    if len({*map(len, history.values())}) > 1:
        raise _no_record(path, "the columns of history differ in length")


def _check_type(path: Path, field: str, value: Any, kind: type) -> None:
    kinds = (int, float) if kind is float else (kind,)
    if kind is not object and type(value) not in kinds:
        raise _no_record(path, f"{field} is not {WORDS[kind]}")


def _check_finite(path: Path, field: str, value: float) -> None:
    if not math.isfinite(value):
        raise _no_record(path, f"{field} is {value}, not a finite number")


def _no_record(path: Path, why: object) -> UserError:
    return UserError(f"{path} is not a record ({why}); {REMEDY}")


def _seeds(record: dict[str, Any]) -> list[int]:
    return record["seeds"] if "seeds" in record else [record["seed"]]


def _named(seeds: set[int]) -> str:
    return f"seed {min(seeds)}" if len(seeds) == 1 else f"seeds {min(seeds)} to {max(seeds)}"
