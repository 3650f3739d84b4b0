"""The reader of tokenised C4: windows, order, errors."""

import json

import numpy as np
import pytest
import torch

from fogzo_repro import files
from fogzo_repro.config import UserError
from fogzo_repro.data.c4 import (
    TokenStream,
    WindowBatches,
    build,
    check_tokenizer,
    open_split,
)
from tests.c4_corpus import write_corpus

SHARDS = [list(range(100)), list(range(100, 107)), list(range(107, 250))]


@pytest.fixture
def stream(tmp_path):
    return open_split(build(write_corpus(tmp_path, {"train": SHARDS}, 250)), "train", 250)


def batches(stream, **more):
    return WindowBatches(stream, context=8, batch_size=4, device=torch.device("cpu"), **more)


def generator(epoch=0):
    return torch.Generator().manual_seed(epoch)


def epoch_of(data, epoch=0, start=0):
    return [b.windows for b in data.epoch(generator(epoch), start)]


def test_a_window_runs_on_over_the_ends_of_shards(stream):
    assert stream.window(98, 12).tolist() == list(range(98, 110))
    assert len(stream) == 250


def test_an_epoch_takes_each_window_at_most_once_and_drops_less_than_a_batch(stream):
    data = batches(stream)
    windows = torch.cat(epoch_of(data))
    starts = windows[:, 0].tolist()
    assert (windows == windows[:, :1] + torch.arange(9)).all()  # consecutive tokens, T + 1 of them
    assert len(set(starts)) == len(starts) == 4 * data.order.steps
    assert len({s % 8 for s in starts}) == 1  # one offset
    assert data.windows - len(starts) < 4


def test_epochs_have_other_orders_and_offsets(stream):
    offsets = {int(epoch_of(batches(stream), e)[0][0, 0]) % 8 for e in range(20)}
    assert len(offsets) > 4
    assert not torch.equal(epoch_of(batches(stream), 0)[0], epoch_of(batches(stream), 1)[0])


def test_a_start_in_the_middle_gives_the_rest_of_the_epoch(stream):
    whole, rest = epoch_of(batches(stream)), epoch_of(batches(stream), start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))


def test_ranks_share_the_global_batch(stream):
    whole = epoch_of(batches(stream))
    shares = [epoch_of(batches(stream, rank=r, world_size=2)) for r in range(2)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert torch.equal(batch[0::2], first)
        assert torch.equal(batch[1::2], second)


def test_a_token_over_the_vocabulary_is_named_with_shard_and_position(tmp_path):
    corpus = build(write_corpus(tmp_path, {"train": [[1, 2], [3, 99, 4]]}, 10))
    stream = open_split(corpus, "train", 10)
    with pytest.raises(UserError, match=r"train-00001.bin token 1: id 99 .*model.vocabulary=10"):
        stream.window(0, 5)


def test_no_number_of_tokens_is_told_for_a_run_whose_length_is_not_known(tmp_path):
    with pytest.raises(UserError, match=r"--tokens N \(docs/data.md: how many\)"):
        build(tmp_path)


def test_a_tokenizer_with_more_entries_than_the_model_is_refused(tmp_path):
    corpus = build(write_corpus(tmp_path, {"train": SHARDS}, 32000))
    with pytest.raises(UserError, match=r"manifest.json.* 32000 entries.*model.vocabulary=32000"):
        check_tokenizer(corpus, 31999)


def test_a_shard_of_another_size_is_named_with_both_sizes(tmp_path):
    corpus = build(write_corpus(tmp_path, {"train": SHARDS}, 250))
    np.arange(5, dtype="<u2").tofile(tmp_path / "c4" / "train-00001.bin")
    with pytest.raises(UserError, match=r"train-00001.bin has 10 bytes, the manifest says 14"):
        open_split(corpus, "train", 250)


def test_a_shard_with_other_bytes_is_named_by_the_rank_that_checks_it(tmp_path):
    corpus = build(write_corpus(tmp_path, {"train": SHARDS}, 250))
    np.arange(7, dtype="<u2").tofile(tmp_path / "c4" / "train-00001.bin")
    streams = [open_split(corpus, "train", 250) for _ in range(2)]
    for rank, stream in enumerate(streams):
        stream.check(rank, 2)
    streams[0].raise_damage(wait=True)  # shards 0 and 2
    with pytest.raises(UserError, match=r"train-00001.bin does not have the checksum that manif"):
        streams[1].raise_damage(wait=True)
    with pytest.raises(UserError, match=r"train-00001.bin"):
        streams[1].windows([0], 8)  # as soon as it is known, at the next batch


def test_whatever_ends_the_check_ends_the_wait_for_it(tmp_path, monkeypatch):
    stream = open_split(build(write_corpus(tmp_path, {"train": SHARDS}, 250)), "train", 250)
    monkeypatch.setattr(files, "sha256_of", lambda _: [][0])
    stream.check(0, 1)
    assert isinstance(stream.checked.exception(timeout=10), IndexError)


@pytest.mark.parametrize("key", ["file", "tokens", "sha256"])
def test_a_manifest_whose_shards_lack_a_key_is_none(tmp_path, key):
    path = write_corpus(tmp_path, {"train": SHARDS}, 250) / "c4" / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["splits"]["train"]["shards"][0][key]
    path.write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=f"is not a manifest .*{key}.*; delete it and run"):
        build(tmp_path)


def test_a_missing_corpus_names_the_command_that_writes_it(tmp_path):
    folder = tmp_path / "my data"
    with pytest.raises(UserError, match=rf"scripts/prepare_c4.py --source hub .* '{folder}/c4' "):
        build(folder)


def test_a_missing_validation_split_names_those_that_are_there(tmp_path):
    corpus = build(write_corpus(tmp_path, {"train": SHARDS, "heldout": SHARDS}, 250))
    with pytest.raises(UserError, match=r"validation=c4 is not in .* options: heldout; "):
        open_split(corpus, "c4", 250)


def test_an_empty_shard_is_passed_over(tmp_path):
    (tmp_path / "empty").touch()
    np.arange(9, dtype="<u2").tofile(tmp_path / "full")
    stream = TokenStream([(tmp_path / "empty", 0, ""), (tmp_path / "full", 9, "")], 9)
    assert stream.window(0, 9).tolist() == list(range(9))
