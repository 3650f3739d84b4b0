"""What FOGZO is for, in two minutes on two cores: real images, no download.

    make demo                  or: python scripts/demo.py

The paper's 784-10-10 network with 2-bit weights learns scikit-learn's handwritten digits, with two
quantizers that differ in one setting, the derivative that the STE takes for that of rounding:

    derivative 1      quantizer.clip_gradient=false   1 everywhere
    derivative cut    quantizer.clip_gradient=true    0 for a weight beyond the outer levels, which
                                                      the STE can therefore not bring back

Each is trained by the STE and by FOGZO (n = 1, beta = 0.999, the paper's values), and n-SPSA with
n = 1 stands beside them, which uses no derivative. In the end stand the train losses, FOGZO's
difference to the STE with its 95% interval, and the same difference on MNIST from the committed
records (results/records/readings). Runs that are finished are not run again.

How the design was fixed, before the first of its runs: the records of the readings on MNIST have
both quantizers (integer grid, spacing of one standard deviation) at the paper's learning rate, n
and beta; FOGZO's mean was lower than the STE's with the cut derivative and higher with derivative
1. The demo takes just this pair, with the recipe of the digits as it stands (recipe=digits_mlp),
the paper's n and beta, and the seeds 0 to 9, and says whatever comes out.

Exit status: 0; 2 an error that the user can mend; 75 interrupted, the same command goes on.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from statistics import mean
from typing import Any

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.project import TOP, working_folder
from fogzo_repro.reporting.figures.groups import Point, draw_groups
from fogzo_repro.reporting.readings import (
    DERIVATIVES,
    FOGZO,
    RATE,
    SPACING,
    STE,
    Reading,
    read_readings,
)
from fogzo_repro.reporting.statistics import gain_test, summarize
from fogzo_repro.reporting.wording import mean_sd
from fogzo_repro.sweeps.jobs import Cell, missing_jobs, plan_jobs
from fogzo_repro.sweeps.overview import Overview
from fogzo_repro.sweeps.queue import run_queue
from fogzo_repro.terminal import aligned, command_parser, one_line_errors
from fogzo_repro.tracking.metrics import read_metrics
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.preemption import REQUEUE_STATUS

FOLDER = working_folder() / "demo"
COMMON = [
    "dataset=digits", "recipe=digits_mlp", "hardware=cpu", "quantizer=round",
    "quantizer.grid=integer", "quantizer.scale_factor=1.0", f"output_root='{FOLDER / 'runs'}'",
]  # fmt: skip
QUANTIZERS = {"derivative 1": False, "derivative cut": True}  # quantizer.clip_gradient
ESTIMATORS = {"STE": ["estimator=ste"], "FOGZO": ["estimator=fogzo", "estimator.beta_min=0.999"]}
SPSA = "n-SPSA"
WHY = (
    "What could be behind it: the STE leaves a weight where it is once its derivative is 0, while",
    "FOGZO measures the loss on both sides of it and can bring it back. Where the derivative is 1",
    "there is nothing to bring back, and the random part of FOGZO's directions is noise.",
)
EVERY = 5.0  # seconds between lines of progress where the output is no terminal


def cells() -> dict[tuple[str, str], list[str]]:
    """Return the settings of each cell, by quantizer and estimator."""
    found = {
        (quantizer, estimator): [*words, f"quantizer.clip_gradient={str(clip).lower()}"]
        for quantizer, clip in QUANTIZERS.items()
        for estimator, words in ESTIMATORS.items()
    }
    found["no derivative", SPSA] = ["estimator=nspsa", "quantizer.clip_gradient=false"]
    return found


def run_cells(seeds: tuple[int, ...]) -> dict[tuple[str, str], list[dict[str, Any]]] | None:
    """Run what is missing, one process a core; return records by cell, None if it was stopped."""
    composed = [
        Cell(compose_run(*COMMON, f"cell.row='{row}'", f"cell.column='{column}'", *words), seeds)
        for (row, column), words in cells().items()
    ]
    jobs = plan_jobs(composed)
    missing = missing_jobs(jobs, FOLDER)
    over = len(jobs) - len(missing)
    print(f"{over} of {len(jobs)} runs are finished", flush=True)
    if missing:
        overview = Overview("demo", len(jobs), over, every=EVERY)
        workers = min(os.cpu_count() or 1, 4, len(missing))
        outcome = run_queue(missing, workers=workers, logs=FOLDER / "workers", overview=overview)
        if outcome.interrupted:
            return None
        for job, why in outcome.failed + outcome.elsewhere:
            raise UserError(f"{job.run_id}: {why}")
    records: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for job in jobs:
        cell = job.config.cell
        records.setdefault((cell.row, cell.column), []).append(
            read_record(job.folder / "record.json")
        )
    return records


def last(records: list[dict[str, Any]], split: str, metric: str) -> dict[int, float]:
    """Return a metric after the last step, by seed."""
    return {r["seed"]: r["metrics"]["last"][split][metric] for r in records}


def stuck(record: dict[str, Any]) -> float:
    """Return the share of weights, in percent, whose derivative is 0 at the end of a run."""
    from fogzo_repro import load_run
    from fogzo_repro.quantization import surrogate_slope

    model = load_run(FOLDER / "runs" / record["run_id"])
    zeros = total = 0
    for layer in (model.fc1, model.fc2):
        slope = surrogate_slope(layer.weight_quantizer, layer.weight)
        zeros, total = zeros + int((slope == 0).sum()), total + slope.numel()
    return 100 * zeros / total


def table(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Return the table, mean ± standard deviation (seeds)."""
    lines = [["quantizer", "estimator", "train loss", "test top-1 %", "weights with derivative 0"]]
    for (quantizer, estimator), runs in records.items():
        loss, top1 = last(runs, "train", "loss"), last(runs, "test", "top1")
        zero = "not used"
        if estimator != SPSA:
            zero = f"{mean(map(stuck, runs)):.0f}%"
        values = (mean_sd(summarize([*loss.values()]), 3), mean_sd(summarize([*top1.values()]), 1))
        lines.append([quantizer, estimator, *values, zero])
    lines.insert(1, ["-" * max(map(len, column)) for column in zip(*lines, strict=True)])
    return "\n".join(aligned(lines))


