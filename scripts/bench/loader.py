"""Measure how many photographs a second the loader gives, by recipe and by way.

    python -m scripts.bench.loader --data-dir DIR --workers 16 --decoded 256 --out loader.json

DIR holds imagenet/, any part of it; its images are read again and again, so the disk's cache is
warm. The ways: from the files or from the decoded tree, and of these

    pillow   decoded and augmented by the loaders alone, by Pillow alone
    cpu      the same with the faster decoder
    cut      what loaders have left to do where the device has the second half of an augmentation
    device   normalised batches on the GPU, the whole way

The share of a training step that the loader hides is images/s here over images/s of
scripts/bench/steps.py, at most 1. `device_ms` is what the device's half of a batch takes by itself.

With --train each recipe is trained by the command itself, from the files and from the decoded tree:
`trained` is images/s over whole epochs but the first, their borders included, and its share of the
step's own rate, which scripts/bench/steps.py measures in the same go.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError, build_part
from fogzo_repro.data import augmentation
from fogzo_repro.data.augmentation import normalize, training_view
from fogzo_repro.data.decoded import open_decoded
from fogzo_repro.data.device_views import to_device
from fogzo_repro.data.photographs import PhotographLoader, Photographs, Sample
from fogzo_repro.terminal import at_least_one, one_line_errors
from fogzo_repro.training.imagenet import on_device
from fogzo_repro.training.machine import processor_name
from scripts.bench.record import begin, bench_parser, head, tell_moved, write

RECIPES = ("resnet18", "deit_tiny")
LEAST_ROUNDS = 5  # of one batch of each worker
EPOCHS = 5  # of a run by the command


@one_line_errors
def main() -> None:
    """Measure both recipes, write one JSON file."""
    parser = bench_parser(__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="holds imagenet/")
    parser.add_argument("--workers", type=at_least_one, default=16, help="processes; 1 or more")
    parser.add_argument(
        "--images", type=at_least_one, default=20_000, help="of each way, at the least"
    )
    parser.add_argument("--batch", type=at_least_one, default=256, help="images; 1 or more")
    parser.add_argument("--decoded", type=int, metavar="SIDE", help="of a decoded tree in DIR")
    parser.add_argument("--train", action="store_true", help="train by the command too, on a GPU")
    arguments = parser.parse_args()
    committed = begin(arguments.out, on_gpu=False)
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    if arguments.train and gpu is None:
        raise UserError("--train measures steps on a GPU, and no CUDA device is here; leave it out")
    card = f"{processor_name()}, {arguments.workers} workers" + (f", {gpu}" if gpu else "")
    record = {
        **head("loader", "files_pillow: decoded and augmented by Pillow alone", card),
        "batch": arguments.batch, "decoded": arguments.decoded, "recipes": {},
    }  # fmt: skip
    for model in RECIPES:
        record["recipes"][model] = measure(model, arguments)
        write(arguments.out, record)  # each time, so that what was measured is there if it is ended
    for model, found in trained(arguments) if arguments.train else ():
        record["trained"] = record.get("trained", {}) | {model: found}
        write(arguments.out, record)
    for part in ("recipes", "trained"):
        for model in record.get(part, {}):
            tell_moved(record, committed, (part, model), arguments.out.name)


def measure(model: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return images/s of a model's recipe by each way, and by the one that a run takes."""
    words = [f"model={model}", "dataset=imagenet1k", "dataset.allow_partial=true"]
    config = compose_run(*words)
    files = build_part(
        "dataset", config.dataset, config.parts_dir, data_dir=arguments.data_dir
    ).train
    sources = {"files": files}
    if arguments.decoded is not None:
        sources["decoded"] = open_decoded(files, arguments.decoded)
    view = training_view(config.recipe, config.dataset.image_size)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    found: dict[str, Any] = {}

    def way(name: str, photographs: Any, device: torch.device, finished: bool = True) -> None:
        found[name] = rate(photographs, device, finished, arguments)
        print(f"{config.recipe.name}, {name}: {found[name]['images_per_s']:,.0f} images/s")
        sys.stdout.flush()

    with mock.patch.object(augmentation, "_jpeg_decoder", lambda: None):
        way("files_pillow", Photographs(files, view, False), cpu)
    way("files_cpu", Photographs(files, view, False), cpu)
    for name, source in sources.items():
        halved = Photographs(source, view, False, halved=True)
        way(f"{name}_cut", halved, cpu, finished=False)
        if torch.cuda.is_available() and on_device(view, "device", cuda):
            way(f"{name}_device", halved, cuda)
            found[f"{name}_device"]["device_ms"] = device_half(halved, cuda, arguments.batch)
    by_gpu = "files_device" in found
    return {"images_per_s": found["files_device" if by_gpu else "files_cpu"]["images_per_s"],
            "ways": found}  # fmt: skip


