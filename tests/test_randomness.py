"""Streams are pure functions of what they are for, and stay what they were in the records."""

from __future__ import annotations

import pytest
import torch

from fogzo_repro.data.c4_shards import split_of
from fogzo_repro.randomness import derive_seed, generator_for, split_stream

# Committed records were drawn from these: another number would be another experiment.
KNOWN_SEEDS = {
    (3, 17, "directions"): 8509823861865289672,
    (3, 17, "signs"): 161153225277997727,
    (12345, 678, 2): 2235141981549504091,  # a photograph: the epoch's seed, image, copy
}


@pytest.mark.parametrize("parts", KNOWN_SEEDS, ids=lambda p: "/".join(map(str, p)))
def test_seeds_are_those_of_the_committed_records(parts: tuple[int | str, ...]) -> None:
    assert derive_seed(*parts) == KNOWN_SEEDS[parts]


def test_a_stream_begins_at_its_seed() -> None:
    assert generator_for(3, 17, "signs").initial_seed() == KNOWN_SEEDS[3, 17, "signs"]


def test_a_stream_split_off_is_the_one_it_was() -> None:
    assert split_stream(torch.Generator().manual_seed(5)).initial_seed() == 8479639668754296390


def test_the_documents_held_out_are_those_of_earlier_preparations() -> None:
    name = "en/c4-train.00000-of-01024.json.gz"
    found = [i for i in range(200) if split_of(name, i, 20) == "heldout"]
    assert found == [0, 26, 56, 71, 93, 118, 124, 154, 174, 193]


def test_splitting_signs_off_leaves_the_directions_stream_alone() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    first, second = split_stream(generator), split_stream(generator)
    assert torch.equal(generator.get_state(), before)
    assert first.initial_seed() == second.initial_seed() != generator.initial_seed()
    torch.rand(1, generator=generator)
    assert split_stream(generator).initial_seed() != first.initial_seed()
