"""Table, CSV and figure of `fogzo_repro.diagnose`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.reporting.columns import csv_text
from fogzo_repro.reporting.statistics import Interval


@dataclass(frozen=True)
class Row:
    """One estimator at one snapshot, relative to the smoothed gradient R of that snapshot."""

    step: int  # optimizer steps before the snapshot
    progress: float  # step over the steps of the run
    estimator: str  # `ste`, `nspsa`, `fogzo`, or the name of a user's
    n: int  # probe pairs of one estimate; 0 for what takes none
    noise: float | None  # 1 - beta of FOGZO
    cosine: Interval  # between one estimate and R
    norm_ratio: Interval  # of one estimate over that of R
    bias_squared: Interval  # ||E[G] - R||^2 / ||R||^2; unbiased, so it may come out below 0
    variance: Interval  # E||G - E[G]||^2 / ||R||^2
    smoothed_square: Interval  # ||R||^2 in units of epsilon

    @property
    def label(self) -> str:
        """The estimator's name for people."""
        if self.noise is None:
            return {"ste": "STE", "nspsa": "n-SPSA"}.get(self.estimator, self.estimator)
        return f"FOGZO {beta_text(self.noise)}"

    @property
    def error(self) -> float:
        """Root of the expected ||G - R||^2 / ||R||^2: bias and variance together."""
        return math.sqrt(max(0.0, self.bias_squared.value + self.variance.value))


MEASURED = ("cosine", "norm_ratio", "bias_squared", "variance", "smoothed_square")


def beta_text(noise: float) -> str:
    """Return beta readably where it is close to 1.

    >>> beta_text(1e-3), beta_text(1e-5)
    ('β=0.999', 'β=1-1e-5')
    """
    if noise >= 1e-3:
        return f"β={1 - noise:g}"
    mantissa, exponent = f"{noise:.0e}".split("e")
    return f"β=1-{mantissa}e{int(exponent)}"


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write every row with the low and high end of each interval."""
    names = ["step", "progress", "estimator", "n", "beta", "noise"]
    for key in MEASURED:
        names += [key, f"{key}_low", f"{key}_high"]
    lines = []
    for row in rows:
        beta = None if row.noise is None else 1 - row.noise
        measured = [end for key in MEASURED for end in getattr(row, key)]
        lines.append([row.step, row.progress, row.estimator, row.n, beta, row.noise, *measured])
    files.write(path, csv_text(names, lines))


def table(rows: Sequence[Row]) -> str:
    """Return a text table: a block per snapshot, a line per estimator, columns by n."""
    blocks = []
    for step, group in groupby(rows, key=lambda row: row.step):
        of_step = list(group)
        r = of_step[0].smoothed_square
        sizes = sorted({row.n for row in of_step if row.n})
        heads = [f"cosine n={n}" for n in sizes] + [f"norm n={n}" for n in sizes]
        lines = [
            f"step {step} ({of_step[0].progress:.0%}): norm of the smoothed gradient "
            f"{_root(r)}, in units of epsilon",
            _line("", [*heads, "bias", "sd n=1"]),
        ]
        for label, same in groupby(of_step, key=lambda row: row.label):
            by_n = {row.n: row for row in same}
            first = next(iter(by_n.values()))
            shown = [by_n.get(n) or (by_n.get(0) if n == 1 else None) for n in sizes]
            cells = [_pm(row.cosine) if row else "" for row in shown]
            cells += [_pm(row.norm_ratio) if row else "" for row in shown]
            lines.append(_line(label, [*cells, _root(first.bias_squared), _root(first.variance)]))
        if not r.low > 0:
            lines.append("  the norm of the smoothed gradient is not resolved: give directions=")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _line(label: str, cells: list[str]) -> str:
    return f"  {label:<15}" + "".join(f"{cell:>15}" for cell in cells)


def _pm(x: Interval) -> str:
    half = (x.high - x.low) / 2
    if math.isnan(half):
        return "-"
    digits = max(0, 2 - math.floor(math.log10(abs(half)))) if half > 0 else 3
    digits = min(digits, 4) if abs(x.value) < 1 else min(digits, 1)
    return f"{x.value:.{digits}f}±{half:.{digits}f}"


def _root(square: Interval) -> str:
    """Show the root of a square that is measured with an interval; an upper bound where it is 0."""
    if math.isnan(square.high - square.low):
        return "-"
    if square.low > 0 or square.high == square.value:
        low, value, high = (math.sqrt(max(0.0, s)) for s in (square.low, square.value, square.high))
        return _pm(Interval(value, low, high))
    return f"<{math.sqrt(max(0.0, square.high)):.3g}"


STYLES = {"ste": {"color": "black", "ls": "-"}, "nspsa": {"color": "tab:red", "ls": "--"}}


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw cosine and relative error over the progress of training, a column for each n."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    sizes = sorted({row.n for row in rows if row.n})
    noises = sorted({row.noise for row in rows if row.noise is not None}, reverse=True)
    shades = pyplot.get_cmap("viridis")
    colours: dict[float | None, Any] = {
        noise: shades(i / max(1, len(noises) - 1) * 0.9) for i, noise in enumerate(noises)
    }
    figure, axes = pyplot.subplots(
        2, len(sizes), figsize=(4 * len(sizes) + 1.6, 7), sharex=True, sharey="row", squeeze=False
    )
    for column, n in enumerate(sizes):
        chosen = sorted((row for row in rows if row.n in (0, n)), key=_line_order)
        lines = [(label, list(group)) for label, group in groupby(chosen, lambda row: row.label)]
        for index, (label, line) in enumerate(lines):
            first = line[0]
            style: dict[str, Any] = {"color": colours.get(first.noise), "label": label}
            if first.noise is None:
                style |= STYLES.get(first.estimator, {"color": "tab:orange", "ls": ":"})
            shift = 0.006 * (index - (len(lines) - 1) / 2)  # so that intervals do not overlap
            x = [row.progress + shift for row in line]
            y = [row.cosine.value for row in line]
            ends = (
                [row.cosine.value - row.cosine.low for row in line],
                [row.cosine.high - row.cosine.value for row in line],
            )
            axes[0][column].errorbar(x, y, yerr=ends, marker="o", ms=3, elinewidth=0.8, **style)
            axes[1][column].plot(x, [row.error for row in line], marker="o", ms=3, **style)
        axes[0][column].set_title(f"n = {n} probe pairs")
        axes[1][column].set_xlabel("progress of training")
        axes[1][column].set_yscale("log")
        for panel in axes[:, column]:
            panel.grid(alpha=0.3)
        axes[0][column].axhline(0, color="grey", lw=0.8)
        axes[1][column].axhline(1, color="grey", lw=0.8)
    axes[0][0].set_ylabel("cosine to the smoothed gradient")
    axes[1][0].set_ylabel("error: sqrt(bias² + variance) / ||R||\n(an estimate of zero has 1)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0, 1 - 1.6 / (4 * len(sizes) + 1.6), 1))
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=9)
    with files.whole(path) as file:
        figure.savefig(file, format="png", dpi=120)
    pyplot.close(figure)


def _line_order(row: Row) -> tuple[int, float, int]:
    rank = {"ste": 0, "nspsa": 1, "fogzo": 2}.get(row.estimator, 3)
    return rank, -(row.noise or 0.0), row.step
