"""The device's half of an augmentation: the same pixels as the loader's, for the same draws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fogzo_repro.config import UserError
from fogzo_repro.data import device_views
from fogzo_repro.data.augmentation import drawn_from, training_view
from fogzo_repro.data.device_views import Bundle, cut, finish, pack_parts, why_not
from fogzo_repro.data.imagenet import build
from fogzo_repro.data.photographs import PhotographLoader, Photographs, Sample
from fogzo_repro.training.imagenet import on_device
from tests.data.test_photographs import DEIT, RESNET, photographs, tree  # noqa: F401

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
RECIPES: dict[str, Any] = {"resnet": RESNET, "deit": DEIT}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.slow
def test_photographs_become_the_same_pixels_in_both_ways(
    photographs: list[Path],  # noqa: F811
    recipe: Any,
) -> None:
    from fogzo_repro.data.augmentation import read_pixels

    view = training_view(recipe, 224)
    images = [read_pixels(path) for path in photographs]
    for start in range(0, len(images), 16):
        wanted, parts = [], []
        for seed, image in enumerate(images[start : start + 16], start):
            with drawn_from(seed):
                wanted.append(view(image))
            with drawn_from(seed):
                parts.append(cut(view, image))
        bundle = device_views.to_device(Bundle.of(pack_parts(view, parts)), DEVICE)
        found = finish(view, bundle.open())
        assert torch.equal(found.cpu(), torch.stack(wanted))


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.parametrize("workers", [0, 2], ids=str)
def test_a_loader_gives_the_same_batches_in_both_ways(
    tmp_path: Path, recipe: Any, workers: int
) -> None:
    files = build(tree(tmp_path), None, True).train
    view = training_view(recipe, 32)
    samples = [[Sample(i, 7 * i + k) for i in range(5)] for k in range(3)]
    ways = [
        list(PhotographLoader(Photographs(files, view, False, halved), workers, CPU).load(samples))
        for halved in (False, True)
    ]
    for a, b in zip(*ways, strict=True):
        assert torch.equal(a.pixels, b.pixels) and torch.equal(a.labels, b.labels)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
@pytest.mark.slow
def test_the_device_is_tried_before_it_is_trusted(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    view = training_view(recipe, 32)
    assert why_not(view, CPU) == "" and on_device(view, "device", CPU)
    assert not on_device(view, "auto", CPU)  # there the loaders are as fast
    monkeypatch.setattr(
        device_views,
        "resize",
        lambda w, size, *_: torch.zeros(len(w.offsets), 3, size, size, dtype=torch.uint8),
    )
    with pytest.raises(UserError, match=r"gives other pixels; give hardware.augmentation=cpu"):
        on_device(view, "device", CPU)
    assert not on_device(view, "auto", torch.device("meta"))
    assert "augmented by their loaders: the device" in capsys.readouterr().err


def test_an_empty_window_is_among_those_that_are_tried() -> None:
    """timm cuts windows of no pixels out of an image of one; Pillow resizes them to black."""
    view = training_view(DEIT, 32)
    images = [torch.zeros(*size, 3, dtype=torch.uint8).numpy() for size in device_views.TRIED * 12]
    drawn = []
    for seed, image in enumerate(images):
        with drawn_from(seed):
            drawn.append(view.draw(image).window)
    assert any(window.height * window.width == 0 for window in drawn)
