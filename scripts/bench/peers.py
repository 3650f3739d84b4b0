"""Measure the suite's STE step beside QuEST's own training code, in one go on one GPU.

    python -m scripts.bench.peers --quest DIR --out results/records/bench/peers-h200.json

DIR is a clone of https://github.com/IST-DASLab/QuEST with what its models import (tiktoken and
fast_hadamard_transform). Both train llama_30m, 64 sequences of 512 tokens, V = 50304, on the same
random tokens, which are on the card before the clock starts. The suite's step is what a run does.
QuEST's is that of its src/optim/base.py: the model as torch.compile has it, bf16 autocast, the
backward pass, clipping at norm 1, fused AdamW, gradients set to None.

Each side has a process of its own, with its own settings of the compiler. Both compile; then they
take turns of --turn steps, one at a time, until each has --steps of them. `..._parameters` are
those of each network; without a quantizer they must be as many, with one to a thousandth. `files`
are digests of QuEST's source files as they were imported.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from fogzo_repro import files
from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.terminal import at_least_one, first_line, one_line_errors
from scripts.bench.clock import LR, Clock, spread, times
from scripts.bench.networks import build, configure
from scripts.bench.record import asked_for, begin, bench_parser, card_name, head, tell_moved, write

NETWORK = "llama_30m"
CONTENDER = "QuEST's own training step (IST-DASLab/QuEST, src/models, torch.compile, fused AdamW)"
QUEST = {  # its quantizer of weights and of inputs, with arguments, by the suite's name
    "none": ("NoQuantizer", {}),
    "lsq-w2a2": ("LSQQuantizer", {"bits": 2}),
    "quest-w2a2": ("HadamardTrustQuantizer", {"bits": 2}),
}
WARM_UP = 5
# Eight times as wide as a block of QuEST's rotation, since a toy's widths are an eighth, with the
# hidden width that its code takes: 8/3 of it, rounded up to a multiple of 256.
TOY = ("model.width=1024", "model.heads=4", "model.hidden=4096")


@one_line_errors
def main() -> int:
    """Compile both sides of each case, let them take turns, write a JSON file."""
    parser = bench_parser(__doc__, toy="a tiny network")
    parser.add_argument("--quest", type=Path, required=True, help="a clone of QuEST")
    parser.add_argument("--cases", default=",".join(QUEST), help="of " + ", ".join(QUEST))
    parser.add_argument("--steps", type=at_least_one, default=50, help="timed of each side")
    parser.add_argument("--turn", type=at_least_one, default=10, help="timed in a row")
    parser.add_argument("--side", choices=("suite", "quest"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    asked = asked_for(parser, arguments.cases, QUEST)
    if arguments.side == "suite":
        return take_turns(arguments)
    if arguments.side == "quest":
        try:
            return take_turns(arguments)
        except Exception as error:  # whatever their code may raise
            missing = isinstance(error, ModuleNotFoundError)
            said = f"{type(error).__name__}: {first_line(error)}{'; install it' * missing}"
            raise UserError(f"{asked[0]}: QuEST's code failed, {said}") from None
    committed = begin(arguments.out, on_gpu=not arguments.toy)
    if not (arguments.quest / "src" / "models" / "llama.py").is_file():
        raise UserError(
            f"--quest {arguments.quest} has no src/models/llama.py; give a clone of "
            "https://github.com/IST-DASLab/QuEST (make bench-peers QUEST=DIR)"
        )
    failed = False
    record = head("peers", CONTENDER, card_name(arguments.toy))
    record |= {"files": digests(arguments.quest), "peers": {NETWORK: {}}}
    for case in asked:
        found = measure(case, arguments)
        if found is None:
            failed = True
            continue
        record["peers"][NETWORK][case] = found
        write(arguments.out, record)
        print(
            f"{NETWORK} {case}: the suite {found['suite_ms']['median']:.2f} ms, QuEST "
            f"{found['quest_ms']['median']:.2f} ms, {found['quest_over_suite']:.2f} times as long",
            flush=True,
        )
        tell_moved(record, committed, ("peers", NETWORK, case), arguments.out.name)
    return 1 if failed else 0


def measure(case: str, arguments: argparse.Namespace) -> dict[str, Any] | None:
    """Return both sides' figures of a case; None, told in a line, where one has failed."""
    sides = {}
    for side in ("suite", "quest"):
        words = ["--quest", str(arguments.quest), "--out", str(arguments.out), "--cases", case]
        words += ["--turn", str(arguments.turn), *(["--toy"] if arguments.toy else [])]
        sides[side] = subprocess.Popen(
            [sys.executable, "-m", "scripts.bench.peers", *words, "--side", side],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            start_new_session=True,  # an INT is for this process, which ends both
        )  # fmt: skip
    found: dict[str, Any] = {}
    taken: dict[str, list[float]] = {side: [] for side in sides}
    try:
        for side, process in sides.items():
            found |= {f"{side}_{key}": value for key, value in _said(process).items()}
        own, theirs = (found[f"{side}_parameters"] for side in sides)
        if abs(own - theirs) > (0 if case == "none" else own / 1000):
            raise UserError(
                f"{case}: the networks are not of one size, {own:,} parameters here and "
                f"{theirs:,} of QuEST's; give a clone whose llama.py is the published one"
            )
        while len(taken["quest"]) < arguments.steps:
            for side, process in sides.items():
                assert process.stdin is not None
                process.stdin.write("go\n")
                process.stdin.flush()
                taken[side] += _said(process)["ms"]
    except (EOFError, BrokenPipeError):
        print(f"{NETWORK} {case}: failed, see above", flush=True)
        return None
    finally:
        for process in sides.values():
            process.kill()
            process.wait()
    for side, ms in taken.items():
        found[f"{side}_ms"] = spread(ms[: arguments.steps])
    found["quest_over_suite"] = found["quest_ms"]["median"] / found["suite_ms"]["median"]
    return found


