"""Mixup and CutMix equal timm's for the same draws; draws follow (seed, epoch, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fogzo_repro.data.images import Batch, ImageBatches, rank_share
from fogzo_repro.data.mixing import MixedBatches, Mixing, cutmix_box

DEIT = Mixing(mixup=0.8, cutmix=1.0, probability=1.0, cutmix_share=0.5, smoothing=0.1)


@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4, 5], ids=lambda s: f"seed{s}")
def test_mixing_equals_timms_for_the_same_draw(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data import Mixup
    from timm.data import mixup as timm_mixup

    inputs = torch.randn(6, 3, 12, 10)
    labels = torch.randint(7, (6,))
    mix = DEIT.draw(12, 10, np.random.default_rng(seed))
    theirs = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=7)
    cut = mix.box is not None
    theirs._params_per_batch = lambda: (mix.share, cut)
    box = lambda *a, **k: (mix.box, mix.share)  # noqa: E731
    monkeypatch.setattr(timm_mixup, "cutmix_bbox_and_lam", box)
    wanted, targets = theirs(inputs.clone(), labels)
    torch.testing.assert_close(mix.apply(inputs), wanted)
    torch.testing.assert_close(DEIT.targets(labels, 7, mix.share), targets)


def test_cutmix_boxes_equal_timms_for_the_same_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    from timm.data.mixup import cutmix_bbox_and_lam

    for share, centre in ((0.3, (0, 9)), (0.9, (5, 5)), (0.01, (11, 0)), (0.62, (7, 2))):
        draws = iter(centre)
        monkeypatch.setattr(np.random, "randint", lambda *a, _d=draws, **k: next(_d))
        theirs, _ = cutmix_bbox_and_lam((1, 12, 10), share)
        assert cutmix_box(12, 10, share, centre) == tuple(map(int, theirs))


def test_both_kinds_come_half_the_time_and_shares_follow_their_beta_laws() -> None:
    rng = np.random.default_rng(0)
    draws = [DEIT.draw(224, 224, rng) for _ in range(4000)]
    cut = [d for d in draws if d.box is not None]
    assert abs(len(cut) / 4000 - 0.5) < 4 * 0.5 / 4000**0.5  # false alarm 6e-5
    shares = np.array([d.share for d in draws if d.box is None])
    # Beta(a, a): mean 1/2, variance 1 / (4 (2a + 1))
    assert shares.var() == pytest.approx(1 / (4 * 2.6), rel=0.08)


def test_targets_sum_to_one_and_smooth_as_deit() -> None:
    targets = DEIT.targets(torch.tensor([3, 5]), 1000, 1.0)
    assert targets.sum(1).tolist() == pytest.approx([1.0, 1.0])
    assert targets[0, 3].item() == pytest.approx(1 - 0.1 + 0.1 / 1000)
    assert targets[0, 0].item() == pytest.approx(0.1 / 1000)


@pytest.mark.parametrize("world_size", [2, 4], ids=lambda w: f"{w}ranks")
def test_ranks_together_mix_the_global_batch(world_size: int) -> None:
    data = Batch(torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40) % 5)

    def batches(rank: int, world: int) -> list[Batch]:
        plain = ImageBatches(data, 16, rank, world)
        mixed = MixedBatches(plain, DEIT, lambda p: p.float(), 5)
        return list(mixed.epoch(torch.Generator().manual_seed(1)))

    whole = batches(0, 1)
    for rank in range(world_size):
        share = rank_share(16, rank, world_size)
        for part, batch in zip(batches(rank, world_size), whole, strict=True):
            assert torch.equal(part.pixels, batch.pixels[share])
            assert torch.equal(part.labels, batch.labels[share])


def test_a_later_start_draws_what_the_whole_epoch_would() -> None:
    data = Batch(torch.randint(0, 256, (40, 1, 6, 6), dtype=torch.uint8), torch.arange(40) % 5)
    mixed = MixedBatches(ImageBatches(data, 8), DEIT, lambda p: p.float(), 5)
    whole = list(mixed.epoch(torch.Generator().manual_seed(4)))
    rest = list(mixed.epoch(torch.Generator().manual_seed(4), start=3))
    assert all(torch.equal(a.pixels, b.pixels) for a, b in zip(whole[3:], rest, strict=True))


@pytest.mark.parametrize("size", [8, 12, 10, 7], ids=lambda s: f"size{s}")
def test_shares_split_a_batch_without_overlap(size: int) -> None:
    shares = torch.cat([rank_share(size, rank, 2) for rank in range(2)])
    assert sorted(shares.tolist()) == list(range(size // 2 * 2))
