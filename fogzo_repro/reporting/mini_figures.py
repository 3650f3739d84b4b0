"""results/figures/mini-*: where noise helps a deep network, and what FOGZO sees over time.

A column per quantizer. (a) train loss against 1 - beta_min, mean +- sd over the evaluation seeds,
the STE as a band; (b) rho_t = (1 - beta_t) d / beta_t, the noise-to-guide energy (PAPER 5), and
(c) |c| / ||eps g|| over the steps, mean over those seeds, from the histories in the records. The
CSV holds every point, those of the controls too, which stand too far away to be drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.drawing import (
    BLACK,
    BLUE,
    COLUMN,
    GREEN,
    LOG_FROM,
    ORANGE,
    VERMILION,
    canvas,
)
from fogzo_repro.reporting.results import TUNING_SEEDS, CellResult, TableResults
from fogzo_repro.reporting.statistics import summarize

ROW_HEIGHT = 1.35  # inches
COLORS = (BLUE, GREEN, ORANGE, VERMILION)  # of 1 - beta_min, the smallest first
LINES = ("-", "--", "-.", ":")
LOSS, RHO, RATIO = "train loss", "rho", "c_over_g"
Values = list[float | None]


@dataclass(frozen=True)
class Point:
    """A number of a cell over n seeds: of its end (no step), or at the middle step of a bin."""

    row: str
    column: str
    quantity: str
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
    stem, grid = results / "figures" / found.table, (3, len(quantizers))
    with canvas(stem, points, (COLUMN, 3 * ROW_HEIGHT + 0.45), grid) as (figure, axes):
        for index, quantizer in enumerate(quantizers):
            chosen = [p for p in points if _quantizer(p) == quantizer]
            _against_noise(axes[0][index], chosen)
            _over_time(axes[1][index], chosen, RHO)
            _over_time(axes[2][index], chosen, RATIO)
            axes[2][index].set_xlabel("step")
        _label(figure, axes, quantizers)
    return True


def _quantizer(point: Point) -> str:
    return point.row.split()[0]  # "2-bit FOGZO"; full precision belongs to none


def _ends(cell: CellResult) -> Iterator[Point]:
    """Yield the train loss of a cell with the final weights."""
    summary, record = summarize([*cell.values("train", "loss").values()]), cell.any_record
    if summary is not None and record is not None:
        sd = None if math.isnan(summary.sd) else summary.sd
        settings = record["config"]
        lr, noise = settings["recipe"]["lr"], settings["estimator"].get("noise")
        yield Point(cell.row, cell.column, LOSS, lr, noise, None, summary.n, summary.mean, sd)


def _course(cell: CellResult) -> Iterator[Point]:
    """Yield rho and |c| / ||eps g|| of a FOGZO cell over its steps."""
    runs = [
        record
        for seed, record in sorted(cell.runs.items())
        if seed not in TUNING_SEEDS and record["status"] == "finished" and "history" in record
    ]
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
    for quantity, seeds in courses.items():
        for step, values in zip(steps, zip(*seeds, strict=True), strict=True):
            summary = summarize([v for v in values if v is not None])
            if summary is not None:
                sd = None if math.isnan(summary.sd) else summary.sd
                place = cell.row, cell.column, quantity
                yield Point(*place, *what, step, summary.n, summary.mean, sd)


def _look(points: Sequence[Point]) -> dict[float, dict[str, Any]]:
    """Return colour and line of each 1 - beta_min, told apart without colour too."""
    noises = sorted({p.noise for p in points if p.noise and p.row.endswith("FOGZO")})
    return {
        noise: {"color": COLORS[i % len(COLORS)], "linestyle": LINES[i % len(LINES)]}
        for i, noise in enumerate(noises)
    }


def _against_noise(axes: Any, points: Sequence[Point]) -> None:
    from matplotlib.ticker import NullLocator

    ends = [p for p in points if p.quantity == LOSS]
    along = sorted((p for p in ends if p.row.endswith("FOGZO")), key=lambda p: p.noise or 0)
    rates = {p.lr for p in along}
    recipe = [p for p in ends if p.row.endswith(" STE") and p.lr in rates]
    for p in recipe:  # the STE at the learning rate that FOGZO has too
        axes.axhspan(p.mean - (p.sd or 0), p.mean + (p.sd or 0), color=BLACK, alpha=0.15, lw=0)
        axes.axhline(p.mean, color=BLACK, linestyle="--", linewidth=0.9, label="STE")
    noises = [p.noise for p in along if p.noise]
    axes.errorbar(
        noises, [p.mean for p in along], yerr=[p.sd or 0 for p in along],
        color=BLUE, marker="o", label="FOGZO", capsize=1.5, elinewidth=0.7,
    )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlabel(r"$1-\beta_{\min}$", labelpad=1)
    axes.set_xticks(noises, [rf"$10^{{{round(math.log10(n))}}}$" for n in noises])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(noises[0] / 2, noises[-1] * 2)
    _scale(axes, [p.mean for p in (*recipe, *along)])


def _over_time(axes: Any, points: Sequence[Point], quantity: str) -> None:
    for noise, look in _look(points).items():
        along = [p for p in points if p.quantity == quantity and p.noise == noise]
        exponent = round(math.log10(noise))
        axes.plot(
            [p.step for p in along], [p.mean for p in along], **look, marker=None,
            label=rf"$10^{{{exponent}}}$",
        )  # fmt: skip
    _scale(axes, [p.mean for p in points if p.quantity == quantity])


def _scale(axes: Any, values: Sequence[float]) -> None:
    positive = [v for v in values if v > 0]
    if positive and max(positive) > LOG_FROM * min(positive):
        axes.set_yscale("log")


def _label(figure: Any, axes: Any, quantizers: Sequence[str]) -> None:
    """Name the rows, and put the two legends where they hide nothing."""
    titles = (
        "train loss (nats)", r"$\rho_t=(1-\beta_t)\,d/\beta_t$", r"$|c|\,/\,\|\varepsilon g\|$",
    )  # fmt: skip
    for row, letter, title in zip(axes, "abc", titles, strict=True):
        row[0].set_ylabel(title)
        row[0].text(0.0, 1.04, f"({letter})", transform=row[0].transAxes, fontweight="bold")
    for column, quantizer in zip(axes[0], quantizers, strict=True):
        column.set_title(quantizer)
    axes[0][0].legend(frameon=False, handlelength=1.5, labelspacing=0.2, loc="best")
    lines, names = axes[1][0].get_legend_handles_labels()
    figure.legend(
        lines, names, title=r"$1-\beta_{\min}$", title_fontsize=7, loc="outside lower center",
        ncols=len(names), frameon=False, handlelength=2.2, columnspacing=1.0,
    )  # fmt: skip
