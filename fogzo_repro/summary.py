"""Runs as a table: what differs between them in columns, and mean ± sd over their seeds.

    python -m fogzo_repro.summary runs
    python -m fogzo_repro.summary runs --by estimator.beta_min --plot sweep.png
    python -m fogzo_repro.summary results/records/mini-llama/*-sign-*-s[0-4]-* --plot curves.png

RUNS are folders with run folders or records somewhere below them, or single ones of either. Runs
that differ in nothing but the seed are one row. Rows are sorted by their settings, with `--by`
first by that one. `--plot` draws the metrics along the setting of `--by`; without `--by` it draws
the loss along the steps, of unfinished runs too, from what they have logged. Exit status 2: an
error that the user can mend, in one line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.compare import ABSENT, flat
from fogzo_repro.config import UserError, did_you_mean
from fogzo_repro.config.estimators import complement
from fogzo_repro.config.identity import FREE, HOW_COMPUTED, NEUTRAL
from fogzo_repro.config.rules import spelled
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.reporting.figures.drawing import ends_of_sd
from fogzo_repro.reporting.figures.groups import Point, draw_groups
from fogzo_repro.reporting.statistics import summarize
from fogzo_repro.reporting.wording import mean_sd
from fogzo_repro.terminal import aligned, command_parser, one_line_errors, stderr
from fogzo_repro.tracking.metrics import binned_history, stream_metrics
from fogzo_repro.tracking.records import read_runs

HASH = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{8,}\b")
METRICS = {"loss": 4, "top1": 2, "perplexity": 3}  # shown, and with how many digits
SPLITS = ("train", "test", "val")
IGNORED = {*FREE, "seed"}
MOST_LINES = 12  # in a figure; more cannot be told apart
COMMON = ("model", "dataset", "quantizer", "estimator", "recipe", "scale")  # said once, if equal


@dataclass(frozen=True)
class Run:
    """One run."""

    name: str  # its run id
    seed: int
    settings: dict[str, Any]  # what determines the result but the seed, by dotted key
    state: str  # finished, diverged or how far it is
    metrics: Mapping[str, Mapping[str, float]]  # after the last step; empty unless it is finished
    course: list[tuple[float, float]]  # step and loss, along the steps


@dataclass(frozen=True)
class Row:
    """Runs that differ in nothing but the seed."""

    settings: dict[str, Any]
    runs: list[Run]

    def values(self, split: str, metric: str) -> list[float]:
        """Return a metric of the finished runs."""
        found = (run.metrics.get(split, {}).get(metric) for run in self.runs)
        return [value for value in found if value is not None]


def find_runs(places: Sequence[Path]) -> list[Run]:
    """Read all runs at or below some places; a damaged record is named on stderr and left out.

    Raises:
        UserError: where there are none.
    """
    found: dict[str, Run] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"{place} is not there; give folders of runs or of records")
        for run in _below(place):
            found.setdefault(f"{run.name} {run.seed}", run)
    if not found:
        raise UserError(
            f"no run is below {', '.join(map(str, places))}; runs lie under output_root, which is "
            "runs unless it was given"
        )
    return [found[key] for key in sorted(found)]


def _below(place: Path) -> Iterator[Run]:
    if place.is_file():
        yield from _recorded(place)
        return
    for folder, inner, names in os.walk(place, onerror=_tell_left_out):
        if "resolved.json" in names and "config.yaml" in names:
            inner.clear()
            path = Path(folder)
            yield from _recorded(path / "record.json") if "record.json" in names else _logged(path)
        else:
            inner.sort()
            for name in sorted(names):
                if name.endswith(".json"):
                    yield from _recorded(Path(folder, name))


def _tell_left_out(error: OSError) -> None:
    print(f"left out: {error.filename} cannot be read ({error.strerror})", file=stderr())


def _recorded(path: Path) -> Iterator[Run]:
    """Yield the runs of a record; none of a file that is something else."""
    if path.name != "record.json" and '"run_id"' not in path.read_text():
        return
    try:
        records = read_runs(path)
    except UserError as error:
        print(f"left out: {error}", file=stderr())
        return
    for record in records:
        metrics = record["metrics"]["last"] if record["status"] == "finished" else {}
        yield Run(
            record["run_id"], record["seed"], _settings(record["config"], record["resolved"]),
            record["status"], metrics, _course(record.get("history") or {}),
        )  # fmt: skip


def _logged(folder: Path) -> Iterator[Run]:
    """Yield the run of a folder that is not over."""
    try:
        config = read_yaml(folder / "config.yaml")
        resolved = files.parse_json((folder / "resolved.json").read_bytes())["resolved"]
        seed = config["seed"]
        path = folder / "metrics.jsonl"
        lines = [x for x in (stream_metrics(path) if path.is_file() else ()) if "split" not in x]
        done = lines[-1]["step"] if lines else 0
        history = binned_history(lines, done, lambda x: {k: x.get(k) for k in ("step", "loss")})
        settings = _settings(config, resolved)
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        print(f"left out: {folder} cannot be read ({error!r})", file=stderr())
        return
    yield Run(folder.name, seed, settings, f"at step {done}", {}, _course(history))


def _course(history: Mapping[str, Sequence[float | None]]) -> list[tuple[float, float]]:
    pairs = zip(history.get("step", []), history.get("loss", []), strict=False)
    return [(step, loss) for step, loss in pairs if step is not None and loss is not None]


def _settings(config: Mapping[str, Any], resolved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what determines the result, `model.name` as `model`; a text by its own name.

    Every text is dataset=c4; `resolved.corpus` says which it is.
    """
    kept = flat({key: value for key, value in config.items() if key not in IGNORED})
    kept = {key: value for key, value in kept.items() if not key.endswith(".family")}  # by the name
    known = {k: v for k, v in resolved.items() if k not in ("model_arguments", *HOW_COMPUTED)}
    facts = {f"resolved.{k}": v for k, v in flat(known).items()}
    if corpus := facts.pop("resolved.corpus", None):
        kept["dataset.name"] = corpus
    kept |= {key: value for key, value in NEUTRAL.items() if kept.get(key, value) == value}
    return {key.removesuffix(".name"): value for key, value in (kept | facts).items()}


