"""Where documents come from: folders, and the hub by `datasets`."""

import gzip
import json

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.data.c4_documents import source_files
from fogzo_repro.data.c4_shards import held_out


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


def test_one_document_of_each_block_is_held_out_at_random():
    places = []
    for block in range(200):
        found = [i for i in range(10) if held_out("a file", 10 * block + i, 10)]
        assert len(found) == 1
        places += found
    assert all(6 <= places.count(i) <= 40 for i in range(10))  # 20 expected, 4.7 standard errors
    other = [i % 10 for i in range(2000) if held_out("another", i, 10)]
    assert other != places
    assert not any(held_out("a file", i, 0) for i in range(50))
