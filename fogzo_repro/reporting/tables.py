"""results/tables/: each table a list of columns, and one writer for all of them.

A line of a table is a line of results/paper/<table>.csv, which lists its cells, beside what was
measured of the cell. `FORMS` says of each table which columns are shown (Markdown, and LaTeX for
the paper's tables) and which numbers stand in full precision in the CSV. Everything is made from
committed records, so that the same records give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import Judged, check_claimed, chosen, judged_claims, on_edge
from fogzo_repro.reporting.columns import Column, Columns, csv_of, filled, latex, markdown
from fogzo_repro.reporting.minis import FINETUNED
from fogzo_repro.reporting.minis import TITLES as MINI_TITLES
from fogzo_repro.reporting.minis import sections as mini_sections
from fogzo_repro.reporting.results import (
    TUNING_SEEDS,
    CellResult,
    TableResults,
    corpora,
    evaluations,
    held_back,
    noise_ratio,
    ran,
    read_paper,
    read_results,
    scale_of,
)
from fogzo_repro.reporting.statistics import GainTest, Summary
from fogzo_repro.reporting.wording import (
    DIGITS,
    METRIC_NAMES,
    NOT_RUN,
    cell_name,
    gain,
    interval,
    mean_sd,
)


@dataclass(frozen=True)
class Line:
    """A cell beside what results/paper/ says of it.

    Attributes:
        paper: the paper's value as it was transcribed, empty where not known.
        quest: the value that QuEST's authors published, likewise.
        source: where the value is from, or what the cell is for.
        best: the tuning seeds have chosen this cell among those of its row.
        edge: no value beyond the chosen one was tried.
    """

    table: str
    cell: CellResult
    split: str
    metric: str
    paper: str
    quest: str
    source: str
    best: bool
    edge: bool

    @property
    def digits(self) -> int:
        """Decimal places of the metric."""
        return DIGITS[self.metric]

    @property
    def record(self) -> dict[str, Any] | None:
        """A record of the cell, for what all its runs share."""
        return self.cell.any_record

    def summary(
        self, split: str | None = None, metric: str | None = None, *, tuning: bool = False
    ) -> Summary | None:
        """Return the cell's metric, or another one, over the evaluation or the tuning seeds."""
        return self.cell.summary(split or self.split, metric or self.metric, tuning=tuning)

    @property
    def only_tuned(self) -> bool:
        """Whether all runs of the cell are on tuning seeds."""
        return bool(self.cell.runs) and all(seed in TUNING_SEEDS for seed in self.cell.runs)

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        ours = self.summary()
        return ours.mean - float(self.paper) if ours is not None and self.paper else None


def _from_record(take: Callable[[dict[str, Any]], Any]) -> Callable[[Line], Any]:
    """Return a column's value that needs a record of the cell; None where there is none."""
    return lambda line: None if line.record is None else take(line.record)


def _measured(title: str, split: str, metric: str) -> Column:
    """Return a column of mean ± sd (n), with the number of runs that diverged."""
    return Column(title, lambda line: _mean_sd(line, split, metric))


def _mean_sd(line: Line, split: str, metric: str) -> str:
    lost = f", {len(line.cell.diverged())} diverged" if line.cell.diverged() else ""
    return mean_sd(line.summary(split, metric), DIGITS[metric]) + lost


def _interval(split: str, metric: str) -> Column:
    return Column("95%", lambda line: interval(line.summary(split, metric), DIGITS[metric]))


def _numbers(prefix: str, summary: Callable[[Line], Summary | None]) -> Columns:
    """Return the columns of a summary in full precision."""

    def take(of: Callable[[Summary], float]) -> Callable[[Line], float | None]:
        return lambda line: None if (s := summary(line)) is None else of(s)

    return (
        Column(f"{prefix}mean", take(lambda s: s.mean)),
        Column(f"{prefix}sd", take(lambda s: s.sd)),
        Column(f"{prefix}n", take(lambda s: s.n)),
        Column(f"{prefix}low", take(lambda s: s.low)),
        Column(f"{prefix}high", take(lambda s: s.high)),
    )


