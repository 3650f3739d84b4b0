"""The parts that all tables share: Markdown grids, mean ± sd (n), the verdicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fogzo_repro.reporting.claims import Judged
from fogzo_repro.reporting.results import CellResult
from fogzo_repro.reporting.statistics import Summary

NOT_RUN = "not run"
VERDICT_TITLES = (
    "claim", "better", "worse", "margin", "gain [95%]", "n", "p", "Holm p", "evaluations",
    "verdict", "source",
)  # fmt: skip
HOW_JUDGED = (
    "Stated before the runs in `results/paper/claims.csv`. Gain: how much better the claimed "
    "side is, per seed. Two-sided paired t test of the gain against the margin, Holm over "
    "this table, level 5%; fewer than 5 seeds or a diverged run give at most inconclusive. "
    "Evaluations: how many times as many the other side takes in a run, under both countings."
)


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


def verdict_line(judged: Judged) -> list[str]:
    """Return a claim's line under `VERDICT_TITLES`."""
    claim, test = judged.claim, judged.test
    better, worse = (
        named(c.row, c.column) if c is not None else named(*place)
        for c, place in ((judged.better, claim.better), (judged.worse, claim.worse))
    )
    numbers = [""] * 4
    if test is not None:
        ends = "" if math.isnan(test.low) else f" [{test.low:+.4f}, {test.high:+.4f}]"
        ps = ["" if math.isnan(p) else f"{p:.2g}" for p in (test.p, judged.adjusted_p)]
        numbers = [f"{test.gain:+.4f}{ends}", str(test.n), *ps]
    verdict = judged.verdict + (f" ({judged.note})" if judged.note else "")
    return [
        claim.claim, better, worse, f"{claim.margin:g}", *numbers,
        _cost_ratio(judged.better, judged.worse), verdict, claim.source,
    ]  # fmt: skip


def _cost_ratio(better: CellResult | None, worse: CellResult | None) -> str:
    """Return worse / better evaluations of a whole run under both countings of PAPER 2."""
    good, bad = (c.any_record if c is not None else None for c in (better, worse))
    if good is None or bad is None:
        return ""
    ratios = []
    for counting in ("probes", "total"):
        a, b = (_evaluations(r, counting) for r in (bad, good))
        ratios.append(f"{a / b:.4g}" if a and b else "–")
    return " / ".join(ratios)


def _evaluations(record: dict[str, Any], counting: str) -> float:
    """Return the evaluations of a run: probes begin late and see a part of the batch, if so set."""
    estimator, per_step = record["config"]["estimator"], record["evaluations_per_step"]
    share = (1 - estimator.get("start_fraction", 0.0)) * estimator.get("probe_fraction", 1.0)
    saved = per_step["probes"] * (1 - share)
    return (per_step[counting] - saved) * record["steps"]
