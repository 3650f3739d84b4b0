"""Markdown: a grid of cells, and how a mean with its spread is written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fogzo_repro.reporting.statistics import Summary

NOT_RUN = "not run"


def grid(titles: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    shown = [titles, ["---"] * len(titles), *lines]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in shown
    )


def mean_sd(summary: Summary | None, digits: int) -> str:
    """Return mean ± sd (n); the sd of one run is a dash."""
    if summary is None:
        return NOT_RUN
    sd = "–" if math.isnan(summary.sd) else f"{summary.sd:.{digits}f}"
    return f"{summary.mean:.{digits}f} ± {sd} ({summary.n})"


def interval(summary: Summary | None, digits: int) -> str:
    """Return the 95% interval; nothing for fewer than two runs."""
    if summary is None or math.isnan(summary.half):
        return ""
    low, high = summary.mean - summary.half, summary.mean + summary.half
    return f"[{low:.{digits}f}, {high:.{digits}f}]"


def named(row: str, column: str) -> str:
    """Return a cell's name in a sentence."""
    return row if column == "-" else f"{row} ({column})"
