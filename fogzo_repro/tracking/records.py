"""Records: one JSON file per run that is over. Tables are made from records alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError

SCHEMA_VERSION = 1
FIELDS = (
    "schema_version", "method_version", "run_id", "table", "row", "column", "scale", "status",
    "config", "resolved", "command", "commit", "dirty", "versions", "hardware", "seed", "metrics",
    "evaluations_per_step", "perturbed_weights", "steps", "wall_seconds", "gpu_hours",
    "peak_memory_mb", "started", "ended", "notes",
)  # fmt: skip


def read_record(path: Path) -> dict[str, Any]:
    """Read and check a record.

    Raises:
        UserError: where it is not JSON, lacks a field or has a newer schema.
    """
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} is not a record ({error}); delete it and run the cell again"
        ) from None
    if record.get("schema_version", 0) > SCHEMA_VERSION:
        raise UserError(
            f"{path} has schema_version {record['schema_version']}, this code reads up to "
            f"{SCHEMA_VERSION}; update the code"
        )
    for field in FIELDS:
        if field not in record:
            raise UserError(f"{path} lacks the field {field}; delete it and run the cell again")
    return record


def write_record(path: Path, record: dict[str, Any]) -> None:
    """Write a record whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(record, indent=1) + "\n")
    temporary.replace(path)


def file_record(record: dict[str, Any], records: Path) -> str | None:
    """Put a record among the committed ones, at records/<table>/<run_id>.json.

    A record of the same cell, scale and seed by an older method_version gives way.

    Returns:
        None, or one line that says why the record was not filed.
    """
    folder = records / record["table"]
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{record['run_id']}.json"
    place = ("row", "column", "scale", "seed")
    where = f"{record['row']} | {record['column']}, seed {record['seed']}"
    if target.exists():
        there = read_record(target)
        if all(there[k] == record[k] for k in place):
            if there != record:
                write_record(target, record)
            return None
        return (
            f"{where} is the same run as {there['row']} | {there['column']} with these settings; "
            "its record stands for that cell alone"
        )
    for path in sorted(folder.glob(f"*-s{record['seed']}-*.json")):
        there = read_record(path)
        if any(there[k] != record[k] for k in place):
            continue
        if there["method_version"] >= record["method_version"]:
            return f"{where} has the record {path} already; delete it to file {target.name}"
        path.unlink()
    write_record(target, record)
    return None
