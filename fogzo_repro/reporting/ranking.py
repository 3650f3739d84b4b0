"""Added parts ranked beside a table's own rows: by the same metric, tuning, seeds and verdicts.

The file of the added parts' table has a section `rank`, written before the runs:

    rank:
      beside: figure-shallow                            # the table
      against: [[STE, chosen], [FOGZO n=1, chosen]]     # cells of it, row and column
      controls: [[Full precision, "-"]]                 # others of it that are shown
      split: train
      metric: loss
      direction: lower
      no_difference_below: 0.02                         # as in results/paper/claims.csv
      tuning: {dataset.held_out: 5000}                  # what tuning runs have alone, if anything

`chosen` is the cell of a row with the lowest loss on the tuning seeds, and so is the one that a row
of the added table is ranked with. Each is put to the tests of `claims` against each cell of
`against`, with Holm's correction over the rows that are ranked.

A row is ranked only where its runs are those of the first cell of `against` but for what is
compared: as many steps, seeds that it has too, the same model, data and recipe (its rate and what
either row was tuned over aside), and no more tuning runs than `chosen` cells of `against` have.
Otherwise it stands apart, with the reason. Both sides are compared on the row's seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fogzo_repro.config import ConfigError, UserError, did_you_mean, read_yaml
from fogzo_repro.reporting.claims import Claim, Judged, judge_cells
from fogzo_repro.reporting.columns import Column, Columns, markdown
from fogzo_repro.reporting.results import (
    SPLITS,
    TUNING_SEEDS,
    CellResult,
    Place,
    TableResults,
    read_recorded,
)
from fogzo_repro.reporting.statistics import Summary
from fogzo_repro.reporting.tuning import CHOSEN, chosen, on_edge
from fogzo_repro.reporting.wording import (
    DIGITS,
    NOT_RUN,
    cell_mean,
    cell_name,
    gain,
    interval,
    p_value,
)

NEEDED = ("beside", "against", "split", "metric", "direction", "no_difference_below")
KNOWN = (*NEEDED, "controls", "tuning")
TUNED = ": tuning"  # behind the label of a row whose tuning runs have settings of their own


@dataclass(frozen=True)
class Rules:
    """The section `rank` of a table's file, see the head of this module."""

    beside: str
    against: tuple[Place, ...]
    controls: tuple[Place, ...]
    split: str
    metric: str
    direction: str
    bound: float
    tuning: Mapping[str, Any]


@dataclass(frozen=True)
class Ranked:
    """A row in a ranking."""

    label: str  # of its row, and of its column where the rules name that
    cell: CellResult | None  # that it is ranked with; None where none is chosen yet
    summary: Summary | None  # of the metric over the evaluation seeds
    tuned: int  # how many tuning runs chose the cell
    edge: bool  # no value beyond the chosen one was tried
    compared: tuple[Judged | None, ...] = ()  # beside each of `against`; None where it is itself
    apart: str = ""  # why it is not ranked; empty where it is

    @property
    def record(self) -> dict[str, Any] | None:
        """A record of the cell, for what all its runs share."""
        return None if self.cell is None else self.cell.any_record


@dataclass(frozen=True)
class Ranking:
    """What a ranking shows: the rows in order, the controls, and those that stand apart."""

    own: TableResults
    rules: Rules
    places: list[Ranked]
    controls: list[Ranked]
    apart: list[Ranked]


def read_rules(file: Path) -> Rules:
    """Read the section `rank` of a table's file.

    Raises:
        ConfigError: in one line with the file and the key.
    """
    said = read_yaml(file).get("rank")
    if not isinstance(said, dict):
        raise ConfigError(f"{file} has no section `rank`, which says beside what it is ranked")
    for key in said:
        if key not in KNOWN:
            raise ConfigError(f"{file}: rank.{key} is not a setting{did_you_mean(key, KNOWN)}")
    for key in NEEDED:
        if key not in said:
            raise ConfigError(f"{file}: rank.{key} is missing")
    if said["metric"] not in DIGITS:
        known = ", ".join(DIGITS)
        raise ConfigError(f"{file}: rank.metric={said['metric']} is none of {known}")
    better = "higher" if said["metric"] == "top1" else "lower"
    if said["direction"] != better:
        raise ConfigError(
            f"{file}: rank.direction={said['direction']}, and a {better} {said['metric']} is "
            f"better; give {better}"
        )
    if said["split"] not in SPLITS:
        raise ConfigError(f"{file}: rank.split={said['split']} is none of {', '.join(SPLITS)}")
    bound = said["no_difference_below"]
    if not (isinstance(bound, int | float) and bound > 0):
        raise ConfigError(f"{file}: rank.no_difference_below={bound} is not a number above 0")

    def places(key: str) -> tuple[Place, ...]:
        pairs = said.get(key, [])
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ConfigError(f"{file}: rank.{key} is not a list of pairs [row, column]")
        return tuple((str(row), str(column)) for row, column in pairs)

    if not places("against"):
        raise ConfigError(f"{file}: rank.against names no cell")
    return Rules(
        str(said["beside"]), places("against"), places("controls"),
        str(said["split"]), str(said["metric"]), said["direction"], float(bound),
        said.get("tuning", {}),
    )  # fmt: skip


