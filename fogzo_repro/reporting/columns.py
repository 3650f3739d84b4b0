"""A table as data: its columns, each with what it takes from a line and how that is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fogzo_repro.reporting.markdown import grid


@dataclass(frozen=True)
class Column:
    """A column: its title, what it takes from a line, and how that is written."""

    title: str
    value: Callable[[Any], Any]
    format: Callable[[Any], str] = lambda value: plain(value)


Columns = tuple[Column, ...]


def plain(value: Any) -> str:
    """Return a value in full; nothing for None and nan."""
    return "" if value is None or value != value else str(value)


def titles(columns: Sequence[Column]) -> list[str]:
    """Return the first line of a table."""
    return [column.title for column in columns]


def body(columns: Sequence[Column], lines: Sequence[Any]) -> list[list[str]]:
    """Return the other lines of a table."""
    return [[column.format(column.value(line)) for column in columns] for line in lines]


def filled(columns: Sequence[Column], lines: Sequence[Any]) -> list[Column]:
    """Return the columns that have something to say in at least one line."""
    texts = zip(*body(columns, lines), strict=True)
    return [column for column, said in zip(columns, texts, strict=True) if any(said)]


def markdown(columns: Sequence[Column], lines: Sequence[Any]) -> str:
    """Return a table in Markdown."""
    return grid(titles(columns), body(columns, lines))


def csv_of(columns: Sequence[Column], lines: Sequence[Any]) -> str:
    """Return a table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(titles(columns))
    writer.writerows(body(columns, lines))
    return text.getvalue()
