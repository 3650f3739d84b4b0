"""What the mini tables have beside the others: what was chosen, hypotheses, what probes cost.

A side chooses on its tuning seeds: FOGZO its noise at the recipe's rate, in the row
`X: FOGZO, noise`, where it has one; then both sides their rate, in `X: STE, rate` and
`X: FOGZO, rate`. The values go into configs/table/ by hand; a test compares them with these.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fogzo_repro.config import UserError, quantizer_label
from fogzo_repro.config.parts import FULL_PRECISION
from fogzo_repro.reporting.benches import Records, read_benches, ste_steps
from fogzo_repro.reporting.columns import Column, Columns, markdown
from fogzo_repro.reporting.hypotheses import FOGZO, HYPOTHESES, STE, read_tested, share_of_gain
from fogzo_repro.reporting.results import CellResult, TableResults
from fogzo_repro.reporting.tuning import chosen, on_edge

TITLES = {
    "mini-deit-tiny": "DeiT-Tiny on CIFAR-100, 60 epochs",
    "mini-resnet18": "ResNet-18 on CIFAR-100, 60 epochs",
    "mini-llama": "LLaMA-9m, 3,000 steps of 64 x 512 tokens",
}
FINETUNED = {  # has no part in the figures and hypotheses about training from the initialisation
    "mini-finetune": "ResNet-18 on CIFAR-100 from full precision, 15 epochs",
}
SWEEP = re.compile("(.*): (STE|FOGZO), (noise|rate)")
KEPT = 0.75  # the share of the gain that the cheapest setting is asked to keep
BENCHED = "llama_30m"  # the benched network by which the LLaMA's equal cost was set, too


def network(table: str) -> str:
    """Return what a mini table trains, such as `ResNet-18 on CIFAR-100`."""
    return (TITLES | FINETUNED)[table].split(",")[0]


def held_out(table: str) -> tuple[str, str]:
    """Return split and metric of the data that took no part in training or choosing."""
    return ("val", "perplexity") if table == "mini-llama" else ("test", "top1")


@dataclass(frozen=True)
class Choice:
    """What one sweep has chosen for a quantizer: a side's (STE, FOGZO) `what`, noise or rate."""

    row: str
    side: str
    what: str
    cell: CellResult
    note: str


def choices(found: TableResults) -> list[Choice]:
    """Return what the sweeps of a table have chosen; one value alone is no choice."""
    made = []
    for row in found.rows:
        named, best = SWEEP.fullmatch(row), chosen(found, row)
        tried, of = len(found.tuned(row)), len(found.row(row))
        if named and best is not None and (tried > 1 or best.row != row):
            notes = ["on the edge of its grid"] * on_edge(found, best, row)
            notes += [f"{tried} of {of} values were tried"] * (tried < of)
            quantizer, side, what = named.groups()
            made.append(Choice(quantizer, side, what, best, "; ".join(notes)))
    return made


def sections(results: Path, found: TableResults) -> list[str]:
    """Return the parts of a mini table's page that the others do not have."""
    made, kept = choices(found), probes(found, read_benches(results / "records" / "bench"))
    parts = ["## Chosen", ABOUT_CHOICES, markdown(CHOICES, made) if made else "Nothing yet."]
    tested = read_tested(results, found)
    statistics = {one.line["statistic"] for one in tested}
    if found.table in TITLES and "rank correlation" not in statistics:
        raise UserError(
            f"{results}/paper/claims.csv has no rank correlation on {found.table}; restore it with "
            "git"
        )
    if tested:
        parts += ["## Hypotheses", ABOUT_HYPOTHESES, markdown(HYPOTHESES, tested)]
    if kept:
        parts += ["## What the probes cost", ABOUT_PROBES, markdown(PROBES, kept), _cheapest(kept)]
    return parts


@dataclass(frozen=True)
class Kept:
    """A cell with cheaper probes: the share of FOGZO's gain that it keeps, its time in STE runs."""

    cell: CellResult
    share: float
    low: float
    high: float
    n: int
    time: float | None  # None where it is not known


