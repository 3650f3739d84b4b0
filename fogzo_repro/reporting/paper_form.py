"""results/tables/table1 ... table4: the paper's value, ours, the difference; Markdown, CSV, LaTeX.

One line for each line of results/paper/<table>.csv. Ours is the metric after the last step, mean ±
sd (n) over the evaluation seeds, of full-scale runs alone; runs of scale=mini stand in a section of
their own. From committed records alone; the same bytes each time.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import Judged, chosen, judge, read_claims
from fogzo_repro.reporting.latex import tabular
from fogzo_repro.reporting.markdown import (
    HOW_JUDGED,
    NOT_RUN,
    VERDICT_TITLES,
    grid,
    mean_sd,
    named,
    verdict_line,
)
from fogzo_repro.reporting.results import (
    TUNING_SEEDS,
    CellResult,
    TableResults,
    noise_ratio,
    ran,
    read_paper,
    read_results,
)
from fogzo_repro.reporting.smaller_scale import SMALLER, mini_grid
from fogzo_repro.reporting.statistics import Summary, summarize

TITLES = {
    "table1": "Table 1: fixed scale, several STEs, weights only, n = 1",
    "table2": "Table 2: LSQ, 2-bit weights",
    "table3": "Table 3: 2-bit weights and activations, LLaMA on C4",
    "table4": "Table 4: quality at equal training time, LSQ, LLaMA 30M",
}
DIGITS = {"loss": 4, "top1": 2, "perplexity": 2}
MINI = ("mini",)
METHOD = (
    "Paper: its value, with the tag of its source; an empty place is not known to us. Only the "
    "number of Table 4 is certain; Tables 1 to 3 are numbered in the order of the paper's results. "
    "Ours: the metric after the last step, mean ± sd (n) over the evaluation seeds, full scale "
    "alone. Whether the paper reports its last or its best evaluation is not known to us; best is "
    "in the records and never stands here. Train loss on ImageNet: mean over the steps of the last "
    "epoch, as they were trained on, mixup included."
)
QUEST = (
    "QuEST: the value that QuEST's authors published for the same network, from their run logs "
    "(`results/paper/quest.csv`); their batch has 512 sequences, so it is a second reference and "
    "not a target."
)


@dataclass(frozen=True)
class Entry:
    """A line of results/paper/<table>.csv beside what was measured.

    `paper` is as it was transcribed, empty where not known; `quest` likewise.
    """

    cell: CellResult
    split: str
    metric: str
    paper: str
    quest: str
    source: str

    @property
    def swept(self) -> bool:
        """Whether the cell belongs to a sweep of ours: its row names network and method."""
        return self.source.startswith("ours: sweep")

    @property
    def ours(self) -> Summary | None:
        """Over the evaluation seeds."""
        return summarize([*self.cell.values(self.split, self.metric).values()])

    @property
    def difference(self) -> float | None:
        """Ours minus the paper's."""
        ours = self.ours
        return ours.mean - float(self.paper) if ours is not None and self.paper else None

    @property
    def label(self) -> str:
        """The metric for people."""
        return {"top1": f"{self.split} top-1 (%)", "loss": f"{self.split} loss"}.get(
            self.metric, f"{self.split} {self.metric}"
        )


def write_paper_table(results: Path, table: str) -> TableResults:
    """Write <table>.md, .csv and .tex; return what they were made from."""
    found, mini = read_results(results, table), read_results(results, table, MINI)
    placed = {f"{r['run_id']}.json" for cell in mini.cells.values() for r in cell.runs.values()}
    refused = [line for line in found.refused if line.split(": ")[0] not in placed]
    found = replace(found, refused=refused)
    entries = _entries(results, found)
    judged = judge(found, read_claims(results / "paper" / "claims.csv", table))
    folder = results / "tables"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}.md").write_text(_markdown(found, mini, entries, judged))
    (folder / f"{table}.csv").write_text(_csv(entries, mini))
    titles, lines = _main_lines([e for e in entries if not e.swept])
    (folder / f"{table}.tex").write_text(tabular(titles[:-2], [line[:-2] for line in lines]))
    return found


def _entries(results: Path, found: TableResults) -> list[Entry]:
    path, quest = results / "paper" / f"{found.table}.csv", results / "paper" / "quest.csv"
    published = {(q["row"], q["column"]): q["value"] for q in read_paper(quest)}
    entries = []
    for line in read_paper(path):
        place = (line["row"], line["column"])
        try:
            float(line["value"] or 0)
        except ValueError:
            raise UserError(
                f"{path}: {place[0]} | {place[1]} has value={line['value']}; give a number or none"
            ) from None
        entries.append(
            Entry(
                found.cells[place], line["split"], line["metric"], line["value"],
                published.get(place, ""), line["source"],
            )
        )  # fmt: skip
    return entries