def rate(
    photographs: Any, device: Any, finished: bool, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return images/s of one way, without the workers' start.

    A worker makes every --workers-th batch, so that batches come in rounds. The clock starts and
    stops at the end of one; the first two make up for the workers' start and fill their queues.
    Batches are taken to normalised inputs on the device, those not `finished` as workers make them.
    """
    per_round = arguments.batch * arguments.workers
    rounds = 2 + max(LEAST_ROUNDS, math.ceil(arguments.images / per_round))
    batches = [
        [
            Sample((k * arguments.batch + i) % len(photographs.files.labels), k)
            for i in range(arguments.batch)
        ]
        for k in range(rounds * arguments.workers)
    ]
    loader = PhotographLoader(photographs, arguments.workers, device)
    if not finished:
        photographs.finish = lambda batch: batch
    seen, started = 0, 0.0
    for index, batch in enumerate(loader.load(batches)):
        if finished and device.type == "cuda":
            normalize(batch.pixels)
        if index + 1 == 2 * arguments.workers:
            if device.type == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
        elif started:
            seen += len(batch.labels)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if not finished:
        del photographs.finish
    return {"images": seen, "seconds": seconds, "images_per_s": seen / seconds}


def device_half(photographs: Any, device: Any, size: int) -> float:
    """Return milliseconds of the device's half of one batch, the median of 20."""
    count = len(photographs.files.labels)
    batch, _ = photographs.collate([photographs[Sample(i % count, i)] for i in range(size)])
    there = to_device(batch, device)
    times = []
    for _ in range(25):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        normalize(photographs.finish(there).pixels)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times[5:])


def trained(arguments: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield, by recipe, what a run by the command reaches of the step's own rate, by source."""
    with tempfile.TemporaryDirectory() as folder:
        cases, steps = [f"{model} round-w2" for model in RECIPES], Path(folder) / "steps.json"
        words = ["--cases", ",".join(cases), "--probe-fractions", "none", "--out", str(steps)]
        _run("-m", "scripts.bench.steps", "vision", *words)
        networks = json.loads(steps.read_text())["networks"]
        for model in RECIPES:
            of_step = networks[model]["round-w2"]["ste_per_s"]
            found: dict[str, Any] = {"step_images_per_s": of_step}
            for decoded in (None, arguments.decoded) if arguments.decoded else (None,):
                root = Path(folder) / f"{model}-{decoded}"
                _run(
                    "-m", "fogzo_repro", f"model={model}", "dataset=imagenet1k", "quantizer=round",
                    "estimator=ste", "dataset.allow_partial=true",
                    f"dataset.decoded={decoded or 'null'}", f"hardware.workers={arguments.workers}",
                    f"recipe.epochs={EPOCHS}", f"recipe.eval_every_epochs={EPOCHS}",
                    f"data_dir={arguments.data_dir}", f"output_root={root}",
                )  # fmt: skip
                (run,) = root.glob("*/record.json")
                rate = rate_of_run(run.parent)
                name = "decoded" if decoded else "files"
                found[name] = {"images_per_s": rate, "share_of_step": rate / of_step}
                print(f"{model}, trained from {name}: {rate:,.0f} images/s, {rate / of_step:.2f}")
                yield model, found


def rate_of_run(folder: Path) -> float:
    """Return images/s of a run of EPOCHS epochs, without the first and without evaluations."""
    record = json.loads((folder / "record.json").read_text())
    lines = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    an_epoch = record["steps"] // EPOCHS
    (first,) = (x["seconds"] for x in lines if x["step"] == an_epoch and "pause" not in x)
    last = max(x["seconds"] for x in lines if "pause" not in x)
    return record["images_seen"] / EPOCHS * (EPOCHS - 1) / float(last - first)


def _run(*words: str) -> None:
    if subprocess.run([sys.executable, *words]).returncode:
        raise UserError(f"{' '.join(words[:3])} failed, see above")


if __name__ == "__main__":
    sys.exit(main())
