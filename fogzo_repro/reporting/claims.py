"""The claims and what became of them (PAPER 4, "Verdicts").

results/paper/claims.csv states, before the runs, which cell is better than which, by what metric
and by what margin, and below which difference two cells count as equal (`no_difference_below`: a
number, or a percentage of the worse side's mean; empty where no such bound was stated). Each claim
is put to a two-sided t test over the seeds and to two one-sided tests against that bound, each kind
with Holm's correction over all claims of the table, run or not. The verdicts:

    holds           the gain is above the margin
    contradicted    the gain is below the margin
    no difference   whichever side is ahead, it is by less than the bound
    inconclusive    none of these; said with the difference that so many seeds could have seen
    not run         a side has no runs, or the tuning that chooses it is not complete

The mini tables may be looked at twice: where a claim is inconclusive on seeds 0 to 4, seeds 5 to 9
are added and it is tested anew. Each look is at half the level.

A gain that is both significant and below the bound is no difference: the bound was stated as what
matters. Fewer than five seeds, or a run that diverged, give at most inconclusive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from fogzo_repro.config import UserError
from fogzo_repro.reporting.results import CellResult, TableResults, read_paper, scale_of
from fogzo_repro.reporting.statistics import LEVEL, GainTest, gain_test, holm
from fogzo_repro.reporting.tuning import CHOSEN, chosen, on_edge, untuned
from fogzo_repro.reporting.wording import NOT_RUN, p_value

COLUMNS = (  # of claims.csv
    "id", "table", "claim", "better_row", "better_column", "worse_row", "worse_column", "split",
    "metric", "direction", "margin", "no_difference_below", "statistic", "source",
)  # fmt: skip
VERDICTS = ("holds", "contradicted", "no difference", "inconclusive", NOT_RUN)
ENOUGH_SEEDS = 5  # fewer give at most inconclusive
SIDES = ("better", "worse")
NO_CLAIM = "no claim"  # of the source of a control that decides none, with the reason behind it


@dataclass(frozen=True)
class Claim:
    """One line of claims.csv: `better` is better than `worse` by more than `margin`.

    `bound` is the difference below which the two count as equal, `relative` whether it is a share
    of the worse side's mean; None where none was stated.
    """

    id: str
    claim: str
    better: tuple[str, str]
    worse: tuple[str, str]
    split: str
    metric: str
    direction: str
    margin: float
    bound: float | None
    relative: bool
    source: str

    @property
    def bound_in_words(self) -> str:
        """The bound as it was written down, such as `0.5%`; empty where there is none."""
        if self.bound is None:
            return ""
        return f"{100 * self.bound:g}%" if self.relative else f"{self.bound:g}"


Compared = tuple[Claim, CellResult | None, CellResult | None]


@dataclass(frozen=True)
class Judged:
    """A claim with its verdict."""

    claim: Claim
    better: CellResult | None  # the cell; None where the tuning has not chosen one
    worse: CellResult | None
    test: GainTest | None  # None where a side was not run
    adjusted_p: float  # by Holm, of the gain against the margin
    adjusted_same: float  # by Holm, of the gain between minus and plus the bound
    verdict: str  # one of `VERDICTS`
    note: str  # what limits it

    @property
    def deciding_p(self) -> float:
        """The adjusted p that the verdict rests on; nan where nothing was tested."""
        return self.adjusted_same if self.verdict == "no difference" else self.adjusted_p

    @property
    def said(self) -> str:
        """The verdict in words, with the bound that it rests on."""
        above = f" above {self.claim.bound_in_words}" if self.verdict == "no difference" else ""
        return self.verdict + above

    @property
    def said_with_p(self) -> str:
        """The verdict in words, with the p that it rests on where there is one."""
        return self.said + ("" if math.isnan(self.deciding_p) else f", {p_value(self.deciding_p)}")


class JudgedTable(NamedTuple):
    """A table with its claims and their verdicts."""

    table: TableResults
    judged: list[Judged]


def read_claims(path: Path, table: str) -> list[Claim]:
    """Return the claims of a table.

    Raises:
        UserError: where a direction, margin or bound is not what the tests can use.
    """
    claims: list[Claim] = []
    for line in read_paper(path, COLUMNS):
        if line["table"] != table or line["statistic"]:  # that is for `reporting.hypotheses`
            continue
        where = f"{path}: claim {line['id']}"
        if line["direction"] not in ("lower", "higher"):
            raise UserError(f"{where} has direction={line['direction']}; give lower or higher")
        bound = line["no_difference_below"]
        relative = bound.endswith("%")
        size = number(bound.removesuffix("%"), f"{where} has no_difference_below={bound}")
        if size is not None and not size > 0:
            raise UserError(f"{where} has no_difference_below={bound}; give one above 0, or none")
        if any(one.id == line["id"] for one in claims):
            raise UserError(f"{where} stands twice; delete one")
        claims.append(
            Claim(
                id=line["id"],
                claim=line["claim"],
                better=(line["better_row"], line["better_column"]),
                worse=(line["worse_row"], line["worse_column"]),
                split=line["split"],
                metric=line["metric"],
                direction=line["direction"],
                margin=number(line["margin"], f"{where} has margin={line['margin']}") or 0.0,
                bound=size / 100 if size is not None and relative else size,
                relative=relative,
                source=line["source"],
            )
        )
    return claims


def check_claimed(results: Path, table: str) -> None:
    """Refuse a table with a cell that is there to decide a claim and has none.

    That is each cell with a value of the paper's, by its metric; in a mini also both sides of each
    quantizer, in train loss and by their metric, probes on a part against the STE, each control and
    each sweep over the noise. Sweeps over rates choose, and decide nothing. A control without a
    claim says why in the column `source` of results/paper/<table>.csv.

    Raises:
        UserError: in one line, with what it has no claim on.
    """
    path = results / "paper" / "claims.csv"
    lines = [line for line in read_paper(path, COLUMNS) if line["table"] == table]
    mini = scale_of(table) == "mini"
    for entry in read_paper(results / "paper" / f"{table}.csv"):
        if _is_claimed(entry, lines, mini):
            continue
        raise UserError(
            f"{path} has no claim on {table}: {entry['row']} | {entry['column']}, "
            f"{entry['metric']}, which is there to decide one; restore it with git, or say in "
            f"{table}.csv beside it, column source, why there is none: `{NO_CLAIM}, ...`"
        )


def _is_claimed(entry: dict[str, str], lines: Sequence[dict[str, str]], mini: bool) -> bool:
    """Return whether the claims have what a line of results/paper/<table>.csv is there for."""
    row, column, metric = entry["row"], entry["column"], entry["metric"]
    pairs = [[(line[f"{k}_row"], line[f"{k}_column"]) for k in SIDES] for line in lines]
    said = [*zip(pairs, (line["metric"] for line in lines), strict=True)]
    if entry["value"]:
        return any((row, column) in pair and of == metric for pair, of in said)
    if not mini or NO_CLAIM in entry["source"] or row.endswith(", rate"):
        return True
    if row.endswith(", noise"):
        return any(row == place[0] for pair in pairs for place in pair)
    if column in ("FOGZO", "STE"):
        both = [(row, "FOGZO"), (row, "STE")]
        return {"loss", metric} <= {of for pair, of in said if pair == both}
    if column.startswith("FOGZO, probes="):
        return any({*pair} == {(row, column), (row, "STE")} for pair in pairs)
    return any((row, column) in pair for pair in pairs)


def number(text: str, where: str) -> float | None:
    """Return the number of a claim; None where it has none.

    Raises:
        UserError: where it is something else.
    """
    try:
        value = float(text) if text else None
    except ValueError:
        value = math.nan
    if value is not None and not math.isfinite(value):
        raise UserError(f"{where}; give a number")
    return value


def judged_table(folder: Path, found: TableResults) -> JudgedTable:
    """Return a table with its claims in the folder results/, judged.

    Raises:
        UserError: as `read_claims` and `named_cells`.
    """
    claims = read_claims(folder / "paper" / "claims.csv", found.table)
    return JudgedTable(found, judge(found, claims))


def judge(results: TableResults, claims: Sequence[Claim]) -> list[Judged]:
    """Put every claim of a table to the tests, and note which choice may not be the best."""
    compared = [(claim, *named_cells(results, claim)) for claim in claims]
    return [
        replace(one, note="; ".join(filter(None, [one.note, *_edges(results, one)])))
        for one in judge_cells(results.table, compared)
    ]


def judge_cells(table: str, compared: Sequence[Compared]) -> list[Judged]:
    """Put claims to the tests, each given with its two cells."""
    level = LEVEL / 2 if scale_of(table) == "mini" else LEVEL  # a mini has two looks
    tests = [_test(*one, level) for one in compared]
    ps = [math.nan if t is None else t.p for t in tests]
    same_ps = [math.nan if t is None else t.p_same for t in tests]
    bounded = [p for p, (claim, *_) in zip(same_ps, compared, strict=True) if claim.bound]
    adjusted = holm(ps, waiting=sum(map(math.isnan, ps)))
    same = holm(same_ps, waiting=sum(map(math.isnan, bounded)))
    return [
        Judged(*one, test, p, p_same, *_verdict(*one, test, p, p_same, level))
        for one, test, p, p_same in zip(compared, tests, adjusted, same, strict=True)
    ]


def counted(judged: Sequence[Judged]) -> str:
    """Return how many claims have which verdict, as `2 hold, 1 not run`."""
    found = Counter(one.verdict for one in judged)
    return ", ".join(f"{n} {'hold' if v == 'holds' else v}" for v, n in found.items())


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

    return find(*claim.better), find(*claim.worse)


def _test(
    claim: Claim, better: CellResult | None, worse: CellResult | None, level: float
) -> GainTest | None:
    if better is None or worse is None:
        return None
    sign = 1 if claim.direction == "lower" else -1
    good, bad = (
        {seed: sign * value for seed, value in c.values(claim.split, claim.metric).items()}
        for c in (better, worse)
    )
    if not good or not bad:
        return None
    bound = claim.bound
    if bound is not None and claim.relative:
        bound *= abs(math.fsum(bad.values()) / len(bad))
    return gain_test(good, bad, margin=claim.margin, bound=bound, level=level)


def _verdict(
    claim: Claim,
    better: CellResult | None,
    worse: CellResult | None,
    test: GainTest | None,
    p: float,
    p_same: float,
    level: float,
) -> tuple[str, str]:
    """Return the verdict, and a note on what limits it."""
    if better is None or worse is None:
        return NOT_RUN, "the tuning sweep is not complete"
    lost = [f"{c.row}, seed {s}" for c in (better, worse) for s in c.diverged()]
    diverged = f"diverged: {'; '.join(lost)}" if lost else ""
    if test is None:
        return NOT_RUN, diverged
    if min(test.n) < ENOUGH_SEEDS:
        return "inconclusive", f"only {min(test.n)} seeds" + (f"; {diverged}" if lost else "")
    if lost:
        return "inconclusive", diverged
    if p_same < level:
        small = f"a gain of {test.gain:+.2g} is there, p = {p:.2g}"
        return "no difference", small if p < level else ""
    if p < level:
        return ("holds" if test.gain > claim.margin else "contradicted"), ""
    return "inconclusive", f"could have seen {test.visible:.2g}"


def _edges(results: TableResults, one: Judged) -> list[str]:
    """Return notes for each side whose value was chosen on the edge, or not among all it has."""
    if one.verdict == NOT_RUN:
        return []
    sides = (one.better, one.claim.better[1]), (one.worse, one.claim.worse[1])
    cells = [cell for cell, column in sides if cell is not None and column == CHOSEN]
    on = [f"{c.column} of {c.row} is on the edge of its grid" for c in cells if on_edge(results, c)]
    return on + [f"{x} of {c.row} was not tuned" for c in cells for x in untuned(results, c)]
