"""What docs/hardware.md and README.md say of speed, from results/records/bench.

One line a network and quantizer (training steps on one card), then one for each other kind of
bench: 12 at most, what a reader needs to plan; all else stays in the records, which are linked.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.reporting.columns import Column, filled, markdown
from fogzo_repro.terminal import UserError

PEAK_TFLOPS = 790  # a second: the bf16 matrix rate measured on an H200, scripts/bench/steps.py
SHOWN = (  # network and quantizer, in this order
    ("resnet18", "round-w2"),
    ("resnet50", "round-w2"),
    ("resnet50", "lsq-w2a2"),
    ("deit_tiny", "round-w2"),
    ("llama_30m", "round-w2"),
    ("llama_30m", "quest-w2a2"),
    ("llama_30m", "quest-w2a2-exact"),
    ("llama_300m", "round-w2"),
)
PARTS = "0.25", "0.125"  # of the batch, for the probes
# The keys of what was measured: milliseconds, seconds, MiB, rates of work, and ratios of times.
FIGURE = re.compile(
    r"(_ms|_mb|_over_[a-z_]+|^median|^ratio|^seconds(_[a-z]+)?|(images|tokens)_per_s)$"
)
Records = dict[Path, dict[str, Any]]


@dataclass(frozen=True)
class Bench:
    """One line: what was measured, and the record that holds it."""

    path: Path
    record: dict[str, Any]
    name: str
    quantizer: str
    figures: dict[str, Any]


def speed(records: Records) -> str:
    """Return what a reader needs of the benches as two tables, and links to the rest."""
    steps, jobs = [*_steps(records, SHOWN)], [*_jobs(records)]
    shown = {bench.path for bench in steps} | {path for _, _, path in jobs}
    parts = [ABOUT_STEPS, markdown(filled(STEPS, steps), steps)] if steps else []
    parts += [markdown(JOBS, jobs)] if jobs else []
    if rest := [_link(path) for path in records if path not in shown]:
        parts.append(f"More is in {', '.join(rest)}.")
    return "\n\n".join(parts)


def speed_sentence(records: Records) -> str:
    """Return README's sentence: how many STE steps a FOGZO step takes; nothing without records.

    Of all cases, by the record that the table would show: the slowest is none of those that it
    does show, and older records of a case are of earlier code.
    """
    cases = sorted(
        {
            (name, quantizer)
            for record in records.values()
            for name, measured in record.get("networks", {}).items()
            for quantizer in measured
        }
    )
    steps = [*_steps(records, cases)]
    if not steps:
        return ""
    ratios = [bench.figures["fogzo_over_ste"] for bench in steps]
    cards = sorted({bench.record["hardware"].removeprefix("NVIDIA ").split()[0] for bench in steps})
    return (
        "A FOGZO step with one probe pair takes "
        f"{min(ratios):.2f} to {max(ratios):.2f} times as long as an STE step, by "
        f"network and quantizer, on one {' or '.join(cards)} ([table of "
        "speeds and records](docs/hardware.md#measured-speed); of each, one record)."
    )


def read_benches(folder: Path) -> Records:
    """Return the records of the benches in a folder, by their files.

    Raises:
        UserError: where one is none.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path] = files.parse_json(path.read_bytes())
            if not isinstance(found[path]["hardware"], str):
                raise ValueError("hardware is not a text")
            if not all(figure > 0 for figure in _estimated_by(found[path])):
                raise ValueError("a figure is not above 0")
            if not _figures(found[path]):
                raise ValueError("it has no figure")
            alone = {path: found[path]}
            speed(alone)  # reads every figure that a page shows
            speed_sentence(alone)
        except Exception as error:  # whatever may be wrong with a file
            raise UserError(
                f"{path} is not the record of a bench ({error!r}); put back the committed file"
            ) from None
    return found


def _figures(part: Any, key: str = "") -> int:
    """Return how many figures a part of a record has.

    Raises:
        ValueError: for a figure that is no number above 0, and any number that is none or below 0.
    """
    if isinstance(part, dict):
        return sum(_figures(value, name) for name, value in part.items())
    is_number = isinstance(part, int | float) and not isinstance(part, bool)
    if FIGURE.search(key):
        if not is_number or not 0 < part < math.inf:
            raise ValueError(f"{key} is {part!r}, no number above 0")
        return 1
    if is_number and not 0 <= part < math.inf:
        raise ValueError(f"{key} is {part}")
    return sum(map(_figures, part)) if isinstance(part, list) else 0


def _estimated_by(record: dict[str, Any]) -> Iterator[float]:
    """Yield the figures that a dry run estimates hours and memory by."""
    for recipe in record.get("recipes", {}).values():
        for way in (recipe, *recipe.get("ways", {}).values()):
            yield way["images_per_s"]
    for job in record.get("jobs", {}).values():
        yield job.get("seconds", 1.0)
    for measured in record.get("networks", {}).values():
        for figures in measured.values():
            yield figures["units_per_step"]
            yield figures["peak_memory_mb"]
            yield figures["ste_ms"]["median"]
            yield figures.get("flop_per_token", 1.0)
            for part in (figures, *figures.get("probe_fraction", {}).values()):
                yield part.get("fogzo_ms", {"median": 1.0})["median"]


def _steps(records: Records, cases: Iterable[tuple[str, str]]) -> Iterator[Bench]:
    """Yield the cases that were measured, a record with floors before an older one.

    Of equal ones that of the card that most records are of, so that lines can be compared.
    """
    cards = Counter(record.get("hardware") for record in records.values())

    def rank(bench: Bench) -> tuple[bool, int, str]:
        return "floor" not in bench.figures, -cards[bench.record.get("hardware")], bench.path.name

    for name, quantizer in cases:
        found = [
            Bench(path, record, name, quantizer, record["networks"][name][quantizer])
            for path, record in records.items()
            if "fogzo_ms" in record.get("networks", {}).get(name, {}).get(quantizer, {})
        ]
        if found:
            yield min(found, key=rank)


