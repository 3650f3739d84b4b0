"""Images in memory: batches, crops and mirror images, the part that is held out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from fogzo_repro.config import UserError
from fogzo_repro.data.images import (
    Batch,
    ImageBatches,
    ImageDataset,
    Images,
    crop_and_flip,
    hold_out,
)
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.training.classification import InMemoryImages
from tests.random_directions import stream

COUNT, SHAPE, PADDING = 40, (3, 6, 5), 2


def data(count: int = COUNT) -> Batch:
    """Images that differ in every pixel; the label of image i is i."""
    pixels = torch.randint(1, 256, (count, *SHAPE), dtype=torch.uint8, generator=stream(9))
    return Batch(pixels, torch.arange(count))


def batches(rank: int = 0, world_size: int = 1, padding: int | None = PADDING) -> ImageBatches:
    return ImageBatches(EpochOrder(COUNT, 8, world_size=world_size), rank, data(), padding)


def shifted(image: torch.Tensor, up: int, left: int, mirrored: bool) -> torch.Tensor:
    """The window of an image on black that begins at (up, left), one pixel after another."""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + up, (width - 1 - x if mirrored else x) + left
            if 0 <= row < height and 0 <= column < width:
                out[:, y, x] = image[:, row, column]
    return out


def all_views(image: torch.Tensor) -> list[torch.Tensor]:
    around = range(-PADDING, PADDING + 1)
    return [shifted(image, u, c, m) for u in around for c in around for m in (False, True)]


def test_each_image_is_a_window_of_the_padded_image_mirrored_or_not() -> None:
    pixels = data().pixels
    drawn = crop_and_flip(pixels, PADDING, stream())(torch.arange(COUNT))
    for image, view in zip(pixels, drawn, strict=True):
        assert sum(torch.equal(view, wanted) for wanted in all_views(image)) == 1


def test_all_windows_are_equally_likely() -> None:
    pixels = data(1).pixels
    wanted = torch.stack(all_views(pixels[0]))  # (50, C, H, W)
    many = crop_and_flip(pixels.expand(5000, *SHAPE), PADDING, stream())(torch.arange(5000))
    which = (many.unsqueeze(1) == wanted).flatten(2).all(2)
    assert (which.sum(1) == 1).all()
    counts = which.sum(0)  # 100 expected, standard deviation 9.9
    assert counts.min() > 60 and counts.max() < 140


def test_no_padding_leaves_only_the_mirror_image() -> None:
    pixels = data().pixels
    drawn = crop_and_flip(pixels, 0, stream())(torch.arange(COUNT))
    same, mirrored = ((drawn == x).flatten(1).all(1) for x in (pixels, pixels.flip(-1)))
    assert (same | mirrored).all() and same.any() and mirrored.any()


def test_ranks_draw_for_an_image_what_one_process_would() -> None:
    whole = list(batches().epoch(stream()))
    ranks = [list(batches(rank, 2).epoch(stream())) for rank in range(2)]
    for batch, *shares in zip(whole, *ranks, strict=True):
        of_image = dict(zip(batch.labels.tolist(), batch.pixels, strict=True))
        for share in shares:
            assert len(share.labels) == 4
            for label, view in zip(share.labels.tolist(), share.pixels, strict=True):
                assert torch.equal(view, of_image.pop(label))
        assert not of_image


def test_a_later_start_draws_what_the_whole_epoch_would() -> None:
    whole, rest = list(batches().epoch(stream())), list(batches().epoch(stream(), start=3))
    assert len(whole) == 5 and len(rest) == 2
    for a, b in zip(whole[3:], rest, strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


def test_epochs_draw_other_windows() -> None:
    first, second = (
        crop_and_flip(data().pixels, PADDING, stream(e))(torch.arange(COUNT)) for e in (0, 1)
    )
    assert not torch.equal(first, second)


def test_crops_leave_the_order_of_the_epoch_alone() -> None:
    plain, cropped = (batches(padding=p).epoch(stream()) for p in (None, PADDING))
    assert [b.labels.tolist() for b in plain] == [b.labels.tolist() for b in cropped]


@pytest.mark.parametrize(
    ("drop_last", "world_size", "sizes"),
    [(True, 1, [8, 8]), (False, 1, [8, 8, 7]), (False, 2, [4, 4, 3]), (False, 8, [1, 1])],
    ids=["dropped", "kept", "cut-to-the-ranks", "no-share-for-all"],
)
def test_the_last_batch_is_kept_or_dropped(
    drop_last: bool, world_size: int, sizes: list[int]
) -> None:
    order = EpochOrder(23, 8, drop_last, world_size)
    found = list(ImageBatches(order, 0, data(23)).epoch(stream()))
    assert [len(b.labels) for b in found] == sizes
    assert order.steps == len(sizes)


# --- the dataset ---------------------------------------------------------------------------------


def dataset(**more: object) -> ImageDataset:
    images = Images(data(), data(7), torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 1, COUNT)
    values = {
        "fingerprint": "x", "examples": COUNT, "shape": SHAPE, "classes": COUNT,
        "read": lambda: images, **more,
    }  # fmt: skip
    return ImageDataset(**values)  # type: ignore[arg-type]


def test_mean_and_deviation_may_differ_by_channel() -> None:
    images = dataset().read()
    mean, std = images.mean, images.std
    assert isinstance(mean, torch.Tensor) and isinstance(std, torch.Tensor)
    found = images.normalize(images.test.pixels)
    for channel in range(3):
        expected = (images.test.pixels[:, channel] / 255 - mean[channel]) / std[channel]
        torch.testing.assert_close(found[:, channel], expected)


@pytest.mark.parametrize(
    "wrong", [{"examples": 41}, {"shape": (1, 6, 5)}, {"classes": 10}], ids=lambda w: next(iter(w))
)
def test_a_dataset_that_is_not_what_its_file_says_is_refused(wrong: dict[str, object]) -> None:
    dataset().checked()
    with pytest.raises(UserError, match=r"the data x: .*\(40, \(3, 6, 5\), 40\).*file says"):
        dataset(**wrong).checked()


PIXELS, LABELS = data()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"mean": (0.5, 0.5, 0.5)}, r"mean must be a number or .* \(3, 1, 1\), not tuple"),
        ({"std": torch.ones(3)}, r"std must be .* \(3, 1, 1\), not float32 \(3,\)"),
        ({"train": Batch(PIXELS / 255, LABELS)}, "train images must be a uint8 .*, not float32"),
        ({"train": Batch(PIXELS.numpy(), LABELS)}, "train images must be a .*, not ndarray"),
        ({"test": Batch(PIXELS[:, 0], LABELS)}, r"test images must be .* uint8 \(40, 6, 5\)"),
        ({"train": Batch(PIXELS, LABELS.int())}, r"labels must be an int64 .*, not int32"),
        ({"train": Batch(PIXELS, LABELS[1:])}, r"labels .* \(40,\), not int64 \(39,\)"),
        ({"test": Batch(PIXELS, LABELS + 1)}, "test labels must be from 0 to 39"),
    ],
    ids=["tuple", "no axes", "floats", "numpy", "2 axes", "int32", "too few", "range"],
)
def test_images_that_would_be_taken_for_something_else_are_refused(
    change: dict[str, Any], said: str
) -> None:
    images = replace(dataset().read(), **change)
    with pytest.raises(UserError, match=f"the data x: .*{said}"):
        dataset(read=lambda: images).checked()


def test_what_is_held_out_is_the_same_for_all_and_not_trained_on() -> None:
    kept, held = hold_out(data(), 12)
    assert sorted([*kept.labels.tolist(), *held.labels.tolist()]) == list(range(COUNT))
    assert len(held.labels) == 12
    assert held.labels.tolist() != list(range(12)) and held.labels.tolist() != list(range(28, 40))
    for part in (kept, held):
        assert torch.equal(part.pixels, data().pixels[part.labels])
    assert torch.equal(hold_out(data(), 12)[1].labels, held.labels)


class Constant(torch.nn.Module):
    """Always says class 0; counts what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.seen += len(inputs)
        return torch.nn.functional.one_hot(torch.zeros(len(inputs)).long(), COUNT) * 1e3


