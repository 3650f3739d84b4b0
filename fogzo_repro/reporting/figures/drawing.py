"""How all figures look, and how a figure and the CSV behind it are written.

Sizes are those of a two-column paper: drawn at the size of print, 8 pt. PNG and PDF carry neither
date nor software, so that the same points give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.reporting.columns import csv_text
from fogzo_repro.reporting.statistics import Summary

# Okabe and Ito's colours: told apart by readers with any colour vision.
BLACK, ORANGE, BLUE, GREEN, VERMILION, MAGENTA, GREY = (
    "#000000", "#E69F00", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#808080",
)  # fmt: skip
STYLE: Any = {
    "font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8, "legend.fontsize": 6.5,
    "xtick.labelsize": 7, "ytick.labelsize": 7, "lines.linewidth": 1.1, "lines.markersize": 3.5,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "pdf.fonttype": 42,
}  # fmt: skip
COLUMN, TEXT, DPI = 3.3, 6.75, 300  # inches: one column, both columns
LEGEND_LINE = 0.15  # inches
WIDE = 50  # characters that two columns of a legend hold side by side
LOG_FROM = 5.0  # values that span more than this factor get a logarithmic axis


def ends_of_sd(summary: Summary) -> tuple[float, float]:
    """Return mean - sd and mean + sd; one run has no bar."""
    sd = 0.0 if math.isnan(summary.sd) else summary.sd
    return summary.mean - sd, summary.mean + sd


def ends_of_interval(summary: Summary) -> tuple[float, float]:
    """Return the ends of the 95% t interval; one run has no bar."""
    return (summary.mean, summary.mean) if summary.n == 1 else (summary.low, summary.high)


def draw_points(
    axes: Any, points: Sequence[Any], x: Callable[[Any], float | None], **look: Any
) -> Any:
    """Draw points with their bars, joined by a line; return what stands for them in a legend.

    A point is a mean over runs, with the ends of the bar through it, `low` and `high`.
    """
    if not points:
        return None
    bars = [[p.mean - p.low for p in points], [p.high - p.mean for p in points]]
    look = {"capsize": 1.5, "elinewidth": 0.7, **look}
    return axes.errorbar([x(p) for p in points], [p.mean for p in points], yerr=bars, **look)


def draw_course(axes: Any, points: Sequence[Any], x: Callable[[Any], float], **look: Any) -> Any:
    """Draw many points as a line in a band; return what stands for them in a legend."""
    places = [x(p) for p in points]
    low = [max(p.low, p.mean / 10) for p in points]  # above 0, for a logarithmic axis
    high = [p.high for p in points]
    axes.fill_between(places, low, high, color=look["color"], alpha=0.15, linewidth=0)
    (line,) = axes.plot(places, [p.mean for p in points], **{**look, "marker": None})
    return line


def draw_levels(axes: Any, points: Sequence[Any], color: str, label: str) -> None:
    """Draw points as horizontal lines, their bars as bands."""
    for p in points:
        axes.axhspan(p.low, p.high, color=color, alpha=0.15, linewidth=0)
        axes.axhline(p.mean, color=color, linestyle="--", linewidth=0.9, label=label, zorder=1)


def legend_inside(axes: Any) -> None:
    """Put a legend where it hides least, if there is anything to name."""
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, loc="best", handlelength=1.8, labelspacing=0.25)


def letter(axes: Any, text: str, x: float, y: float) -> None:
    """Name a panel, as (a), beside its upper left corner."""
    axes.text(x, y, f"({text})", transform=axes.transAxes, fontweight="bold")


@contextmanager
def canvas(
    stem: Path, points: Sequence[Any], size: tuple[float, float], grid: tuple[int, int] = (1, 1),
    *, pdf: bool = False,
) -> Iterator[tuple[Any, Any]]:  # fmt: skip
    """Write <stem>.csv, give a figure and its axes to draw on, write <stem>.png, or .pdf too.

    Args:
        stem: path without suffix.
        points: what is drawn, all of it, as dataclass instances of one kind.
        size: width and height in inches.
        grid: rows and columns of panels, and so of the array of axes.
        pdf: write <stem>.pdf too.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    stem.parent.mkdir(parents=True, exist_ok=True)
    text = csv_text([f.name for f in fields(points[0])], map(astuple, points))
    files.write(stem.with_name(f"{stem.name}.csv"), text)
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(*grid, figsize=size, layout="constrained", squeeze=False)
        yield figure, axes
        with files.whole(stem.with_name(f"{stem.name}.png")) as file:
            figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
        if pdf:
            metadata = {"CreationDate": None, "Producer": None}
            with files.whole(stem.with_name(f"{stem.name}.pdf")) as file:
                figure.savefig(file, format="pdf", metadata=metadata)
        plt.close(figure)


def legend_columns(names: Sequence[str]) -> int:
    """Return into how many columns the names of a legend go within COLUMN inches."""
    half = math.ceil(len(names) / 2)  # matplotlib fills the first column first
    columns = (names[:half], names[half:])
    return 2 if sum(max(map(len, c), default=0) for c in columns) <= WIDE else 1


def legend_height(names: Sequence[str]) -> float:
    """Return the inches that a legend below the panels takes."""
    return LEGEND_LINE * math.ceil(len(names) / legend_columns(names))


def legend_below(figure: Any, handles: dict[str, Any], columns: int | None = None) -> None:
    """Put a legend for all panels below them; by default in what fits COLUMN inches."""
    columns = columns or legend_columns([*handles])
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=columns,
        frameon=False, handlelength=2.6, labelspacing=0.25, columnspacing=1.0,
    )  # fmt: skip


def scale_values(axis: Any, values: Sequence[float]) -> None:
    """Make `axes.xaxis` or `.yaxis` logarithmic where its values span much; plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    if not values or min(values) <= 0 or max(values) <= LOG_FROM * min(values):
        return
    axis.axes.set(**{f"{axis.axis_name}scale": "log"})
    if max(values) < 1000 * min(values):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def noise_axis(axes: Any, noises: Sequence[float], perturbed: int) -> None:
    """Make the axis of 1 - beta logarithmic, with room around the noises, and put rho above it."""
    low, high = min(noises) / 2, max(noises) * 2
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    rho_axis(axes, low, high, perturbed)


def rho_axis(axes: Any, low: float, high: float, perturbed: int) -> None:
    """Put rho = (1 - beta) d / beta, d = perturbed, above a logarithmic axis of 1 - beta.

    The limits of the axis are set; ticks are drawn between `low` and `high`.
    """
    from matplotlib.ticker import NullLocator

    # rho = noise d / (1 - noise) at ticks of rho itself; below 1 - beta = 0.1 the axis is linear
    decades = [10.0**k for k in range(-9, 10)]
    places = {f"$10^{{{round(math.log10(r))}}}$": r / (perturbed + r) for r in decades}
    shown = {t: x for t, x in places.items() if low < x < high}
    upper = axes.twiny()
    upper.set_xscale("log")
    upper.set_xlim(axes.get_xlim())
    upper.set_xticks([*shown.values()], [*shown])
    upper.xaxis.set_minor_locator(NullLocator())
    upper.set_xlabel(r"$\rho=(1-\beta)\,d/\beta$", fontsize=7)
    upper.spines["top"].set_visible(True)
