"""results/figures/mini-*: where noise helps a deep network, and what FOGZO sees over time.

A column per quantizer. (a) train loss against 1 - beta_min, mean +- sd: hollow on the tuning seeds,
filled on the evaluation seeds, the STE as a band, at FOGZO's learning rate and at its own chosen
one; (b) rho_t = (1 - beta_t) d / beta_t, the noise-to-guide energy (PAPER 5), and (c) |c| / ||eps
g|| over the steps, mean over the evaluation seeds, or the tuning seeds where there are no others,
from the histories in the records. The CSV holds every point, those of the controls too, which stand
too far away to be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.claims import chosen
from fogzo_repro.reporting.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    LOG_FROM,
    ORANGE,
    VERMILION,
    canvas,
    scale_values,
)
from fogzo_repro.reporting.results import TUNING_SEEDS, CellResult, TableResults
from fogzo_repro.reporting.statistics import summarize

ROW_HEIGHT = 1.35  # inches
COLORS = (BLUE, GREEN, ORANGE, VERMILION)  # of 1 - beta_min, the smallest first
LINES = ("-", "--", "-.", ":")
LEGEND: Any = {
    "frameon": False, "handlelength": 2.2, "columnspacing": 1.0, "labelspacing": 0.25,
    "title_fontsize": 7, "alignment": "left",
}  # fmt: skip
LOSS, RHO, RATIO = "train loss", "rho", "c_over_g"
EVALUATION, TUNING = "evaluation", "tuning"  # kinds of seeds
Values = list[float | None]


@dataclass(frozen=True)
class Point:
    """A number of a cell over n seeds: of its end (no step), or at the middle step of a bin."""

    row: str
    column: str
    quantity: str
    seeds: str
    lr: float
    noise: float | None  # 1 - beta_min
    step: float | None
    n: int
    mean: float
    sd: float | None


def write_mini_figure(results: Path, found: TableResults) -> bool:
    """Write the figure and the CSV behind it; return False where no FOGZO cell was run."""
    points = [p for cell in found.cells.values() for p in (*_ends(cell), *_course(cell))]
    quantizers = list(dict.fromkeys(_quantizer(p) for p in points if p.row.endswith("FOGZO")))
    if not quantizers:
        return False
    looks = _looks(points)
    stem, grid = results / "figures" / found.table, (3, len(quantizers))
    with canvas(stem, points, (COLUMN, 3 * ROW_HEIGHT + 0.75), grid) as (figure, axes):
        for index, quantizer in enumerate(quantizers):
            own = [p for p in points if _quantizer(p) == quantizer]
            best = chosen(found, f"{quantizer} STE")
            _against_noise(axes[0][index], own, None if best is None else best.column)
            _over_time(axes[1][index], own, RHO, looks)
            _over_time(axes[2][index], own, RATIO, looks)
            axes[2][index].set_xlabel("step")
        _label(figure, axes, quantizers, looks)
    return True


def _quantizer(point: Point) -> str:
    return point.row.split()[0]  # "2-bit FOGZO"; full precision belongs to none


def _ends(cell: CellResult) -> Iterator[Point]:
    """Yield the train loss of a cell with the final weights, on each kind of seeds."""
    for seeds in (EVALUATION, TUNING):
        values = cell.values("train", "loss", tuning=seeds == TUNING)
        summary, record = summarize([*values.values()]), cell.any_record
        if summary is not None and record is not None:
            sd = None if math.isnan(summary.sd) else summary.sd
            settings = record["config"]
            what = settings["recipe"]["lr"], settings["estimator"].get("noise"), None
            yield Point(cell.row, cell.column, LOSS, seeds, *what, summary.n, summary.mean, sd)


def _course(cell: CellResult) -> Iterator[Point]:
    """Yield rho and |c| / ||eps g|| of a FOGZO cell over its steps."""
    kinds: dict[str, list[dict[str, Any]]] = {EVALUATION: [], TUNING: []}
    for seed, record in sorted(cell.runs.items()):
        if record["status"] == "finished" and "history" in record:
            kinds[TUNING if seed in TUNING_SEEDS else EVALUATION].append(record)
    seeds, runs = next(((k, r) for k, r in kinds.items() if r), (EVALUATION, []))
    if not runs or not cell.row.endswith("FOGZO"):
        return
    settings, steps = runs[0]["config"], runs[0]["history"]["step"]
    what = settings["recipe"]["lr"], settings["estimator"]["noise"]
    courses: dict[str, list[Values]] = {RHO: [], RATIO: []}
    for record in runs:
        history, perturbed = record["history"], record["perturbed_weights"]
        shares: Values = history["noise"]
        courses[RHO].append([s if s is None else s * perturbed / (1 - s) for s in shares])
        courses[RATIO].append(history.get("c_over_g", [None] * len(steps)))
    for quantity, course in courses.items():
        for step, values in zip(steps, zip(*course, strict=True), strict=True):
            summary = summarize([v for v in values if v is not None])
            if summary is not None:
                sd = None if math.isnan(summary.sd) else summary.sd
                place = cell.row, cell.column, quantity, seeds
                yield Point(*place, *what, step, summary.n, summary.mean, sd)


def _looks(points: Sequence[Point]) -> dict[float, dict[str, Any]]:
    """Return colour, line and name of each 1 - beta_min, told apart without colour too.

    One for all quantizers, of which each may have other values: a sweep that is not complete.
    """
    noises = sorted({p.noise for p in points if p.noise and p.row.endswith("FOGZO")})
    return {
        noise: {
            "color": COLORS[i % len(COLORS)],
            "linestyle": LINES[i % len(LINES)],
            "label": _power(noise),
        }
        for i, noise in enumerate(noises)
    }


def _power(noise: float) -> str:
    return rf"$10^{{{round(math.log10(noise))}}}$"


def _against_noise(axes: Any, points: Sequence[Point], tuned: str | None) -> None:
    """Draw FOGZO against 1 - beta_min, and the STE at FOGZO's rate and in the column `tuned`."""
    from matplotlib.ticker import NullLocator

    ends = [p for p in points if p.quantity == LOSS]
    along = sorted((p for p in ends if p.row.endswith("FOGZO")), key=lambda p: p.noise or 0)
    rates = {p.lr for p in along}
    ste = [p for p in ends if p.row.endswith(" STE") and p.seeds == EVALUATION]
    levels = [(p, BLACK, "STE, FOGZO's lr") for p in ste if p.lr in rates]
    levels += [
        (p, VERMILION, "STE, its chosen lr") for p in ste if p.column == tuned and p.lr not in rates
    ]
    for p, color, label in levels:
        axes.axhspan(p.mean - (p.sd or 0), p.mean + (p.sd or 0), color=color, alpha=0.15, lw=0)
        axes.axhline(p.mean, color=color, linestyle="--", linewidth=0.9, label=label)
    for seeds, face, shift in ((TUNING, "white", 0.93), (EVALUATION, BLUE, 1.07)):
        same = [p for p in along if p.seeds == seeds and p.noise]
        if not same:
            continue
        axes.errorbar(
            [shift * (p.noise or 0) for p in same], [p.mean for p in same],
            yerr=[p.sd or 0 for p in same], color=BLUE, marker="o", markerfacecolor=face,
            label=f"FOGZO, {seeds} seeds", linewidth=0.7, capsize=1.5, elinewidth=0.7,
        )  # fmt: skip
    noises = sorted({p.noise for p in along if p.noise})
    axes.set_xscale("log")
    axes.set_xlabel(r"$1-\beta_{\min}$", labelpad=1)
    axes.set_xticks(noises, [_power(n) for n in noises])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(noises[0] / 2, noises[-1] * 2)
    means = [p.mean for p in (*(level[0] for level in levels), *along)]
    scale_values(axes.yaxis, means)
    if axes.get_yscale() == "log":  # not by bars that reach down to 0
        axes.set_ylim(min(means) / 2, 2 * max(means))


