"""results/tables/: each table a list of columns, and one writer for all of them.

A line of a table is a line of results/paper/<table>.csv, which lists its cells, beside what was
measured of the cell. `FORMS` says of each table which columns are shown (Markdown, and LaTeX for
the paper's tables) and which numbers stand in full precision in the CSV. Everything is made from
committed records, so that the same records give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.reporting import minis, verdicts
from fogzo_repro.reporting.claims import check_claimed, judged_table
from fogzo_repro.reporting.columns import Column, Columns, csv_of, filled, latex, markdown, parts
from fogzo_repro.reporting.results import (
    TUNING_SEEDS,
    CellResult,
    TableResults,
    ran,
    read_paper,
    read_results,
    scale_of,
    trained_on,
)
from fogzo_repro.reporting.statistics import Summary
from fogzo_repro.reporting.tuning import chosen, on_edge
from fogzo_repro.reporting.wording import (
    DIGITS,
    METRIC_NAMES,
    NOT_RUN,
    cell_mean,
    cell_name,
    interval,
    mean_sd,
)


@dataclass(frozen=True)
class Line:
    """A cell beside what results/paper/ says of it."""

    table: str
    cell: CellResult
    split: str
    metric: str
    paper: str  # the paper's value as it was transcribed, empty where not known
    quest: str  # the value that QuEST's authors published, likewise
    source: str  # where the value is from, or what the cell is for
    choice: str  # said where the tuning seeds have chosen this cell among those of its row

    @property
    def record(self) -> dict[str, Any] | None:
        """A record of the cell, for what all its runs share."""
        return self.cell.any_record

    @property
    def evaluations(self) -> dict[str, int] | None:
        """Network evaluations of a step under both countings; None where nothing was run."""
        return self.record and self.record["evaluations_per_step"]

    def summary(self, *, tuning: bool = False) -> Summary | None:
        """Return the cell's metric over the evaluation or the tuning seeds."""
        return self.cell.summary(self.split, self.metric, tuning=tuning)

    @property
    def only_tuned(self) -> bool:
        """Whether all runs of the cell are on tuning seeds."""
        return bool(self.cell.runs) and all(seed in TUNING_SEEDS for seed in self.cell.runs)

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        ours = self.summary()
        return ours.mean - float(self.paper) if ours is not None and self.paper else None


def _measured(title: str, split: str, metric: str) -> Column:
    """Return a column of mean ± sd (n), with the number of runs that diverged."""
    return Column(title, lambda line: _mean_sd(line, split, metric))


def _mean_sd(line: Line, split: str, metric: str) -> str:
    return cell_mean(line.cell, split, metric, DIGITS[metric])


def _interval(split: str, metric: str) -> Column:
    return Column("95%", lambda line: interval(line.cell.summary(split, metric), DIGITS[metric]))


def _numbers(prefix: str, summary: Callable[[Line], Summary | None]) -> Columns:
    """Return the columns of a summary in full precision."""
    return parts(prefix, summary, "mean", "sd", "n", "low", "high")


def _tuned(line: Line) -> str:
    """Return the metric on the tuning seeds, and whether the cell was chosen by it."""
    return _on_tuning_seeds(line, line.split, line.metric) + line.choice


def _on_tuning_seeds(line: Line, split: str, metric: str) -> str:
    summary = line.cell.summary(split, metric, tuning=True)
    return mean_sd(summary, DIGITS[metric], len(line.cell.diverged(tuning=True)))


def _diverged(cell: CellResult) -> int:
    return len(cell.diverged()) + len(cell.diverged(tuning=True))


