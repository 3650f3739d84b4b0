"""Measure the runs that train side by side, and compare them with runs one by one; write a record.

    python -m scripts.bench.lanes hardware=h200 --out results/records/bench/lanes-h200.json

* `streams`: whether the random numbers of all seeds are computed at once, and in what time;
* `groups`: for each kind of group of Section 4.1 the time of a step, from an epoch of the largest
  part that hardware.probe_memory_mb holds, its peak memory beside the images, and what the whole
  group would take;
* `agreement`: the final train loss of lanes against that of the committed runs one by one, cell by
  cell, as a difference in standard errors (Welch); over all cells the mean square of that is near 1
  where both are the same experiment.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fogzo_repro.__main__ import compose_run
from fogzo_repro.config import RunConfig, UserError, run_id
from fogzo_repro.plan import make_plan
from fogzo_repro.project import TOP
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.lanes import groups, plan_lanes
from fogzo_repro.sweeps.side_by_side import memory_of, parts, train_group
from fogzo_repro.terminal import command_parser
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.lanes import Lanes
from fogzo_repro.training.machine import resolve_machine
from fogzo_repro.training.streams import SeedStreams
from fogzo_repro.training.tasks import build_task
from scripts.bench.mnist import synchronize
from scripts.bench.record import head, read_committed, tell_moved, write

RECORDS = TOP / "results" / "records" / "figure-shallow"
NOISES = "0.334", "0.1", "0.001", "1e-4", "1e-5", "1e-6"
GROUPS = {  # name: cells, seeds of Section 4.1
    "ste": ([["estimator=ste"]] * 6, 500),
    "fogzo n=1": ([["estimator=fogzo", f"estimator.noise={x}"] for x in NOISES] * 2, 500),
    "fogzo n=10": ([["estimator=fogzo", "estimator.n=10"]] * 6, 100),
    "fogzo n=100": ([["estimator=fogzo", "estimator.n=100"]] * 6, 100),
}
COMPARED = [
    ["estimator=ste"],
    *(["estimator=fogzo", f"estimator.noise={x}"] for x in NOISES),
    ["estimator=fogzo", "estimator.noise=1e-5", "estimator.random_sign=true"],
    ["estimator=fogzo", "estimator.noise=1e-5", "estimator.n=10"],
    ["estimator=fogzo", "estimator.noise=1e-5", "estimator.n=100"],
    ["estimator=nspsa"],
    ["estimator=nspsa", "estimator.n=10"],
]


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds of something, done once before to warm up."""
    work()
    synchronize()
    begun = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - begun


def time_streams(device: torch.device, compiles: bool) -> dict[str, Any]:
    """Time the directions of a step for 500 seeds with n = 1 and for 100 with n = 100."""
    found: dict[str, Any] = {}
    for seeds, n in ((500, 1), (100, 100)):
        streams = SeedStreams(range(seeds), device, compiles)
        streams.derive(range(1), ["directions"])
        sizes = [n * 7840, n * 100]
        found["computed_at_once"] = streams.batched
        found[f"ms_n{n}"] = 1000 * timed(lambda: streams.integers(0, "directions", sizes))  # noqa: B023
    return found


def time_group(
    configs: Sequence[RunConfig], seeds: int, images: Any, on_gpu: bool
) -> dict[str, Any]:
    """Time an epoch of the first part of a group."""
    config, steps = configs[0], len(images.train.labels) // configs[0].recipe.global_batch_size
    budget = config.hardware.probe_memory_mb * 2**20
    need = memory_of(config, 784, 10, steps, on_gpu)
    pieces = list(parts(len(configs), seeds, budget, *need))
    some_cells, some_seeds = pieces[0]
    short = [replace(c, recipe=replace(c.recipe, max_steps=steps)) for c in configs[some_cells]]
    before = 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    lanes = Lanes(short, range(seeds)[some_seeds], images, compile=on_gpu)
    table = torch.cuda.memory_allocated() - before if on_gpu else 0
    seconds = timed(lanes.run)
    evaluation = timed(lambda: lanes.evaluate(2000))
    count = lanes.failed.numel()
    whole = len(pieces) * (config.recipe.epochs * seconds + evaluation)
    return {
        "lanes": count,
        "parts": len(pieces),
        "ms_per_step": 1000 * seconds / steps,
        "lane_steps_per_second": count * steps / seconds,
        "evaluation_seconds": evaluation,
        "group_seconds": whole,
        "budget_mb": config.hardware.probe_memory_mb,
        "state_and_images_mb": round(table / 2**20, 1),
        "peak_mb": round((torch.cuda.max_memory_allocated() - before) / 2**20, 1)
        if on_gpu
        else None,
    }