def _tuned(line: Line) -> str:
    """Return the metric on the tuning seeds, and whether the cell was chosen by it."""
    said = mean_sd(line.summary(tuning=True), line.digits)
    return said + ", chosen" * line.best + ", on the edge of its grid" * line.edge


TABLE = Column("table", lambda line: line.table)
ROW = Column("row", lambda line: line.cell.row)
COLUMN = Column("column", lambda line: line.cell.column)
METRIC = Column("metric", lambda line: f"{line.split} {METRIC_NAMES[line.metric]}")
RHO = Column(
    "ρ", lambda line: noise_ratio(line.cell), lambda rho: "" if rho is None else f"{rho:.3g}"
)
STEPS = Column(
    "steps", lambda line: max((r["steps"] for r in line.cell.runs.values()), default=None)
)
SOURCE = Column("source", lambda line: line.source)
OURS = Column("ours", lambda line: _mean_sd(line, line.split, line.metric))
BETA = Column(
    "β",
    _from_record(lambda record: record["config"]["estimator"].get("beta_min")),
    lambda beta: "" if beta is None else f"{beta:.10g}",
)
EVALUATIONS = Column(
    "evaluations per step",
    _from_record(lambda record: record["evaluations_per_step"]),
    lambda counts: "" if counts is None else f"{counts['probes']:,} / {counts['total']:,}",
)


SHALLOW_SHOWN = (
    ROW, COLUMN, BETA, RHO, STEPS, EVALUATIONS,
    _measured("train loss", "train", "loss"), _interval("train", "loss"),
    _measured("test top-1 (%)", "test", "top1"), _interval("test", "top1"),
)  # fmt: skip
SHALLOW_EXACT = (
    TABLE, ROW, COLUMN,
    Column("noise", _from_record(lambda record: record["config"]["estimator"].get("noise"))),
    Column("rho", RHO.value),
    Column("steps", _from_record(lambda record: record["steps"])),
    Column("probes_per_step", _from_record(lambda r: r["evaluations_per_step"]["probes"])),
    Column("evaluations_per_step", _from_record(lambda r: r["evaluations_per_step"]["total"])),
    *_numbers("train_loss_", lambda line: line.summary("train", "loss")),
    *_numbers("test_top1_", lambda line: line.summary("test", "top1")),
    Column("diverged", lambda line: len(line.cell.diverged()) if line.cell.runs else NOT_RUN),
)  # fmt: skip

PAPER_SHOWN = (
    ROW, COLUMN, METRIC, Column("paper", lambda line: line.paper), OURS,
    Column(
        "difference",
        lambda line: "" if line.difference is None else f"{line.difference:+.{line.digits}f}",
    ),
)  # fmt: skip
QUEST = Column("QuEST", lambda line: line.quest)
PAPER_MORE = (  # for Markdown alone
    Column(
        "hours",
        lambda line: (hours := line.cell.hours) and f"{hours:.2f} ({line.record['hardware']})",
    ),
    SOURCE,
)
PAPER_EXACT = (
    TABLE, ROW, COLUMN, Column("scale", lambda line: scale_of(line.table)),
    Column("metric", lambda line: line.metric), Column("split", lambda line: line.split),
    Column("seeds", lambda line: "tuning" if line.only_tuned else "evaluation" * bool(line.record)),
    Column("paper", lambda line: line.paper),
    *_numbers("", lambda line: line.summary(tuning=line.only_tuned)),
    Column("difference", lambda line: line.difference),
    Column("quest", lambda line: line.quest),
    Column("rho", RHO.value),
    Column("hours", lambda line: line.cell.hours),
    Column(
        "diverged",
        lambda line: len(line.cell.diverged()) + len(line.cell.diverged(tuning=True))
        if line.cell.runs
        else NOT_RUN,
    ),
    SOURCE,
)  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """The section of a table on its tuning seeds."""

    title: str
    about: str
    columns: Columns
    has: Callable[[Line], bool]


