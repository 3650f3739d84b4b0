"""Measure training speed: unquantized, STE, FOGZO n = 1 and two forward passes, for all models.

    python scripts/bench_vision.py --out results/records/bench/vision-h200.json   # one GPU
    python scripts/bench_vision.py --toy --out /tmp/bench.json               # does it run? (CPU)

bf16, batch 256, 224 px, data on the device, the compiled network in training mode; the median of 50
steps after 10. Weights change in every step. All steps go through `TrainStep`, as in a run.

Each network is measured in a process of its own. Before, all are compiled side by side, so that
the measuring processes find their kernels in the compiler's cache on the disk.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from fogzo_repro.config import RunConfig, parse_config

CASES = {  # name: overrides
    "resnet18": ["model=resnet18"],
    "resnet18-nchw": ["model=resnet18", "hardware.channels_last=false"],
    "resnet50": ["model=resnet50"],
    "deit_tiny": ["model=deit_tiny"],
    "deit_small": ["model=deit_small"],
}
PAPER_RATIO = 1.58  # FOGZO step / STE step, PAPER 2 "Table 4"
NOISE = 1.0e-9  # 1 - beta; the cost does not depend on it
BATCHES = 4  # different batches, taken in turn


def main() -> None:
    """Compile all cases, measure one after another, write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", default=",".join(CASES), help="comma-separated")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("--toy", action="store_true", help="widths / 8, 32 px, batch 4, no compile")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measuring process
    arguments = parser.parse_args()
    if arguments.toy:
        arguments.batch, arguments.size, arguments.steps, arguments.warm_up = 4, 32, 3, 1
    if arguments.one:
        arguments.out.write_text(json.dumps(measure(arguments.one, arguments)))
        return
    started = time.monotonic()
    cases = arguments.cases.split(",")
    with tempfile.TemporaryDirectory() as folder:
        if not arguments.toy:
            print(f"compiling {len(cases)} networks", flush=True)
            quick = ["--steps", "1", "--warm-up", "1"]
            waiting = [_process(case, Path(folder), quick) for case in cases]
            for process in waiting:
                process.wait()
            print(f"compiled in {time.monotonic() - started:.0f} s", flush=True)
        results = {}
        for case in cases:
            given = ["--steps", str(arguments.steps), "--warm-up", str(arguments.warm_up)]
            if _process(case, Path(folder), given).wait() == 0:
                results[case] = json.loads((Path(folder) / f"{case}.json").read_text())
                print(_line(case, results[case]), flush=True)
            else:
                print(f"{case}: failed", flush=True)
    write(arguments, results, time.monotonic() - started)


def _process(case: str, folder: Path, more: list[str]) -> subprocess.Popen:
    kept = [a for a in sys.argv[1:] if a == "--toy"]
    for name in ("--batch", "--size"):
        if name in sys.argv:
            kept += sys.argv[sys.argv.index(name) : sys.argv.index(name) + 2]
    out = str(folder / f"{case}.json")
    return subprocess.Popen([sys.executable, __file__, "--one", case, "--out", out, *kept, *more])


def configure(case: str, arguments: argparse.Namespace, *more: str) -> RunConfig:
    """Compose the run that a case stands for."""
    overrides = [*CASES[case], "quantizer=round", "dataset=imagenet1k", *more]
    overrides.append(f"recipe.global_batch_size={arguments.batch}")
    if arguments.toy:
        overrides += ["scale=smoke", "hardware=cpu"]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        return parse_config(compose("config", overrides))


def build(config: RunConfig, arguments: argparse.Namespace) -> tuple[Any, list[Any], Any]:
    """Return the training step on synthetic images, its batches, and the machine."""
    import torch

    from fogzo_repro.data import Batch
    from fogzo_repro.estimators.build import build_estimator
    from fogzo_repro.hardware import resolve_machine
    from fogzo_repro.training.imagenet import photograph_loss
    from fogzo_repro.training.network import build_network
    from fogzo_repro.training.optimizers import build_optimizer
    from fogzo_repro.training.step import TrainStep

    machine = resolve_machine(config)
    shape = (arguments.batch * BATCHES, 3, arguments.size, arguments.size)
    stream = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=stream)
    labels = torch.randint(0, 1000, shape[:1], generator=stream)
    data = Batch(pixels.to(machine.device), labels.to(machine.device))
    arguments_of_model = {"image_shape": shape[1:], "classes": 1000}
    network = build_network(config, arguments_of_model, machine.device)
    if machine.channels_last:
        network.model.to(memory_format=torch.channels_last)
    if machine.compile:
        network.model.compile(dynamic=False)
    step = TrainStep(
        network.model.train(),
        photograph_loss,
        build_optimizer(config.recipe, network.model, capturable=machine.cuda_graph),
        build_estimator(config.estimator, machine.device),
        network.weights,
        seed=0,
        autocast=machine.autocast,
    )
    parts = zip(*(t.split(arguments.batch) for t in data), strict=True)
    return step, [Batch(*part) for part in parts], machine


