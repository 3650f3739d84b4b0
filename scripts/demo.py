"""The main job in two minutes: one small network, three estimators, real data, no download.

Trains the paper's 784-10-10 network with 2-bit weights on scikit-learn's handwritten digits by STE,
FOGZO (at the paper's beta = 0.999, and at the value that our MNIST sweep chose) and n-SPSA, three
seeds each; prints one table and draws the loss curves. Finished runs are
not run again.
"""

from __future__ import annotations

import os
import statistics
import sys
from pathlib import Path
from typing import Any

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro.config import UserError
from fogzo_repro.project import working_folder

FOLDER = working_folder() / "demo"
SEEDS = (0, 1, 2)
CELLS = {
    "STE": ["estimator=ste"],
    "FOGZO n=1": ["estimator=fogzo"],  # beta = 0.999, the paper's
    "FOGZO n=1, 1-beta=1e-5": ["estimator=fogzo", "estimator.noise=1e-5"],  # chosen on MNIST
    "n-SPSA n=1": ["estimator=nspsa"],
    "n-SPSA n=100": ["estimator=nspsa", "estimator.n=100"],
}
COMMON = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", f"output_root={FOLDER / 'runs'}"]
COLORS = {
    "STE": "#000000",
    "FOGZO n=1": "#D55E00",
    "FOGZO n=1, 1-beta=1e-5": "#009E73",
    "n-SPSA n=1": "#56B4E9",
    "n-SPSA n=100": "#0072B2",
}


def run_cells() -> tuple[dict[str, list[dict[str, Any]]], bool]:
    """Run what is missing, one process a core; return records by cell, and if it was stopped."""
    from fogzo_repro.__main__ import compose_run
    from fogzo_repro.sweeps.jobs import Cell, missing_jobs, plan_jobs
    from fogzo_repro.sweeps.overview import Overview
    from fogzo_repro.sweeps.queue import run_queue
    from fogzo_repro.tracking.records import read_record

    cells = [
        Cell(compose_run(*COMMON, f"cell.row='{row}'", *overrides), SEEDS)
        for row, overrides in CELLS.items()
    ]
    jobs = plan_jobs(cells)
    missing = missing_jobs(jobs, FOLDER)
    print(f"{len(jobs) - len(missing)} of {len(jobs)} runs are finished", flush=True)
    if missing:
        overview = Overview("demo", len(jobs), len(jobs) - len(missing))
        workers = min(os.cpu_count() or 1, 4, len(missing))
        outcome = run_queue(missing, workers=workers, logs=FOLDER / "workers", overview=overview)
        if outcome.interrupted:
            return {}, True
        for job, why in outcome.failed:
            raise UserError(f"{job.run_id} failed: {why}")
    records: dict[str, list[dict[str, Any]]] = {}
    for job in jobs:
        records.setdefault(job.config.cell.row, []).append(read_record(job.folder / "record.json"))
    return records, False


def metric(records: list[dict[str, Any]], split: str, name: str) -> list[float]:
    """Return a metric of the last step over the seeds."""
    return [r["metrics"]["last"][split][name] for r in records]


def spread(values: list[float]) -> str:
    """Return mean and standard deviation."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f} ({len(values)})"


def table(records: dict[str, list[dict[str, Any]]]) -> str:
    """Return the table, mean ± standard deviation (number of seeds)."""
    head = ("estimator", "train loss", "test top-1 %", "time s", "evaluations per step")
    rows = [head]
    for cell, runs in records.items():
        count = runs[0]["evaluations_per_step"]
        said = f"{count['probes']} probes + STE pass" if count["probes"] else "STE pass"
        seconds = statistics.mean(r["wall_seconds"] for r in runs)
        loss, top1 = metric(runs, "train", "loss"), metric(runs, "test", "top1")
        rows.append((cell, spread(loss), spread(top1), f"{seconds:.1f}", said))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(v.ljust(w) for v, w in zip(row, widths, strict=True)) for row in rows]
    return "\n".join([lines[0], "  ".join("-" * w for w in widths), *lines[1:]])


def differences(records: dict[str, list[dict[str, Any]]]) -> str:
    """Say which differences of the train loss to the STE exceed twice the spread over seeds."""
    ste = metric(records["STE"], "train", "loss")
    lines = []
    for cell, runs in records.items():
        if cell == "STE":
            continue
        values = metric(runs, "train", "loss")
        difference = statistics.mean(values) - statistics.mean(ste)
        sd = ((statistics.variance(values) + statistics.variance(ste)) / 2) ** 0.5
        word = "higher" if difference > 0 else "lower"
        verdict = "clear" if abs(difference) > 2 * sd else "not clear"
        lines.append(
            f"{cell}: train loss {abs(difference):.3f} {word} than the STE's, "
            f"{verdict} ({abs(difference) / sd:.1f} sd over {len(values)} seeds; clear is above 2)"
        )
    return "\n".join(lines)


def draw(records: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw the training loss, mean over each epoch, with the range over the seeds."""
    import matplotlib.pyplot as plt

    from fogzo_repro.tracking.metrics import read_metrics

    figure, axes = plt.subplots(figsize=(5.2, 3.4), layout="constrained")
    for cell, runs in records.items():
        curves = []
        for record in runs:
            lines = read_metrics(FOLDER / "runs" / record["run_id"] / "metrics.jsonl")
            losses = [line["loss"] for line in lines if "split" not in line]
            epoch = 1437 // record["config"]["recipe"]["global_batch_size"]
            curves.append(
                [statistics.mean(losses[i : i + epoch]) for i in range(0, len(losses), epoch)]
            )
        points = list(zip(*curves, strict=True))
        epochs = range(1, len(points) + 1)
        axes.plot(epochs, [statistics.mean(p) for p in points], color=COLORS[cell], label=cell)
        low, high = [min(p) for p in points], [max(p) for p in points]
        axes.fill_between(epochs, low, high, color=COLORS[cell], alpha=0.15, linewidth=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("training loss (nats)")
    axes.set_title("2-bit weights, 784-10-10, scikit-learn digits", fontsize=10)
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=160)


def main() -> int:
    """Run, print, draw."""
    print("FOGZO demo: one small network, 2-bit weights, three estimators", flush=True)
    try:
        records, stopped = run_cells()
    except UserError as error:
        error.tell()
        return 2
    if stopped:
        print("stopped; `make demo` goes on where it was", file=sys.stderr)
        return 75
    path = FOLDER / "loss.png"
    draw(records, path)
    print(f"\n{table(records)}\n\nmean ± standard deviation (seeds), losses in nats, last step")
    print(f"\n{differences(records)}\n\nloss curves: {path.relative_to(working_folder())}")
    print("beta is 0.999 where none is given; what it does: results/tables/figure-shallow.md")
    print("The paper's own experiment is on MNIST: python -m fogzo_repro; README.md goes on.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