def tuned_row(row: str, rules: Rules) -> str:
    """Return the label of the row that the tuning runs of a row stand in."""
    return row + TUNED if rules.tuning else row


def chosen_place(own: TableResults, row: str, columns: Sequence[str], rules: Rules) -> Place | None:
    """Return which cell of an added row is ranked, None where its tuning is not complete.

    The columns are the labels of its cells; one alone needs no choice.
    """
    if len(columns) == 1:
        return row, columns[0]
    where = tuned_row(row, rules)
    if not {*columns} <= {c.column for c in own.row(where) if c.reporting(tuning=True)}:
        return None
    best = chosen(own, where)
    return None if best is None else (row, best.column)


def rank(
    results: Path,
    table: str,
    rules: Rules,
    rows: Mapping[str, Sequence[str]],
    seeds: Mapping[str, Sequence[int]],
    changed: Mapping[str, str],
) -> Ranking:
    """Rank the rows of a table of added parts, given with their columns and evaluation seeds.

    Those of `changed` stand apart for the reason given there.

    Raises:
        UserError: where both tables have a row of the same name.
    """
    own, other = read_recorded(results, table), read_recorded(results, rules.beside)
    if both := {*rows} & {row for row, _ in other.cells}:
        raise UserError(f"{table} and {rules.beside} both have a row {min(both)}; rename yours")
    against = [_beside_cell(other, place, rules) for place in rules.against]
    controls = [_beside_cell(other, place, rules) for place in rules.controls]
    checked = []
    for row, columns in rows.items():
        one = _added(own, row, columns, seeds[row], rules)
        why = changed.get(row) or _apart(one, against, own, other, seeds[row], rules)
        checked.append(replace(one, apart=why))
    ranked = [one for one in checked if not one.apart]
    compared = [
        (_claim(one, beside, rules), one.cell, _on_seeds(beside.cell, seeds[one.label]))
        for one in ranked
        for beside in against
        if beside.cell is not None
    ]
    judged = {j.claim.id: j for j in judge_cells(table, compared)}
    ranked = [
        replace(one, compared=tuple(judged.get(_id(one, beside)) for beside in against))
        for one in ranked
    ]
    places = [*ranked, *(one for one in against if one.summary is not None)]
    sign = 1 if rules.direction == "lower" else -1
    places.sort(key=lambda one: sign * one.summary.mean)  # type: ignore[union-attr]
    missing = [replace(one, apart=NOT_RUN) for one in against if one.summary is None]
    apart = [one for one in checked if one.apart] + missing
    return Ranking(own, rules, places, controls, apart)


def _added(
    own: TableResults, row: str, columns: Sequence[str], seeds: Sequence[int], rules: Rules
) -> Ranked:
    place = chosen_place(own, row, columns, rules)
    tuned = own.row(tuned_row(row, rules))
    cell = None if place is None else own.cells.get(place, CellResult(*place, {}))
    if cell is not None:  # records of other seeds, as of a table that was changed, do not count
        cell = _on_seeds(cell, seeds)
    of = next((c for c in tuned if cell is not None and c.column == cell.column), None)
    edge = len(columns) > 1 and of is not None and on_edge(own, of)
    return Ranked(row, cell, _summary(cell, rules), _tuning_runs(tuned), edge)


def _beside_cell(other: TableResults, place: Place, rules: Rules) -> Ranked:
    row, column = place
    is_chosen = column == CHOSEN
    cell = chosen(other, row) if is_chosen else other.cells.get(place)
    tuned = _tuning_runs(other.row(row)) if is_chosen else 0
    edge = is_chosen and cell is not None and on_edge(other, cell)
    if cell is not None:
        _check_measured(cell, rules)
    return Ranked(cell_name(*place), cell, _summary(cell, rules), tuned, edge)


def _check_measured(cell: CellResult, rules: Rules) -> None:
    """Refuse a metric that the cells beside the rows do not have: a network has none or another."""
    for record in cell.finished().values():
        last = record["metrics"]["last"]
        has = [f"{s} {m}" for s in SPLITS for m in DIGITS if m in last.get(s, {})]
        if f"{rules.split} {rules.metric}" not in has:
            raise ConfigError(
                f"rank: {cell_name(cell.row, cell.column)} of {rules.beside} has no {rules.split} "
                f"{rules.metric}; it has {', '.join(has)}"
            )