WORDS = {  # FOGZO's train loss
    "lower": "FOGZO's train loss is lower than the STE's",
    "higher": "FOGZO's train loss is higher than the STE's",
    "same": "FOGZO and the STE cannot be told apart",
}


def compared(fogzo: dict[int, float], ste: dict[int, float]) -> tuple[str, str]:
    """Return which of `WORDS` holds of two cells, and a sentence with the 95% interval."""
    found = gain_test(fogzo, ste)
    verdict = "lower" if found.low > 0 else "higher" if found.high < 0 else "same"
    numbers = f"{-found.gain:+.3f}, 95% interval [{-found.high:+.3f}, {-found.low:+.3f}]"
    return verdict, f"{WORDS[verdict]} ({numbers})"


def recorded(clip: bool) -> tuple[dict[int, float], dict[int, float]] | None:
    """Return FOGZO's and the STE's train losses on MNIST with a quantizer, from the records."""
    wanted = Reading(RATE, SPACING, "integer", DERIVATIVES[clip])
    _, tried = read_readings(TOP / "results")
    return next(((t.losses(FOGZO), t.losses(STE)) for t in tried if t.reading == wanted), None)


def outcome(records: dict[tuple[str, str], list[dict[str, Any]]]) -> str:
    """Say what came out here, and what the records of the paper's own experiment say."""
    lines, agree, asked = [], [], []
    for quantizer, clip in QUANTIZERS.items():
        fogzo, ste = (last(records[quantizer, e], "train", "loss") for e in ("FOGZO", "STE"))
        verdict, sentence = compared(fogzo, ste)
        lines.append(f"{quantizer}\n  digits, {len(ste)} seeds: {sentence}")
        known = recorded(clip)
        if known is not None:
            known_verdict, sentence = compared(*known)
            agree += [quantizer] * (verdict == known_verdict)
            asked.append(quantizer)
            lines.append(f"  MNIST, {len(known[1])} seeds, from the records: {sentence}")
    if asked:
        same = " and ".join(agree) or "neither"
        lines.append(f"\nThe digits came out as the records of MNIST did in: {same}.")
    return "\n".join([*lines, *WHY])


def draw(records: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """Draw the train loss, mean over each epoch, with the range over the seeds."""
    from fogzo_repro.data.digits import IMAGES, TEST_IMAGES

    points = []
    for (row, estimator), runs in records.items():
        curves = []
        for record in runs:
            lines = read_metrics(FOLDER / "runs" / record["run_id"] / "metrics.jsonl")
            losses = [line["loss"] for line in lines if "split" not in line]
            epoch = (IMAGES - TEST_IMAGES) // record["config"]["recipe"]["global_batch_size"]
            parts = [losses[i : i + epoch] for i in range(0, len(losses), epoch)]
            curves.append([mean(part) for part in parts])
        for panel in QUANTIZERS if row == "no derivative" else [row]:
            title = f"{panel}: train loss (nats)"
            for number, values in enumerate(zip(*curves, strict=True), 1):
                ends = min(values), max(values)
                points.append(Point(title, estimator, number, len(values), mean(values), *ends))
    draw_groups(points, f"epoch; mean and range of {len(runs)} seeds", path, course=True)


@one_line_errors
def main() -> int:
    """Run, print, draw; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="runs a cell; 2 or more")
    seeds = tuple(range(parser.parse_args().seeds))
    print(
        "FOGZO demo: a small network with 2-bit weights (integer grid, which is not the default)\n"
        "learns to read digits. Two quantizers, in which the STE's derivative is 1 everywhere, or\n"
        "cut to 0 beyond the outer levels.",
        flush=True,
    )
    if len(seeds) < 2:
        raise UserError("--seeds is the number of runs a cell, and a spread needs 2 or more")
    records = run_cells(seeds)
    if records is None:
        print("stopped; `make demo` goes on where it was", file=sys.stderr)
        return REQUEUE_STATUS
    path = FOLDER / "loss.png"
    draw(records, path)
    print(f"\n{table(records)}\n\nmean ± standard deviation (seeds), losses in nats, last step")
    print("one learning rate for all, tuned for none")
    print(f"\n{outcome(records)}\n\nloss curves: {os.path.relpath(path)}")
    print("with derivative 1 and tuned rates the STE is ahead on MNIST: README.md")
    print("next, your own run (in .venv):")
    print("  python -m fogzo_repro dataset=digits recipe=digits_mlp quantizer=sign")
    return 0


if __name__ == "__main__":
    sys.exit(main())
