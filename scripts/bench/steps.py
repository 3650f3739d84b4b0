"""Measure the training step on one GPU: unquantized, STE, two forward passes, FOGZO n = 1.

    python -m scripts.bench.steps vision --out results/records/bench/{group}-h200.json
    python -m scripts.bench.steps vision language --out DIR/{group}-h200.json
    python -m scripts.bench.steps vision --toy --out /tmp/{group}.json         # does it run? (CPU)

bf16; photographs of 224 px in batches of 256, or 64 sequences of 512 tokens, on the card before the
clock starts; the median of 50 steps. A step is what a run does: the compiled network in
training mode, `TrainStep`, captured as a CUDA graph, optimizer included, so that the weights change
in every step. The two forwards are the probes' own graph, captured likewise, each time on new
weights.

Each network has a process of its own. Several compile side by side; then one after another
measures, while the others wait, so that the card is never shared under the clock. Those that have
not compiled after --patience seconds are halted, and measured after the others.

With --profile K, `ste_kernels` and `two_forwards_kernels` are the K that take longest on the GPU.

`memory_mb` is the peak while a step of the kind is captured; `probe_fraction` a FOGZO step whose
probes see that part of the batch, in the round-w2 case of each network; `floor` what the products
and the bytes take at the least at the card's own rates, see scripts/bench/floor.py, and
`measured_over` how many times that was measured. At the end each case is compared with the record
of the same card in results/records/bench, as it was before the bench began.

FLOP a token = 6 (N_non-embedding + V d) + 6 L d T; `share_of_peak` is against 790 TFLOP/s, the bf16
matrix rate measured on an H200.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from fogzo_repro import files
from fogzo_repro.reporting.benches import PEAK_TFLOPS
from fogzo_repro.terminal import at_least_one, command_parser, one_line_errors
from fogzo_repro.training.machine import resolve_machine
from scripts.bench.networks import NETWORKS, cases, configure, measure
from scripts.bench.record import asked_for, begin, head, tell_moved, write

CONTENDER = "an STE step of the same network and quantizer; a step without a quantizer"
PAPER_RATIO = 1.58  # a FOGZO step in STE steps, PAPER 2, "Table 4"


@one_line_errors
def main() -> int:
    """Compile all cases, measure one after another, write a JSON file for each group."""
    parser = command_parser(__doc__)
    parser.add_argument("groups", nargs="+", choices=NETWORKS, help="which networks")
    parser.add_argument("--out", required=True, help="JSON file; {group} stands for the group")
    parser.add_argument("--cases", help="comma-separated, as 'resnet18 none,resnet18 round-w2'")
    parser.add_argument("--steps", type=at_least_one, default=50, help="timed; 1 or more")
    parser.add_argument("--warm-up", type=int, default=5, help="steps before the clock starts")
    parser.add_argument(
        "--side-by-side", type=at_least_one, default=11, help="processes that compile at a time"
    )
    parser.add_argument("--patience", type=float, default=900, help="seconds for compiling")
    parser.add_argument(
        "--probe-fractions", type=fractions, default="0.25,0.125",
        help="parts of the batch for the probes, comma-separated, between 0 and 1; none: no such",
    )  # fmt: skip
    parser.add_argument(
        "--profile", type=int, default=0, metavar="K", help="note the K longest kernels"
    )
    parser.add_argument("--toy", action="store_true", help="tiny networks, a check on the CPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # a measuring process
    arguments = parser.parse_args()
    if arguments.one:
        files.write(Path(arguments.out), json.dumps(measure(arguments.groups[0], arguments)))
        return 0
    if arguments.profile and arguments.toy:
        parser.error("--profile notes the kernels of a GPU; leave out --profile or --toy")
    paths = {group: Path(arguments.out.replace("{group}", group)) for group in arguments.groups}
    if len({*paths.values()}) < len(paths):
        parser.error(
            f"--out {arguments.out} is the same file for every group; put {{group}} into it"
        )
    committed = begin(*paths.values(), on_gpu=not arguments.toy)
    waiting = [(group, case) for group in arguments.groups for case in cases(group)]
    if arguments.cases:
        asked = asked_for(parser, arguments.cases, [case for _, case in waiting])
        waiting = [(g, case) for g, case in waiting if case in asked]
    waiting.sort(key=lambda one: not one[1].startswith("resnet50"))  # compiles longest
    contents = {group: head_of(group, arguments) for group in arguments.groups}
    started, failed = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        started_ones: list[Measuring] = []
        while waiting or any(not m.ready for m in started_ones):
            compiling = sum(not m.ready for m in started_ones)
            if waiting and compiling < arguments.side_by_side:
                started_ones.append(Measuring(*waiting.pop(0), Path(folder), arguments))
            elif time.monotonic() - started > arguments.patience:
                break
            time.sleep(0.2)
        print(f"compiled for {time.monotonic() - started:.0f} s", flush=True)
        late = [m for m in started_ones if not m.ready]
        for measuring in late:
            measuring.halt()
        ordered, again = sorted(started_ones, key=lambda m: m in late), []
        while ordered or again:
            if alone := not ordered:  # the others are gone, and with them the memory they held
                ordered.append(Measuring(*again.pop(0), Path(folder), arguments))
            measuring = ordered.pop(0)
            content = contents[measuring.group]
            found = measuring.go()
            if found is None:
                (failed if alone else again).append((measuring.group, measuring.case))
                print(
                    f"{measuring.case}: failed" + ("" if alone else ", tried again at the end"),
                    flush=True,
                )
                continue
            content["networks"].setdefault(measuring.network, {})[measuring.quantizer] = found
            content["seconds"] = round(time.monotonic() - started)
            write(paths[measuring.group], content)
            networks = content["networks"][measuring.network]
            print(line(measuring.network, measuring.quantizer, networks), flush=True)
    for group, content in contents.items():
        for network, measured in content["networks"].items():
            for quantizer in measured:
                tell_moved(content, committed, ("networks", network, quantizer), paths[group].name)
    return 1 if failed else 0


def fractions(said: str) -> tuple[float, ...]:
    """Read numbers between 0 and 1, separated by commas; `none` for no number."""
    found = () if said == "none" else tuple(map(float, said.split(",")))
    if not all(0 < number < 1 for number in found):
        raise ValueError(said)
    return found


def head_of(group: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what the figures were measured with."""
    machine = resolve_machine(configure(group, cases(group)[0], arguments))
    return head(group, CONTENDER, machine.card) | {
        "precision": str(machine.autocast),
        "compile": machine.compile,
        "cuda_graph": machine.cuda_graph,
        "paper_fogzo_over_ste": PAPER_RATIO,
        "networks": {},
    }