def time_of(cell: CellResult, ste: CellResult, benches: Records) -> float | None:
    """Return a run's time in STE runs: its steps over the STE's, each as long as was benched.

    The runs shared their cards, so that their own times tell nothing. None where a step of its
    kind was not benched, or nothing was run.
    """
    record, other = cell.any_record, ste.any_record
    if record is None or other is None:
        return None
    steps, quantizer = record["steps"] / other["steps"], record["config"]["quantizer"]
    estimator = record["config"]["estimator"]
    if estimator["name"] == "ste":
        return float(steps)
    # With inputs in full precision one takes as long as another.
    plain = quantizer.get("activation_bits", FULL_PRECISION) == FULL_PRECISION
    case = "round-w2" if plain else quantizer_label(quantizer)
    one = ste_steps(benches, BENCHED, case, estimator.get("probe_fraction", 1.0))
    probed = 1 - estimator.get("start_fraction", 0.0)
    return None if one is None else float(steps * (1 + probed * (one - 1)))


def probes(found: TableResults, benches: Records) -> list[Kept]:
    """Return the cells whose probes see a part of the batch or begin late, and FOGZO itself."""
    if found.table != "mini-llama":  # the table that has such cells
        return []
    kept = []
    for cell in found.cells.values():
        ste = found.cells.get((cell.row, STE))
        if ste is None or not re.fullmatch(f"{FOGZO}(, probes=.*)?", cell.column):
            continue
        share = share_of_gain(found, cell, ste, "val", "loss")
        if share is not None:
            kept.append(Kept(cell, *share, time_of(cell, ste, benches)))
    rows = {k.cell.row for k in kept if k.cell.column != FOGZO}
    return [k for k in kept if k.cell.row in rows]


def _cheapest(kept: Sequence[Kept]) -> str:
    said = []
    for row in dict.fromkeys(k.cell.row for k in kept):
        enough = [(k.time, k) for k in kept if k.cell.row == row and k.share >= KEPT and k.time]
        if enough:
            time, best = min(enough, key=lambda one: one[0])
            said.append(
                f"{row}: the cheapest setting that keeps three quarters of the gain is "
                f"{best.cell.column}, with {best.share:.2f} [{best.low:.2f}, {best.high:.2f}] of "
                f"it in {time:.2f} times the STE's time."
            )
    return " ".join(said) or "No setting whose time is known keeps three quarters of the gain."


ABOUT_CHOICES = (
    "By the lowest mean loss on what was held out of the tuning runs for it. FOGZO's noise first, "
    "at the recipe's rate, where it was tuned; then each side's rate."
)
CHOICES: Columns = (
    Column("quantizer", lambda choice: choice.row),
    Column("side", lambda choice: choice.side),
    Column("chosen", lambda choice: choice.what),
    Column("1−β_min", lambda choice: choice.cell.noise, "{:g}".format),
    Column("ρ", lambda choice: choice.cell.rho, "{:.2g}".format),
    Column("lr", lambda choice: choice.cell.rate, "{:g}".format),
    Column("seeds", lambda choice: ", ".join(map(str, choice.cell.tuning_losses()))),
    Column("note", lambda choice: choice.note),
)
ABOUT_HYPOTHESES = (
    "Stated before the runs in `results/paper/claims.csv`, each with its statistic "
    "(`reporting/hypotheses.py`). A gain is the STE's mean loss minus FOGZO's. Fewer than 5 seeds "
    "or rows give at most inconclusive."
)
ABOUT_PROBES = (
    "Share of FOGZO's gain in held-out loss that is left [95% by the jackknife over seeds], and "
    f"the time of a run in the STE's: its steps, each as long as was benched with {BENCHED} "
    "(results/records/bench), since the runs shared their cards."
)
PROBES: Columns = (
    Column("quantizer", lambda kept: kept.cell.row),
    Column("setting", lambda kept: kept.cell.column),
    Column("share of the gain", lambda kept: f"{kept.share:.2f} [{kept.low:.2f}, {kept.high:.2f}]"),
    Column("n", lambda kept: kept.n),
    Column("time", lambda kept: kept.time, "{:.2f}".format),
)
