"""Measure `FogzoStep`, the object for other people's loops, beside the suite's own FOGZO step.

    python -m scripts.bench.loop --out results/records/bench/loop-h200.json
    python -m scripts.bench.loop --toy --out /tmp/loop.json                    # on the CPU

llama_30m with 2-bit weights, 64 sequences of 512 tokens, one card, one process: the same compiled
network, the same optimizer and the same batch by three ways, `train_step` (the suite's, launched
kernel by kernel), `captured` (the same as one CUDA graph; on a GPU alone) and `fogzo_step`. They
take turns: each begins with a step that is not timed and goes on with five that are, from the end
of one to the end of the next, until each has --steps of them. The medians and their ratios are
recorded, and whether a step of `fogzo_step` waits for the device: nothing, or torch's words.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from fogzo_repro.estimators.loop import FogzoStep
from fogzo_repro.terminal import at_least_one, one_line_errors
from fogzo_repro.training.optimizers import set_lr
from scripts.bench.clock import LR, Clock, spread
from scripts.bench.networks import build, configure
from scripts.bench.record import begin, bench_parser, head, tell_moved, write

NETWORK, QUANTIZER = "llama_30m", "round-w2"
CONTENDER = "the suite's own FOGZO step (training.step.TrainStep), launched and captured"
NOISE = 1e-9  # 1 - beta; the time does not depend on it
TURN = 5  # timed steps in a row


@one_line_errors
def main() -> int:
    """Measure, write one JSON file; status 1 where `FogzoStep` waits for the device."""
    parser = bench_parser(__doc__, toy="a tiny network")
    parser.add_argument(
        "--steps", type=at_least_one, default=50, help="timed of each way; 1 or more"
    )
    parser.add_argument("--warm-up", type=int, default=10, help="of each way; 5 or more on a GPU")
    arguments = parser.parse_args()
    committed = begin(arguments.out, on_gpu=not arguments.toy)
    found, card = measure(arguments)
    record = head("loop", CONTENDER, card) | {"loop": {NETWORK: {QUANTIZER: found}}}
    write(arguments.out, record)
    print(line(found))
    tell_moved(record, committed, ("loop", NETWORK, QUANTIZER), arguments.out.name)
    return 1 if found["waits_for_the_device"] else 0


def measure(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return the figures and the card's name."""
    config = configure("language", f"{NETWORK} {QUANTIZER}", arguments)
    step, batches, machine = build(config, "language", arguments.toy)
    batch = batches[0]
    ways: dict[str, Callable[[], Any]] = {}
    for name, captured in (("train_step", False), ("captured", True)):
        if machine.cuda_graph or not captured:
            clock = Clock(step, [batch], machine, arguments, captured)
            ways[name] = partial(clock.train, probing=True)
    fogzo = FogzoStep(
        step.model, step.optimizer, step.weights, noise=NOISE, clip_norm=step.clip_norm
    )

    def loss_fn(batch: Any) -> torch.Tensor:
        dtype = machine.autocast
        with torch.autocast(machine.device.type, dtype, enabled=dtype is not None):
            return step.passes.loss(step.model, batch)

    def fogzo_step() -> None:
        set_lr(step.optimizer, LR)
        fogzo.loss(loss_fn, batch).backward()
        fogzo.step()

    ways["fogzo_step"] = fogzo_step
    for take in ways.values():
        step.optimizer.zero_grad()  # FogzoStep leaves no gradient behind, TrainStep takes none over
        for _ in range(arguments.warm_up):
            take()
    times: dict[str, list[float]] = {name: [] for name in ways}
    while len(times["fogzo_step"]) < arguments.steps:
        for name, take in ways.items():
            left = arguments.steps - len(times[name])
            step.optimizer.zero_grad()
            times[name] += turn(take, min(TURN, left), machine.device.type == "cuda")
    found: dict[str, Any] = {
        "units_per_step": batch.windows.shape[0] * (batch.windows.shape[1] - 1),
        "unit": "tokens",
    }
    for name, ms in times.items():
        found[f"{name}_ms"] = spread(ms)
    for name in ways:
        if name != "fogzo_step":
            ratio = found["fogzo_step_ms"]["median"] / found[f"{name}_ms"]["median"]
            found[f"fogzo_step_over_{name}"] = ratio
    found["loss"] = step.passes.probe(batch)().item()
    if found["loss"] != found["loss"]:
        raise SystemExit("the loss is not finite: this was no training")
    step.optimizer.zero_grad()
    on_gpu = machine.device.type == "cuda"
    found["waits_for_the_device"] = waiting(fogzo_step) if on_gpu else None
    return found, machine.card


def turn(take: Callable[[], Any], count: int, on_gpu: bool) -> list[float]:
    """Take one step and then `count` that are timed; return their milliseconds."""
    marks: list[Any] = []
    for _ in range(count + 1):
        take()
        if on_gpu:
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())
    if on_gpu:
        torch.cuda.synchronize()
        return [before.elapsed_time(after) for before, after in pairwise(marks)]
    return [1000 * (after - before) for before, after in pairwise(marks)]


def waiting(take: Callable[[], Any]) -> str:
    """Return what torch says where a step waits for the device, nothing where it does not."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        take()
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return ""


def line(found: dict[str, Any]) -> str:
    """Return the figures in words."""
    said = f"{NETWORK} {QUANTIZER}: FogzoStep {found['fogzo_step_ms']['median']:.2f} ms"
    for name in ("train_step", "captured"):
        if f"{name}_ms" in found:
            over = found[f"fogzo_step_over_{name}"]
            said += f", {over:.4f} x {name} ({found[f'{name}_ms']['median']:.2f} ms)"
    waits = found["waits_for_the_device"]
    return said + {None: "", "": "; it never waits"}.get(
        waits, f"; it waits for the device: {waits}"
    )


if __name__ == "__main__":
    sys.exit(main())
