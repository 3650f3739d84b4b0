"""The streams of many seeds at once, each row of numbers as its own `torch.Generator` draws them.

On a GPU a generator for every seed would be one tiny kernel a seed and tensor. What those kernels
compute is a pure function, Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2,
3", SC 2011), of the seed and of the number's place in the tensor, so that one kernel can compute it
for all seeds. torch fills a tensor of N numbers with a grid of T threads (256 a block, and no more
blocks than the card holds at once). Number i comes from thread i mod T, and

    round r = i // 4T,   w = (i // T) mod 4,
    number  = word w of Philox(key = seed, counter = (r + rounds of earlier tensors, 0, thread, 0)).

That layout is torch's own affair and may change. `SeedStreams` therefore compares with torch's
generators before it is used, and asks them one seed after another if any number differs. On the CPU
the generator is another one (the Mersenne twister) and is always asked itself.

Shapes: S seeds, N numbers a seed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from fogzo_repro.estimators import random_signs
from fogzo_repro.estimators.smoothing import draw_integers_
from fogzo_repro.randomness import derive_seed, generator_for

MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEY_STEPS = 0x9E3779B9, 0xBB67AE85
LOW = 0xFFFFFFFF  # the lower 32 bits: words of 32 bits are held in int64
BLOCK = 256  # threads in a block of torch's kernels for random numbers
CHECKED_SEEDS = 1, 2**40 + 12345, 2**63 - 2
CHECKED_SIZES = 7840, 100, 784_000, 3_000_000, 10  # one generator fills all, one after another

Words = tuple[Tensor, Tensor, Tensor, Tensor]
MadeOf = Callable[[Tensor], Tensor]  # from words to numbers
Fill = Callable[[Tensor, torch.Generator], Tensor]  # the same numbers by torch


def philox(counter: Words, key: tuple[Tensor, Tensor]) -> Words:
    """Return the four words of Philox4x32-10; the arguments broadcast.

    The product of two words takes 64 bits and may come out negative in int64; a shift keeps the
    sign, and the mask then leaves the bits that an unsigned product has.
    """
    a, b, c, d = counter
    low, high = key
    for _ in range(10):
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = ((second >> 32) & LOW) ^ b ^ low, second & LOW
        c, d = ((first >> 32) & LOW) ^ d ^ high, first & LOW
        low, high = (low + KEY_STEPS[0]) & LOW, (high + KEY_STEPS[1]) & LOW
    return a, b, c, d


def generator_words(seeds: Tensor, size: int, threads: int, earlier_rounds: int) -> Tensor:
    """Return the words of which torch makes a tensor of random numbers on a GPU.

    Args:
        seeds: (S,) int64, not negative.
        size: N, the numbers in the tensor.
        threads: T, of the grid that fills it.
        earlier_rounds: what the generator has been through for the tensors before.

    Returns:
        (S, N) int64, each from 0 to 2^32 - 1.
    """
    place = torch.arange(size, device=seeds.device)
    thread, call = place % threads, place // threads
    zero = torch.zeros_like(place)
    key = (seeds & LOW).unsqueeze(1), (seeds >> 32).unsqueeze(1)
    a, b, c, d = philox((call // 4 + earlier_rounds, zero, thread, zero), key)
    word = call % 4
    return torch.where(word < 2, torch.where(word == 0, a, b), torch.where(word == 2, c, d))


def integers_of(words: Tensor) -> Tensor:
    """Return what `random_(-2**23, 2**23)` makes of the words, in float32."""
    return ((words & 0xFFFFFF) - 2**23).float()


def signs_of(words: Tensor) -> Tensor:
    """Return what `random_(0, 2)` makes of the words, with -1 for 0, in float32."""
    return ((words & 1) * 2 - 1).float()


def signs_like(t: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many signs as `t` has elements, as the estimators draw them."""
    return random_signs(len(t), t, generator)


def numbers(seeds: Tensor, size: int, threads: int, rounds: int, made_of: MadeOf) -> Tensor:
    """Return (S, size) numbers, see `generator_words`; the function that is worth compiling."""
    return made_of(generator_words(seeds, size, threads, rounds))


@cache
def compiled_numbers() -> Any:
    """Return `numbers` as one kernel, compiled once for all sizes: they differ between groups."""
    return torch.compile(numbers, dynamic=True)


