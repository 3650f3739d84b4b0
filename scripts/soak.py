"""Kill runs at random moments, start them again, and compare their ends with uninterrupted runs.

    python scripts/soak.py --kills 200
    python scripts/soak.py --kills 8 --seed 1 mlp-ste queue      only some of the runs

The runs: the MLP at the paper's scale by three estimators, on MNIST where it is there and else on
the digits; a ResNet, a DeiT and a LLaMA at smoke scale, by FOGZO; and a queue of several runs. They
write checkpoints all the time. A kill is SIGKILL, or SIGTERM in one case of four, to all processes
of a run, at a moment that is drawn. After each, every reader of run folders must come through; in
the end metrics, checkpoint and the record's metrics must be the same bytes as those of the
uninterrupted run, and nothing half written may be left.

Each attempt is a fork of this process, which has imported what runs need.

Exit status: 0; 1 where something differed, with a line for each.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

if not __package__:  # started as a file
    import root  # noqa: F401

import sklearn.datasets  # noqa: F401  attempts inherit what is imported here
import torch._dynamo

from fogzo_repro import __main__ as cli
from fogzo_repro.sweeps.smoke import CONTEXT, VOCABULARY, write_invented_corpus
from fogzo_repro.sweeps.status import known_runs
from fogzo_repro.terminal import command_parser

LONGEST = 3.0  # seconds from the start of an attempt to its kill; a queue's workers import torch
MLP = {f"mlp-{name}": [f"estimator={name}"] for name in ("ste", "nspsa", "fogzo")}
SMALL = ["scale=smoke", "estimator=fogzo", "recipe.max_steps=30", "eval_every_steps=7"]
IMAGES = [*SMALL, "dataset=digits"]
NETWORKS = {
    "resnet": [*IMAGES, "model=resnet18", "recipe=cifar_resnet", "model.stem=small"],
    "deit": [*IMAGES, "model=deit_tiny", "recipe=cifar_deit", "model.patch_size=4"],
    "llama": [
        *SMALL, "model=llama_9m", f"model.context={CONTEXT}", f"model.vocabulary={VOCABULARY}",
        "recipe.global_batch_size=4",
    ],
}  # fmt: skip
QUEUE = [
    "figure-shallow/full-precision", "--seeds", "0..1", "--workers", "2", "dataset=digits",
    "recipe=digits_mlp", "recipe.max_steps=400", "hardware=cpu", "recipe.clip_norm=1e9",
]  # fmt: skip
SHARES = {name: 10 for name in MLP} | {name: 4 for name in NETWORKS} | {"queue": 2}  # of the kills


@dataclass(frozen=True)
class Case:
    """A command, without where it writes."""

    name: str
    words: list[str]

    def attempt(self, folder: Path) -> int:
        """Do it in this process; return the exit status."""
        often = f"checkpoint_minutes={0 if 'scale=smoke' in self.words else 0.002}"
        words = [*self.words, often, f"output_root={folder / 'runs'}"]
        if self.name == "queue":
            from scripts import run_cells

            sys.argv = [run_cells.__file__, *words, "--records", str(folder / "records")]
            return run_cells.main()
        sys.argv = [cli.__file__, *words]
        return cli.main()


def cases(folder: Path, short: bool) -> list[Case]:
    """Return all cases; `short` ones train on the digits for a few steps."""
    data = os.environ.get("FOGZO_DATA")
    mlp = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu"]
    if short:
        mlp.append("recipe.max_steps=150")
    elif data and Path(data, "MNIST").is_dir():
        mlp = ["hardware=cpu"]
    write_invented_corpus(folder / "data")
    networks = {**NETWORKS, "llama": [*NETWORKS["llama"], f"data_dir={folder / 'data'}"]}
    found = [Case(name, [*mlp, *words]) for name, words in MLP.items()]
    found += [Case(name, words) for name, words in networks.items()]
    return [*found, Case("queue", QUEUE)]


def run(case: Case, folder: Path, seconds: float | None, number: int = 0) -> int | None:
    """Run a case to its end, or kill all its processes.

    Returns:
        Its status; None where the kill came first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if not pid:
        _attempt(case, folder)
    with contextlib.suppress(OSError):  # who is first: the child does the same
        os.setpgid(pid, pid)
    deadline = math.inf if seconds is None else time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, number)
    os.waitpid(pid, 0)
    while _alive(pid):  # workers of a queue, and what watches over them
        time.sleep(0.01)
    return None