class Measuring:
    """A process that compiles one network, waits, and measures it."""

    def __init__(self, group: str, case: str, folder: Path, arguments: argparse.Namespace) -> None:
        self.group, self.case = group, case
        self.network, self.quantizer = case.rsplit(" ", 1)
        self.out = folder / f"{group} {case}.json"
        steps = ["--steps", str(arguments.steps), "--warm-up", str(arguments.warm_up)]
        toy = ["--toy"] if arguments.toy else []
        parts = ",".join(map(str, arguments.probe_fractions)) or "none"
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "scripts.bench.steps", group, "--one", case,
                "--out", str(self.out), "--probe-fractions", parts, *steps, *toy,
                "--profile", str(arguments.profile),
            ],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            env={"TORCHINDUCTOR_COMPILE_THREADS": "3", **os.environ},
        )  # fmt: skip
        self.ready = False
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        """Notice when it has compiled, or has ended."""
        assert self.process.stdout is not None
        for said in self.process.stdout:
            if said.strip() == "ready":
                break
        self.ready = True

    def halt(self) -> None:
        """Stop it and its compilers, to go on when it is its turn."""
        os.killpg(self.process.pid, signal.SIGSTOP)

    def go(self) -> dict[str, Any] | None:
        """Let it measure; return the figures, or None where it has failed."""
        os.killpg(self.process.pid, signal.SIGCONT)
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.close()
        return json.loads(self.out.read_text()) if self.process.wait() == 0 else None


def line(network: str, quantizer: str, measured: dict[str, Any]) -> str:
    """Return a case's figures in words."""
    found = measured[quantizer]
    said = f"{network} {quantizer}: STE {found['ste_per_s']:,.0f} {found['unit']}/s"
    if "share_of_peak" in found:
        said += f" ({100 * found['share_of_peak']:.1f}% of {PEAK_TFLOPS} TFLOP/s)"
    if "none" in measured and quantizer != "none":
        said += f", {found['ste_ms']['median'] / measured['none']['ste_ms']['median']:.3f} x none"
    if "fogzo_ms" in found:
        said += (
            f"; FOGZO {found['fogzo_over_ste']:.3f} x STE, "
            f"{found['fogzo_over_parts']:.3f} x (STE + 2 forwards)"
        )
    for fraction, figures in found.get("probe_fraction", {}).items():
        said += f", {figures['fogzo_over_ste']:.3f} x STE with probes on {fraction} of the batch"
    said += f"; STE {found['floor']['ste']['measured_over']:.2f} x floor"
    return f"{said}; compiled in {found['compile_seconds']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