def computed(
    seeds: Tensor, sizes: Sequence[int], made_of: MadeOf, most_blocks: int, function: Any
) -> list[Tensor]:
    """Return for each size a tensor (S, size), as a generator fills one after another on a GPU.

    `function` is `numbers` or its compiled form; the card holds `most_blocks` at once.
    """
    rounds, drawn = 0, []
    for size in sizes:
        threads = BLOCK * min(-(-size // BLOCK), most_blocks)
        drawn.append(function(seeds, size, threads, rounds, made_of))
        rounds += (size - 1) // (4 * threads) + 1
    return drawn


def asked(
    seeds: Iterable[int], sizes: Sequence[int], fill: Fill, device: torch.device
) -> list[Tensor]:
    """Return for each size a tensor (S, size), filled by a generator for each seed."""
    generator = torch.Generator(device)
    rows = []
    for seed in seeds:
        generator.manual_seed(seed)
        rows.append([fill(torch.empty(size, device=device), generator) for size in sizes])
    return [torch.stack(column) for column in zip(*rows, strict=True)]


class SeedStreams:
    """The streams (seed, step, purpose) of some seeds.

    Args:
        seeds: of the runs.
        device: of the numbers; its kind of generator is followed.
        compile: make one kernel of Philox, which is 150 of them otherwise.

    Attributes:
        batched: whether the numbers of all seeds are computed at once.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device, compile: bool = False) -> None:
        self.seeds = seeds
        self.device = device
        self._numbers: Any = compiled_numbers() if compile else numbers
        self._derived: dict[str, tuple[int, Tensor]] = {}  # purpose: first step, (steps, S)
        self.batched = False
        if device.type == "cuda":
            card = torch.cuda.get_device_properties(device)
            per_processor = card.max_threads_per_multi_processor // BLOCK
            self.most_blocks = card.multi_processor_count * per_processor
            self.batched = self._agrees()

    def orders(self, epoch: int, images: int) -> Tensor:
        """Return the order of an epoch for each seed, int32 (S, images)."""
        generators = (generator_for(seed, epoch, "order") for seed in self.seeds)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # for rows so short, threads mostly wait for each other
        try:
            rows = [torch.randperm(images, generator=g, dtype=torch.int32) for g in generators]
        finally:
            torch.set_num_threads(threads)
        return torch.stack(rows)

    def derive(self, steps: range, purposes: Iterable[str]) -> None:
        """Derive the seeds of some steps' streams, which `integers` and `signs` may then draw.

        Hashing them all at once spares a copy to the GPU at each step.
        """
        for purpose in purposes:
            rows = [[derive_seed(seed, t, purpose) for seed in self.seeds] for t in steps]
            place = self.device if self.batched else "cpu"
            self._derived[purpose] = steps.start, torch.tensor(rows).to(place)

    def integers(self, step: int, purpose: str, sizes: Sequence[int]) -> list[Tensor]:
        """Return integers uniform on -2^23 .. 2^23 - 1, of which directions are made.

        Args:
            step: of the run.
            purpose: of the stream.
            sizes: of the tensors that each seed's generator fills, one after another.

        Returns:
            For each size a float32 tensor (S, size).
        """
        return self._draw(step, purpose, sizes, integers_of, draw_integers_)

    def signs(self, step: int, purpose: str, size: int) -> Tensor:
        """Return -1 or +1 with probability 1/2 each, float32 (S, size)."""
        return self._draw(step, purpose, [size], signs_of, signs_like)[0]

    def _draw(
        self, step: int, purpose: str, sizes: Sequence[int], made_of: MadeOf, fill: Fill
    ) -> list[Tensor]:
        first, rows = self._derived[purpose]
        seeds = rows[step - first]
        if self.batched:
            return computed(seeds, sizes, made_of, self.most_blocks, self._numbers)
        return asked(seeds.tolist(), sizes, fill, self.device)

    def _agrees(self) -> bool:
        """Return whether this torch on this card draws what is computed here."""
        seeds, sizes = torch.tensor(CHECKED_SEEDS, device=self.device), CHECKED_SIZES
        pairs: list[tuple[Tensor, Tensor]] = []
        for made_of, fill in ((integers_of, draw_integers_), (signs_of, signs_like)):
            found = computed(seeds, sizes, made_of, self.most_blocks, self._numbers)
            pairs += zip(found, asked(CHECKED_SEEDS, sizes, fill, self.device), strict=True)
        return all(torch.equal(a, b) for a, b in pairs)
