"""The answer on the first screen of README.md: three sentences and a table, from records alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import Judged, JudgedTable, counted, judged_table
from fogzo_repro.reporting.columns import Column, Columns, markdown
from fogzo_repro.reporting.hypotheses import FOGZO, STE
from fogzo_repro.reporting.minis import FINETUNED, held_out, network
from fogzo_repro.reporting.minis import TITLES as MINIS
from fogzo_repro.reporting.readings import CLAIMS, RATE, SPACING, elsewhere, picked, read_readings
from fogzo_repro.reporting.results import (
    CellResult,
    Place,
    TableResults,
    ran,
    read_results,
    trained_on,
)
from fogzo_repro.reporting.tables import PAPER_TITLES
from fogzo_repro.reporting.tuning import CHOSEN, chosen, on_edge, untuned
from fogzo_repro.reporting.wording import NOT_RUN, cell_mean, gain

SHALLOW = "figure-shallow"
GRIDS = {"half_integer": "round, half-integer grid (default)", "integer": "round, integer grid"}
METRICS = {
    "loss": "train loss (nats)", "top1": "test top-1 (%)", "perplexity": "held-out perplexity",
}  # fmt: skip
LEADS = {  # by verdict: the sign of the gain, and who is ahead
    "holds": (1, "FOGZO n=1 is ahead of the STE"),
    "contradicted": (-1, "the STE is ahead of FOGZO n=1"),
}
EQUAL = "STE, equal cost"
RANDOM = "FOGZO, random sign"
GUIDE, TWO_POINTS = "FOGZO, beta=1", "STE over two points, equal cost"
QUARTER = "STE, equal cost of probes=0.25"
DIGITS = {"loss": 3, "top1": 2, "perplexity": 2}


@dataclass(frozen=True)
class Compared:
    """A line of the table: both sides at their best, and the STE at equal cost."""

    network: str
    quantizer: str
    metric: str
    ste: str
    fogzo: str
    equal_cost: str
    gain: str
    gain_at_cost: str


def answer(results: Path) -> str:
    """Return the sentences and the table."""
    (shallow,), minis, finetuned = (
        [judged_table(results, read_results(results, name)) for name in names]
        for names in ([SHALLOW], MINIS, FINETUNED)
    )
    lines = [_shallow(*shallow, grid) for grid in GRIDS]
    lines += [line for one in (*minis, *finetuned) for line in _mini(one)]
    sentences = [
        _of_readings(results, shallow.judged),
        _of_minis(minis, finetuned),
        _of_the_paper([read_results(results, name) for name in PAPER_TITLES]),
    ]
    absent = [line for line in lines if {line.ste, line.fogzo, line.equal_cost} == {NOT_RUN}]
    shown = [line for line in lines if line not in absent]
    numbered = [f"{k}. {sentence}" for k, sentence in enumerate(sentences, 1)]
    edge = any("edge" in line.ste + line.fogzo for line in shown)
    below = BELOW + EDGE * edge + _not_run(absent)
    return "\n\n".join(["\n".join(numbered), ABOVE, markdown(COLUMNS, shown), below])


def _not_run(lines: Sequence[Compared]) -> str:
    by_network: dict[str, list[str]] = {}
    for line in lines:
        by_network.setdefault(line.network, []).append(line.quantizer)
    said = "; ".join(f"{network}: {' / '.join(rows)}" for network, rows in by_network.items())
    return f" Nothing was run yet of {said}." if said else ""


def _of_readings(results: Path, judged: Sequence[Judged]) -> str:
    _, tried = read_readings(results)
    best = picked(tried)
    if best is None:
        return "MNIST (Section 4.1): no reading of what the paper leaves open was run."
    alike = [t for t in tried if (t.reading.rate, t.reading.spacing) == (RATE, SPACING)]
    full = sum(t.given == len(CLAIMS) for t in alike)
    n = len(best.losses("STE"))
    half = [j for j in judged if j.claim.id.startswith("half-")]
    there = " ".join(
        f"At lr {one.reading.rate:g} it gives {one.given} of the {len(CLAIMS)}, and {len(more)} "
        "other readings give more."
        for one, more in elsewhere(tried, best)
    )
    return _points(
        "**MNIST (Section 4.1)**:",
        _at_their_best(judged),
        "At the paper's learning rate, which is not tuned, it depends on how weights are rounded, "
        f"which the paper leaves open. Of {len(alike)} ways to read it "
        "([readings](results/tables/readings.md)) with levels one standard deviation apart, "
        f"{full} give{'s' * (full == 1)} the order of all {len(CLAIMS)} of the paper's comparisons "
        f"by the means of {n} seeds: the {best.reading.grid} grid with derivative "
        f"{best.reading.derivative}. It is the default here, picked *because* of that; on fresh "
        f"seeds of {len(half)} claims on it: {counted(half)}.",
        there,
        f"Under the integer grid, the default before, of {len(judged) - len(half)} claims: "
        f"{counted([j for j in judged if j not in half])}.",
    )


def _points(title: str, *said: str) -> str:
    """Return a list under a title, without what is empty."""
    return "\n   * ".join([title, *filter(None, said)])


def _at_their_best(judged: Sequence[Judged]) -> str:
    """Say which side is ahead where both chose their rate, and FOGZO its noise; by how much."""
    said = []
    for grid in GRIDS:
        one = _claim(judged, (f"FOGZO n=1, {grid} grid", CHOSEN), (f"STE, {grid} grid", CHOSEN))
        if one.verdict in LEADS and one.test is not None:
            (sign, ahead), test = LEADS[one.verdict], one.test
            low, high = sorted((sign * test.low, sign * test.high))
            said.append(
                f"{ahead} under the {grid.replace('_', '-')} grid, by {sign * test.gain:.3f} "
                f"[{low:.3f}, {high:.3f}] nats"
            )
    start = "In train loss [95% interval], with learning rate and noise chosen by each side"
    return f"{start}, {'; '.join(said)}." if said else ""


def _claim(judged: Sequence[Judged], better: Place, worse: Place, metric: str = "loss") -> Judged:
    """Return the claim about a metric that compares two cells.

    Raises:
        UserError: where there is none.
    """
    for one in judged:
        claim = one.claim
        if (claim.better, claim.worse, claim.metric) == (better, worse, metric):
            return one
    raise UserError(
        f"results/paper/claims.csv has no claim in {metric} on {' | '.join(better)} against "
        f"{' | '.join(worse)}; restore it with git"
    )


def _of_minis(minis: Sequence[JudgedTable], finetuned: Sequence[JudgedTable]) -> str:
    cells = [cell for found, _ in (*minis, *finetuned) for cell in found.cells.values()]
    tuning = sum(len(cell.reporting(tuning=True)) for cell in cells)
    reported = sum(len(cell.reporting()) for cell in cells)
    claims = [one for _, judged in (*minis, *finetuned) for one in judged]
    told = [one.table for one in minis if _comparisons([one], STE, EQUAL)]
    named = "; ".join(
        MINIS[t.table] + ("" if " on " in MINIS[t.table] else trained_on(t)) for t in told
    )
    controls = {
        name: [one for one in claims if one.claim.worse[1] == name]
        for name in (RANDOM, GUIDE, TWO_POINTS)
    }
    tested = {name: [x for x in group if x.test] for name, group in controls.items()}
    part = [x for x in claims if x.claim.worse[1] == QUARTER and x.test]
    sentences = [
        "With as many steps, each side at the rate that it chose, FOGZO n=1 is ahead of the STE, "
        f"by a verdict (significantly over seeds), {_tally(_comparisons(minis, STE))}",
        f"At equal cost it is ahead {_tally(_comparisons(minis, EQUAL))}"
        + (f"; with probes on a quarter of the batch, {_tally(part)}{_late(part)}" if part else ""),
        "From a trained network, equal cost counted too, it is ahead "
        + _tally(_comparisons(finetuned, STE, EQUAL)),
        "It is ahead of FOGZO with random signs of the loss differences, which turn the STE's part "
        f"around too, {_tally(tested[RANDOM])}",
    ]
    if tested[GUIDE] or tested[TWO_POINTS]:
        sentences.append(
            "It is ahead of its guide alone (beta = 1), which only rescales the STE's gradient, "
            f"{_tally(tested[GUIDE])}; of the STE averaged over its two points, at equal cost and "
            f"so in fewer steps, {_tally(tested[TWO_POINTS])}"
        )
    if open_ := sum(one.verdict == NOT_RUN for group in controls.values() for one in group):
        sentences.append(
            f"{open_} controls that tell measured losses from mere noise and rescaling were not "
            "run yet"
        )
    runs = f"{tuning} tuning runs and {reported} evaluation runs"
    sentences.append(f"Of {len(claims)} claims: {counted(claims)} ({runs})")
    title = f"**Deep networks at small scale**{named and f' ({named})'}:"
    return _points(title, *(f"{sentence}." for sentence in sentences))


def _tally(run: Sequence[Judged]) -> str:
    """Return in how many of the comparisons which side is ahead, by verdict and on average."""
    count = Counter(one.verdict for one in run)
    same = f", no different in {count['no difference']}" if count["no difference"] else ""
    signs = Counter(math.copysign(1, one.test.gain) for one in run if one.test and one.test.gain)
    said = f"in {count['holds']} of {len(run)}, behind in {count['contradicted']}{same}"
    return f"{said} (on average: {signs[1]} and {signs[-1]})"


def _late(run: Sequence[Judged]) -> str:
    """Return that claims were stated late, where all of them say so."""
    late = all("stated when" in one.claim.source for one in run)
    return ", a claim that was stated when FOGZO's side had been run" * late


def _comparisons(tables: Sequence[JudgedTable], *sides: str) -> list[Judged]:
    """Return the comparisons of FOGZO with other columns of its rows that have an interval."""
    found = [_against(t, row, side) for t in tables for row in _compared(t.table) for side in sides]
    return [x for x in found if x is not None and x.test is not None and not math.isnan(x.test.low)]


def _against(one: JudgedTable, row: str, side: str) -> Judged | None:
    """Return the claim, in the held-out metric, of FOGZO against another column of its row."""
    if (row, side) not in one.table.cells:
        return None
    return _claim(one.judged, (row, FOGZO), (row, side), held_out(one.table.table)[1])


def _compared(table: TableResults) -> list[str]:
    """Return the rows of a table in which FOGZO stands beside the STE."""
    return [row for row in table.rows if (row, FOGZO) in table.cells]


def _of_the_paper(tables: Sequence[TableResults]) -> str:
    cells, done = sum(len(t.cells) for t in tables), sum(map(ran, tables))
    return (
        f"**The paper's Tables 1 to 4** (ImageNet-100, C4): {done} of {cells} cells were run at "
        "full scale"
        + (", so that nothing is known here of the paper's numbers." if not done else ".")
    )


def _shallow(found: TableResults, judged: Sequence[Judged], grid: str) -> Compared:
    rows = [f"{name}, {grid} grid" for name in ("STE", "FOGZO n=1", "STE, equal cost")]
    cells = [chosen(found, row) for row in rows]
    gains = (_gain(_claim(judged, (rows[1], CHOSEN), (rows[k], CHOSEN))) for k in (0, 2))
    ste, fogzo, cost = (
        cell_mean(cell, "train", "loss", DIGITS["loss"]) + _limits(found, cell) for cell in cells
    )
    return Compared("MLP, MNIST", GRIDS[grid], METRICS["loss"], ste, fogzo, cost, *gains)


def _mini(one: JudgedTable) -> Iterator[Compared]:
    found = one.table
    split, metric = held_out(found.table)
    for row in _compared(found):
        gains = (_gain(_against(one, row, side)) for side in (STE, EQUAL))
        cells = [found.cells.get((row, name)) for name in (STE, FOGZO, EQUAL)]
        ste, fogzo, cost = (cell_mean(cell, split, metric, DIGITS[metric]) for cell in cells)
        ste, fogzo = (
            _tuned(found, row, side) if said == NOT_RUN else said
            for said, side in ((ste, STE), (fogzo, FOGZO))
        )
        yield Compared(network(found.table), row, METRICS[metric], ste, fogzo, cost, *gains)


def _gain(one: Judged | None) -> str:
    """Return gain, interval and verdict; nothing where no claim compares."""
    return "" if one is None else f"{gain(one.test, 3)}: {one.said_with_p}".removeprefix(": ")


def _limits(found: TableResults, cell: CellResult | None) -> str:
    """Return what limits the choice of a cell."""
    if cell is None:
        return ""
    notes = ["edge"] * on_edge(found, cell) + [f"{x} not tuned" for x in untuned(found, cell)]
    return "".join(f", {note}" for note in notes)


def _tuned(found: TableResults, row: str, side: str) -> str:
    """Return whether a side that reports nothing has runs on the tuning seeds."""
    sweeps = (cell for cell in found.cells.values() if cell.row.startswith(f"{row}: {side}, "))
    tried = {bool(cell.reporting(tuning=True)) for cell in sweeps}
    return f"{'partly ' * (False in tried)}tuned, not run" if True in tried else NOT_RUN


COLUMNS: Columns = (
    Column("network", lambda line: line.network),
    Column("quantizer", lambda line: line.quantizer),
    Column("metric", lambda line: line.metric),
    Column("STE, its rate", lambda line: line.ste),
    Column("FOGZO n=1, its noise and rate", lambda line: line.fogzo),
    Column("STE, equal cost", lambda line: line.equal_cost),
    Column("gain [95%], verdict", lambda line: line.gain),
    Column("gain at equal cost [95%], verdict", lambda line: line.gain_at_cost),
)
ABOVE = (
    "A gain above 0 says that FOGZO is better, whatever the metric; a claim that it is better "
    "*holds*, or is *contradicted* where the STE is better. Intervals are uncorrected, p is "
    "corrected for many claims, so that the two need not agree."
)
BELOW = (
    "Mean ± sd (seeds). Each side has the learning rate that it chose, on other seeds. FOGZO also "
    "chose its noise, with the hardtanh and LSQ; round has that of LSQ, and the trained network "
    "one that was not chosen. At equal cost the STE trains as much longer as a FOGZO step takes "
    "longer, on the deep networks at the same rate. p is Holm's over all claims of a table; on the "
    "deep networks a verdict needs p < 0.025, since seeds may be added once."
)
EDGE = " Edge: no value beyond the chosen one was tried."
