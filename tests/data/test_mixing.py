"""Mixup and CutMix: their laws and targets; draws follow (seed, epoch, step) alone."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fogzo_repro.data.augmentation import drawn_from
from fogzo_repro.data.images import Batch, ImageBatches
from fogzo_repro.data.mixing import MixedBatches
from fogzo_repro.data.order import EpochOrder, rank_share
from fogzo_repro.randomness import derive_seed
from tests.mixed import mixer_of

DEIT = (0.8, 1.0, 1.0, 0.5, 0.1)  # mixup, cutmix, probability, cutmix_share, smoothing

Mixing = tuple[float, float, float, float, float]


class Once:
    """One batch an epoch."""

    order = EpochOrder(2, 2)

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def epoch(self, generator: torch.Generator, start: int = 0) -> Iterator[Batch]:
        yield self.batch


def mixed_once(mixing: Mixing, seed: int, size: int, classes: int, images: int = 2) -> Batch:
    """Mix a black image with white ones: a pixel is the share of its partner."""
    pixels = torch.zeros(images, 1, size, size)
    pixels[images // 2 :] = 1
    batch = Batch(pixels, torch.arange(images))
    data = MixedBatches(Once(batch), mixer_of(classes, *mixing), lambda p: p.clone())
    return next(data.epoch(torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize(
    ("mixing", "cut"),
    [((0.8, 0.0, 1.0, 0.5, 0.0), False), ((0.0, 1.0, 1.0, 0.5, 0.0), True)],
    ids=["mixup", "cutmix"],
)
def test_a_target_says_how_much_of_each_image_is_in_the_mixture(mixing: Mixing, cut: bool) -> None:
    for seed in range(20):
        inputs, targets = mixed_once(mixing, seed, 12, 2)
        torch.testing.assert_close(inputs[0].mean(), targets[0, 1])
        torch.testing.assert_close(inputs[1].mean(), targets[1, 1])
        assert (set(inputs.unique().tolist()) <= {0.0, 1.0}) == cut


def test_shares_and_the_choice_between_both_follow_their_laws() -> None:
    pasted = [mixed_once(DEIT, seed, 8, 2).pixels[0] for seed in range(3000)]
    cut = [p for p in pasted if set(p.unique().tolist()) <= {0.0, 1.0}]
    assert abs(len(cut) / 3000 - 0.5) < 4 * 0.5 / 3000**0.5  # false alarm 6e-5
    shares = torch.stack([p.mean() for p in pasted if len(p.unique()) == 1 and p.max() < 1])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    assert shares.var().item() == pytest.approx(1 / (4 * 2.6), rel=0.1)


def test_cutmix_pastes_a_box_of_the_drawn_size_and_no_larger() -> None:
    """An uncut box has sides floor(size sqrt(1 - lambda)), as in DeiT's code."""
    mixing = (0.0, 1.0, 1.0, 0.5, 0.0)
    whole = 0
    for seed in range(200):
        pasted = mixed_once(mixing, seed, 40, 2).pixels[0, 0]
        rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
        if not len(rows) or {0, 39} & {*rows.tolist(), *columns.tolist()}:
            continue  # nothing pasted, or cut at a border
        with drawn_from(derive_seed(seed, 0, "mixing")):
            np.random.rand()
            side = int(40 * np.sqrt(1 - np.random.beta(1.0, 1.0)))
        assert len(rows) == len(columns) == side
        assert pasted.sum() == side**2
        whole += 1
    assert whole > 20


def test_targets_smooth_as_deit_also_where_nothing_is_mixed() -> None:
    smoothing = (0.0, 0.0, 0.0, 0.0, 0.1)
    for images in (2, 3):  # an odd batch has no partner for each, and needs none
        targets = mixed_once(smoothing, 0, 4, 1000, images).labels
        assert targets.sum(1).tolist() == pytest.approx([1.0] * images)
        assert targets[1, 1].item() == pytest.approx(1 - 0.1 + 0.1 / 1000)
        assert targets[1, 0].item() == pytest.approx(0.1 / 1000)


def test_mixing_leaves_the_global_generators_alone() -> None:
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), torch.rand(1).item()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    mixed_once(DEIT, 0, 8, 2)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected


@pytest.mark.parametrize("world_size", [2, 4], ids=lambda w: f"{w}ranks")
def test_ranks_together_mix_the_global_batch(world_size: int) -> None:
    data = Batch(torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40) % 5)

    def batches(rank: int, world: int) -> list[Batch]:
        plain = ImageBatches(EpochOrder(40, 16, world_size=world), rank, data)
        mixed = MixedBatches(plain, mixer_of(5, *DEIT), lambda p: p.float())
        return list(mixed.epoch(torch.Generator().manual_seed(1)))

    whole = batches(0, 1)
    for rank in range(world_size):
        share = rank_share(16, rank, world_size)
        for part, batch in zip(batches(rank, world_size), whole, strict=True):
            assert torch.equal(part.pixels, batch.pixels[share])
            assert torch.equal(part.labels, batch.labels[share])


def test_a_later_start_draws_what_the_whole_epoch_would() -> None:
    data = Batch(torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40) % 5)
    plain = ImageBatches(EpochOrder(40, 8), 0, data)
    mixed = MixedBatches(plain, mixer_of(5, *DEIT), lambda p: p.float())
    whole = list(mixed.epoch(torch.Generator().manual_seed(4)))
    rest = list(mixed.epoch(torch.Generator().manual_seed(4), start=3))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(whole[3:], rest, strict=True))


def test_each_batch_of_a_run_is_mixed_by_a_draw_of_its_own() -> None:
    """A function of the epoch's seed and of its place in the epoch."""
    pixels = torch.zeros(40, 1, 2, 2)
    plain = ImageBatches(EpochOrder(40, 20), 0, Batch(pixels, torch.arange(40)))
    mixup = (0.8, 0.0, 1.0, 0.5, 0.0)
    mixed = MixedBatches(plain, mixer_of(40, *mixup), lambda p: p.float())

    def order(epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(100 + epoch)

    shares = []
    for step, batch in enumerate(mixed.across_epochs(order, range(4))):
        with drawn_from(derive_seed(100 + step // 2, step % 2, "mixing")):
            np.random.rand()
            share = np.random.beta(0.8, 0.8)
        largest = batch.labels.amax(1).tolist()
        assert largest == pytest.approx([max(share, 1 - share)] * 20, abs=1e-6)
        shares.append(round(share, 6))
    assert len({*shares}) == 4


@pytest.mark.parametrize("size", [8, 12, 10, 7], ids=lambda s: f"size{s}")
def test_shares_split_a_batch_without_overlap(size: int) -> None:
    shares = torch.cat([rank_share(size, rank, 2) for rank in range(2)])
    assert sorted(shares.tolist()) == list(range(size // 2 * 2))
