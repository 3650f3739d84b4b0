"""Measure the speed of the MNIST runs and of the batched evaluator; write one JSON record.

    python -m scripts.bench.mnist hardware=h200 --out results/records/bench/mnist-h200.json
    python -m scripts.bench.mnist hardware=cpu --out results/records/bench/mnist-cpu.json

Figures (each the median of its repetitions, with all of them listed):

* whole runs of 10 epochs through the real entry point: from the first step to the last, with the
  evaluation after each epoch, metrics and the last checkpoint; capturing the CUDA graph apart;
* one step of n-SPSA with n = 7,960, batched against sequential;
* peak memory of the batched evaluator against its budget.
"""

from __future__ import annotations

import platform
import statistics
import sys
import tempfile
from typing import Any

import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig
from fogzo_repro.plan import make_plan
from fogzo_repro.run import execute
from fogzo_repro.terminal import one_line_errors
from fogzo_repro.training.machine import resolve_machine
from fogzo_repro.training.step import TrainStep
from scripts.bench.clock import times
from scripts.bench.record import begin, bench_parser, head, tell_moved, write


def whole_run(*overrides: str, repetitions: int) -> dict[str, Any]:
    """Time whole runs; the first is a warm-up and not counted."""
    seconds, losses = [], []
    for repetition in range(repetitions + 1):
        with tempfile.TemporaryDirectory() as folder:
            config = compose_run(f"output_root={folder}", f"seed={repetition}", *overrides)
            record = execute(config)
        if repetition:
            seconds.append(record["wall_seconds"] - record["capture_seconds"])
            losses.append(record["metrics"]["last"]["train"]["loss"])
    return {
        "seconds": statistics.median(seconds),
        "all_seconds": seconds,
        "capture_seconds": record["capture_seconds"],
        "train_loss": losses,
    }


def build_step(config: RunConfig) -> tuple[TrainStep, Any]:
    """Return a step and one of its batches."""
    plan = make_plan(config)
    plan.task.load(plan.machine.device)
    step = plan.build_step()
    step.model.train()
    batches = plan.task.batches(config.recipe.global_batch_size)
    return step, next(batches.epoch(torch.Generator().manual_seed(0)))


def median_step(step: TrainStep, batch: Any, repetitions: int) -> dict[str, Any]:
    """Time single steps with probes after one warm-up; the weights change with every step."""
    step.begin(1, 1170, 0.032)
    ms = times(lambda: step(batch, True), step.device.type == "cuda", repetitions + 1)[1:]
    seconds = [each / 1000 for each in ms]
    return {"seconds": statistics.median(seconds), "all_seconds": seconds}


def large_n(hardware: str, repetitions: int, sequential: int) -> dict[str, Any]:
    """Time one step with n = 7,960, batched and sequential."""
    common = ("estimator=nspsa", "estimator.n=7960", f"hardware={hardware}")
    found = {}
    for evaluator, count in (("batched", repetitions), ("sequential", sequential)):
        config = compose_run(*common, f"estimator.evaluator={evaluator}")
        found[evaluator] = median_step(*build_step(config), count)
    found["ratio"] = found["sequential"]["seconds"] / found["batched"]["seconds"]
    return found


def gemm_floor(device: torch.device) -> dict[str, Any]:
    """Time the first layer's matrix product alone for n = 7,960: the floor of a batched step."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    levels = torch.randint(-2, 2, (4096 * 10, 784), device=device).to(dtype)
    pixels = torch.randint(0, 256, (784, 512), device=device).to(dtype)
    ms = times(lambda: levels @ pixels, device.type == "cuda", 13)[3:]
    seconds = statistics.median(ms) / 1000
    flops = 2 * levels.shape[0] * 784 * 512
    return {"seconds_for_n_7960": seconds * 2 * 7960 / 4096, "tflops": flops / seconds / 1e12}


def probe_memory(hardware: str) -> list[dict[str, Any]]:
    """Return the peak device memory of the batched evaluator at several n, beside its budget."""
    rows = []
    for n in (100, 1990, 7960, 31840):
        config = compose_run(
            "estimator=nspsa", f"estimator.n={n}", f"hardware={hardware}",
            "hardware.cuda_graph=false", "hardware.probe_memory_mb=512",
        )  # fmt: skip
        step, batch = build_step(config)
        probing = step.begin(0, 1170, 0.032)
        step(batch, probing)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(batch, probing)
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        rows.append({"n": n, "budget_mb": 512, "peak_mb": round(peak / 2**20, 1)})
    return rows


@one_line_errors
def main() -> None:
    """Measure, print, write."""
    parser = bench_parser(__doc__)
    parser.add_argument("hardware", help="hardware=PROFILE, as hardware=cpu")
    parser.add_argument("--quick", action="store_true", help="one repetition of everything")
    arguments = parser.parse_args()
    committed = begin(arguments.out, on_gpu=False)
    hardware = arguments.hardware.removeprefix("hardware=")
    repetitions = 1 if arguments.quick else 5

    machine = resolve_machine(compose_run(f"hardware={hardware}"))
    cuda = machine.device.type == "cuda"
    jobs: dict[str, Any] = {}
    profile = f"hardware={hardware}"
    jobs["mnist_ste"] = whole_run("estimator=ste", profile, repetitions=repetitions)
    jobs["mnist_fogzo_n1"] = whole_run("estimator=fogzo", profile, repetitions=repetitions)
    ratio = jobs["mnist_fogzo_n1"]["seconds"] / jobs["mnist_ste"]["seconds"]
    jobs["fogzo_over_ste"] = {"ratio": ratio}
    if cuda:
        jobs["mnist_nspsa_n7960"] = whole_run(
            "estimator=nspsa", "estimator.n=7960", profile, repetitions=1 if arguments.quick else 3
        )
        jobs["probe_memory"] = {"rows": probe_memory(hardware)}
    jobs["step_n7960"] = large_n(hardware, repetitions, 1 if arguments.quick else 3)
    jobs["gemm_floor"] = gemm_floor(machine.device)
    record = head("mnist", "the sequential evaluator", machine.card) | {
        "cores": torch.get_num_threads(),
        "system": platform.system(),
        "jobs": jobs,
    }
    write(arguments.out, record)
    for name, job in jobs.items():
        print(name, {k: v for k, v in job.items() if not str(k).startswith("all")})
    tell_moved(record, committed, ("jobs",), arguments.out.name)


if __name__ == "__main__":
    sys.exit(main())