def measure(case: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one network: unquantized, STE, two forward passes, FOGZO, memory."""
    from fogzo_repro.estimators.arithmetic import compile_arithmetic

    fogzo = configure(case, arguments, "estimator=fogzo", f"estimator.noise={NOISE}")
    step, batches, machine = build(fogzo, arguments)
    compile_arithmetic(machine.compile)
    clock = Clock(step, batches, machine, arguments)
    ste = clock.steps(probing=False)
    peak_ste = machine.peak_memory_mb()
    found: dict[str, Any] = {
        "batch": arguments.batch,
        "size": arguments.size,
        "ste_ms": ste,
        "two_forwards_ms": clock.two_forwards(),
        "fogzo_ms": clock.steps(probing=True),
        "fogzo_eager_arithmetic_ms": eager_arithmetic(clock, machine),
        "estimator": estimator_memory(step),
        "peak_memory_mb": {"ste": peak_ste, "fogzo": machine.peak_memory_mb()},
    }
    del step, clock
    plain = configure(case, arguments, "quantizer=none", "estimator=ste")
    step, batches, machine = build(plain, arguments)
    found["unquantized_ms"] = Clock(step, batches, machine, arguments).steps(probing=False)
    return found | ratios(found, arguments.batch)


def eager_arithmetic(clock: Clock, machine: Any) -> dict[str, float]:
    """Return the FOGZO step's time with one kernel for each of the estimator's operations."""
    from fogzo_repro.estimators.arithmetic import compile_arithmetic

    compile_arithmetic(False)
    found = clock.steps(probing=True)
    compile_arithmetic(machine.compile)
    return found


def ratios(found: dict[str, Any], batch: int) -> dict[str, float]:
    """Return the figures that the targets are about, from medians in milliseconds."""
    ms = {k: found[f"{k}_ms"]["median"] for k in ("unquantized", "ste", "two_forwards", "fogzo")}
    return {
        **{f"{k}_images_per_s": 1000 * batch / ms[k] for k in ("unquantized", "ste", "fogzo")},
        "ste_share_of_unquantized": ms["unquantized"] / ms["ste"],
        "fogzo_over_ste": ms["fogzo"] / ms["ste"],
        "fogzo_over_parts": ms["fogzo"] / (ms["ste"] + ms["two_forwards"]),
    }


class Clock:
    """Times steps of one network; on a GPU with events, so nothing waits within a step."""

    def __init__(
        self, step: Any, batches: list[Any], machine: Any, arguments: argparse.Namespace
    ) -> None:
        self.step = step
        self.batches = batches
        self.on_gpu = machine.device.type == "cuda"
        self.count = arguments.steps
        self.warm_up = arguments.warm_up
        self.taken = 0

    def _train(self, probing: bool) -> None:
        self.step.prepare(self.taken, 10**6, 1.0e-3)
        self.step(self.batches[self.taken % len(self.batches)], probing)
        self.taken += 1

    def steps(self, probing: bool) -> dict[str, float]:
        """Time whole steps."""
        return self._median(lambda: self._train(probing), lambda: None)

    def two_forwards(self) -> dict[str, float]:
        """Time the two forward passes of a probe pair, each time on new weights."""

        def forwards() -> None:
            loss = self.step.probe_loss(self.batches[self.taken % len(self.batches)])
            loss()
            loss()

        return self._median(forwards, lambda: self._train(probing=False))

    def _median(self, timed: Callable[[], None], between: Callable[[], None]) -> dict[str, float]:
        import torch

        marks: list[Any] = []
        for _ in range(self.warm_up + self.count):
            between()
            if self.on_gpu:
                begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                begin.record()
                timed()
                end.record()
                marks.append((begin, end))
            else:
                begin_s = time.perf_counter()
                timed()
                marks.append(1000 * (time.perf_counter() - begin_s))
        if self.on_gpu:
            torch.cuda.synchronize()
            marks = [begin.elapsed_time(end) for begin, end in marks]
        kept = sorted(marks[self.warm_up :])
        return {"median": statistics.median(kept), "min": kept[0], "max": kept[-1], "n": len(kept)}


def estimator_memory(step: Any) -> dict[str, float]:
    """Return what the estimator itself takes, beside the forward passes: bytes at its peak."""
    import torch

    weights = step.weights
    quantized = sum(w.parameter.numel() * w.parameter.element_size() for w in weights)
    found: dict[str, float] = {"quantized_weight_bytes": quantized}
    if step.device.type == "cuda":
        from fogzo_repro.estimators.perturbation import SequentialProbes

        zero = torch.zeros((), device=step.device)
        for w in weights:
            w.parameter.grad = torch.ones_like(w.parameter)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        streams = step.generators["directions"], step.generators["signs"]
        step.estimator(weights, SequentialProbes(lambda: zero), *streams)
        torch.cuda.synchronize()
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
        found["kept_bytes"] = torch.cuda.memory_allocated() - before
        found["peak_over_quantized_weights"] = found["peak_bytes"] / quantized
    return found


def _line(case: str, r: dict[str, Any]) -> str:
    return (
        f"{case}: images/s unquantized {r['unquantized_images_per_s']:,.0f}, "
        f"STE {r['ste_images_per_s']:,.0f} ({100 * r['ste_share_of_unquantized']:.1f}%), "
        f"FOGZO {r['fogzo_images_per_s']:,.0f}; FOGZO/STE {r['fogzo_over_ste']:.3f}, "
        f"FOGZO/(STE + 2 forwards) {r['fogzo_over_parts']:.3f}"
    )


def write(arguments: argparse.Namespace, results: dict[str, Any], seconds: float) -> None:
    """Write the file: figures, and what they were measured with."""
    from fogzo_repro.hardware import resolve_machine
    from fogzo_repro.tracking.environment import command_line, git_state, versions

    machine = resolve_machine(configure("resnet18", arguments, "estimator=ste"))
    content = {
        "bench": "vision",
        "command": command_line(),
        **git_state(),
        "versions": versions(),
        "hardware": machine.card,
        "precision": str(machine.autocast),
        "compile": machine.compile,
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds),
        "paper_fogzo_over_ste": PAPER_RATIO,
        "results": results,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
