"""The paper's claims and the test that each is put to (PAPER 4, "Verdicts").

results/paper/claims.csv states, before the runs, which cell is better than which, by what metric
and by what margin. The test: two-sided paired t over the seeds that both cells have, of the gain
against the margin; Holm over the table. Verdicts: holds, contradicted, inconclusive, not run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fogzo_repro.config import UserError
from fogzo_repro.reporting.results import CellResult, TableResults, read_paper

VERDICTS = ("holds", "contradicted", "inconclusive", "not run")
LEVEL = 0.05
ENOUGH_SEEDS = 5  # fewer give at most inconclusive
CHOSEN = "chosen"  # column: the one with the lowest train loss on the tuning seeds
SAME = "same"  # column of `worse`: the one that `better` has


@dataclass(frozen=True)
class Claim:
    """One line of claims.csv: `better` is better than `worse` by more than `margin`."""

    id: str
    claim: str
    better: tuple[str, str]
    worse: tuple[str, str]
    split: str
    metric: str
    direction: str
    margin: float
    source: str


@dataclass(frozen=True)
class PairedTest:
    """A two-sided paired t test of a mean gain against a margin.

    Attributes:
        n: number of pairs.
        gain: their mean.
        low: lower end of the gain's 95% interval; nan for one pair.
        high: its upper end.
        p: two-sided; nan for one pair.
    """

    n: int
    gain: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict; `better` and `worse` are None where a cell could not be named."""

    claim: Claim
    better: CellResult | None
    worse: CellResult | None
    test: PairedTest | None
    adjusted_p: float
    verdict: str
    note: str


def read_claims(path: Path, table: str) -> list[Claim]:
    """Return the claims of a table.

    Raises:
        UserError: where a direction or margin is not what the test can use.
    """
    claims = []
    for line in read_paper(path):
        if line["table"] != table:
            continue
        if line["direction"] not in ("lower", "higher"):
            raise UserError(
                f"{path}: claim {line['id']} has direction={line['direction']}; "
                "give lower or higher"
            )
        try:
            margin = float(line["margin"])
        except ValueError:
            raise UserError(
                f"{path}: claim {line['id']} has margin={line['margin']}; give a number"
            ) from None
        better = (line["better_row"], line["better_column"])
        worse = (line["worse_row"], line["worse_column"])
        claims.append(
            Claim(
                line["id"], line["claim"], better, worse, line["split"], line["metric"],
                line["direction"], margin, line["source"],
            )
        )  # fmt: skip
    return claims


def paired_t(gains: Sequence[float], margin: float) -> PairedTest:
    """Test the mean of paired gains against a margin.

    t = (mean - margin) / (sd / sqrt(n)) with n - 1 degrees of freedom. Gains that are all equal
    have no spread: p is 1 at the margin and 0 elsewhere.
    """
    from scipy import stats

    n = len(gains)
    mean = math.fsum(gains) / n
    if n == 1:
        return PairedTest(1, mean, math.nan, math.nan, math.nan)
    error = math.sqrt(math.fsum((g - mean) ** 2 for g in gains) / (n - 1) / n)
    if error == 0:
        return PairedTest(n, mean, mean, mean, float(mean == margin))
    half = float(stats.t.ppf(1 - LEVEL / 2, n - 1)) * error
    p = 2 * float(stats.t.sf(abs(mean - margin) / error, n - 1))
    return PairedTest(n, mean, mean - half, mean + half, p)


def holm(ps: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values, in the order given; nan stays and does not count.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted((p, i) for i, p in enumerate(ps) if not math.isnan(p))
    adjusted, running = list(ps), 0.0
    for rank, (p, i) in enumerate(order):
        running = max(running, min(1.0, (len(order) - rank) * p))
        adjusted[i] = running
    return adjusted


def chosen(results: TableResults, row: str) -> CellResult | None:
    """Return the cell of a row with the lowest mean train loss on the tuning seeds.

    A cell with a diverged tuning run cannot be chosen. None where the sweep is not complete: every
    cell that has tuning runs must have those of the same seeds.
    """
    swept = [c for c in results.row(row) if c.values("train", "loss", tuning=True)]
    losses = {c.column: c.values("train", "loss", tuning=True) for c in swept}
    seeds = {(*losses[c.column], *c.diverged(tuning=True)) for c in swept}
    if len({tuple(sorted(s)) for s in seeds}) != 1:
        return None
    stable = [c for c in swept if not c.diverged(tuning=True)]
    return min(stable, key=lambda c: math.fsum(losses[c.column].values()), default=None)


def judge(results: TableResults, claims: Sequence[Claim]) -> list[Judged]:
    """Put every claim of a table to the test."""
    pairs = [named_cells(results, claim) for claim in claims]
    tests = [_test(claim, *pair) for claim, pair in zip(claims, pairs, strict=True)]
    adjusted = holm([math.nan if t is None else t.p for t in tests])
    return [
        Judged(claim, better, worse, test, p, *_verdict(claim, better, worse, test, p))
        for claim, (better, worse), test, p in zip(claims, pairs, tests, adjusted, strict=True)
    ]


def named_cells(results: TableResults, claim: Claim) -> tuple[CellResult | None, CellResult | None]:
    """Return the cells that a claim compares; None where the tuning sweep has not chosen one.

    Raises:
        UserError: for a cell that is not in the table.
    """

    def find(row: str, column: str) -> CellResult | None:
        if column == CHOSEN:
            return chosen(results, row)
        if (row, column) not in results.cells:
            raise UserError(f"claims.csv: {claim.id} names the unknown cell {row} | {column}")
        return results.cells[row, column]

    better = find(*claim.better)
    row, column = claim.worse
    if column != SAME:
        return better, find(row, column)
    return better, find(row, better.column) if better is not None else None


def _test(claim: Claim, better: CellResult | None, worse: CellResult | None) -> PairedTest | None:
    if better is None or worse is None:
        return None
    good, bad = (c.values(claim.split, claim.metric) for c in (better, worse))
    sign = 1 if claim.direction == "lower" else -1
    gains = [sign * (bad[seed] - good[seed]) for seed in good if seed in bad]
    return paired_t(gains, claim.margin) if gains else None


def _verdict(
    claim: Claim,
    better: CellResult | None,
    worse: CellResult | None,
    test: PairedTest | None,
    adjusted_p: float,
) -> tuple[str, str]:
    """Return the verdict and a note on what limits it."""
    if better is None or worse is None:
        return "not run", "the tuning sweep is not complete"
    lost = [f"{c.row}, seed {s}" for c in (better, worse) for s in c.diverged()]
    note = f"diverged: {'; '.join(lost)}" if lost else ""
    if test is None:
        return "not run", note
    if test.n < ENOUGH_SEEDS:
        return "inconclusive", "; ".join(filter(None, [f"only {test.n} seeds", note]))
    if lost or not adjusted_p < LEVEL:
        return "inconclusive", note
    return ("holds" if test.gain > claim.margin else "contradicted"), note
