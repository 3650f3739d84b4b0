"""Measure how many images a second the loader decodes and augments.

    python -m scripts.bench.loader --data-dir DIR --workers 16 --out loader.json

DIR holds imagenet/, any part of it; its images are read again and again, so the disk's cache is
warm. The share of a training step that the loader hides is images/s here over images/s of
scripts/bench/steps.py, at most 1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from fogzo_repro import files
from fogzo_repro.__main__ import compose_run
from fogzo_repro.config import UserError, build_part
from fogzo_repro.terminal import command_parser


def main() -> None:
    """Measure both recipes, write one JSON file."""
    parser = command_parser(__doc__)
    parser.add_argument("--data-dir", required=True, help="holds imagenet/")
    parser.add_argument("--workers", type=int, default=16, help="processes; 1 or more")
    parser.add_argument("--images", type=int, default=20_000, help="decoded; 1 or more")
    parser.add_argument("--batch", type=int, default=256, help="images; 1 or more")
    parser.add_argument("--out", type=Path, required=True, help="the record to write; a JSON file")
    arguments = parser.parse_args()
    results = {model: measure(model, arguments) for model in ("resnet18", "deit_tiny")}

    from fogzo_repro.tracking.environment import command_line, git_state, versions
    from fogzo_repro.training.machine import processor_name

    content = {
        "bench": "loader", "command": command_line(), **git_state(), "versions": versions(),
        "hardware": f"{processor_name()}, {arguments.workers} workers",
        "recipes": results,
    }  # fmt: skip
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    files.write(arguments.out, json.dumps(content, indent=1) + "\n")


def measure(model: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Return images/s of a model's recipe, without the workers' start."""
    import torch

    from fogzo_repro.data.augmentation import training_view
    from fogzo_repro.data.photographs import PhotographLoader, Photographs, Sample

    overrides = [f"model={model}", "dataset=imagenet1k", "dataset.allow_partial=true"]
    config = compose_run(*overrides)
    data_dir = Path(arguments.data_dir)
    files = build_part("dataset", config.dataset, config.parts_dir, data_dir=data_dir).train
    view = training_view(config.recipe, config.dataset.image_size)
    loader = PhotographLoader(
        Photographs(files, view, skip_bad=False), arguments.workers, torch.device("cpu")
    )
    count = arguments.images // arguments.batch + 2 * arguments.workers
    batches = [
        [Sample((k * arguments.batch + i) % len(files.names), k) for i in range(arguments.batch)]
        for k in range(count)
    ]
    seen, started = 0, 0.0
    for index, batch in enumerate(loader.load(batches)):
        if index == 2 * arguments.workers:  # what was decoded while the workers started is gone
            started = time.perf_counter()
        elif started:
            seen += len(batch.labels)
    seconds = time.perf_counter() - started
    found = {"images": seen, "seconds": seconds, "images_per_s": seen / seconds}
    print(f"{config.recipe.name}: {found['images_per_s']:,.0f} images/s", flush=True)
    return found


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        error.tell()
        sys.exit(2)
