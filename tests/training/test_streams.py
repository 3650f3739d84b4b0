"""Numbers of many seeds at once against a generator for each."""

from typing import Any

import pytest
import torch
from torch import Tensor

from fogzo_repro.estimators.directions import random_signs
from fogzo_repro.estimators.smoothing import draw_integers_
from fogzo_repro.randomness import generator_for
from fogzo_repro.training import streams
from fogzo_repro.training.streams import SeedStreams, generator_words, numbers, philox, signs_of

SEEDS = 0, 3, 500
SIZES = 7840, 100
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000",
         "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
         "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
         "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
    ids=["zeros", "ones", "pi"],
)  # fmt: skip
def test_philox_gives_the_known_answers_of_random123(counter: str, key: str, expected: str) -> None:
    def words(text: str) -> Any:
        return tuple(torch.tensor(int(word, 16)) for word in text.split())

    found = philox(words(counter), words(key))
    assert [word.item() for word in found] == [int(word, 16) for word in expected.split()]


def test_every_place_has_its_own_thread_word_and_round() -> None:
    threads, seed, earlier = 4, (5 << 32) + 9, 2
    found = generator_words(torch.tensor([7, seed]), 40, threads, earlier)[1]
    for i in range(40):
        counter = (i // 16 + earlier, 0, i % threads, 0)
        a, b = (torch.tensor(x) for x in (seed & 0xFFFFFFFF, seed >> 32))
        expected = philox(tuple(torch.tensor(x) for x in counter), (a, b))  # type: ignore[arg-type]
        assert found[i] == expected[i // threads % 4]


@DEVICES
def test_rows_are_the_streams_of_the_seeds(device: str) -> None:
    drawn = SeedStreams(SEEDS, torch.device(device))
    drawn.derive(range(10, 14), ["directions", "signs"])
    for step in (10, 13):
        found = drawn.integers(step, "directions", SIZES)
        signs = drawn.signs(step, "signs", 10)
        for row, seed in enumerate(SEEDS):
            generator = generator_for(seed, step, "directions", device)
            for size, rows in zip(SIZES, found, strict=True):
                expected = draw_integers_(torch.empty(size, device=device), generator)
                assert torch.equal(rows[row], expected)
            generator = generator_for(seed, step, "signs", device)
            assert torch.equal(signs[row], random_signs(10, signs[row], generator))


def test_orders_are_those_of_the_seeds() -> None:
    found = SeedStreams(SEEDS, torch.device("cpu")).orders(2, 50)
    for row, seed in enumerate(SEEDS):
        assert (
            found[row].tolist()
            == torch.randperm(50, generator=generator_for(seed, 2, "order")).tolist()
        )


def drawn_on_the_card(seeds: tuple[int, ...], n: int) -> tuple[SeedStreams, list[Tensor]]:
    drawn = SeedStreams(seeds, torch.device("cuda"))
    drawn.derive(range(1), ["directions"])
    return drawn, drawn.integers(0, "directions", [n * size for size in SIZES])


@CUDA
@pytest.mark.parametrize("n", [1, 10, 100, 400])
def test_numbers_on_a_card_are_computed_and_equal_torchs_own(n: int) -> None:
    drawn, found = drawn_on_the_card(SEEDS, n)
    assert drawn.batched, "this torch draws in another layout: the slow way is taken"
    drawn.batched = False
    drawn.derive(range(1), ["directions"])
    for a, b in zip(found, drawn.integers(0, "directions", [n * k for k in SIZES]), strict=True):
        assert torch.equal(a, b)


@CUDA
def test_another_layout_is_noticed_and_generators_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "BLOCK", 192)  # 128 fills whole grids alike
    drawn, found = drawn_on_the_card((4,), 1)
    assert not drawn.batched
    expected = torch.empty(7840, device="cuda")
    assert torch.equal(
        found[0][0], draw_integers_(expected, generator_for(4, 0, "directions", "cuda"))
    )


@CUDA
def test_compiled_numbers_equal_eager_ones() -> None:
    seeds = torch.tensor(SEEDS, device="cuda")
    compiled = torch.compile(numbers, dynamic=True)
    for size, rounds in ((7840, 0), (100, 1), (78_400, 0), (3, 5)):
        assert torch.equal(
            compiled(seeds, size, 1024, rounds, signs_of),
            numbers(seeds, size, 1024, rounds, signs_of),
        )
