"""How cells, metrics and figures are put in words, the same on every page."""

from __future__ import annotations

import math

from fogzo_repro.reporting.results import CellResult
from fogzo_repro.reporting.statistics import GainTest, Summary

NOT_RUN = "not run"
METRIC_NAMES = {"loss": "loss", "top1": "top-1 (%)", "perplexity": "perplexity"}
DIGITS = {"loss": 4, "top1": 2, "perplexity": 2}  # decimal places


def mean_sd(summary: Summary | None, digits: int, diverged: int = 0) -> str:
    """Return mean ± sd (n), and how many runs diverged; the sd of one run is a dash.

    >>> mean_sd(None, 2), mean_sd(None, 2, diverged=3)
    ('not run', '3 diverged')
    """
    said = [f"{diverged} diverged"] if diverged else []
    if summary is None:
        return said[0] if said else NOT_RUN
    sd = "–" if math.isnan(summary.sd) else f"{summary.sd:.{digits}f}"
    return ", ".join([f"{summary.mean:.{digits}f} ± {sd} ({summary.n})", *said])


def cell_mean(cell: CellResult | None, split: str, metric: str, digits: int) -> str:
    """Return a cell's mean ± sd (n) of a metric, and how many of its runs diverged."""
    if cell is None:
        return NOT_RUN
    return mean_sd(cell.summary(split, metric), digits, len(cell.diverged()))


def interval(summary: Summary | None, digits: int) -> str:
    """Return the 95% interval; nothing for fewer than two runs."""
    if summary is None or math.isnan(summary.low):
        return ""
    return f"[{summary.low:.{digits}f}, {summary.high:.{digits}f}]"


def gain(test: GainTest | None, digits: int) -> str:
    """Return a gain [95%]: without the interval where a side has one run, nothing where none."""
    if test is None:
        return ""
    ends = "" if math.isnan(test.low) else f" [{test.low:+.{digits}f}, {test.high:+.{digits}f}]"
    return f"{test.gain:+.{digits}f}{ends}"


def p_value(p: float) -> str:
    """Return a p in words.

    >>> p_value(0.00213), p_value(0.0)
    ('p = 0.0021', 'p < 1e-300')
    """
    return f"p = {p:.2g}" if p > 1e-300 else "p < 1e-300"


def cell_name(row: str, column: str) -> str:
    """Return what a cell is called in a sentence."""
    return row if column == "-" else f"{row} ({column})"
