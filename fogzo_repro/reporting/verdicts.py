"""The section of a table's page on its claims: each with its test and its verdict."""

from __future__ import annotations

from fogzo_repro.reporting.claims import Judged, JudgedTable
from fogzo_repro.reporting.columns import Column, Columns, markdown
from fogzo_repro.reporting.results import CellResult, Place, evaluations, scale_of
from fogzo_repro.reporting.statistics import GainTest
from fogzo_repro.reporting.wording import cell_name, gain, p_value

HOW_JUDGED = (
    "Stated before the runs in `results/paper/claims.csv`. Gain: how much better the claimed side "
    "is, in the metric's units. Two-sided t test of the gain against the margin: paired where both "
    "sides have the same seeds, else Welch's. No difference: two one-sided tests show the gain "
    "between minus and plus the bound that was stated. Holm, for each of these two tests, over all "
    "claims of this table, those not run yet counted as if their p were the largest, level 5%; "
    "both p are those of the test that decides. Inconclusive: with the difference that so many "
    "seeds of such spread would have shown with a probability of 80% if it were the only claim; "
    "Holm's correction asks for more. Fewer than 5 seeds or a diverged run give at most "
    "inconclusive. Evaluations: how many times as many the other side takes in a run, perturbed "
    "forward passes alone / with the back-propagation of a step counted as 3. Sources: the tags "
    "are [README's](../../README.md), `PAPER n` are [notes of ours](../../docs/choices.md)."
)

TWO_LOOKS = (
    " Where a claim is inconclusive on seeds 0 to 4, seeds 5 to 9 are added and it is tested once "
    "more; each of the two looks is at 2.5%."
)


def section(one: JudgedTable) -> list[str]:
    """Return heading, explanation and table."""
    looks = TWO_LOOKS if scale_of(one.table.table) == "mini" else ""
    return ["## Verdicts", HOW_JUDGED + looks, markdown(COLUMNS, one.judged)]


def _side(cell: CellResult | None, place: Place) -> str:
    return cell_name(*place) if cell is None else cell_name(cell.row, cell.column)


def _n(test: GainTest) -> str:
    """Return the number of pairs, or of values of the better and the worse side."""
    return str(test.n[0]) if test.paired else f"{test.n[0]}, {test.n[1]}"


def _p(p: float) -> str:
    return p_value(p).removeprefix("p = ").removeprefix("p ")


def _deciding(judged: Judged, test: GainTest) -> float:
    return test.p_same if judged.verdict == "no difference" else test.p


def _cost_ratio(judged: Judged) -> str:
    """Return worse / better evaluations of a whole run under both countings of PAPER 2."""
    good, bad = (c.any_record if c is not None else None for c in (judged.better, judged.worse))
    if good is None or bad is None:
        return ""
    ratios = []
    for counting in ("probes", "total"):
        a, b = evaluations(bad, counting), evaluations(good, counting)
        ratios.append(f"{a / b:.4g}" if a and b else "–")
    return " / ".join(ratios)


COLUMNS: Columns = (
    Column("claim", lambda judged: judged.claim.claim),
    Column("better", lambda judged: _side(judged.better, judged.claim.better)),
    Column("worse", lambda judged: _side(judged.worse, judged.claim.worse)),
    Column("margin", lambda judged: f"{judged.claim.margin:g}"),
    Column("bound", lambda judged: judged.claim.bound_in_words),
    Column("gain [95%]", lambda judged: gain(judged.test, 4)),
    Column("n", lambda judged: judged.test and _n(judged.test)),
    Column("p", lambda judged: judged.test and _deciding(judged, judged.test), _p),
    Column("Holm p", lambda judged: judged.deciding_p, _p),
    Column("evaluations", _cost_ratio),
    Column("verdict", lambda judged: judged.said + (f" ({judged.note})" if judged.note else "")),
    Column("source", lambda judged: judged.claim.source),
)
