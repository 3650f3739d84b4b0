"""The speed tables of docs/hardware.md, from results/records/bench.

One line a network and quantizer (training steps on one card), one a network (several cards), one a
job (all else that was timed).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro.reporting.columns import Column, markdown

PEAK = "790 TFLOP/s"  # the bf16 matrix rate measured on an H200, scripts/bench/steps.py


@dataclass(frozen=True)
class Bench:
    """One line: what was measured, and the record that holds it."""

    path: Path
    record: dict[str, Any]
    name: str
    quantizer: str
    figures: dict[str, Any]

    @property
    def unquantized(self) -> dict[str, Any] | None:
        """The same network without a quantizer in the same record."""
        return self.record["networks"][self.name].get("none") if self.quantizer != "none" else None


def speed(folder: Path) -> str:
    """Return all benches of a folder as tables, each with what has to be said of it."""
    records = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    steps, cards, jobs = [*_steps(records)], [*_cards(records)], [*_jobs(records)]
    parts = [ABOUT_STEPS, "\n".join(_sorted(markdown(STEPS, steps)))]
    if cards:
        parts += [ABOUT_CARDS, markdown(CARDS, cards)]
    return "\n\n".join([*parts, markdown(JOBS, jobs)])


def _sorted(table: str) -> list[str]:
    head, rule, *lines = table.splitlines()
    return [head, rule, *sorted(lines)]


def _steps(records: dict[Path, dict[str, Any]]) -> Iterator[Bench]:
    """Yield each quantized network; an unquantized one where no bench has it quantized."""
    benched = [each for record in records.values() for each in record.get("networks", {}).items()]
    quantized = {network for network, measured in benched if set(measured) != {"none"}}
    for path, record in records.items():
        for network, measured in record.get("networks", {}).items():
            for quantizer, figures in measured.items():
                if quantizer != "none" or network not in quantized:
                    yield Bench(path, record, network, quantizer, figures)


def _cards(records: dict[Path, dict[str, Any]]) -> Iterator[Bench]:
    for path, record in records.items():
        for network, figures in record.get("cards", {}).items():
            yield Bench(path, record, network, "round-w2", figures)


def _jobs(records: dict[Path, dict[str, Any]]) -> Iterator[tuple[str, str, Path]]:
    """Yield what was timed, how long it took or how fast it went, and the record."""
    for path, record in records.items():
        if "networks" not in record and "cards" not in record:
            for job, measured in _timed(record):
                yield job, measured, path


def _network(bench: Bench) -> str:
    figures = bench.figures
    if figures["unit"] == "tokens":
        size = f"{figures['units_per_step']:,} tokens"
    else:
        size = f"{figures['units_per_step']} × {figures['size']} px"
    return f"{bench.name}, {size}, {bench.record['hardware']}"


def _ste(bench: Bench) -> str:
    figures = bench.figures
    rate = f"{figures['ste_per_s']:,.0f} {figures['unit']}/s"
    share = figures.get("share_of_peak")
    return rate if share is None else f"{rate}, {100 * share:.0f}% of {PEAK}"


def _over_unquantized(bench: Bench) -> str:
    plain = bench.unquantized
    if plain is None:
        return ""
    return f"{bench.figures['ste_ms']['median'] / plain['ste_ms']['median']:.3f}"


def _fogzo(bench: Bench) -> str:
    figures = bench.figures
    return f"{figures['fogzo_per_s']:,.0f} {figures['unit']}/s" if "fogzo_ms" in figures else ""


def _ratio(key: str) -> Any:
    return lambda bench: f"{bench.figures[key]:.3f}" if key in bench.figures else ""


def _link(path: Path) -> str:
    return f"[{path.stem}](../results/records/bench/{path.name})"


def _rate(way: str, kind: str) -> Any:
    """Return the value of a column of several cards: the rate, and how many times one card's."""

    def shown(bench: Bench) -> str:
        figures, count = bench.figures, bench.record["processes"]
        step, alone = figures[way][kind]["median"], figures["one_card"][kind]["median"]
        rate = 1000 * count * figures["units_per_card"] / step
        return f"{rate:,.0f} {figures['unit']}/s ({count * alone / step:.2f})"

    return shown


def _timed(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    card = record["hardware"]
    if "jobs" in record:
        names = {
            "mnist_ste": "MNIST MLP, 10 epochs, STE",
            "mnist_fogzo_n1": "MNIST MLP, 10 epochs, FOGZO n=1",
            "mnist_nspsa_n7960": "MNIST MLP, 10 epochs, n-SPSA n=7,960",
        }
        jobs = record["jobs"]
        for key, name in names.items():
            if key in jobs:
                yield f"{name}, {card}", f"{jobs[key]['seconds']:.2f} s"
        step = jobs["step_n7960"]
        said = f"{step['batched']['seconds']:.3g} s, {step['ratio']:.3g} × the sequential evaluator"
        yield f"one step of n-SPSA n=7,960, {card}", said
    for workers, figures in record.get("prepare", {}).items():
        processes = f"{workers} {'process' if workers == '1' else 'processes'}"
        yield f"prepare_c4, {processes}, {card}", f"{figures['tokens_per_s'] / 1e6:.2f}M tokens/s"
    for name, figures in record.get("recipes", {}).items():
        least = "at least " if "notes" in figures else ""
        rate = f"{least}{figures['images_per_s']:,.0f} images/s decoded and augmented"
        yield f"photographs of 224 px, {name}'s recipe, {card}", rate


ABOUT_STEPS = "One training step, bf16; the paper's FOGZO step takes 1.58 STE steps (Table 4)."
STEPS = (
    Column("network, on one card", _network),
    Column("quantizer", lambda bench: bench.quantizer),
    Column("STE", _ste),
    Column("× unquantized", _over_unquantized),
    Column("FOGZO n=1", _fogzo),
    Column("× STE", _ratio("fogzo_over_ste")),
    Column("× (STE + two forwards)", _ratio("fogzo_over_parts")),
    Column("record", lambda bench: _link(bench.path)),
)
ABOUT_CARDS = (
    "Several cards in one run, each with the batch above, `round-w2`; in brackets, how many "
    "times one card's. The last columns: launched kernel by kernel, not as one CUDA graph."
)
CARDS = (
    Column("network, cards", lambda b: f"{b.name}, {b.record['processes']} {b.record['hardware']}"),
    Column("STE", _rate("together", "ste_ms")),
    Column("FOGZO n=1", _rate("together", "fogzo_ms")),
    Column("STE, by kernels", _rate("eager", "ste_ms")),
    Column("FOGZO, by kernels", _rate("eager", "fogzo_ms")),
    Column("record", lambda bench: _link(bench.path)),
)
JOBS = (
    Column("job", lambda job: job[0]),
    Column("measured", lambda job: job[1]),
    Column("record", lambda job: _link(job[2])),
)