TABLE = Column("table", lambda line: line.table)
ROW = Column("row", lambda line: line.cell.row)
COLUMN = Column("column", lambda line: line.cell.column)
METRIC = Column("metric", lambda line: f"{line.split} {METRIC_NAMES[line.metric]}")
RHO = Column("ρ", lambda line: line.cell.rho, "{:.3g}".format)
STEPS = Column(
    "steps", lambda line: max((r["steps"] for r in line.cell.runs.values()), default=None)
)
SOURCE = Column("source", lambda line: line.source)
OURS = Column("ours", lambda line: _mean_sd(line, line.split, line.metric))
BETA = Column("β", lambda line: line.cell.noise, lambda noise: f"{1 - noise:.10g}")
EVALUATIONS = Column(
    "evaluations per step", lambda line: line.evaluations, "{0[probes]:,} / {0[total]:,}".format
)
DIVERGED = Column("diverged", lambda line: _diverged(line.cell) if line.cell.runs else NOT_RUN)


SHALLOW_SHOWN = (
    ROW, COLUMN, BETA, RHO, STEPS, EVALUATIONS,
    _measured("train loss", "train", "loss"), _interval("train", "loss"),
    _measured("test top-1 (%)", "test", "top1"), _interval("test", "top1"),
)  # fmt: skip
SHALLOW_EXACT = (
    TABLE, ROW, COLUMN,
    Column("noise", lambda line: line.cell.noise),
    Column("rho", RHO.value),
    Column("steps", lambda line: line.record and line.record["steps"]),
    Column("probes_per_step", lambda line: line.record and line.evaluations["probes"]),
    Column("evaluations_per_step", lambda line: line.record and line.evaluations["total"]),
    *_numbers("train_loss_", lambda line: line.cell.summary("train", "loss")),
    *_numbers("test_top1_", lambda line: line.cell.summary("test", "top1")),
    DIVERGED,
)  # fmt: skip

