r"""Tokenise C4 (en), or any other *.json.gz of documents, into uint16 shards for dataset=c4.

    python scripts/prepare_c4.py --source hub --tokenizer mistralai/Mistral-7B-v0.1 \
        --out data/c4 --tokens 1e8 --held-out 0.005
    python scripts/prepare_c4.py --source DIR --name "English Wikipedia" --tokenizer DIR \
        --out data/c4 --tokens 1e9 --held-out 0.01

`--source hub` streams C4 from a pinned revision; a folder holds files of one JSON document a line,
its text under the key `text`. The tokenizer is a LLaMA-style sentencepiece model,
`tokenizer.model`, in a folder or on the hub. Each document gets BOS in front. `--held-out` is the
share of documents held out to report on (dataset.validation=heldout); as many others are held out
to choose settings by (dataset.validation=tuning). The default is QuEST's 0.05%. A validation split
of the source's own is prepared beside them (dataset.validation=c4).

Run again after an interruption, the same command goes on and ends with the same files. It also
checks the shards that are there, and writes damaged ones anew.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if not __package__:  # started as a file
    import root  # noqa: F401

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.c4 import LEAST_WINDOWS, MANIFEST, enough_documents
from fogzo_repro.data.c4_documents import (
    HUB,
    HUB_FILE_BYTES,
    HUB_FILE_TOKENS,
    REVISION,
    SourceFile,
    source_files,
)
from fogzo_repro.data.c4_shards import (
    SPLITS,
    Part,
    Shard,
    load_tokenizer,
    remove_part,
    tokenize_files,
    write_json,
)
from fogzo_repro.data.workers import LOCK_SECONDS
from fogzo_repro.terminal import (
    at_least_one,
    command_parser,
    first_line,
    one_line_errors,
    text_or_path,
)
from fogzo_repro.tracking.progress import RunProgress

TOKENS_PER_SECOND = 0.8e6  # a core, sentencepiece; for the estimate before the start
CONTEXT = 512
MOST_HELD_OUT = 1 / 3  # to report on; as many to choose by
C4_NAME = "C4 (en)"
SETTINGS = "settings.json"


def arguments(line: list[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = command_parser(__doc__)
    parser.add_argument(
        "--source", required=True, type=text_or_path, help="hub, or a folder of *.json.gz"
    )
    parser.add_argument(
        "--name", help=f"what records and tables call the text; {C4_NAME} for C4's own files"
    )
    parser.add_argument(
        "--tokenizer",
        required=True,
        type=text_or_path,
        help="folder with tokenizer.model, or a name",
    )
    parser.add_argument("--out", required=True, type=Path, help="data_dir/c4")
    parser.add_argument("--tokens", required=True, type=float, help="training tokens, e.g. 3.1e9")
    parser.add_argument(
        "--held-out",
        type=float,
        default=0.0005,
        help="share of the documents to report on, and as many to choose by; 0 to below 0.5",
    )
    parser.add_argument(
        "--validation-tokens",
        type=float,
        default=1e7,
        help="tokens of the source's own validation split",
    )
    parser.add_argument(
        "--workers", type=at_least_one, default=os.cpu_count() or 1, help="processes; 1 or more"
    )
    return parser.parse_args(line)


def find_tokenizer(name: str) -> Path:
    """Return the path of tokenizer.model, fetched from the hub where `name` is no folder."""
    if Path(name).is_dir():
        path = Path(name) / "tokenizer.model"
        if not path.is_file():
            raise UserError(f"--tokenizer {name} holds no tokenizer.model (sentencepiece)")
        return path
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "tokenizer.model"))
    except Exception as error:  # network and hub errors have no common type
        raise UserError(
            f"--tokenizer {name} is no folder and cannot be fetched from the hub "
            f"({first_line(error)}); give a folder with tokenizer.model"
        ) from None


def corpus_name(args: argparse.Namespace, files: list[SourceFile]) -> str:
    """Return what the text is called: as asked, or C4 where the files have C4's names.

    Raises:
        UserError: for other files without a name.
    """
    if args.name and args.name.strip():
        return args.name.strip()
    strange = [f.name for f in files if not Path(f.name).name.startswith("c4-")]
    if strange:
        raise UserError(
            f"--source {args.source}: {strange[0]} is not named as C4's files are (c4-...); say by "
            "--name what records and tables are to call the text"
        )
    return C4_NAME


def settings_of(args: argparse.Namespace, tokenizer: Path, files: list[SourceFile]) -> dict:
    """Return all that decides the shards' content, and the corpus's name."""
    if args.held_out > MOST_HELD_OUT:
        raise UserError(f"--held-out {args.held_out} is outside [0, {MOST_HELD_OUT:.2f}]")
    if args.tokens < 1:
        raise UserError(f"--tokens {args.tokens} must be at least 1")
    content = tokenizer.read_bytes()
    on_hub = args.source == "hub"
    return {
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(),
        "tokens": int(args.tokens),
        "held_out_one_of": round(1 / args.held_out) if args.held_out else 0,
        "validation_tokens": int(args.validation_tokens),
        "corpus": corpus_name(args, files),
        "source": HUB if on_hub else "local files",
        "revision": REVISION if on_hub else None,
        "files": [[f.name, f.path.stat().st_size] for f in files if f.path],
    }


def announce(
    args: argparse.Namespace, train: list[SourceFile], validation: list[SourceFile]
) -> None:
    """Say size and time; refuse where the disk is too small."""
    held = sum(f.expected_tokens for f in train)
    tokens = min(args.tokens, held)
    total = tokens + min(args.validation_tokens, sum(f.expected_tokens for f in validation))
    size = 2 * total * (1 + 2 * args.held_out)
    workers = min(args.workers, len(train))
    print(
        f"about {tokens:.3g} training tokens from {args.source}: {size / 1e6:,.1f} MB in {args.out}"
        + (
            f", {HUB_FILE_BYTES * total / HUB_FILE_TOKENS / 1e9:.1f} GB to fetch"
            if args.source == "hub"
            else ""
        )
        + f"; about {_clock(total / TOKENS_PER_SECOND / workers)} with {workers} processes",
        flush=True,
    )
    if tokens < args.tokens:
        print(f"the source is estimated to hold {held:.3g} of the {args.tokens:.3g} tokens wanted")
    free = shutil.disk_usage(args.out).free
    if free < 1.02 * size:
        raise UserError(
            f"--out {args.out} has {free / 1e9:.1f} GB free, {1.02 * size / 1e9:.1f} GB are needed;"
            " give another --out or fewer --tokens"
        )


def _clock(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{math.ceil(seconds / 60)} min"


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Keep other processes out of the folder; clear it of what a killed one had not finished."""
    files.make_folder(out, f"--out {out}")
    with files.locked(out / "lock", str(out), wait=LOCK_SECONDS) as has_locks:
        if not has_locks:
            print(f"warning: the file system of {out} has no locks: start this once", flush=True)
        files.remove_unfinished(out)  # workers hold the lock too: all are gone
        yield