def _said(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Return what a side says next as JSON, leaving out what its libraries print."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"'):
            return json.loads(line)
    raise EOFError


def configured(case: str, arguments: argparse.Namespace) -> RunConfig:
    """Compose the run whose step is the suite's side of a case."""
    return configure("language", f"{NETWORK} {case}", arguments, TOY if arguments.toy else ())


def take_turns(arguments: argparse.Namespace) -> int:
    """Be one of the two sides: compile, say so, and time a turn whenever told to."""
    torch.manual_seed(0)
    config = configured(arguments.cases, arguments)
    suite, batches, machine = build(config, "language", arguments.toy)
    on_gpu = machine.device.type == "cuda"
    if arguments.side == "suite":
        clock = Clock(suite, batches, machine, argparse.Namespace(steps=1, warm_up=0), on_gpu)
        parameters = sum(p.numel() for p in suite.model.parameters())
        step: Callable[[], Any] = partial(clock.train, probing=False)
        last_loss = clock.last_loss
    else:
        windows = [batch.windows for batch in batches]
        del suite
        step, last_loss, parameters = quest_step(config.model, windows, arguments)
    for _ in range(WARM_UP):
        step()
    print(json.dumps({"parameters": parameters}), flush=True)
    while sys.stdin.readline() == "go\n":
        ms = times(step, on_gpu, arguments.turn)
        if not math.isfinite(last_loss()):
            raise ValueError("a loss was not finite: this was no training")
        print(json.dumps({"ms": ms}), flush=True)
    return 0


def quest_step(
    model: Any, windows: list[Any], arguments: argparse.Namespace
) -> tuple[Callable[[], Any], Callable[[], float], int]:
    """Return QuEST's training step on a network of the same dimensions, its loss, its size."""
    sys.path.insert(0, str(arguments.quest / "src"))
    from models.llama import Llama

    name, options = QUEST[arguments.cases]
    device = windows[0].device
    network = Llama(
        SimpleNamespace(
            n_layer=model.layers, n_embd=model.width, n_head=model.heads, multiple_of=256,
            vocab_size=model.vocabulary, sequence_length=model.context, dropout=0.0, bias=False,
            rmsnorm_eps=model.norm_eps, w_quant=name, w_quant_kwargs=options, a_quant=name,
            a_quant_kwargs=options,
        )
    ).to(device)  # fmt: skip
    named = dict(network.named_parameters())
    groups = network.get_parameter_group_specs()
    for group in groups:
        group["params"] = [named[key] for key in group["params"]]
    optimizer = torch.optim.AdamW(
        groups, lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=device.type == "cuda"
    )
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    trained: Any = network.train() if arguments.toy else torch.compile(network.train())
    taken, loss = 0, torch.tensor(0.0)

    def step() -> None:
        nonlocal taken, loss
        batch = windows[taken % len(windows)]
        taken += 1
        with torch.amp.autocast(device_type=device.type, dtype=torch.bfloat16):
            outputs = trained(batch[:, :-1], targets=batch[:, 1:].contiguous())
        loss = outputs["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step, lambda: loss.item(), sum(p.numel() for p in named.values())


def digests(quest: Path) -> dict[str, str]:
    """Return the SHA-256 of QuEST's model files, by path."""
    folder = quest / "src" / "models"
    found = sorted(folder.rglob("*.py"))
    return {str(path.relative_to(quest)): files.sha256_of(path) for path in found}


if __name__ == "__main__":
    sys.exit(main())
