"""Measure how long a command takes to its trained steps: with nothing compiled, and again.

    python -m scripts.bench.start --data-dir DIR --out results/records/bench/start-h200.json
    python -m scripts.bench.start --toy --out /tmp/start.json        # does it run? (CPU)

The command is `python -m fogzo_repro` with FOGZO n = 1: llama_30m with rounded weights and with
QuEST at 2 bits, from the corpus under DIR, and DeiT-Tiny on CIFAR-100. The clock runs from the
start of the process to the end of its 20th step, so that it holds the imports, reading the data,
compiling and capturing. `seconds_cold` is with all caches empty, `seconds_kept` the same command
after it, with FOGZO_COMPILED and no other cache. One command after another; the 20 steps themselves
take about a second.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError
from fogzo_repro.terminal import one_line_errors
from scripts.bench.record import asked_for, begin, bench_parser, card_name, head, tell_moved, write

STEPS = 20
LLAMA = ("model=llama_30m", f"eval_every_steps={STEPS}")  # else it is evaluated every second step
TWO_BITS = ("quantizer.weight_bits=2", "quantizer.activation_bits=2")
COMMANDS = {
    "llama_30m round-w2": (*LLAMA, "quantizer=round"),
    "llama_30m quest-w2a2": (*LLAMA, "quantizer=quest", *TWO_BITS),
    "deit_tiny round-w2": ("model=deit_tiny", "scale=mini", "quantizer=round"),
}
TOY = {"mlp round-w2": ("dataset=digits", "recipe=digits_mlp", "hardware=cpu")}
CONTENDER = "the same command with the code that the first one kept"
POLL_S = 0.05


@one_line_errors
def main() -> int:
    """Time each command twice; write a JSON file."""
    parser = bench_parser(__doc__, toy="the MLP")
    parser.add_argument("--data-dir", type=Path, help="folder with c4/ and CIFAR-100")
    parser.add_argument("--cases", help="comma-separated, as 'llama_30m round-w2'")
    arguments = parser.parse_args()
    committed = begin(arguments.out, on_gpu=not arguments.toy)
    commands = TOY if arguments.toy else COMMANDS
    asked = asked_for(parser, arguments.cases or ",".join(commands), commands)
    if arguments.data_dir is None and not arguments.toy:
        parser.error("--data-dir is missing")
    content = head("start", CONTENDER, card_name(arguments.toy)) | {"steps": STEPS, "starts": {}}
    for case in asked:
        content["starts"][case] = found = measure(commands[case], arguments)
        write(arguments.out, content)
        print(
            f"{case}: cold {found['seconds_cold']:.1f} s, again {found['seconds_kept']:.1f} s",
            flush=True,
        )
        tell_moved(content, committed, ("starts", case), arguments.out.name)
    return 0


def measure(words: tuple[str, ...], arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the seconds of a command's first and of its second start."""
    with tempfile.TemporaryDirectory() as folder:
        where = Path(folder)
        cold, kept = (start(words, where, name, arguments) for name in ("cold", "kept"))
    return {"seconds_cold": round(cold, 2), "seconds_kept": round(kept, 2)}


def start(words: tuple[str, ...], folder: Path, name: str, arguments: argparse.Namespace) -> float:
    """Return the seconds from a command's start to the end of its last step.

    What it keeps of its code stays in the folder. The start of this name has caches of its own.
    """
    runs, caches = folder / name / "runs", folder / name
    command = [
        sys.executable, "-m", "fogzo_repro", *words, "estimator=fogzo", "estimator.n=1",
        f"recipe.max_steps={STEPS}", f"output_root={runs}",
        *([] if arguments.data_dir is None else [f"data_dir={arguments.data_dir}"]),
    ]  # fmt: skip
    environment = os.environ | {
        "FOGZO_COMPILED": str(folder / "kept"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
    }
    environment.pop("TRITON_CACHE_DIR", None)  # the run has Triton keep its kernels with the rest
    began, seconds = time.perf_counter(), None
    process = subprocess.Popen(command, env=environment)
    while process.poll() is None:
        if seconds is None and any(p.stat().st_size for p in runs.glob("*/timing.jsonl")):
            seconds = time.perf_counter() - began
        time.sleep(POLL_S)
    if process.returncode or seconds is None:
        raise UserError(f"{' '.join(command[1:4])} failed, see above")
    return seconds


if __name__ == "__main__":
    sys.exit(main())
