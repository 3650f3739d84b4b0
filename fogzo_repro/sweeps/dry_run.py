"""What running a table would take, said without starting anything and without its data."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fogzo_repro.config import CONFIGS, RunConfig, to_yaml
from fogzo_repro.config.parts import own_parts
from fogzo_repro.data.c4 import prepare_command
from fogzo_repro.project import script, shipped, working_folder
from fogzo_repro.reporting.benches import read_benches
from fogzo_repro.sweeps.benched import Hours, Peak, by_card, loader_rates, peak_memory, run_hours
from fogzo_repro.sweeps.forecast import (
    NO_GPU,
    Forecast,
    forecast,
    missing_disk,
    missing_here,
    plain,
)
from fogzo_repro.sweeps.jobs import Cell, device_here
from fogzo_repro.sweeps.lanes import group_key
from fogzo_repro.sweeps.recorded import hours_by_records, peak_by_records, recorded_seconds
from fogzo_repro.sweeps.status import OVER, Run, absent_starts, known_runs, run_elsewhere, runs_of
from fogzo_repro.sweeps.tables import find_entries, table_files
from fogzo_repro.terminal import aligned
from fogzo_repro.training.network import Network

HOURS = (
    "hours are training steps by results/records/bench, or what runs took that have a record; "
    "~ estimated from another size, quantizer or estimator; ≤ of runs that shared their card with "
    "others, and alone take less; L: what the recorded loader takes to decode the images, which is "
    "longer; evaluation comes on top, and loading where it was not measured"
)
NO_HOURS = "no hours are recorded for a CPU"
ABOUT_MEMORY = (
    "the most memory that was measured on a card, beside which torch reserves up to half as much; "
    "~ estimated from another size, batch, quantizer or estimator; + without the activations"
)


@dataclass(frozen=True)
class CellNeeds:
    """What the missing runs of a cell take."""

    cell: Cell
    forecast: Forecast  # of one run
    missing: int  # runs
    hours: dict[str, Hours | None]  # of one run, by card
    peak: Peak | None  # memory of one run on a card

    @property
    def config(self) -> RunConfig:
        """The configuration of its runs."""
        return self.cell.config


class Measured:
    """What benches and records say of hours and memory, by card; of a CPU nothing is known."""

    def __init__(self, records: Path, device: str) -> None:
        on_cpu, benches = device == "cpu", read_benches(shipped(records.parent, "records/bench"))
        self.benches = {} if on_cpu else by_card(benches)
        self.recorded = {} if on_cpu else recorded_seconds(records)
        self.rates = loader_rates(benches)

    def hours(self, config: RunConfig, steps: int, alone: bool = False) -> dict[str, Hours | None]:
        """Return the hours of a run by card: by benches where there are any, else by records.

        Records alone tell what runs that train side by side take, and nothing of one `alone`.
        """
        together = group_key(config) is not None
        found: dict[str, Hours | None] = {}
        for card, benches in self.benches.items():
            hours = None
            if alone or not together:
                hours = run_hours(config, steps, benches, self.rates)
            if hours is None and not (alone and together):
                hours = hours_by_records(config, steps, self.recorded.get(card, {}))
            found[card] = hours
        return found

    def peak(self, config: RunConfig) -> Peak | None:
        """Return the memory that a run takes on a card."""
        benches = [record for records in self.benches.values() for record in records]
        return peak_memory(config, benches) or peak_by_records(config, self.recorded)


def dry_run(table: str, cells: Sequence[Cell], records: Path) -> list[str]:
    """Return the lines of a dry run: a line a cell, sums by row, what is missing on this machine.

    `records` is the folder of committed records, with those of the benches in it.
    """
    hardware = cells[0].config.hardware
    on_cpu, device = hardware.device == "cpu", device_here(hardware.device)
    roots = {Path(cell.config.output_root) for cell in cells}
    known = known_runs(records, roots, device)
    measured, found = Measured(records, hardware.device), []
    cards = [*measured.benches]
    networks: dict[str, Network] = {}
    to_run: list[Run] = []
    for cell in cells:
        config, needed = cell.config, forecast(cell.config, networks)
        if group_key(config) is not None:  # side by side they leave a record and no folder
            needed = replace(needed, disk=0)
        runs = runs_of(config.cell, config.scale, cell.seeds)
        left = [run for run in runs if known.get(run) not in OVER]
        to_run += left
        hours = measured.hours(config, needed.steps)
        found.append(CellNeeds(cell, needed, len(left), hours, measured.peak(config)))
    disk = sum(each.forecast.disk * each.missing for each in found)
    largest: dict[str, CellNeeds] = {}  # by dataset: of the most data
    for each in sorted(found, key=lambda one: -one.forecast.data):
        if each.missing:
            largest.setdefault(each.config.dataset.name, each)
    sizes = ", ".join(f"{k} {plain(n.forecast.data / 1e9)} GB" for k, n in sorted(largest.items()))
    lines = [
        f"{table}, scale={cells[0].config.scale}: nothing is started",
        "",
        *_table(found, cards),
        "",
        f"{len(cells)} cells, {sum(len(cell.seeds) for cell in cells)} runs",
        *run_elsewhere(to_run, records, hardware.name, device),
        *(f"GPU-hours of the missing runs on one {c}: {_total(found, c)}" for c in cards),
        NO_HOURS if on_cpu else f"other cards: unknown{_to_measure(cells)}",
        f"disk: {plain(disk / 1e9)} GB for the run folders; data: {sizes or 'none'}",
        *([] if on_cpu else [HOURS]),
    ]
    absent = [
        line for most in largest.values() for line in missing_here(most.config, most.forecast)
    ]
    absent += [
        f"recipe.start_from={start}, with which {count} of the missing runs begin"
        for start, count in absent_starts(cells, known).items()
    ]
    absent += missing_disk(Path(cells[0].config.output_root), disk)
    lines += [f"missing on this machine: {line}" for line in dict.fromkeys(absent)]
    return lines + _trial(table, found)


def describe_without_data(config: RunConfig) -> str | None:
    """Return what one run takes where it lacks data or a card here; None where it lacks neither."""
    needed = forecast(config)
    absent = missing_here(config, needed)
    if all(line.startswith(NO_GPU) for line in absent):  # the run would go on without one
        return None
    about = "~" if needed.rough else ""
    measured = Measured(working_folder() / "results" / "records", config.hardware.device)
    hours = measured.hours(config, needed.steps, alone=True)
    facts = {
        "steps": f"{about}{needed.steps:,}, {about}{_short(needed.units)} {needed.unit}",
        "parameters": f"{needed.parameters:,}",
        "d (perturbed weights)": f"{needed.perturbed:,}",
        "memory": f"{_memory(needed, measured.peak(config))} GiB",
        "disk": f"{plain(needed.disk / 1e9)} GB; data: {plain(needed.data / 1e9)} GB",
        **{f"hours, {card}": _said(one) for card, one in hours.items()},
    }
    lines = aligned([*facts.items()])
    lines += [f"missing on this machine: {line}" for line in absent]
    on_cpu = config.hardware.device == "cpu"
    return "\n".join(
        [to_yaml(config), *lines, f"memory: {ABOUT_MEMORY}", NO_HOURS if on_cpu else HOURS]
    )


def describe_on_cards(config: RunConfig, steps: int) -> list[str]:
    """Return what a run of so many steps takes on cards, as far as it is known, in lines."""
    measured = Measured(working_folder() / "results" / "records", config.hardware.device)
    peak, hours = measured.peak(config), measured.hours(config, steps, alone=True)
    facts, legends = {}, []
    if peak is not None:
        facts["memory on a card"] = f"{_gigabytes(peak)} GiB"
        legends.append(f"memory: {ABOUT_MEMORY}")
    if known := {f"hours, {card}": _said(one) for card, one in hours.items() if one is not None}:
        facts |= known
        legends.append(HOURS)
    return [*aligned([*facts.items()]), *legends]


def _table(found: Sequence[CellNeeds], cards: Sequence[str]) -> list[str]:
    """Return a line for each cell below one for its row, and the sum of each row."""
    titles = ["", "missing", "steps", "seen", "GiB", "GB"]
    short = [re.sub(r"^NVIDIA | \d+GB.*", "", card) for card in cards]
    titles += [f"h a run, {card}" for card in short] + [f"h missing, {card}" for card in short]
    lines: list[list[str] | str] = [titles]
    rows: dict[str, list[CellNeeds]] = {}
    for each in found:
        rows.setdefault(each.config.cell.row, []).append(each)
    for row, cells in rows.items():
        lines.append(f"{row}: {_networks(cells)}")
        for each in cells:
            needed, about = each.forecast, "~" if each.forecast.rough else ""
            lines.append(
                [
                    f"  {each.config.cell.column}",
                    f"{each.missing} of {len(each.cell.seeds)}",
                    f"{about}{needed.steps:,}",
                    f"{about}{_short(needed.units)} {needed.unit}",
                    _memory(needed, each.peak),
                    plain(needed.disk / 1e9),
                    *(_said(each.hours[card]) for card in cards),
                    *(_total([each], card) for card in cards),
                ]
            )
        if len(cells) > 1:
            missing, runs = sum(c.missing for c in cells), sum(len(c.cell.seeds) for c in cells)
            disk = sum(c.forecast.disk * c.missing for c in cells) / 1e9
            totals = [_total(cells, card) for card in cards]
            blank = [""] * len(cards)
            lines.append(
                ["  sum", f"{missing} of {runs}", "", "", "", plain(disk), *blank, *totals]
            )
    shown = iter(aligned([line for line in lines if not isinstance(line, str)], numbers=True))
    texts = [line if isinstance(line, str) else next(shown) for line in lines]
    about = f"GiB: {ABOUT_MEMORY}; GB: disk of a run, in a sum of those that are missing"
    return [*texts, about]


def _memory(needed: Forecast, peak: Peak | None) -> str:
    """Return the GiB of a run."""
    if peak is None:
        return f"{needed.memory / 2**30:.2f}+"
    return _gigabytes(peak)


def _gigabytes(peak: Peak) -> str:
    return f"{'~' * peak.scaled}{plain(peak.memory / 2**30)}"


def _networks(cells: Sequence[CellNeeds]) -> str:
    """Return which networks a row trains, and how large they are."""
    quantized = [each for each in cells if each.forecast.perturbed]
    one = quantized[-1] if quantized else cells[0]
    config, needed = one.config, one.forecast
    said = f"{config.model.name} on {config.dataset.name}, {needed.parameters:,} parameters"
    return said + (f", {needed.perturbed:,} quantized" if quantized else "")


def _to_measure(cells: Sequence[Cell]) -> str:
    """Return how the hours on a card become known, which is by a bench at full scale alone."""
    kinds = {
        "language" if cell.config.dataset.name == "c4" else "vision"
        for cell in cells
        if cell.config.scale == "full" and cell.config.model.name != "mlp"
    }
    commands = " and ".join(f"make bench-{kind}" for kind in sorted(kinds, reverse=True))
    return f" until {commands} HARDWARE=NAME measured them" if kinds else ""


def _total(cells: Sequence[CellNeeds], card: str) -> str:
    """Return the hours of all missing runs on a card."""
    known = [(n.hours[card], n.missing) for n in cells if n.missing]
    unknown = sum(missing for one, missing in known if one is None)
    hours = sum(one.hours * missing for one, missing in known if one is not None)
    marks = ""
    if any(one is not None and one.shared for one, _ in known):
        marks = "≤" + "~" * any(one is not None and one.scaled for one, _ in known)
    if unknown:
        return f"{marks}{plain(hours)} and {unknown} runs of unknown length" if hours else "unknown"
    return marks + plain(hours)


def _short(count: int) -> str:
    for size, letter in ((1e9, "B"), (1e6, "M")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:,}"


def _said(hours: Hours | None) -> str:
    if hours is None:
        return "unknown"
    marks = "≤" * hours.shared + "~" * hours.scaled
    return f"{marks}{plain(hours.hours)}{' L' if hours.loader else ''}"


def _trial(table: str, found: Sequence[CellNeeds]) -> list[str]:
    """Return how a cell is tried on next to no data."""
    if found[0].config.scale == "smoke":
        return []
    entries = find_entries(table, table_files())
    fogzo = [entry for entry in entries if "fogzo" in entry.name]
    cell, config = (fogzo or entries)[0], found[0].config
    parts = shlex.quote(str(own_parts()))
    own = "" if cell.file.is_relative_to(CONFIGS) else f"FOGZO_PARTS={parts} "
    lines = [f"a cell in two steps, without its data: {own}{script('smoke', cell.path)}"]
    small = "recipe.max_steps=5 recipe.global_batch_size=8 cell.table=none"
    command = f"{own}python -m fogzo_repro experiment={cell.path} seed=0 {small}"
    if config.dataset.name.startswith("imagenet"):
        lines.append(
            "a cell on a handful of images, under data_dir/imagenet/{train,val}/<wnid>/: "
            f"{command} dataset=imagenet1k dataset.allow_partial=true"
        )
    elif config.dataset.name == "c4":
        lines.append(
            f"a cell on a little text: {prepare_command('DIR/c4', '2e6')} --held-out 0.02, then "
            f"{command} data_dir=DIR"
        )
    return lines
