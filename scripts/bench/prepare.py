r"""Measure how many tokens a second scripts/prepare_c4.py writes, by number of processes.

    python -m scripts.bench.prepare --source DIR --tokenizer DIR --workers 1,2 --repeat 20 \
        --out results/records/bench/prepare-cpu.json

DIR holds C4's *.json.gz, any of them. They are read --repeat times, as so many files, from a
temporary folder; the wall time is that of the whole command, its start included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from fogzo_repro.config import UserError
from fogzo_repro.data.c4 import MANIFEST
from fogzo_repro.project import TOP
from fogzo_repro.terminal import at_least_one, one_line_errors
from fogzo_repro.training.machine import processor_name
from scripts.bench.record import begin, bench_parser, head, tell_moved, write


@one_line_errors
def main() -> None:
    """Measure, write one JSON file."""
    parser = bench_parser(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of *.json.gz")
    parser.add_argument("--tokenizer", type=Path, required=True, help="holds tokenizer.model")
    parser.add_argument(
        "--workers", type=counts, default="1,2", help="numbers of processes, comma-separated"
    )
    parser.add_argument(
        "--repeat", type=at_least_one, default=20, help="times that the files are read"
    )
    arguments = parser.parse_args()
    committed = begin(arguments.out, on_gpu=False)
    sources = sorted(arguments.source.rglob("*.json.gz"))
    if not sources:
        raise UserError(f"--source {arguments.source} holds no *.json.gz; give a folder of C4's")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for index in range(arguments.repeat):
            for file in sources:
                (source / f"{index:05d}-{file.name}").symlink_to(file.resolve())
        results = {
            str(n): measure(n, source, arguments.tokenizer, Path(folder)) for n in arguments.workers
        }
    record = head("prepare", "one process", processor_name()) | {"prepare": results}
    write(arguments.out, record)
    tell_moved(record, committed, ("prepare",), arguments.out.name)


def counts(said: str) -> tuple[int, ...]:
    """Read numbers of processes, separated by commas."""
    return tuple(map(at_least_one, said.split(",")))


def measure(workers: int, source: Path, tokenizer: Path, folder: Path) -> dict[str, Any]:
    """Prepare all of the source once."""
    out = folder / f"out-{workers}"
    command = [
        sys.executable, str(TOP / "scripts" / "prepare_c4.py"), "--source", str(source),
        "--name", "bench",
        "--tokenizer", str(tokenizer), "--out", str(out), "--tokens", "1e12", "--held-out", "0.01",
        "--workers", str(workers),
    ]  # fmt: skip
    started = time.perf_counter()
    if subprocess.run(command, stdout=subprocess.DEVNULL).returncode:
        raise UserError("scripts/prepare_c4.py failed, see above")
    seconds = time.perf_counter() - started
    splits = json.loads((out / MANIFEST).read_text())["splits"]
    tokens = sum(split["tokens"] for split in splits.values())
    rate = tokens / seconds
    print(f"{workers} processes: {rate:,.0f} tokens/s, {rate / workers:,.0f} a process", flush=True)
    return {"tokens": tokens, "seconds": seconds, "tokens_per_s": rate}


if __name__ == "__main__":
    sys.exit(main())