@dataclass(frozen=True)
class Form:
    """How a table is written.

    Attributes:
        title: its heading.
        about: what stands above it, after how much was run.
        shown: the columns for people.
        more: those that LaTeX does without.
        exact: the columns of the CSV.
        tuning: the section on the tuning seeds.
        apart: sweeps stand in the section on the tuning seeds alone; such a table is written in
            LaTeX too.
        sections: what else its page has, before the verdicts.
    """

    title: str
    about: str
    shown: Columns
    more: Columns
    exact: Columns
    tuning: Tuning
    apart: bool
    sections: Callable[[Path, TableResults], list[str]] = lambda results, found: []


SEEDS = ", ".join(map(str, TUNING_SEEDS))
SHALLOW = Form(
    "figure-shallow",
    "Train loss: mean cross-entropy in nats over the whole training split with the final weights. "
    "Mean ± sd (n) over the evaluation seeds, [ ] its 95% t interval. Evaluations per step: "
    "perturbed forward passes alone / with the back-propagation that every step takes counted as 3 "
    "forward passes. ρ = (1−β)d/β, d the number of perturbed weights.",
    SHALLOW_SHOWN,
    (),
    SHALLOW_EXACT,
    Tuning(
        "Chosen on the tuning seeds",
        f"By the lowest mean train loss on seeds {SEEDS}, which report nothing else.",
        (ROW, COLUMN, Column("train loss", _tuned)),
        lambda line: line.summary(tuning=True) is not None,
    ),
    apart=False,
)
METHOD = (
    "Paper: its value, with the tag of its source; an empty place is not known to us. Only the "
    "number of Table 4 is certain; Tables 1 to 3 are numbered in the order of the paper's results. "
    "Ours: the metric after the last step, mean ± sd (n) over the evaluation seeds, full scale "
    "alone. Whether the paper reports its last or its best evaluation is not known to us; best is "
    "in the records and never stands here. Train loss on ImageNet: mean over the steps of the last "
    "epoch, as they were trained on, mixup included."
)
QUESTS = (
    "QuEST: the value that QuEST's authors published for the same network, from their run logs "
    "(`results/paper/quest.csv`); their batch has 512 sequences, so it is a second reference and "
    "not a target."
)
SWEEPS = Tuning(
    "Sweeps",
    f"On seeds {SEEDS}, which choose and report nothing else. ρ = (1−β)d/β at β_min, d the number "
    "of perturbed weights.",
    (ROW, COLUMN, RHO, METRIC, Column("tuning seeds", _tuned)),
    lambda line: line.source.startswith("ours: sweep"),
)
PAPER_TITLES = {
    "table1": "Table 1: fixed scale, several STEs, weights only, n = 1",
    "table2": "Table 2: LSQ, 2-bit weights",
    "table3": "Table 3: 2-bit weights and activations, LLaMA on C4",
    "table4": "Table 4: quality at equal training time, LSQ, LLaMA 30M",
}


def _paper_form(table: str) -> Form:
    title, quest = PAPER_TITLES[table], table == "table3"
    about = f"{METHOD} {QUESTS}" if quest else METHOD
    shown = (*PAPER_SHOWN, QUEST) if quest else PAPER_SHOWN
    return Form(title, about, shown, PAPER_MORE, PAPER_EXACT, SWEEPS, apart=True)