@pytest.mark.parametrize("held_out", [0, 12])
def test_the_test_images_take_no_part_where_some_are_held_out(held_out: int) -> None:
    task = InMemoryImages(dataset(), held_out=held_out)
    assert task.examples == COUNT - held_out
    assert task.batches(4).order.steps == task.examples // 4  # before anything is read
    task.load(torch.device("cpu"))
    model = Constant()
    found = task.evaluate(model, last=False)
    assert list(found) == ["val" if held_out else "test"] == [task.best_by[0]]
    assert model.seen == (held_out or 7)
    labels = hold_out(data(), 12)[1].labels if held_out else data(7).labels
    assert next(iter(found.values()))["top1"] == pytest.approx(100 * (labels == 0).float().mean())
    assert set(task.evaluate(model, last=True)) == {*found, "train"}
    seen = torch.cat([b.labels for b in task.batches(4).epoch(stream())]).tolist()
    assert set(seen).isdisjoint(labels.tolist()) or not held_out


def test_a_pass_of_the_evaluation_takes_images_by_their_size(monkeypatch) -> None:
    from fogzo_repro.training import classification

    monkeypatch.setattr(classification, "EVALUATION_PIXELS", 3 * 6 * 5 * 10)
    sizes: list[int] = []

    class Sizes(Constant):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            sizes.append(len(inputs))
            return super().forward(inputs)

    task = InMemoryImages(dataset())
    task.load(torch.device("cpu"))
    task.evaluate(Sizes(), last=True)
    assert sizes == [7, 10, 10, 10, 10]
