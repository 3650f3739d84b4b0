"""results/tables/readings: which reading of Section 4.1 gives which of the paper's claims.

The paper leaves open how weights are rounded. A reading settles it: the grid of levels, where the
STE's derivative is zero, and the distance of two levels in standard deviations of the initial
weights. configs/table/readings.yaml tries each on 16 seeds of its own, which report nothing else.

The default of `quantizer=round` was picked by a rule that was written down before the runs: among
the readings with levels one standard deviation apart, at the paper's learning rate, the one that
gives most of the paper's claims by its means; at a tie the one that has more in common with QuEST's
STE quantizer, which has the half-integer grid and derivative 1 everywhere. That is a choice by the
outcome, so Section 4.1 reports it on other seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.reporting.columns import Column, Columns, csv_of, markdown, parts
from fogzo_repro.reporting.results import CellResult, TableResults, read_recorded
from fogzo_repro.reporting.statistics import GainTest, Summary, gain_test
from fogzo_repro.reporting.wording import NOT_RUN, gain, mean_sd

TABLE = "readings"
RATE, SPACING = 0.032, 1.0  # of the readings that the default is picked from
STE, FOGZO, FOGZO_10, SPSA, SPSA_7960 = (
    "STE", "FOGZO n=1, 1-beta=0.001", "FOGZO n=10", "n-SPSA n=1", "n-SPSA n=7960",
)  # fmt: skip
SWEPT = "FOGZO n=1, 1-beta="  # how the rows of FOGZO with one pair begin
DERIVATIVES = {
    False: "1",
    True: "0 beyond the outer levels",
    "half_step": "0 beyond half a step more",
}


@dataclass(frozen=True)
class Claimed:
    """A claim of the paper's about Section 4.1: one side is better than the other by `margin`."""

    title: str
    better: str
    worse: str
    margin: float


# In the paper's order, with the margins of results/paper/claims.csv.
CLAIMS = (
    Claimed("A: STE far below n-SPSA n=1", STE, SPSA, 0.3),
    Claimed("B: n-SPSA n=7960 below STE", SPSA_7960, STE, 0.0),
    Claimed("C: FOGZO n=1 β=0.999 below STE", FOGZO, STE, 0.0),
    Claimed("D: FOGZO n=10 not above n-SPSA n=7960", FOGZO_10, SPSA_7960, -0.02),
)


@dataclass(frozen=True, order=True)
class Reading:
    """One way to settle what the paper leaves open, at a learning rate."""

    rate: float
    spacing: float
    grid: str
    derivative: str

    @property
    def named(self) -> str:
        """The reading in words."""
        return f"{self.grid} grid, derivative {self.derivative}, {self.spacing:g} σ"


@dataclass(frozen=True)
class Tried:
    """A reading with its cells by row; n-SPSA, which has no derivative, with those of 1."""

    reading: Reading
    cells: dict[str, CellResult]

    def losses(self, row: str) -> dict[int, float]:
        """Return the train losses of a row by seed."""
        return self.cells[row].values("train", "loss") if row in self.cells else {}

    def summary(self, row: str) -> Summary | None:
        """Return the mean train loss of a row and its spread."""
        return self.cells[row].summary("train", "loss") if row in self.cells else None

    @cached_property
    def tests(self) -> dict[Claimed, GainTest | None]:
        """The gain of the side that each of the claims is for; None where a side was not run."""
        found: dict[Claimed, GainTest | None] = {}
        for claim in CLAIMS:
            better, worse = self.losses(claim.better), self.losses(claim.worse)
            is_run = better and worse
            found[claim] = gain_test(better, worse, margin=claim.margin) if is_run else None
        return found

    def gives(self, claim: Claimed) -> bool:
        """Return whether the means stand in the claim's order."""
        test = self.tests[claim]
        return test is not None and test.gain > claim.margin

    @property
    def given(self) -> int:
        """How many of the claims the means give."""
        return sum(map(self.gives, CLAIMS))

    @property
    def best(self) -> str | None:
        """The row of FOGZO n=1 with the lowest mean, chosen on the seeds that it reports."""
        rows = [row for row in self.cells if row.startswith(SWEPT) and self.losses(row)]
        return min(rows, key=lambda row: self.summary(row).mean, default=None)  # type: ignore[union-attr]


def read_readings(results: Path) -> tuple[TableResults, list[Tried]]:
    """Return the recorded cells, and the readings that were tried, the paper's rate first."""
    found = read_recorded(results, TABLE)
    by_reading: dict[Reading, dict[str, CellResult]] = {}
    for cell in found.cells.values():
        by_reading.setdefault(_reading(cell), {})[cell.row] = cell
    tried = []
    for reading, cells in sorted(by_reading.items(), key=lambda one: (-one[0].rate, one[0])):
        plain = Reading(reading.rate, reading.spacing, reading.grid, DERIVATIVES[False])
        shared = {k: c for k, c in by_reading.get(plain, {}).items() if k in (SPSA, SPSA_7960)}
        tried.append(Tried(reading, {**shared, **cells}))
    return found, tried


