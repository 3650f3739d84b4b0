"""scripts/prepare_c4.py: counts, resumption, errors."""

import errno
import fcntl
import gzip
import json
import os
import re
import shutil
import signal
import time

import numpy as np
import pytest

from fogzo_repro.data import c4_shards
from scripts import prepare_c4
from tests.forked import finish, fork

TEXT = "the quick brown fox jumps over a lazy dog while seven wizards vex bold judges"
WORDS = TEXT.split()
FILES, DOCUMENTS = 4, 1200


def text(seed, length):
    generator = np.random.default_rng(seed)
    return " ".join(generator.choice(WORDS, length))


def write_gz(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(line + "\n" for line in lines).encode()))


def train_tokenizer(folder, seed):
    import sentencepiece

    folder.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text(seed + i, 9) for i in range(200)), vocab_size=45,
        model_prefix=str(folder / "tokenizer"), minloglevel=2,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Four files of 1,200 documents, one file of validation documents, two tokenizers."""
    root = tmp_path_factory.mktemp("source")
    for index in range(FILES):
        lines = [
            json.dumps({"text": text(10_000 * index + d, 30), "url": ""}) for d in range(DOCUMENTS)
        ]
        write_gz(root / "en" / f"c4-train.{index:05d}-of-00004.json.gz", lines)
    write_gz(root / "en" / "c4-validation.00000-of-00001.json.gz", lines[:70])
    train_tokenizer(root / "tokenizer", 0)
    train_tokenizer(root / "other", 10**6)
    return root


def line(source, out, *more, tokens="1e9", held_out="0.33"):
    return [
        "--source", str(source / "en"), "--tokenizer", str(source / "tokenizer"), "--out", str(out),
        "--tokens", tokens, "--held-out", held_out, "--workers", "2", "--name", "invented", *more,
    ]  # fmt: skip


def content(out):
    return {p.name: p.read_bytes() for p in sorted(out.iterdir()) if p.name != "lock"}


def stream(out, split):
    manifest = json.loads((out / "manifest.json").read_text())
    shards = manifest["splits"][split]["shards"]
    return np.concatenate([np.fromfile(out / s["file"], dtype="<u2") for s in shards])


@pytest.fixture(scope="module")
def prepared(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared") / "c4"
    assert prepare_c4.main(line(source, out)) == 0
    return out


def test_each_document_is_there_once_with_a_bos_in_front(source, prepared):
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(source / "tokenizer" / "tokenizer.model"))
    wanted = {text(10_000 * f + d, 30) for f in range(FILES) for d in range(DOCUMENTS)}
    found = []
    for split in ("train", "tuning", "heldout"):
        tokens = stream(prepared, split)
        assert tokens[0] == 1
        starts = np.flatnonzero(tokens == 1)
        documents = np.split(tokens, starts[1:])
        found += [model.decode(d[1:].tolist()) for d in documents]
    assert len(found) == len(wanted) == FILES * DOCUMENTS
    assert set(found) == wanted


def test_the_held_out_share_is_the_one_asked_for(prepared):
    manifest = json.loads((prepared / "manifest.json").read_text())
    for split in ("tuning", "heldout"):
        assert manifest["splits"][split]["documents"] == FILES * DOCUMENTS // 3
    assert manifest["splits"]["c4"]["documents"] == 70


def test_the_wanted_tokens_are_the_first_ones(source, prepared, tmp_path):
    wanted = 30_000  # ends within the third file
    assert prepare_c4.main(line(source, tmp_path / "c4", tokens=str(wanted))) == 0
    assert np.array_equal(stream(tmp_path / "c4", "train"), stream(prepared, "train")[:wanted])
    manifest = json.loads((tmp_path / "c4" / "manifest.json").read_text())
    assert manifest["splits"]["train"]["tokens"] == wanted
    assert len(manifest["splits"]["train"]["shards"]) == 3


def flip_a_bit(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    **{f"{what} of a part": ("part-train-00002.json", change) for what, change in {
        "a bit": flip_a_bit, "half": lambda content: content[: len(content) // 2],
        "nothing": lambda content: b"", "another object": lambda content: b"[1]",
        "no UTF-8": lambda content: b"\xff" + content,
    }.items()},
    "a bit of a shard": ("train-00002.bin", flip_a_bit),
    "zeros in a shard that is held out": ("train-heldout-00001.bin", lambda c: bytes(len(c))),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change"), DAMAGE.values(), ids=DAMAGE)
def test_the_same_command_mends_damaged_files(source, prepared, tmp_path, name, change):
    out = tmp_path / "c4"
    shutil.copytree(prepared, out)
    (out / name).write_bytes(change((out / name).read_bytes()))
    assert content(out) != content(prepared)
    assert prepare_c4.main(line(source, out)) == 0
    assert content(out) == content(prepared)


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[1]", b"null", b"\xff{}", b"[" * 100_000],
    ids=["empty", "half", "list", "null", "not_utf8", "deep"],
)
def test_damaged_settings_are_one_line_with_the_remedy(source, prepared, tmp_path, capsys, text):
    out = tmp_path / "c4"
    shutil.copytree(prepared, out)
    (out / "settings.json").write_bytes(text)
    assert prepare_c4.main(line(source, out)) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    assert "settings.json is damaged" in said and "delete it if all options are those" in said
    (out / "settings.json").unlink()
    assert prepare_c4.main(line(source, out)) == 0
    assert content(out) == content(prepared)


@pytest.mark.slow
def test_killed_preparation_goes_on_to_identical_shards(source, prepared, tmp_path):
    out = tmp_path / "c4"
    pid = fork(lambda: prepare_c4.main(line(source, out, "--workers", "1")))
    deadline = time.monotonic() + 60
    while not list(out.glob("part-*-00001.json")) and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert not (out / "manifest.json").exists()
    first = (out / "train-00000.bin").stat().st_mtime_ns
    assert prepare_c4.main(line(source, out)) == 0
    assert (out / "train-00000.bin").stat().st_mtime_ns == first  # not made again
    assert content(out) == content(prepared)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=str)
def test_a_signal_ends_a_preparation_and_its_workers_at_once(source, tmp_path, monkeypatch, number):
    def long(file, tokenizer, out, *_, **__):
        (out / "begun").touch()
        time.sleep(100)

    out = tmp_path / "c4"
    monkeypatch.setattr(c4_shards, "tokenize_file", long)
    pid = fork(lambda: prepare_c4.main(line(source, out)))
    deadline = time.monotonic() + 60
    while not (out / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sent = time.monotonic()
    os.kill(pid, number)
    assert finish(pid) == (130 if number == signal.SIGINT else -signal.SIGTERM)
    with open(out / "lock") as lock:  # the workers hold it too
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                assert time.monotonic() < sent + 2
                time.sleep(0.01)


def test_a_worker_that_is_ended_from_outside_is_said_with_its_file(
    source, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(c4_shards, "tokenize_file", lambda *_, **__: os._exit(9))
    assert prepare_c4.main(line(source, tmp_path / "c4", "--workers", "1")) == 2
    said = capfd.readouterr().err
    assert "a worker was ended from outside, at c4-train.00000-of-00004.json.gz; run" in said
    assert said.count("\n") == 1


def test_a_full_disk_is_one_line(source, tmp_path, monkeypatch, capfd):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "train-00000.bin")

    monkeypatch.setattr(c4_shards, "tokenize_file", full)
    assert prepare_c4.main(line(source, tmp_path / "c4")) == 2
    said = capfd.readouterr().err
    assert said.startswith("error: cannot use train-00000.bin: No space left on device; see that")
    assert said.count("\n") == 1


def test_a_corpus_is_named_in_its_manifest_and_has_to_be_where_it_is_not_c4(
    source, tmp_path, capfd
):
    (tmp_path / "en").mkdir()
    (tmp_path / "en" / "wiki.json.gz").symlink_to(next((source / "en").glob("c4-train*")))
    arguments = line(source, tmp_path / "c4", "--source", str(tmp_path / "en"))
    unnamed = [word for word in arguments if word not in ("--name", "invented")]
    assert prepare_c4.main(unnamed) == 2
    assert "wiki.json.gz is not named as C4's files are (c4-...); say by --name" in (
        capfd.readouterr().err
    )
    named = [*unnamed, "--name", "English Wikipedia", "--held-out", "0"]
    assert prepare_c4.main(named) == 0
    manifest = json.loads((tmp_path / "c4" / "manifest.json").read_text())
    assert manifest["corpus"] == "English Wikipedia"


def test_a_second_call_changes_nothing(source, prepared):
    before = content(prepared)
    assert prepare_c4.main(line(source, prepared)) == 0
    assert content(prepared) == before


FAULTS = {
    "corrupt-gz": (lambda data: data[: len(data) // 2], r"bad.json.gz line \d+: .*unpacked"),
    "invalid-json": (
        lambda data: gzip.compress(b'{"text": "a"}\n{"text": "b\n'),
        "bad.json.gz line 2: not valid JSON",
    ),
    "missing-text": (
        lambda data: gzip.compress(b'{"text": "a"}\n{"url": "b"}\n'),
        "bad.json.gz line 2: no key `text`",
    ),
    "text-of-another-type": (
        lambda data: gzip.compress(b'{"text": 3}\n'),
        "bad.json.gz line 1: no key `text`",
    ),
}


@pytest.mark.parametrize(("damage", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_is_named_with_file_and_line(source, tmp_path, capfd, damage, message):
    folder = tmp_path / "source"
    good = next((source / "en").glob("*.json.gz")).read_bytes()
    (folder / "en").mkdir(parents=True)
    (folder / "en" / "bad.json.gz").write_bytes(damage(good))
    (folder / "tokenizer").symlink_to(source / "tokenizer")
    assert prepare_c4.main(line(folder, tmp_path / "c4")) == 2
    (said,) = (s for s in capfd.readouterr().err.splitlines() if s.startswith("error:"))
    assert re.search(message, said), said
    assert not (tmp_path / "c4" / "manifest.json").exists()


def test_a_manifest_of_another_tokenizer_is_left_alone(source, prepared, capfd):
    before = content(prepared)
    other = line(source, prepared, "--tokenizer", str(source / "other"))
    assert prepare_c4.main(other) == 2
    assert "manifest.json is of another tokenizer" in capfd.readouterr().err
    assert content(prepared) == before


def test_too_small_a_slice_is_refused_and_the_share_it_names_suffices(source, tmp_path, capfd):
    out = tmp_path / "c4"
    (out / "en").mkdir(parents=True)
    mine = [out / "en" / "c4-train.json.gz", out / "notes.json", out / "train.bin"]
    for path in mine:
        path.write_text("of the user")
    assert prepare_c4.main(line(source, out, held_out="0.0005")) == 2
    assert sorted(p for p in out.rglob("*") if p.is_file()) == sorted([*mine, out / "lock"])
    said = capfd.readouterr().err
    assert "of 4,800 documents; 64 windows take about" in said
    share = said.split("--held-out ")[1].split()[0]
    assert float(share) < 1 / 3
    assert prepare_c4.main(line(source, out, held_out=share)) == 0


def test_what_a_killed_worker_left_is_cleared_away(source, prepared, tmp_path):
    out = tmp_path / "c4"
    out.mkdir()
    (out / "train-00000.bin.123.tmp").write_bytes(b"half")
    assert prepare_c4.main(line(source, out)) == 0
    assert content(out) == content(prepared)


ARGUMENTS = {
    "tokens": (["--tokens", "0"], "--tokens 0.0 must be at least 1"),
    "share": (["--held-out", "0.6"], "--held-out 0.6 is outside"),
    "out": (["--out", "/proc/c4"], "--out /proc/c4 is not writable"),
}


@pytest.mark.parametrize(("arguments", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_wrong_argument_is_one_line(source, tmp_path, capfd, arguments, message):
    assert prepare_c4.main(line(source, tmp_path / "c4", *arguments)) == 2
    said = capfd.readouterr().err
    assert message in said
    assert said.count("\n") == 1


@pytest.mark.slow
def test_the_c4_sample_has_the_published_token_counts(data_dir, tmp_path):
    out = tmp_path / "c4"
    arguments = [
        "--source", str(data_dir / "c4"), "--tokenizer",
        str(data_dir / "tokenizer" / "mistral-7b-v0.1"), "--out", str(out), "--tokens", "3.1e9",
        "--held-out", "0.044",
    ]  # fmt: skip
    assert prepare_c4.main(arguments) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    counts: dict[str, list[int]] = {}
    assert manifest["corpus"] == "C4 (en)"  # its files are named as C4's are
    for split in ("train", "tuning", "heldout"):
        for shard in manifest["splits"][split]["shards"]:
            pair = counts.setdefault(shard["source"].split(".")[1], [0, 0])
            pair[0] += shard["documents"]
            pair[1] += shard["tokens"]
    published = {  # documents, tokens without BOS
        "00000-of-00003": (1_000, 522_480),
        "00001-of-00003": (300, 178_192),
        "00002-of-00003": (1_480, 425_498),
    }
    assert counts == {k: [n, tokens + n] for k, (n, tokens) in published.items()}