def _markdown(
    found: TableResults, mini: TableResults, entries: Sequence[Entry], judged: Sequence[Judged]
) -> str:
    main = [e for e in entries if not e.swept]
    parts = [
        f"# {TITLES.get(found.table, found.table)}",
        "Generated by `make tables` from `results/records/` alone; do not edit.",
        f"{ran(found)} of {len(found.cells)} cells run. {METHOD}"
        + (f" {QUEST}" if any(e.quest for e in main) else ""),
        grid(*_main_lines(main)),
    ]
    if any(e.swept for e in entries):
        parts += [
            "## Sweeps",
            f"On seeds {', '.join(map(str, TUNING_SEEDS))}, which choose and report nothing else. "
            "ρ = (1−β)d/β at β_min, d the number of perturbed weights.",
            grid(SWEEP_TITLES, [_sweep_line(found, e) for e in entries if e.swept]),
        ]
    parts += [
        "## Verdicts", HOW_JUDGED, grid(VERDICT_TITLES, [verdict_line(j) for j in judged]),
        "## At smaller scale", SMALLER, mini_grid(mini),
    ]  # fmt: skip
    diverged = [
        f"- {named(c.row, c.column)}, scale {c.runs[s]['scale']}, seed {s}: {c.runs[s]['notes']}"
        for c in (*found.cells.values(), *mini.cells.values())
        for s in (*c.diverged(), *c.diverged(tuning=True))
    ]
    if diverged:
        parts += ["## Diverged", "\n".join(diverged)]
    if found.refused:
        parts += ["## Refused records", "\n".join(f"- {line}" for line in found.refused)]
    return "\n\n".join(parts) + "\n"


def _main_lines(entries: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """Return titles and lines; the last two columns, time and source, are for Markdown alone."""
    quest = any(e.quest for e in entries)
    lines = []
    for e in entries:
        digits = DIGITS.get(e.metric, 4)
        lost = f", {len(e.cell.diverged())} diverged" if e.cell.diverged() else ""
        difference = "" if e.difference is None else f"{e.difference:+.{digits}f}"
        line = [e.cell.row, e.cell.column, e.label, e.paper, mean_sd(e.ours, digits) + lost]
        lines.append([*line, difference, *([e.quest] if quest else []), _hours(e.cell), e.source])
    titles = ["row", "column", "metric", "paper", "ours", "difference"]
    return [*titles, *(["QuEST"] if quest else []), "hours", "source"], lines


def _hours(cell: CellResult) -> str:
    record = cell.any_record
    if record is None:
        return ""
    seconds = [r["wall_seconds"] for _, r in sorted(cell.runs.items())]
    return f"{math.fsum(seconds) / len(seconds) / 3600:.2f} ({record['hardware']})"


SWEEP_TITLES = ("row", "column", "ρ", "metric", "tuning seeds")


def _sweep_line(found: TableResults, entry: Entry) -> list[str]:
    cell, ratio = entry.cell, noise_ratio(entry.cell)
    tuned = summarize([*cell.values(entry.split, entry.metric, tuning=True).values()])
    best = chosen(found, cell.row)
    mark = ", chosen" if best is not None and best.column == cell.column else ""
    shown = mean_sd(tuned, DIGITS.get(entry.metric, 4)) + mark
    return [cell.row, cell.column, "" if ratio is None else f"{ratio:.3g}", entry.label, shown]


def _csv(entries: Sequence[Entry], mini: TableResults) -> str:
    """Return every cell with its numbers in full precision; mini lines have no paper value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([
        "table", "row", "column", "scale", "metric", "split", "seeds", "paper", "mean", "sd", "n",
        "low", "high", "difference", "quest", "rho", "hours", "diverged", "source",
    ])  # fmt: skip
    for e in entries:
        difference = "" if e.difference is None else e.difference
        row = [mini.table, e.cell.row, e.cell.column, "full", e.metric, e.split]
        after = [difference, e.quest, *_run_numbers(e.cell), e.source]
        writer.writerow([*row, *_numbers(e.cell, e.split, e.metric, e.paper), *after])
    for c in mini.cells.values():
        if c.runs:
            row = [mini.table, c.row, c.column, "mini", "loss", "train"]
            after = ["", "", *_run_numbers(c), "ours: smaller scale"]
            writer.writerow([*row, *_numbers(c, "train", "loss", ""), *after])
    return text.getvalue()


def _numbers(cell: CellResult, split: str, metric: str, paper: str) -> list[Any]:
    tuning = bool(cell.runs) and all(seed in TUNING_SEEDS for seed in cell.runs)
    s = summarize([*cell.values(split, metric, tuning=tuning).values()])
    seeds = "tuning" if tuning else "evaluation"
    values = [s.mean, s.sd, s.n, s.mean - s.half, s.mean + s.half] if s else [""] * 5
    kept = ["" if isinstance(v, float) and math.isnan(v) else v for v in values]
    return [seeds if cell.runs else "", paper, *kept]


def _run_numbers(cell: CellResult) -> list[Any]:
    if not cell.runs:
        return ["", "", NOT_RUN]
    hours = math.fsum(r["wall_seconds"] for r in cell.runs.values()) / len(cell.runs) / 3600
    ratio = noise_ratio(cell)
    lost = len(cell.diverged()) + len(cell.diverged(tuning=True))
    return ["" if ratio is None else ratio, hours, lost]
