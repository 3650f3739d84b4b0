"""What all benches have: options, and a record of what was measured and has moved since."""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.project import TOP
from fogzo_repro.reporting.benches import FIGURE, read_benches
from fogzo_repro.terminal import command_parser
from fogzo_repro.tracking.environment import git_state, provenance
from fogzo_repro.training.machine import processor_name

COMMITTED = TOP / "results" / "records" / "bench"
MOVED = 0.03  # a share
SAME = ("bench", "hardware", "processes", "batch", "decoded")  # where two compared records say it
LEFT_OUT = {"floor", "estimator_memory", "compile_seconds"}  # no speed, or of the compiler's mood


def bench_parser(documentation: str | None, toy: str = "") -> argparse.ArgumentParser:
    """Return a parser with --out, and with --toy where it is said what that measures."""
    parser = command_parser(documentation)
    parser.add_argument("--out", type=Path, required=True, help="the record to write; a JSON file")
    if toy:
        parser.add_argument("--toy", action="store_true", help=f"{toy}, a check on the CPU")
    return parser


def asked_for(parser: argparse.ArgumentParser, said: str, known: Collection[str]) -> list[str]:
    """Return the names in a comma list; end the command where one is not known."""
    names = said.split(",")
    if unknown := sorted({*names} - {*known}):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def begin(*paths: Path, on_gpu: bool) -> dict[str, dict[str, Any]]:
    """Refuse at once what could not be measured or written; return the records that are committed.

    They are as before a bench writes its own, by file name. The folders of `paths` are made.

    Raises:
        UserError: without a card to measure, or naming --out.
    """
    if on_gpu:
        check_gpu()
    for path in paths:
        files.make_folder(path.parent, f"--out {path}")
        if path.is_dir():
            raise UserError(f"--out {path} is a folder; give the name of a JSON file in it")
    return {path.name: record for path, record in read_benches(COMMITTED).items()}


def check_gpu() -> None:
    """Refuse to measure a card where there is none; make asks before it starts several processes.

    Raises:
        UserError: without a CUDA device.
    """
    if not torch.cuda.is_available():
        raise UserError("no CUDA device is here; --toy checks on the CPU that it runs")


def card_name(toy: bool) -> str:
    """Return the name of what measures: the first card, for a check the processor."""
    return processor_name() if toy else torch.cuda.get_device_name()


def head(bench: str, contender: str, card: str) -> dict[str, Any]:
    """Return the first lines of a bench's record: its card or processor, its contender in words."""
    return {"bench": bench, "contender": contender, **provenance(git_state(), card)}


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record, whose folder `begin` has made."""
    files.write(path, json.dumps(record, indent=1) + "\n")


def tell_moved(
    record: dict[str, Any],
    committed: dict[str, dict[str, Any]],
    where: tuple[str, ...],
    own_name: str = "",
) -> None:
    """Print what has moved by more than 3% since the committed record, or that nothing has.

    Args:
        record: the new one.
        committed: by file name, see `begin`.
        where: keys that lead to the figures, as ("networks", "resnet18", "round-w2").
        own_name: the file that the record is written to, which is looked at first; then the first
            by name that holds such figures of the same bench and card.
    """
    what = " ".join(dict.fromkeys([record["bench"], *(where[1:] or where)]))
    for name in sorted(committed, key=lambda name: (name != own_name, name)):
        old = committed[name]
        said = [(old.get(key), record.get(key)) for key in SAME]
        same = all(a == b or a is None or b is None for a, b in said)
        then, now = at(old, where), at(record, where)
        if not same or then is None or now is None:
            continue
        moved = list(compare(then, now))
        print(
            "\n".join(f"{what}: {line}, {name}" for line in moved)
            or f"{what}: nothing moved by more than {100 * MOVED:.0f}% since {name}",
            flush=True,
        )
        return
    print(f"{what}: no committed record of {record['hardware']} to compare with", flush=True)


def at(record: dict[str, Any], where: tuple[str, ...]) -> dict[str, Any] | None:
    """Return the part of a record that some keys lead to, None where it is not there."""
    found: Any = record
    for key in where:
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else None  # a damaged one is not there either


def compare(then: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each figure of both that moved by more than 3%, in either direction."""
    old = dict(figures(then))
    for name, value in figures(now):
        if old.get(name) and abs(value / old[name] - 1) > MOVED:
            change = 100 * (value / old[name] - 1)
            yield f"{name} {old[name]:.4g} -> {value:.4g} ({change:+.1f}%)"


def figures(part: dict[str, Any], above: str = "") -> Iterator[tuple[str, float]]:
    """Yield the figures of a record's part with their names: of repeated times the median."""
    for key, value in part.items():
        name = f"{above} {key}".strip()
        if key in LEFT_OUT:
            continue
        if isinstance(value, dict) and isinstance(value.get("median"), int | float):
            yield name, value["median"]
        elif isinstance(value, dict):
            yield from figures(value, name)
        elif isinstance(value, int | float) and any(map(FIGURE.search, name.split())):
            yield name, float(value)