LR = Column("lr", _from_record(lambda record: record["config"]["recipe"]["lr"]))
HELD_BACK = Column(
    "mean 1−h'", lambda line: held_back(line.cell), lambda x: "" if x is None else f"{x:.3f}"
)
MINI_ABOUT = (
    "Scale mini: the same code where the estimators can be told apart on one card in minutes a "
    "run; never a value of the paper's. Train loss in nats over training data with the final "
    "weights, beside the metric on data that took no part in training or choosing. Mean ± sd (n) "
    "over the evaluation seeds, [ ] its 95% t interval. Mean 1−h': over the quantized weights and "
    "the steps, how much the surrogate holds back."
)
MINI_TUNING = replace(
    SWEEPS,
    about="On the tuning seeds, which choose and report nothing else, by the loss on what was held "
    "out of those runs for it. ρ = (1−β)d/β at β_min, d the number of perturbed weights.",
    columns=(
        ROW, COLUMN, RHO, METRIC, Column("tuning seeds", _tuned),
        Column("train loss", lambda line: mean_sd(line.summary("train", "loss", tuning=True), 4)),
    ),
)  # fmt: skip


def _train_loss(line: Line) -> Summary | None:
    return line.summary("train", "loss", tuning=line.only_tuned)


def _mini_form(table: str) -> Form:
    split, metric = ("val", "perplexity") if table == "mini-llama" else ("test", "top1")
    held_out = f"{split} {METRIC_NAMES[metric]}"
    shown = (
        ROW, COLUMN, RHO, LR, STEPS, HELD_BACK,
        _measured("train loss", "train", "loss"), _interval("train", "loss"),
        _measured(held_out, split, metric), _interval(split, metric),
    )  # fmt: skip
    exact = (
        TABLE, ROW, COLUMN, *PAPER_EXACT[3:7],
        Column("rho", RHO.value), LR, STEPS, Column("held_back", HELD_BACK.value),
        *_numbers("train_loss_", _train_loss),
        *_numbers("", lambda line: line.summary(tuning=line.only_tuned)),
        *PAPER_EXACT[-3:],
    )  # fmt: skip
    title = f"{table}: {(MINI_TITLES | FINETUNED)[table]}"
    return Form(title, MINI_ABOUT, shown, PAPER_MORE[:1], exact, MINI_TUNING, True, mini_sections)


FORMS = {
    "figure-shallow": SHALLOW,
    **{table: _mini_form(table) for table in (*MINI_TITLES, *FINETUNED)},
    **{table: _paper_form(table) for table in PAPER_TITLES},
}

HOW_JUDGED = (
    "Stated before the runs in `results/paper/claims.csv`. Gain: how much better the claimed side "
    "is, in the metric's units. Two-sided t test of the gain against the margin: paired where both "
    "sides have the same seeds, else Welch's. No difference: two one-sided tests show the gain "
    "between minus and plus the bound that was stated. Holm over all claims of this table, those "
    "not run yet counted as if their p were the largest, level 5%; the Holm p is that of the test "
    "that decides. Inconclusive: with the difference that so many seeds of "
    "such spread would have shown with a probability of 80%. Fewer than 5 seeds or a diverged run "
    "give at most inconclusive. Evaluations: how many times as many the other side takes in a run, "
    "under both countings."
)

TWO_LOOKS = (
    " Where a claim is inconclusive on seeds 0 to 4, seeds 5 to 9 are added and it is tested once "
    "more; each of the two looks is at 2.5%."
)


def _side(cell: CellResult | None, place: tuple[str, str]) -> str:
    return cell_name(*place) if cell is None else cell_name(cell.row, cell.column)


def _n(test: GainTest) -> str:
    """Return the number of pairs, or of values of the better and the worse side."""
    return str(test.n[0]) if test.paired else f"{test.n[0]}, {test.n[1]}"


def _p(p: float | None) -> str:
    return "" if p is None or math.isnan(p) else f"{p:.2g}"


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


VERDICTS = (
    Column("claim", lambda judged: judged.claim.claim),
    Column("better", lambda judged: _side(judged.better, judged.claim.better)),
    Column("worse", lambda judged: _side(judged.worse, judged.claim.worse)),
    Column("margin", lambda judged: f"{judged.claim.margin:g}"),
    Column("bound", lambda judged: judged.claim.bound_in_words),
    Column("gain [95%]", lambda judged: gain(judged.test, 4)),
    Column("n", lambda judged: judged.test and _n(judged.test)),
    Column("p", lambda judged: judged.test and judged.test.p, _p),
    Column("Holm p", lambda judged: judged.test and judged.deciding_p, _p),
    Column("evaluations", _cost_ratio),
    Column("verdict", lambda judged: judged.said + (f" ({judged.note})" if judged.note else "")),
    Column("source", lambda judged: judged.claim.source),
)


