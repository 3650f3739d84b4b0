"""What running a table would take, said without starting anything and without its data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fogzo_repro.config import RunConfig
from fogzo_repro.project import shipped
from fogzo_repro.sweeps.forecast import (
    Forecast,
    Hours,
    forecast,
    missing_disk,
    missing_here,
    read_benches,
    run_hours,
)
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.status import known_runs, runs_of


def dry_run(table: str, cells: Sequence[Cell], records: Path) -> list[str]:
    """Return the lines of a dry run: every cell, totals, what is missing on this machine.

    Args:
        table: what was asked for.
        cells: its cells.
        records: the folder of committed records, with those of the benches in it.
    """
    known = known_runs(records, {Path(cell.config.output_root) for cell in cells})
    benches = read_benches(shipped(records.parent, "records/bench"))
    lines = [f"{table}, scale={cells[0].config.scale}: nothing is started", ""]
    totals = {card: 0.0 for card in benches}
    unknown = dict.fromkeys(benches, 0)
    disk, largest = 0, dict[str, tuple[RunConfig, Forecast]]()  # by dataset: of the most data
    for cell in cells:
        config, needed = cell.config, forecast(cell.config)
        runs = runs_of(config.cell, config.scale, cell.seeds)
        missing = [run for run in runs if known.get(run) not in ("done", "diverged")]
        hours = {card: run_hours(config, needed.steps, b) for card, b in benches.items()}
        for card, each in hours.items():
            totals[card] += 0.0 if each is None else each.hours * len(missing)
            unknown[card] += len(missing) if each is None else 0
        disk += needed.disk * len(missing)
        name = config.dataset.name
        if missing and (name not in largest or needed.data > largest[name][1].data):
            largest[name] = config, needed
        lines += _cell_lines(cell, needed, len(missing), hours)
    lines += ["", f"{len(cells)} cells, {sum(len(cell.seeds) for cell in cells)} runs"]
    lines += [
        f"GPU-hours of the missing runs on one {card}: {totals[card]:.3g}"
        + (f", and {unknown[card]} runs of unknown length" if unknown[card] else "")
        for card in benches
    ] + ["other cards: unknown, no bench record of them"]
    sizes = ", ".join(f"{k} {n.data / 1e9:.3g} GB" for k, (_, n) in sorted(largest.items()))
    lines.append(f"disk: {disk / 1e9:.3g} GB for the run folders; data: {sizes or 'none'}")
    lines.append(
        "hours are training steps by results/records/bench, ~ estimated from another size or "
        "quantizer; loading and evaluation come on top"
    )
    absent = [line for most in largest.values() for line in missing_here(*most)]
    absent += missing_disk(Path(cells[0].config.output_root), disk)
    return lines + [f"missing on this machine: {line}" for line in dict.fromkeys(absent)]


def _cell_lines(
    cell: Cell, needed: Forecast, missing: int, hours: dict[str, Hours | None]
) -> list[str]:
    config = cell.config
    about = "about " if needed.rough else ""
    length = ", ".join(f"{card} {_said(each)}" for card, each in hours.items()) or "unknown"
    return [
        f"{config.cell.row} | {config.cell.column}",
        f"    {config.model.name}, {config.dataset.name}, quantizer={config.quantizer.name}, "
        f"estimator={config.estimator.name}; {len(cell.seeds)} runs, {missing} missing",
        f"    {needed.parameters:,} parameters, {needed.perturbed:,} quantized; {about}"
        f"{needed.steps:,} steps, {about}{needed.units:,} {needed.unit}",
        f"    memory {needed.memory / 2**30:.2f} GiB and activations; disk "
        f"{needed.disk / 1e9:.2g} GB a run; hours a run: {length}",
    ]


def _said(hours: Hours | None) -> str:
    if hours is None:
        return "unknown"
    return f"{'~' if hours.scaled else ''}{hours.hours:.2g}"