PAPER_SHOWN = (
    ROW, COLUMN, METRIC, Column("paper", lambda line: line.paper), OURS,
    Column(
        "difference",
        lambda line: (
            "" if line.difference is None else f"{line.difference:+.{DIGITS[line.metric]}f}"
        ),
    ),
)  # fmt: skip
QUEST_COLUMNS = ("row", "column", "value")
QUEST = Column("QuEST", lambda line: line.quest)
HOURS = Column(
    "hours", lambda line: (hours := line.cell.hours) and f"{hours:.2f} ({line.record['hardware']})"
)
WHICH = (
    TABLE, ROW, COLUMN, Column("scale", lambda line: scale_of(line.table)),
    Column("metric", lambda line: line.metric), Column("split", lambda line: line.split),
    Column("seeds", lambda line: "tuning" if line.only_tuned else "evaluation" * bool(line.record)),
)  # fmt: skip
RUNS = (Column("hours", lambda line: line.cell.hours), DIVERGED, SOURCE)
PAPER_EXACT = (
    *WHICH, Column("paper", lambda line: line.paper),
    *_numbers("", lambda line: line.summary(tuning=line.only_tuned)),
    Column("difference", lambda line: line.difference),
    Column("quest", lambda line: line.quest),
    Column("rho", RHO.value),
    *RUNS,
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
    """How a table is written."""

    title: str
    about: str  # what stands above it, after how much was run
    shown: Columns  # for people
    more: Columns  # that LaTeX does without
    exact: Columns  # of the CSV
    tuning: Tuning
    apart: bool  # sweeps have rows of their own, for `tuning` alone; it is written in LaTeX too


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
        lambda line: bool(line.cell.reporting(tuning=True)),
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
    return Form(title, about, shown, (HOURS, SOURCE), PAPER_EXACT, SWEEPS, apart=True)


LR = Column("lr", lambda line: line.cell.rate)
HELD_BACK = Column("mean 1−h'", lambda line: line.cell.held_back, "{:.3f}".format)
MINI_ABOUT = (
    "Scale mini: the same code where the estimators can be told apart on one card in minutes a "
    "run; never a value of the paper's. Train loss in nats over training data with the final "
    "weights, beside the metric on data that took no part in training or choosing. Mean ± sd (n) "
    "over the evaluation seeds, [ ] its 95% t interval. ρ = (1−β)d/β at β_min, d the number of "
    "perturbed weights. Mean 1−h', over the quantized weights and the steps: how much of the "
    "gradient the STE holds back, h' the derivative that it puts in place of rounding's."
)
MINI_TUNING = replace(
    SWEEPS,
    about="On the tuning seeds, which choose and report nothing else, by the loss on what was held "
    "out of those runs for it.",
    columns=(
        ROW, COLUMN, RHO, METRIC, Column("tuning seeds", _tuned),
        Column("train loss", lambda line: _on_tuning_seeds(line, "train", "loss")),
    ),
)  # fmt: skip


def _mini_form(table: str) -> Form:
    split, metric = minis.held_out(table)
    shown = (
        ROW, COLUMN, RHO, LR, STEPS, HELD_BACK,
        _measured("train loss", "train", "loss"), _interval("train", "loss"),
        _measured(f"{split} {METRIC_NAMES[metric]}", split, metric), _interval(split, metric),
    )  # fmt: skip
    exact = (
        *WHICH, Column("rho", RHO.value), LR, STEPS, Column("held_back", HELD_BACK.value),
        *_numbers(
            "train_loss_", lambda line: line.cell.summary("train", "loss", tuning=line.only_tuned)
        ),
        *_numbers("", lambda line: line.summary(tuning=line.only_tuned)),
        *RUNS,
    )  # fmt: skip
    title = f"{table}: {(minis.TITLES | minis.FINETUNED)[table]}"
    return Form(title, MINI_ABOUT, shown, (HOURS,), exact, MINI_TUNING, apart=True)


FORMS = {
    "figure-shallow": SHALLOW,
    **{table: _mini_form(table) for table in (*minis.TITLES, *minis.FINETUNED)},
    **{table: _paper_form(table) for table in PAPER_TITLES},
}


def write_table(results: Path, table: str) -> TableResults:
    """Write <table>.md and .csv, for a table of the paper .tex too; return what they show."""
    check_claimed(results, table)
    form, found = FORMS[table], read_results(results, table)
    lines = read_lines(results, found)
    tuned = [line for line in lines if form.tuning.has(line)]
    main = [x for x in lines if not (form.tuning.has(x) and (form.apart or x.only_tuned))]
    folder = results / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    files.write(folder / f"{table}.md", _page(results, found, main, tuned))
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
    published = {(q["row"], q["column"]): q["value"] for q in read_paper(quest, QUEST_COLUMNS)}
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
        choice = ""
        if cell is best[cell.row] and len(found.tuned(cell.row)) > 1:  # one value is no choice
            choice = ", chosen" + ", on the edge of its grid" * on_edge(found, cell)
        lines.append(
            Line(
                found.table, cell, entry["split"], entry["metric"], entry["value"],
                published.get(place, ""), entry["source"], choice,
            )
        )  # fmt: skip
    return lines


def _cells_run(found: TableResults) -> str:
    cells = found.cells.values()
    said = f"{ran(found)} of {len(cells)} cells run"
    alone = sum(bool(cell.runs) and not cell.reporting() for cell in cells)
    return said + (f" ({alone} on the seeds that choose alone: below)" if alone else "")


def _page(results: Path, found: TableResults, main: Sequence[Line], tuned: Sequence[Line]) -> str:
    form = FORMS[found.table]
    diverged = [
        f"- {cell_name(c.row, c.column)}, seed {s}: {c.runs[s]['notes']}"
        for c in found.cells.values()
        for s in (*c.diverged(), *c.diverged(tuning=True))
    ]
    said = [
        f"# {form.title}",
        "Generated by `make tables` from `results/records/` alone; do not edit.",
        f"{_cells_run(found)}{trained_on(found)}. {form.about}",
        markdown(filled((*form.shown, *form.more), main), main),
    ]
    if tuned or not form.apart:
        said += [f"## {form.tuning.title}", form.tuning.about]
        said.append(markdown(form.tuning.columns, tuned))
    if scale_of(found.table) == "mini":
        said += minis.sections(results, found)
    said += verdicts.section(judged_table(results, found))
    if diverged:
        said += ["## Diverged", "\n".join(diverged)]
    return "\n\n".join([*said, *found.refused_section]) + "\n"