def _summary(cell: CellResult | None, rules: Rules) -> Summary | None:
    return None if cell is None else cell.summary(rules.split, rules.metric)


def check_places(rules: Rules, known: Mapping[str, Sequence[str]]) -> None:
    """Refuse rules that name a cell which is not among the other table's rows and columns.

    Raises:
        ConfigError: with the nearest name.
    """
    for row, column in (*rules.against, *rules.controls):
        if row not in known:
            said = f"rank: {rules.beside} has no row {row}{did_you_mean(row, known)}"
            raise ConfigError(f"{said}; it has: {', '.join(known)}")
        if column not in (*known[row], CHOSEN):
            near = did_you_mean(column, known[row])
            raise ConfigError(f"rank: {rules.beside} has no cell {row} | {column}{near}")


def _tuning_runs(cells: Sequence[CellResult]) -> int:
    return sum(len(cell.reporting(tuning=True)) for cell in cells)


def _on_seeds(cell: CellResult, seeds: Sequence[int]) -> CellResult:
    return replace(cell, runs={seed: run for seed, run in cell.runs.items() if seed in seeds})


def foreseen(
    results: Path,
    rules: Rules,
    seeds: Mapping[str, Sequence[int]],
    tuned: Mapping[str, int],
    settings: Mapping[str, Sequence[dict[str, Any]]],
) -> dict[str, str]:
    """Return the rows that will not be ranked, with the reason that is known before they are run.

    Rows are given with the seeds that report, with how many tuning runs they take, and with what a
    record holds of the settings of each of their cells.
    """
    other = read_recorded(results, rules.beside)
    against = [_beside_cell(other, place, rules) for place in rules.against]
    reasons = {}
    for row in seeds:
        reason = _unlike(seeds[row], tuned[row], against, rules)
        if not reason and settings[row]:
            mine = [_settings(cell) for cell in settings[row]]
            reason = _other_setting(mine[0], mine, against[0].cell, other)
        if reason:
            reasons[row] = reason
    return reasons


def data_beside(results: Path, rules: Rules) -> tuple[str, str] | None:
    """Return the dataset of the first cell of `against` and its data; None where nothing was run.

    A row on other data of that name, as another text, would stand apart.
    """
    record = _beside_cell(read_recorded(results, rules.beside), rules.against[0], rules).record
    if record is None or not record["resolved"].get("data"):
        return None
    return record["config"]["dataset"]["name"], record["resolved"]["data"]


def _unlike(seeds: Iterable[int], tuned: int, against: Sequence[Ranked], rules: Rules) -> str:
    """Return what of a row's seeds and tuning is not that of the cells beside it, if anything."""
    first, most = against[0].cell, max(beside.tuned for beside in against)
    theirs = {} if first is None else first.reporting()
    if not theirs:
        return f"{cell_name(*rules.against[0])} of {rules.beside} is {NOT_RUN}"
    if not {*seeds} <= theirs.keys():
        return f"its seeds are {_said(seeds)}, not among {_said(theirs)}"
    if most and tuned > most:
        return f"tuned by {tuned} runs, not {most}"
    return ""


def _apart(
    one: Ranked,
    against: Sequence[Ranked],
    own: TableResults,
    other: TableResults,
    seeds: Sequence[int],
    rules: Rules,
) -> str:
    """Return why a row is not ranked; nothing where it is."""
    if one.cell is None:
        return f"{NOT_RUN}: its tuning is not complete"
    runs = one.cell.runs
    if not runs:
        return NOT_RUN
    if {*runs} < {*seeds}:
        return f"{len(runs)} of {len(seeds)} runs"
    if lost := one.cell.diverged():
        return f"diverged: seeds {_said(lost)}"
    if unlike := _unlike(runs, one.tuned, against, rules):
        return unlike
    tuned = _facts_of(own.row(tuned_row(one.cell.row, rules)))
    return _other_setting(_facts(next(iter(runs.values()))), tuned, against[0].cell, other)


def _other_setting(
    mine: Mapping[str, Any],
    tuned: Sequence[Mapping[str, Any]],
    first: CellResult | None,
    other: TableResults,
) -> str:
    """Return in which setting a cell is unlike the first beside it, the tuned ones aside."""
    assert first is not None, "else it was not run"
    their = _facts(next(iter(first.reporting().values())))
    free = {"recipe.lr", *_differing(tuned), *_differing(_facts_of(other.row(first.row)))}
    for key, value in mine.items():
        if key not in free and key in their and value != their[key]:
            return f"{key}={value}, not {their[key]}"
    return ""


