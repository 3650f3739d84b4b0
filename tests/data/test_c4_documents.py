"""Where documents come from: folders, and the hub by `datasets`."""

import gzip
import json

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.data.c4_documents import source_files
from fogzo_repro.data.c4_shards import split_of
from tests.conftest import deny_folder


def test_a_folder_without_documents_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--source .* holds no \*.json.gz"):
        source_files(str(tmp_path))


def test_validation_files_are_told_by_their_name(tmp_path):
    for name in ("en/c4-train.00000.json.gz", "en/c4-validation.00000.json.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    train, validation = source_files(str(tmp_path))
    assert [f.name for f in train] == ["en/c4-train.00000.json.gz"]
    assert [f.name for f in validation] == ["en/c4-validation.00000.json.gz"]


def test_the_hub_has_the_files_of_c4():
    train, validation = source_files("hub")
    assert (len(train), len(validation)) == (1024, 8)
    assert train[7].name == "en/c4-train.00007-of-01024.json.gz"


def test_hub_documents_are_streamed_from_the_pinned_revision(tmp_path, monkeypatch):
    """`datasets` does the reading; only the download is replaced by a local file."""
    import datasets

    path, asked = tmp_path / "shard.json.gz", {}
    rows = [{"text": f"document {i}", "timestamp": "", "url": ""} for i in range(5)]
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    original = datasets.load_dataset

    def local(name, data_files, revision, split, streaming):
        asked.update(name=name, data_files=data_files, revision=revision)
        return original(
            "json", data_files=str(path), split=split, streaming=streaming, cache_dir=tmp_path
        )

    monkeypatch.setattr(datasets, "load_dataset", local)
    file = source_files("hub")[0][3]
    assert list(file.documents()) == [f"document {i}" for i in range(5)]
    assert asked["name"] == "allenai/c4"
    assert asked["data_files"] == "en/c4-train.00003-of-01024.json.gz"
    assert len(asked["revision"]) == 40

    def offline(*_, **__):
        raise ConnectionError("no network\nat all")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(UserError, match=r"c4-train.00003.* line 1: cannot be read \(no network\)"):
        list(file.documents())


@pytest.mark.parametrize("split", ["heldout", "tuning"])
def test_one_document_of_each_block_is_held_out_at_random_for_each_slice(split):
    places = []
    for block in range(200):
        found = [i for i in range(10) if split_of("a file", 10 * block + i, 10) == split]
        assert len(found) == 1
        places += found
    assert all(6 <= places.count(i) <= 40 for i in range(10))  # 20 expected, 4.7 standard errors
    other = [i % 10 for i in range(2000) if split_of("another", i, 10) == split]
    assert other != places
    assert {split_of("a file", i, 0) for i in range(50)} == {"train"}


def test_hidden_files_are_no_documents_and_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    folder = tmp_path / "source"
    (folder / ".cache").mkdir(parents=True)
    hidden = [folder / "._c4-train.0.json.gz", folder / ".cache" / "c4-train.2.json.gz"]
    for path in (tmp_path / "elsewhere" / "c4-train.1.json.gz", *hidden):
        path.touch()
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(folder)
    assert [f.name for f in source_files(str(folder))[0]] == ["linked/c4-train.1.json.gz"]


def documents(tmp_path, content):
    (tmp_path / "c4-train.json.gz").write_bytes(gzip.compress(content))
    return list(source_files(str(tmp_path))[0][0].documents())


def test_blank_lines_are_skipped(tmp_path):
    assert documents(tmp_path, b'{"text": "a"}\n\n{"text": "b"}\n \r\n\n') == ["a", "b"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"text": "a"}\n{"text": "\\ud83d"}\n', r"line 2: half of a character \(U\+D83D\) in"),
        (b'{"text": ' + b"[" * 100_000 + b"\n", "line 1: not valid JSON .*recursion"),
        (b'{"text": "\xff"}\n', "line 1: not valid JSON .*utf-8"),
    ],
    ids=["lone-surrogate", "deep-nesting", "no-utf-8"],
)
def test_what_no_tokenizer_takes_is_named_with_file_and_line(tmp_path, content, message):
    with pytest.raises(UserError, match=f"c4-train.json.gz {message}"):
        documents(tmp_path, content)


def test_a_folder_of_documents_that_cannot_be_read_is_not_left_out(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "c4-train.json.gz").touch()
    deny_folder(monkeypatch, "b")
    with pytest.raises(UserError, match=r"cannot use .*/b: Permission denied; see that you can"):
        source_files(str(tmp_path))