def check_settings(out: Path, settings: dict) -> None:
    """Refuse a folder that other settings have written; leave ours there."""
    path = out / SETTINGS
    if path.is_file():
        stored = read_settings(path)
        for key in (k for k in settings if stored.get(k) != settings[k]):
            there = "of another tokenizer" if key == "tokenizer_sha256" else f"of another {key}"
            raise UserError(
                f"{out / MANIFEST if (out / MANIFEST).is_file() else path} is {there}: "
                f"{_short(stored.get(key))}, now {_short(settings[key])}; give another --out or "
                f"delete {out}"
            )
    write_json(path, settings)


def read_settings(path: Path) -> dict:
    """Read what `check_settings` has left.

    Raises:
        UserError: where it is damaged.
    """
    try:
        return dict(files.parse_json(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged ({error}); delete it if all options are those that {path.parent} "
            "was begun with, else delete that folder"
        ) from None


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) < 80 else text[:77] + "..."


def split_entry(shards: list[Shard]) -> dict:
    """Return one split of the manifest."""
    return {
        "documents": sum(s.documents for s in shards),
        "tokens": sum(s.tokens for s in shards),
        "shards": [vars(s) for s in shards],
    }


def check_held_out(split: str, entry: dict, parts: list[Part]) -> None:
    """Refuse a held-out slice that is too small, with the documents that would suffice."""
    windows = max(0, entry["tokens"] - 1) // CONTEXT
    if windows >= LEAST_WINDOWS:
        return
    shards = [shard for part in parts for shard in part.shards.values()]
    documents, tokens = sum(s.documents for s in shards), sum(s.tokens for s in shards)
    needed = enough_documents(documents, tokens, CONTEXT)
    share = math.ceil(1500 * needed / documents) / 1000
    raise UserError(
        f"the held-out slice `{split}` has {windows} windows of {CONTEXT} tokens in "
        f"{entry['documents']} of {documents:,} documents; {LEAST_WINDOWS} windows take about "
        f"{needed}: "
        + (
            f"give --held-out {share:g} (half as many again, to be safe)"
            if share <= MOST_HELD_OUT
            else "give a larger source or more --tokens"
        )
    )