def _said(seeds: Iterable[int]) -> str:
    numbers = sorted(seeds)
    if len(numbers) > 1 and numbers == [*range(numbers[0], numbers[-1] + 1)]:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(map(str, numbers))


def _facts(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the runs of a ranking have in common."""
    made = {"steps": record["steps"], "data": record["resolved"].get("data")}
    return made | _settings(record["config"])


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section in ("model", "dataset", "recipe"):
        found |= {f"{section}.{key}": value for key, value in config[section].items()}
    # What is for people, or changes no weight; what came later has its neutral value elsewhere.
    for key in ("recipe.name", "recipe.eval_every_epochs", "model.family", "dataset.family"):
        found.pop(key, None)
    return found


def _facts_of(cells: Sequence[CellResult]) -> list[dict[str, Any]]:
    return [_facts(cell.any_record) for cell in cells if cell.any_record is not None]


def _differing(facts: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return what differs among the cells of a row."""
    return {k for k in facts[0] if any(f.get(k) != facts[0][k] for f in facts)} if facts else set()


def _id(one: Ranked, beside: Ranked) -> str:
    return f"{one.label} beside {beside.label}"


def _claim(one: Ranked, beside: Ranked, rules: Rules) -> Claim:
    return Claim(
        id=_id(one, beside),
        claim=f"{one.label} is better than {beside.label}",
        better=(one.label, "-"),
        worse=(beside.label, "-"),
        split=rules.split,
        metric=rules.metric,
        direction=rules.direction,
        margin=0.0,
        bound=rules.bound,
        relative=False,
        source="rank",
    )


WORDS = {"holds": "better", "contradicted": "worse"}


def _beside(number: int, digits: int) -> Callable[[Ranked], str]:
    """Return what is said of a row beside a cell of `against`."""

    def said(one: Ranked) -> str:
        judged = one.compared[number] if one.compared else None
        if judged is None or judged.test is None:
            return ""
        word = WORDS.get(judged.verdict, judged.said)
        p = "" if math.isnan(judged.deciding_p) else f", {p_value(judged.deciding_p)}"
        return f"{word}, {gain(judged.test, digits)}{p}"

    return said


def _columns(rules: Rules) -> Columns:
    digits, edge = DIGITS[rules.metric], ", on the edge of its grid"
    return (
        Column("row", lambda one: one.label.removesuffix(f" {CHOSEN}").removesuffix(" |")),
        Column("setting", lambda one: one.cell and one.cell.column),
        Column("tuned by", lambda one: f"{one.tuned} runs{edge * one.edge}" if one.tuned else None),
        Column(
            f"{rules.split} {rules.metric}",
            lambda one: cell_mean(one.cell, rules.split, rules.metric, digits),
        ),
        Column("95%", lambda one: interval(one.summary, digits)),
        Column("steps", lambda one: one.record and one.record["steps"]),
        Column(
            "evaluations a step",
            lambda one: one.record and one.record["evaluations_per_step"],
            "{0[probes]} / {0[total]}".format,
        ),
    )


def page(ranking: Ranking) -> str:
    """Return a ranking in Markdown."""
    rules = ranking.rules
    numbers = {id(one): k for k, one in enumerate(ranking.places, 1)}
    shown = (
        Column("", lambda one: numbers[id(one)]),
        *_columns(rules),
        *(
            Column(f"beside {cell_name(*place)}", _beside(number, DIGITS[rules.metric]))
            for number, place in enumerate(rules.against)
        ),
    )
    why = Column("why", lambda one: one.apart)
    parts = [
        f"# {ranking.own.table}, beside {rules.beside}",
        f"{rules.split} {rules.metric}, {rules.direction} is better: mean ± sd (n) over the "
        "evaluation seeds after the last step. Each row stands with the setting that the tuning "
        f"seeds {', '.join(map(str, TUNING_SEEDS))} chose. Evaluations a step: perturbed forward "
        "passes alone / with the back-propagation counted as 3. Beside a cell: the gain [95%] over "
        "it on the row's own seeds, and the p of the test that decides, with Holm's correction "
        f"over this table; no difference above {rules.bound:g} was written down as what does not "
        "matter.",
        markdown(shown, ranking.places) if ranking.places else "Nothing was run.",
    ]
    if ranking.controls:
        parts += ["## Controls", markdown(_columns(rules), ranking.controls)]
    if ranking.apart:
        parts += ["## Not ranked", markdown((*_columns(rules), why), ranking.apart)]
    return "\n\n".join([*parts, *ranking.own.refused_section]) + "\n"