def ste_steps(records: Records, name: str, quantizer: str, fraction: float = 1.0) -> float | None:
    """Return how many STE steps a FOGZO step takes, its probes on a part of the batch; if known.

    >>> case = {"fogzo_over_ste": 1.8, "probe_fraction": {"0.25": {"fogzo_over_ste": 1.2}}}
    >>> ste_steps({Path("a"): {"networks": {"mlp": {"lsq": case}}}}, "mlp", "lsq", 0.25)
    1.2
    """
    cases = [r.get("networks", {}).get(name, {}).get(quantizer, {}) for r in records.values()]
    for case in sorted(cases, key=lambda case: "probe_fraction" not in case):  # all of one record
        figures = case if fraction == 1 else case.get("probe_fraction", {}).get(f"{fraction:g}", {})
        if "fogzo_over_ste" in figures:
            return float(figures["fogzo_over_ste"])
    return None


def _jobs(records: Records) -> Iterator[tuple[str, str, Path]]:
    """Yield, of each other kind of bench, what was measured, the figure, and the record."""
    for kind, (of_processor_too, said) in KINDS.items():
        for path, record in records.items():
            if kind in record and (of_processor_too or "threads" not in record["hardware"]):
                yield *said(record), path
                break


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
    return rate if share is None else f"{rate}, {100 * share:.0f}% of {PEAK_TFLOPS} TFLOP/s"


def _over_unquantized(bench: Bench) -> float | None:
    plain = bench.record["networks"][bench.name].get("none")
    return plain and bench.figures["ste_ms"]["median"] / plain["ste_ms"]["median"]


def _link(path: Path) -> str:
    return f"[{path.stem}](../results/records/bench/{path.name})"


def _over_floor(bench: Bench) -> float | None:
    floor = bench.figures.get("floor")
    return floor and floor["fogzo"]["measured_over"]


def _in_parts(bench: Bench) -> str:
    parts = bench.figures.get("probe_fraction", {})
    return ", ".join(f"{parts[part]['fogzo_over_ste']:.3f}" for part in PARTS if part in parts)


def _several_cards(record: dict[str, Any]) -> tuple[str, str]:
    """Say how many times one card's rate the cards of a run have."""
    count, said = record["processes"], []
    for name, figures in record["cards"].items():
        alone, together = (figures[w]["fogzo_ms"]["median"] for w in ("one_card", "together"))
        said.append(f"{name} {count * alone / together:.2f}")
    return f"FOGZO on {count} {record['hardware']} in one run, × one card's rate", ", ".join(said)


def _photographs(record: dict[str, Any]) -> tuple[str, str]:
    """Say how many photographs a second the loader decodes by each recipe."""
    said = [
        f"{'at least ' if 'notes' in figures else ''}{figures['images_per_s']:,.0f} by {name}'s"
        for name, figures in record["recipes"].items()
    ]
    job = f"photographs of 224 px decoded and augmented a second, {record['hardware']}"
    return job, f"{', '.join(said)} recipe"


def _mnist(record: dict[str, Any]) -> tuple[str, str]:
    """Say how long a run of Section 4.1 takes."""
    ste, fogzo = (record["jobs"][f"mnist_{kind}"]["seconds"] for kind in ("ste", "fogzo_n1"))
    return (
        f"MNIST MLP, 10 epochs, {record['hardware']}",
        f"FOGZO n=1 {fogzo:.2f} s, STE {ste:.2f} s",
    )


def _loop(record: dict[str, Any]) -> tuple[str, str]:
    """Say how many times the suite's own step `FogzoStep` takes."""
    ((network, measured),) = record["loop"].items()
    ((quantizer, figures),) = measured.items()
    said = [
        f"{figures[f'fogzo_step_over_{way}']:.3f} × {words}"
        for way, words in (("train_step", "launched by kernels"), ("captured", "as a CUDA graph"))
        if f"fogzo_step_over_{way}" in figures
    ]
    job = f"`FogzoStep` in an own loop, × the suite's step, {network} {quantizer}"
    return f"{job}, {record['hardware']}", ", ".join(said)


ABOUT_STEPS = "One training step, bf16; the paper's FOGZO step takes 1.58 STE steps (Table 4)."
STEPS = (
    Column("network, on one card", _network),
    Column("quantizer", lambda bench: bench.quantizer),
    Column("STE", _ste),
    Column("× unquantized", _over_unquantized, "{:.3f}".format),
    Column("FOGZO n=1", lambda b: f"{b.figures['fogzo_per_s']:,.0f} {b.figures['unit']}/s"),
    Column("× STE", lambda bench: f"{bench.figures['fogzo_over_ste']:.3f}"),
    Column("× STE, probes on 1/4, 1/8", _in_parts),
    Column("× (STE + two forwards)", lambda bench: f"{bench.figures['fogzo_over_parts']:.3f}"),
    Column("FOGZO × floor", _over_floor, "{:.2f}".format),
    Column("peak GiB", lambda bench: f"{bench.figures['peak_memory_mb'] / 1024:.1f}"),
    Column("record", lambda bench: _link(bench.path)),
)
KINDS = {  # the key of a record: whether a processor's is shown, and what is said of it
    "cards": (True, _several_cards),
    "recipes": (True, _photographs),
    "jobs": (False, _mnist),
    "loop": (False, _loop),
}
JOBS = (
    Column("measured", lambda job: job[0]),
    Column("figure", lambda job: job[1]),
    Column("record", lambda job: _link(job[2])),
)
