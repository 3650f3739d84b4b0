"""The labels and seeds of a table's cells, read from its files without composing them.

Composing takes a tenth of a second a cell; `make status` needs no more than where runs belong.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fogzo_repro.reporting.results import TUNING_SEEDS

BY_SCALE = re.compile(r"\$\{by_scale:\$\{scale\},'([^']*)','([^']*)'\}")


@dataclass(frozen=True)
class Planned:
    """A cell as its experiment file plans it."""

    table: str
    row: str
    column: str
    seeds: tuple[int, ...]


def planned_cells(
    folder: Path, scale: str, seeds: tuple[int, ...] | None = None
) -> Iterator[Planned]:
    """Yield the cells of all files of a table.

    Args:
        folder: configs/experiment/<table>.
        scale: decides the values of a sweep that depend on it.
        seeds: in place of the evaluation seeds of the files.
    """
    for path in sorted(folder.glob("*.yaml")):
        settings = yaml.safe_load(path.read_text())
        sweep = {k: _values(v, scale) for k, v in settings["hydra"]["sweeper"]["params"].items()}
        of_file = tuple(int(seed) for seed in sweep.pop("seed"))
        if seeds is not None and set(of_file) - set(TUNING_SEEDS):
            of_file = (*seeds, *(s for s in of_file if s in TUNING_SEEDS))
        label = settings["cell"]
        for values in itertools.product(*sweep.values()):
            chosen = dict(zip(sweep, values, strict=True))
            row, column = (_fill(label[k], settings, chosen) for k in ("row", "column"))
            yield Planned(label["table"], row, column, of_file)


def _values(text: Any, scale: str) -> list[str]:
    """Return the values of a sweep, each as the composed configuration prints it."""
    found = BY_SCALE.fullmatch(str(text))
    if found:
        text = found[1] if scale == "full" else found[2]
    return [_printed(part.strip()) for part in str(text).split(",")]


def _printed(value: str) -> str:
    try:
        return value if value.lstrip("-").isdigit() else str(float(value))
    except ValueError:
        return value


def _fill(label: str, settings: dict[str, Any], chosen: dict[str, str]) -> str:
    """Put the values that a label refers to in their places."""

    def value(match: re.Match[str]) -> str:
        if match[1] in chosen:
            return chosen[match[1]]
        node = settings
        for key in match[1].split("."):
            node = node[key]
        return _printed(str(node))

    return re.sub(r"\$\{([\w.]+)\}", value, label)