def prepare(args: argparse.Namespace) -> dict:
    """Write shards and manifest; return the manifest.

    Raises:
        UserError: in one line, with file and line where a document is at fault.
    """
    train, validation = source_files(args.source)
    tokenizer = find_tokenizer(args.tokenizer)
    entries = load_tokenizer(tokenizer).vocab_size()
    settings = settings_of(args, tokenizer, [*train, *validation])
    with locked(args.out):
        check_settings(args.out, settings)
        announce(args, train, validation)
        splits = tokenize(args, settings, tokenizer, train, validation)
        name = {"sha256": settings["tokenizer_sha256"], "vocabulary": entries}
        manifest = {
            "format": 2, "corpus": settings["corpus"], "tokenizer": name, "settings": settings,
            "splits": splits,
        }  # fmt: skip
        write_json(args.out / MANIFEST, manifest)
    return manifest


def tokenize(
    args: argparse.Namespace,
    settings: dict,
    tokenizer: Path,
    train: list[SourceFile],
    validation: list[SourceFile],
) -> dict:
    """Write the shards; return the splits of the manifest."""
    wanted, every = settings["tokens"], settings["held_out_one_of"]
    expected = int(min(wanted, sum(f.expected_tokens for f in train)))
    bar = RunProgress("tokens", expected, 0)
    try:
        parts = tokenize_files(
            train, tokenizer, args.out, "train", wanted=wanted, every=every,
            workers=args.workers, progress=lambda n: bar.update(n, {}),
        )  # fmt: skip
        own: list[Part] = []
        if validation and settings["validation_tokens"]:
            own = tokenize_files(
                validation, tokenizer, args.out, "c4", wanted=settings["validation_tokens"],
                every=0, workers=args.workers, progress=lambda n: None,
            )  # fmt: skip
    finally:
        bar.close()
    splits = {
        split: split_entry([part.shards[split] for part in parts])
        for split in (SPLITS if every else ("train",))
    }
    try:
        for split in (s for s in splits if s != "train"):
            check_held_out(split, splits[split], parts)
    except UserError:  # made with a share that is of no use; nothing else in the folder is touched
        for prefix, made in (("train", parts), ("c4", own)):
            for index, part in enumerate(made):
                remove_part(args.out, prefix, index, part)
        (args.out / SETTINGS).unlink()
        raise
    if own:
        splits["c4"] = split_entry([part.shards["train"] for part in own])
    return splits


@one_line_errors
def main(line: list[str] | None = None) -> None:
    """Run."""
    started = time.monotonic()
    args = arguments(line)
    manifest = prepare(args)
    print(f"corpus: {manifest['corpus']}")
    for split, entry in manifest["splits"].items():
        print(f"{split}: {entry['tokens']:,} tokens of {entry['documents']:,} documents")
    print(f"wrote {args.out / MANIFEST} after {time.monotonic() - started:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