def _over_time(
    axes: Any, points: Sequence[Point], quantity: str, looks: dict[float, dict[str, Any]]
) -> None:
    for noise, look in looks.items():
        along = [p for p in points if p.quantity == quantity and p.noise == noise]
        if along:
            axes.plot([p.step for p in along], [p.mean for p in along], **look, marker=None)
    values = [p.mean for p in points if p.quantity == quantity and p.mean > 0]
    if values and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")


def _label(
    figure: Any, axes: Any, quantizers: Sequence[str], looks: dict[float, dict[str, Any]]
) -> None:
    """Name the rows, and put the two legends where they hide nothing."""
    from matplotlib.lines import Line2D

    titles = (
        "train loss (nats)", r"$\rho_t=(1-\beta_t)\,d/\beta_t$", r"$|c|\,/\,\|\varepsilon g\|$",
    )  # fmt: skip
    for row, letter, title in zip(axes, "abc", titles, strict=True):
        row[0].set_ylabel(title)
        row[0].text(0.0, 1.04, f"({letter})", transform=row[0].transAxes, fontweight="bold")
    for column, quantizer in zip(axes[0], quantizers, strict=True):
        column.set_title(quantizer)
    levels: dict[str, Any] = {}
    for column in axes[0]:
        levels |= dict(zip(*reversed(column.get_legend_handles_labels()), strict=True))
    figure.legend(
        levels.values(), levels, title="(a)", loc="outside lower left", ncols=1, **LEGEND,
    )  # fmt: skip
    figure.legend(
        handles=[Line2D([], [], **look) for look in looks.values()],
        title=r"(b, c) $1-\beta_{\min}$", loc="outside lower right", ncols=2, **LEGEND,
    )  # fmt: skip