def agreement(profile: Sequence[str], seeds: int, output: Path) -> dict[str, Any]:
    """Compare lanes with the committed records of runs one by one."""
    cells = [Cell(compose_run(*words, *profile), tuple(range(seeds))) for words in COMPARED]
    planned = plan_lanes([replace(c, config=replace(c.config, force=True)) for c in cells], output)
    losses = {}
    for group in groups(planned):
        for cell, record in zip(group, train_group(group), strict=True):
            losses[cell.run_id] = [x for x in record["metrics"]["train"]["loss"] if x is not None]
    rows = []
    for words, cell, lane_cell in zip(COMPARED, cells, planned, strict=True):
        plan = make_plan(replace(cell.config, seed=0))
        alone = []
        for seed in range(10):
            config, result = replace(cell.config, seed=seed), {**plan.result, "seed": seed}
            path = RECORDS / f"{run_id(config, result)}.json"
            if path.is_file():
                alone.append(read_record(path)["metrics"]["last"]["train"]["loss"])
        many = losses[lane_cell.run_id]
        row = {"cell": " ".join(words), "lanes": len(many), "lanes_mean": statistics.mean(many)}
        if len(alone) > 1 and len(many) > 1:
            error = math.hypot(*(statistics.stdev(x) / math.sqrt(len(x)) for x in (alone, many)))
            row |= {"alone": len(alone), "alone_mean": statistics.mean(alone)}
            row["standard_errors"] = (statistics.mean(many) - statistics.mean(alone)) / error
        rows.append(row)
    squares = [row["standard_errors"] ** 2 for row in rows if "standard_errors" in row]
    return {"rows": rows, "mean_square": statistics.mean(squares) if squares else None}


def main() -> None:
    """Measure, print, write."""
    parser = command_parser(__doc__)
    parser.add_argument("--out", required=True, type=Path, help="the record to write; a JSON file")
    parser.add_argument("--seeds", type=int, default=200, help="of the comparison; 0: none")
    arguments, profile = parser.parse_known_args()

    config = compose_run(*profile)
    machine, task = resolve_machine(config), build_task(config)
    on_gpu = machine.device.type == "cuda"
    task.load(machine.device)
    committed = read_committed()
    record: dict[str, Any] = head("lanes", "the committed runs one by one", machine.card) | {
        "streams": time_streams(machine.device, on_gpu),
        "groups": {},
    }
    print("streams", record["streams"], flush=True)
    for name, (cells, seeds) in GROUPS.items():
        configs = [compose_run(*words, *profile) for words in cells]
        seeds = seeds if on_gpu else 4  # a processor shows that it runs
        images: Any = task.images  # type: ignore[attr-defined]
        record["groups"][name] = time_group(configs, seeds, images, on_gpu)
        print(name, record["groups"][name], flush=True)
    if arguments.seeds:
        record["agreement"] = agreement(profile, arguments.seeds, arguments.out.parent)
        for row in record["agreement"]["rows"]:
            print(row)
        print("mean square of the standard errors:", record["agreement"]["mean_square"])
    write(arguments.out, record)
    tell_moved(record, committed, ("groups",), arguments.out.name)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        error.tell()
        sys.exit(2)
