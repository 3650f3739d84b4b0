"""Measure the step of several cards that train as one, beside the step of one card alone.

    torchrun --nproc-per-node=4 -m scripts.bench.cards --out results/records/bench/cards-h100.json
    torchrun --nproc-per-node=2 -m scripts.bench.cards --toy --out /tmp/cards.json    # on the CPU

Each card has the batch of scripts/bench/steps.py, 256 photographs or 64 sequences, so that N cards
have N times the work; 2-bit weights, bf16, compiled, the median of 50 steps. `together` is the step
of all as one CUDA graph, `eager` the same launched kernel by kernel, `one_card` that of each card
without the others, all of them at the same time. `all_reduce_ms` is the sum over the cards of as
many numbers as there are gradients, and nothing else: with one card's step it is the floor of a
step that exchanges its gradients after the backward pass.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from typing import Any

import torch
import torch.distributed as dist

from fogzo_repro.config import UserError
from fogzo_repro.terminal import at_least_one
from fogzo_repro.training.ranks import ALONE, Ranks, current_ranks, leave
from scripts.bench.clock import Clock
from scripts.bench.networks import build, configure
from scripts.bench.record import asked_for, begin, bench_parser, head, tell_moved, write

NETWORKS = {
    "resnet18": "vision", "deit_tiny": "vision", "llama_30m": "language", "resnet50": "vision",
}  # fmt: skip
CONTENDER = "one card's step; its sum of gradients apart is the floor beside it"
WAYS = ("together", "eager", "one_card")  # the last one's weights go their own way on each card


def main() -> None:
    """Measure one network after another; the first rank writes the JSON file."""
    parser = bench_parser(__doc__, toy="tiny networks")
    parser.add_argument(
        "--networks", default=",".join(NETWORKS), help="which ones, comma-separated"
    )
    parser.add_argument("--steps", type=at_least_one, default=50, help="timed; 1 or more")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the clock starts")
    arguments = parser.parse_args()
    names = asked_for(parser, arguments.networks, NETWORKS)
    ranks = current_ranks()
    if ranks.world_size == 1:
        raise UserError("start it with torchrun --nproc-per-node=N, N above 1")
    committed = begin(arguments.out, on_gpu=not arguments.toy)
    content: dict[str, Any] = {}
    for name in names:
        found, card = measure(name, ranks, arguments)
        content = content or head("cards", CONTENDER, card) | {
            "processes": ranks.world_size, "cards": {},
        }  # fmt: skip
        content["cards"][name] = found
        if ranks.first:
            write(arguments.out, content)
            print(line(name, found, ranks.world_size), flush=True)
    if ranks.first:
        for name in content["cards"]:
            tell_moved(content, committed, ("cards", name), arguments.out.name)
    ranks.barrier()
    leave()


def measure(name: str, ranks: Ranks, arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Return a network's figures and the card's name."""
    on_gpu = not arguments.toy
    config = configure(
        NETWORKS[name], f"{name} round-w2", arguments, [f"hardware.cuda_graph={on_gpu}".lower()]
    )
    step, batches, machine = build(config, NETWORKS[name], arguments.toy)
    exchanged = torch.rand(sum(p.numel() for p in step.parameters), device=machine.device)
    reduced = Clock(step, batches, machine, arguments, captured=False).median(
        lambda: dist.all_reduce(exchanged)
    )
    found: dict[str, Any] = {"gradient_bytes": 4 * len(exchanged), "all_reduce_ms": reduced}
    for way in WAYS:
        step.ranks = ALONE if way == "one_card" else ranks
        clock = Clock(step, batches, machine, arguments, on_gpu and way != "eager")
        found[way] = {}
        for kind, probing in (("ste", False), ("fogzo", True)):
            for _ in range(5):  # more than the steps that are taken eagerly
                clock.train(probing)
            found[way][f"{kind}_ms"] = clock.steps(probing)
            if step.ranks is ranks and not ranks.agree(step.parameters):
                raise SystemExit(f"{name}, {way}, {kind}: the cards hold different weights")
        found[way]["loss"] = clock.last_loss()
        del clock
        gc.collect()  # a captured graph must not be freed while the next one captures
    examples, tokens = config.recipe.global_batch_size, getattr(config.model, "context", 1)
    found |= {"unit": "tokens" if tokens > 1 else "images", "units_per_card": examples * tokens}
    return found, machine.card


def line(name: str, found: dict[str, Any], processes: int) -> str:
    """Return a network's figures in words."""
    said = [f"{name} on {processes} cards, all-reduce {found['all_reduce_ms']['median']:.2f} ms"]
    for way in WAYS:
        ste, fogzo = (found[way][f"{kind}_ms"]["median"] for kind in ("ste", "fogzo"))
        said.append(f"{way} STE {ste:.2f} FOGZO {fogzo:.2f} ms")
    return "; ".join(said)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":  # all processes find the same
            error.tell()
        sys.exit(2)
