"""Hypotheses about the gain of FOGZO whose statistic is more than one cell against another.

Those lines of results/paper/claims.csv have a `statistic`, each written down before the runs that
decide it (PAPER 6):

    rank correlation   of the gain and the STE's mean 1 - h', over the rows of a table
    excess loss        of a value of a sweep over the sweep's best, on its tuning seeds
    share of gain      (STE - cell) / (STE - FOGZO), of FOGZO made cheaper

A gain is the STE's mean loss minus FOGZO's. Fewer than five seeds or rows give at most
inconclusive, as with the claims.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import COLUMNS, ENOUGH_SEEDS, number
from fogzo_repro.reporting.columns import Column, Columns
from fogzo_repro.reporting.results import CellResult, TableResults, read_paper
from fogzo_repro.reporting.statistics import LEVEL, GainTest, gain_test, jackknife
from fogzo_repro.reporting.tuning import chosen
from fogzo_repro.reporting.wording import NOT_RUN

FOGZO, STE = "FOGZO", "STE"  # the columns whose difference is the gain


@dataclass(frozen=True)
class Tested:
    """A hypothesis with what the records say of it."""

    line: dict[str, str]  # of claims.csv, as it was written down
    value: float = math.nan  # of the statistic; nan where a side was not run
    low: float = math.nan  # its 95% interval, nan where it has none
    high: float = math.nan
    n: int = 0  # seeds, or rows for a rank correlation
    verdict: str = NOT_RUN  # one of `claims.VERDICTS`
    note: str = ""  # what limits it


def read_tested(results: Path, found: TableResults) -> list[Tested]:
    """Return the hypotheses about a table with their verdicts.

    Raises:
        UserError: for a statistic or a cell that is not known, or a margin that is no number.
    """
    path = results / "paper" / "claims.csv"
    tested = []
    for line in read_paper(path, COLUMNS):
        name = line["statistic"]
        if line["table"] != found.table or not name:
            continue
        where = f"{path}: claim {line['id']}"
        if name not in STATISTICS:
            raise UserError(f"{where} has statistic={name}; options: {', '.join(STATISTICS)}")
        number(line["margin"], f"{where} has margin={line['margin']}")
        try:
            tested.append(STATISTICS[name](found, line))
        except KeyError as error:
            raise UserError(f"{where} names the unknown cell {error}") from None
    return tested


def gains(found: TableResults, split: str, metric: str) -> dict[str, tuple[float, GainTest]]:
    """Return by row the STE's mean 1 - h' and FOGZO's gain, where both were run and looked at."""
    points = {}
    for row in found.rows:
        ste, fogzo = (found.cells.get((row, column)) for column in (STE, FOGZO))
        held = None if ste is None else ste.held_back
        if ste is None or fogzo is None or held is None:
            continue
        worse, better = ste.values(split, metric), fogzo.values(split, metric)
        if worse and better:
            points[row] = held, gain_test(better, worse)
    return points


def _rank_correlation(found: TableResults, line: dict[str, str]) -> Tested:
    points = [*gains(found, line["split"], line["metric"]).values()]
    n = len(points)
    if n < 3:
        return Tested(line)
    value, p = spearman([held for held, _ in points], [test.gain for _, test in points])
    note = f"p = {p:.2g}" if n >= ENOUGH_SEEDS else f"only {n} rows, p = {p:.2g}"
    verdict = _decided(value > 0, n >= ENOUGH_SEEDS and p < LEVEL)
    return Tested(line, value, n=n, verdict=verdict, note=note)


def spearman(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return the rank correlation, and its exact two-sided p over all orders of y.

    >>> spearman([1, 2, 3, 4], [10, 20, 30, 40])
    (1.0, 0.08333333333333333)
    """
    from scipy.stats import rankdata

    a, b = rankdata(x), rankdata(y)
    a, b = a - a.mean(), b - b.mean()
    size = math.sqrt(float(a @ a) * float(b @ b))
    if not size:
        return 0.0, 1.0
    value = float(a @ b) / size
    orders = [float(a @ order) / size for order in map(list, itertools.permutations(b))]
    extreme = sum(abs(other) >= abs(value) - 1e-9 for other in orders)
    return round(value, 12), extreme / len(orders)


def _excess_loss(found: TableResults, line: dict[str, str]) -> Tested:
    cell, best = _cell(found, line, "better"), chosen(found, line["better_row"])
    if best is None or not cell.tuning_losses() or len(found.tuned(line["better_row"])) < 2:
        return Tested(line)
    ours, theirs = cell.tuning_losses(), best.tuning_losses()
    seeds = sorted({*ours} & {*theirs})
    n = len(seeds)
    if not n:
        return Tested(line)
    value = math.fsum(ours[seed] - theirs[seed] for seed in seeds) / n
    verdict = _decided(value <= float(line["margin"] or 0), n >= ENOUGH_SEEDS)
    note = f"best {best.column}" + (f", only {n} seeds" if n < ENOUGH_SEEDS else "")
    return Tested(line, value, n=n, verdict=verdict, note=note)


def _share_of_gain(found: TableResults, line: dict[str, str]) -> Tested:
    cell, ste = _cell(found, line, "better"), _cell(found, line, "worse")
    share = share_of_gain(found, cell, ste, line["split"], line["metric"])
    if share is None:
        return Tested(line)
    value, low, high, n = share
    margin = float(line["margin"] or 0)
    note = "" if n >= ENOUGH_SEEDS else f"only {n} seeds"
    verdict = _decided(low > margin, not note and not low <= margin <= high)
    return Tested(line, value, low, high, n, verdict, note)


def share_of_gain(
    found: TableResults, cell: CellResult, ste: CellResult, split: str, metric: str
) -> tuple[float, float, float, int] | None:
    """Return the share of FOGZO's gain that a cell of its row keeps, its 95% interval, the seeds.

    The interval is by the jackknife over the seeds that all three have; None for fewer than two.
    """
    whole = found.cells[cell.row, FOGZO]
    values = [one.values(split, metric) for one in (ste, cell, whole)]
    seeds = sorted(set.intersection(*map(set, values)))
    if len(seeds) < 2:
        return None
    rows = [[column[seed] for column in values] for seed in seeds]
    return *jackknife(rows, lambda m: (m[0] - m[1]) / (m[0] - m[2])), len(seeds)


def _decided(in_favour: bool, clear: bool) -> str:
    if not clear:
        return "inconclusive"
    return "holds" if in_favour else "contradicted"


def _cell(found: TableResults, line: dict[str, str], side: str) -> CellResult:
    return found.cells[line[f"{side}_row"], line[f"{side}_column"]]


STATISTICS: dict[str, Callable[[TableResults, dict[str, str]], Tested]] = {
    "rank correlation": _rank_correlation,
    "excess loss": _excess_loss,
    "share of gain": _share_of_gain,
}


def _value(tested: Tested) -> str:
    if math.isnan(tested.value):
        return ""
    ends = "" if math.isnan(tested.low) else f" [{tested.low:+.3f}, {tested.high:+.3f}]"
    return f"{tested.value:+.4f}{ends}"


HYPOTHESES: Columns = (
    Column("hypothesis", lambda tested: tested.line["claim"]),
    Column("statistic", lambda tested: tested.line["statistic"]),
    Column("value [95%]", _value),
    Column("n", lambda tested: tested.n or ""),
    Column("verdict", lambda tested: tested.verdict + (f" ({tested.note})" if tested.note else "")),
    Column("source", lambda tested: tested.line["source"]),
)