def group(runs: Iterable[Run]) -> list[Row]:
    """Put runs together that differ in nothing but the seed."""
    rows: dict[str, Row] = {}
    for run in runs:
        key = repr(sorted(run.settings.items()))
        rows.setdefault(key, Row(run.settings, [])).runs.append(run)
    return [*rows.values()]


def columns_of(rows: Sequence[Row], by: str | None) -> tuple[list[str], list[str]]:
    """Return the settings that differ between rows, and those left out as they go with another.

    Two settings that divide the rows in the same way, such as noise and beta_min, are one column;
    one that an estimator has and another has not, with one value throughout, is none.

    Raises:
        UserError: where `by` is no setting of these runs.
    """
    names = list(dict.fromkeys(name for row in rows for name in row.settings))
    if by is not None and by not in names:
        raise UserError(f"--by {by} is not a setting of these runs{did_you_mean(by, names)}")
    noises = {row.settings.get("estimator.noise") for row in rows} - {None, ABSENT}
    second = "estimator.beta_min" if noises else "estimator.noise"
    names.sort(
        key=lambda name: (name != by, "." in name, name.startswith("resolved."), name == second)
    )
    shown: dict[tuple[int, ...], str] = {}
    left = []
    for name in names:
        values = [repr(row.settings.get(name, ABSENT)) for row in rows]
        order = list(dict.fromkeys(values))
        if len({*order} - {repr(ABSENT)}) < 2 and name != by:  # some parts have it, all alike
            continue
        division = tuple(order.index(value) for value in values)
        if division in shown:
            left.append(name)
        else:
            shown[division] = name
    return [*shown.values()], left


def sort_key(row: Row, columns: Sequence[str]) -> list[tuple[bool, float, str]]:
    """Return the place of a row: numbers by size, then texts."""
    values = [row.settings.get(column, ABSENT) for column in columns]
    numbers = [isinstance(v, int | float) and not isinstance(v, bool) for v in values]
    return [
        (not number, value if number else 0.0, str(value))
        for value, number in zip(values, numbers, strict=True)
    ]