def _attempt(case: Case, folder: Path) -> NoReturn:
    status = 1
    try:
        os.setpgid(0, 0)
        with open(folder / "output.txt", "ab") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        status = case.attempt(folder)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def readers(folder: Path) -> list[str]:
    """Return what went wrong in what reads the folders of runs that have been killed."""
    said = []
    try:
        known_runs(folder / "records", [folder / "runs"])
    except Exception as error:
        said.append(f"status: {type(error).__name__}: {error}")
    for path in folder.glob("runs/*/record.json"):
        try:
            json.loads(path.read_bytes())
        except ValueError as error:
            said.append(f"{path}: {error}")
    return said


def ends(folder: Path) -> dict[str, bytes]:
    """Return what must not depend on interruptions, by name."""
    found: dict[str, bytes] = {}
    for run_folder in sorted(p.parent for p in folder.glob("runs/*/resolved.json")):
        newest = max(run_folder.glob("checkpoint-*.safetensors"))
        names = ["metrics.jsonl", newest.name, newest.with_suffix(".json").name]
        found |= {f"{run_folder.name}/{n}": (run_folder / n).read_bytes() for n in names}
        record = json.loads((run_folder / "record.json").read_bytes())
        kept = {k: record[k] for k in ("status", "metrics", "steps", "history")}
        found[f"{run_folder.name}/record"] = json.dumps(kept).encode()
    return found


def soak(case: Case, folder: Path, kills: int, draw: random.Random) -> tuple[Counter, list[str]]:
    """Kill a case so many times, let it end each time it does, compare; return counts, faults."""
    counts, faults = Counter[str](), list[str]()
    begun = time.monotonic()
    if run(case, folder / "whole", None) != 0:
        return counts, [f"{case.name}: the uninterrupted run has failed"]
    length = time.monotonic() - begun
    whole, killed, attempt = ends(folder / "whole"), folder / "killed-0", 0
    while counts["killed"] < kills:
        number = signal.SIGTERM if draw.random() < 0.25 else signal.SIGKILL
        longest = length if case.name == "queue" else min(length, LONGEST)
        status = run(case, killed, draw.uniform(0.02, 1.0) * longest, number)
        counts["killed" if status is None else "ended"] += 1
        if status is None:
            counts[number.name] += 1
            faults += [f"{case.name}: {line}" for line in readers(killed)]
        else:  # it came to its end between two kills: the next one begins anew
            faults += compare(case, killed, whole, status)
            attempt += 1
            killed = folder / f"killed-{attempt}"
    faults += compare(case, killed, whole, run(case, killed, None))
    counts["compared"] = attempt + 1
    return counts, faults


def compare(case: Case, folder: Path, whole: dict[str, bytes], status: int | None) -> list[str]:
    """Return how a case that was interrupted and has ended differs from the whole one."""
    if status != 0:
        return [f"{case.name}: status {status}; see {folder}/output.txt"]
    theirs = ends(folder)
    faults = [
        f"{case.name}: {name} differs in {folder}"
        for name in sorted({*whole, *theirs})
        if whole.get(name) != theirs.get(name)
    ]
    left = list(folder.rglob("*.tmp"))
    tensors = folder.rglob("checkpoint-*.safetensors")
    left += [path for path in tensors if not path.with_suffix(".json").exists()]
    return faults + [f"{case.name}: {path} is left" for path in left] + readers(folder)


def main() -> int:
    """Soak all cases, a line each; return the exit status."""
    parser = command_parser(__doc__)
    parser.add_argument("cases", nargs="*", help=f"which of {', '.join(SHARES)}")
    parser.add_argument("--kills", type=int, default=200, help="in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--short", action="store_true", help="on the digits, few steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    draw, begun = random.Random(arguments.seed), time.monotonic()
    total, failed = Counter[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        chosen = [
            case
            for case in cases(Path(folder), arguments.short)
            if case.name in arguments.cases or not arguments.cases
        ]
        left, shares = arguments.kills, sum(SHARES[case.name] for case in chosen)
        for case in chosen:
            kills = round(left * SHARES[case.name] / shares)
            left, shares = left - kills, shares - SHARES[case.name]
            counts, faults = soak(case, Path(folder, case.name), kills, draw)
            total += counts
            failed += len(faults)
            said = ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
            print(f"{case.name}: {said}; {len(faults)} faults", flush=True)
            print("".join(f"  {line}\n" for line in faults), end="", flush=True)
            shutil.rmtree(Path(folder, case.name))
    said = ", ".join(f"{n} {name}" for name, n in sorted(total.items()))
    print(f"{said}; {failed} faults, {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