def _reading(cell: CellResult) -> Reading:
    record: Any = cell.any_record
    quantizer = record["config"]["quantizer"]
    try:
        derivative = DERIVATIVES[quantizer["clip_gradient"]]
        grid, spacing = quantizer["grid"].replace("_", "-"), float(quantizer["scale_factor"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"the record {record['run_id']} of {TABLE} has not the quantizer of a reading "
            f"({error!r}); delete it and run the cell again"
        ) from None
    return Reading(record["config"]["recipe"]["lr"], spacing, grid, derivative)


def picked(tried: Sequence[Tried]) -> Tried | None:
    """Return the reading that the rule of this module picks; None where none was run."""

    def merit(one: Tried) -> tuple[int, int]:
        like_quest = (one.reading.grid == "half-integer") + (one.reading.derivative == "1")
        return one.given, like_quest

    open_to_it = [t for t in tried if (t.reading.rate, t.reading.spacing) == (RATE, SPACING)]
    return max(open_to_it, key=merit, default=None)


def write_readings(results: Path) -> tuple[TableResults, list[Tried]]:
    """Write readings.md and .csv; return what they show."""
    found, tried = read_readings(results)
    chosen = picked(tried)
    folder = results / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / f"{TABLE}.md", _page(found, tried, chosen))
    files.write(folder / f"{TABLE}.csv", csv_of(EXACT, tried))
    return found, tried


def _claim_column(claim: Claimed) -> Column:
    def said(one: Tried) -> str:
        test = one.tests[claim]
        if test is None:
            return NOT_RUN
        return f"{'yes' if one.gives(claim) else 'no'}, {gain(test, 3)}"

    return Column(claim.title, said)


def _loss(row: str) -> Column:
    return Column(row, lambda one: mean_sd(one.summary(row), 3))


WHICH: Columns = (
    Column("lr", lambda one: one.reading.rate),
    Column("spacing (σ)", lambda one: one.reading.spacing),
    Column("grid", lambda one: one.reading.grid),
    Column("derivative", lambda one: one.reading.derivative),
)
SHOWN: Columns = (
    *WHICH,
    *(_claim_column(claim) for claim in CLAIMS),
    Column("given", lambda one: one.given),
)
LOSSES: Columns = (
    *WHICH,
    *(_loss(row) for row in (STE, SPSA, SPSA_7960, FOGZO, FOGZO_10)),
    Column("FOGZO n=1, best noise", lambda one: mean_sd(one.summary(one.best or ""), 3)),
    Column("its 1−β", lambda one: (one.best or NOT_RUN).removeprefix(SWEPT)),
)


def _exact(claim: Claimed) -> Columns:
    name = claim.title[0]
    return (
        *parts(f"{name}_", lambda one: one.tests[claim], "gain", "low", "high", "p"),
        Column(f"{name}_n", lambda one: (test := one.tests[claim]) and min(test.n)),
        Column(f"{name}_given", lambda one: one.tests[claim] and one.gives(claim)),
    )


EXACT: Columns = (*WHICH, *(column for claim in CLAIMS for column in _exact(claim)), SHOWN[-1])

ABOUT = (
    "What the paper leaves open about rounding in Section 4.1 (MLP on MNIST), each way tried on "
    "seeds 1000 to 1015, which report nothing else. Train loss in nats over all 60,000 images "
    "with the final weights. A claim is given (yes) where the means stand in its order: A by more "
    "than 0.3 nats, D with 0.02 nats of room. Gain of the claimed side [95% t interval, paired], "
    "not corrected for how many readings were tried. n-SPSA does not use the derivative; with "
    "n = 7,960 it was run at spacing 1 alone. Derivative: of the STE with respect to the latent "
    "weight, in units of the quantized one's."
)
RULE = (
    "Written down before these runs: among the readings with spacing 1 at the paper's rate, "
    "0.032, the one that gives most claims; at a tie, what QuEST's STE quantizer has (half-integer "
    "grid, derivative 1). It is therefore picked **because** the claims come out under it; what it "
    "gives on seeds that took no part in that stands in [figure-shallow](figure-shallow.md)."
)


def elsewhere(tried: Sequence[Tried], chosen: Tried) -> list[tuple[Tried, list[Tried]]]:
    """Return the picked reading at each other rate, and the readings that give more there."""
    found = []
    for rate in dict.fromkeys(t.reading.rate for t in tried if t.reading.rate != RATE):
        there = [t for t in tried if (t.reading.rate, t.reading.spacing) == (rate, SPACING)]
        same = [t for t in there if t.reading.named == chosen.reading.named]
        found += [(t, [other for other in there if other.given > t.given]) for t in same]
    return found


def _said_elsewhere(tried: Sequence[Tried], chosen: Tried) -> str:
    said = []
    for one, more in elsewhere(tried, chosen):
        named = "; ".join(
            f"{t.reading.grid} grid, derivative {t.reading.derivative} ({t.given})" for t in more
        )
        then = f"; more are given there by: {named}" if more else ""
        said.append(f"At lr {one.reading.rate:g} it gives {one.given}{then}.")
    return " ".join(said)


def _page(found: TableResults, tried: Sequence[Tried], chosen: Tried | None) -> str:
    runs = sum(len(cell.runs) for cell in found.cells.values())
    pick = "None was run."
    if chosen is not None:
        tied = [t for t in tried if t.given == chosen.given and t.reading.rate == RATE]
        others = [t for t in tied if t is not chosen and t.reading.spacing == SPACING]
        alone = "no other one gives as many" if not others else f"as do {len(others)} others"
        pick = (
            f"Picked: **{chosen.reading.named}**, with {chosen.given} of {len(CLAIMS)}; {alone}. "
            f"{_said_elsewhere(tried, chosen)}"
        )
    said = [
        "# readings",
        "Generated by `make tables` from `results/records/` alone; do not edit.",
        f"{len(found.cells)} cells, {runs} runs. {ABOUT}",
        "## The default reading",
        f"{RULE} {pick}",
        "## Claims by reading",
        markdown(SHOWN, tried),
        "## Train loss",
        "Mean ± sd (n). Best noise: of 1−β = 0.01 to 1e-6 the one with the lowest mean on these "
        "same seeds.",
        markdown(LOSSES, tried),
    ]
    return "\n\n".join([*said, *found.refused_section]) + "\n"