def metrics_of(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Return the metrics that a row has, as split and name."""
    pairs = [(split, metric) for split in SPLITS for metric in METRICS]
    return [pair for pair in pairs if any(row.values(*pair) for row in rows)]


def table(rows: Sequence[Row], by: str | None = None) -> str:
    """Return the rows as aligned columns, what they have in common above and what is left below."""
    columns, left = columns_of(rows, by)
    rows = sorted(rows, key=lambda row: sort_key(row, columns))
    metrics = metrics_of(rows)
    lines = [[*columns, *(" ".join(pair) for pair in metrics)]]
    for row in rows:
        settings = [shown(row.settings.get(column, ABSENT)) for column in columns]
        lines.append([*settings, *(_mean_of(row, *pair) for pair in metrics)])
    same = [f"{p}={shown(rows[0].settings.get(p))}" for p in COMMON if p not in (*columns, *left)]
    count = sum(len(row.runs) for row in rows)
    said = [f"{count} run{'s' * (count > 1)}" + (f", all with {' '.join(same)}" if same else "")]
    said += ["", *(aligned(lines) if columns or metrics else []), ""]
    if metrics:
        said.append("mean ± sd (seeds) after the last step; losses in nats, top1 in percent")
    if left:
        said.append(f"not shown, as they change together with a column: {', '.join(left)}")
    over = [run for row in rows for run in row.runs if run.state != "finished"]
    said += [f"in no mean: {run.name} {run.state}" for run in over]
    return "\n".join(said)


def _mean_of(row: Row, split: str, metric: str) -> str:
    """Return the mean of a metric, or why a row has none: another network's, or no run is over."""
    states = [run.state for run in row.runs]
    summary, diverged = summarize(row.values(split, metric)), states.count("diverged")
    if summary is None and "finished" in states:
        return ABSENT
    if summary is None and not diverged:
        return "not over"
    return mean_sd(summary, METRICS[metric], diverged)


def shown(value: Any) -> str:
    """Return a value as a short text that still tells 1 - 1e-9 from 1; of a hash its beginning.

    >>> shown(0.9), shown(1 - 1e-9), shown(1e-05), shown(True)
    ('0.9', '0.999999999', '1e-05', 'true')
    >>> shown("cifar-100 61d9968eeae6c8a198154d67c13a1968")
    'cifar-100 61d9968e'
    """
    if isinstance(value, float):
        short = f"{value:.6g}"
        return short if float(short) == value or abs(1 - value) > 1e-4 else f"{value:.12g}"
    return HASH.sub(r"\1", spelled(value))


def named(row: Row, columns: Sequence[str]) -> str:
    """Return what tells a row from others: `lsq, fogzo, noise=1e-09`."""
    present = [(c, row.settings[c]) for c in columns if row.settings.get(c, ABSENT) != ABSENT]
    return ", ".join(
        f"{c.rpartition('.')[2]}={shown(value)}" if "." in c else shown(value)
        for c, value in present
    )


def along_setting(rows: Sequence[Row], by: str) -> tuple[list[Point], str]:
    """Return points along a setting, and what the axis is called; x is None where a row has none.

    Values of beta close to 1 are drawn along 1 - beta.

    Raises:
        UserError: where the setting has fewer than two numbers.
    """
    columns, _ = columns_of(rows, by)
    others = columns[1:] if columns and columns[0] == by else columns
    near_one = by == "estimator.beta_min"
    points = []
    for split, metric in metrics_of(rows):
        for row in sorted(rows, key=lambda row: sort_key(row, [by])):
            summary = summarize(row.values(split, metric))
            if summary is None:
                continue
            value = row.settings.get(by, ABSENT)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            x = (complement(value) if near_one else float(value)) if number else None
            x = None if near_one and x == 0 else x  # has no place on a logarithmic axis
            label = named(row, others if x is not None else [*others, by])
            panel = f"{split} {metric}"
            points.append(Point(panel, label, x, summary.n, summary.mean, *ends_of_sd(summary)))
    if len({p.x for p in points} - {None}) < 2:
        raise UserError(f"--plot needs two values of {by}, as numbers, with finished runs")
    return points, f"1 - {by}" if near_one else by


def along_steps(rows: Sequence[Row]) -> list[Point]:
    """Return the loss along the steps, from histories and logs.

    Raises:
        UserError: where no run has either.
    """
    columns, _ = columns_of(rows, None)
    points = []
    for row in sorted(rows, key=lambda row: sort_key(row, columns)):
        losses: dict[float, list[float]] = {}
        for run in row.runs:
            for step, loss in run.course:
                losses.setdefault(step, []).append(loss)
        most = max(map(len, losses.values()), default=0)
        for step in sorted(step for step, values in losses.items() if len(values) == most):
            summary = summarize(losses[step])
            assert summary is not None
            ends = ends_of_sd(summary)
            points.append(Point("train loss", named(row, columns), step, most, summary.mean, *ends))
    if not points:
        raise UserError("these runs have no loss along the steps; give --by SETTING")
    return points


@one_line_errors
def main() -> None:
    """Print the table; draw what is asked for."""
    parser = command_parser(__doc__, "fogzo_repro.summary")
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUNS",
        help="a folder with runs or records somewhere below it, a run folder or a record",
    )  # fmt: skip
    parser.add_argument(
        "--by", metavar="KEY", help="the setting to sort by and to draw along, as estimator.noise"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE.png",
        help="draw the metrics along KEY, or without --by the loss along the steps; .png or .pdf",
    )  # fmt: skip
    arguments = parser.parse_args()
    path = arguments.plot
    if path is not None and path.suffix not in (".png", ".pdf"):
        raise UserError(f"--plot {path} ends in neither .png nor .pdf")
    rows = group(find_runs(arguments.runs))
    print(table(rows, arguments.by))
    if path is not None:
        by = arguments.by
        points, label = along_setting(rows, by) if by else (along_steps(rows), "step")
        if (count := len({point.line for point in points})) > MOST_LINES:
            fewer = "" if by else ", or --by SETTING to draw along it"
            raise UserError(
                f"--plot would draw {count} lines, of which no more than {MOST_LINES} can be told "
                f"apart; give fewer RUNS, as runs/*-lsq-*{fewer}"
            )
        if any(point.n > 1 for point in points):
            label += "\nmean ± sd of the seeds"
        print("written:", *draw_groups(points, label, path, course=not by))


if __name__ == "__main__":
    sys.exit(main())