def write_table(results: Path, table: str) -> TableResults:
    """Write <table>.md and .csv, for a table of the paper .tex too; return what they show."""
    check_claimed(results, table)
    form, found = FORMS[table], read_results(results, table)
    lines = read_lines(results, found)
    main = [line for line in lines if not (form.apart and form.tuning.has(line))]
    judged = judged_claims(results, found)
    folder = results / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / f"{table}.md", _page(results, form, found, main, lines, judged))
    files.write(folder / f"{table}.csv", csv_of(form.exact, lines))
    if form.apart:
        files.write(folder / f"{table}.tex", latex(form.shown, main))
    return found


def read_lines(results: Path, found: TableResults) -> list[Line]:
    """Return the lines of a table, in the order of results/paper/<table>.csv.

    Raises:
        UserError: where a value of the paper is not a number.
    """
    path, quest = results / "paper" / f"{found.table}.csv", results / "paper" / "quest.csv"
    published = {(q["row"], q["column"]): q["value"] for q in read_paper(quest)}
    best = {row: chosen(found, row) for row in found.rows}
    lines = []
    for entry in read_paper(path):
        place = (entry["row"], entry["column"])
        try:
            float(entry["value"] or 0)
        except ValueError:
            raise UserError(
                f"{path}: {place[0]} | {place[1]} has value={entry['value']}; give a number or none"
            ) from None
        cell = found.cells[place]
        tuned = [c for c in found.row(cell.row) if c.tuning_losses()]
        is_best = cell is best[place[0]] and len(tuned) > 1  # one value alone was not chosen
        lines.append(
            Line(
                found.table, cell, entry["split"], entry["metric"], entry["value"],
                published.get(place, ""), entry["source"],
                is_best, is_best and on_edge(found, cell),
            )
        )  # fmt: skip
    return lines


def _trained_on(found: TableResults) -> str:
    texts = corpora(found)
    return f", on {' and '.join(texts)}" if texts else ""


def _cells_run(found: TableResults) -> str:
    cells = found.cells.values()
    said = f"{ran(found)} of {len(cells)} cells run"
    alone = sum(bool(cell.runs) and not cell.reporting() for cell in cells)
    return said + (f" ({alone} on the seeds that choose alone)" if alone else "")


def _page(
    results: Path,
    form: Form,
    found: TableResults,
    main: Sequence[Line],
    lines: Sequence[Line],
    judged: Sequence[Judged],
) -> str:
    tuned = [line for line in lines if form.tuning.has(line)]
    diverged = [
        f"- {cell_name(c.row, c.column)}, seed {s}: {c.runs[s]['notes']}"
        for c in found.cells.values()
        for s in (*c.diverged(), *c.diverged(tuning=True))
    ]
    parts = [
        f"# {form.title}",
        "Generated by `make tables` from `results/records/` alone; do not edit.",
        f"{_cells_run(found)}{_trained_on(found)}. {form.about}",
        markdown(filled((*form.shown, *form.more), main), main),
    ]
    if tuned or not form.apart:
        parts += [
            f"## {form.tuning.title}",
            form.tuning.about,
            markdown(form.tuning.columns, tuned),
        ]
    parts += form.sections(results, found)
    looks = TWO_LOOKS if scale_of(found.table) == "mini" else ""
    parts += ["## Verdicts", HOW_JUDGED + looks, markdown(VERDICTS, judged)]
    if diverged:
        parts += ["## Diverged", "\n".join(diverged)]
    if found.refused:
        parts += ["## Refused records", "\n".join(f"- {line}" for line in found.refused)]
    return "\n\n".join(parts) + "\n"
