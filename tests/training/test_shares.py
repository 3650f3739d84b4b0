"""A batch that cannot be trained on is refused before the first step, in one line.

And how many examples the batches of a run hold.
"""

import json

import pytest

from fogzo_repro import plan as plan_module
from fogzo_repro.__main__ import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.sweeps.forecast import forecast
from fogzo_repro.training.ranks import Ranks
from tests.short_runs import train

RESNET = [
    "model=resnet18", "dataset=digits", "recipe=imagenet_resnet", "scale=smoke", "estimator=fogzo",
    "recipe.augmentation=none",
]  # fmt: skip
ONE_IMAGE = {  # 1437 images
    "last batch": (["recipe.global_batch_size=359"], "the last batch of an epoch"),
    "every batch": (["recipe.global_batch_size=1"], "recipe.global_batch_size=1"),
    "probes": (
        ["recipe.global_batch_size=64", "estimator.probe_fraction=0.01"],
        "estimator.probe_fraction=0.01",
    ),
    "micro-batch": (
        ["recipe.global_batch_size=64", "recipe.accumulate=true", "recipe.micro_batch_size=1"],
        "recipe.micro_batch_size=1",
    ),
}


@pytest.mark.parametrize(("words", "by"), ONE_IMAGE.values(), ids=ONE_IMAGE)
def test_one_image_that_is_one_place_where_it_is_normalised_is_refused(words, by):
    config = compose_run(*RESNET, *words)
    with pytest.raises(UserError, match=f"a pass over one image, by {by}, has one value"):
        plan_module.make_plan(config)


@pytest.mark.parametrize(
    "words",
    [
        ["recipe.global_batch_size=359", "recipe.drop_last=true"],
        ["recipe.global_batch_size=359", "model.stem=small"],  # 4 x 4 places at the end
        ["recipe.global_batch_size=358"],
    ],
    ids=["dropped", "more places", "more images"],
)
def test_what_can_be_normalised_is_not_refused(words):
    plan_module.make_plan(compose_run(*RESNET, *words))


def test_a_share_of_one_image_is_refused(monkeypatch):
    monkeypatch.setattr(plan_module, "current_ranks", lambda: Ranks(0, 2))
    config = compose_run(*RESNET, "recipe.global_batch_size=2")
    with pytest.raises(UserError, match="a pass over one image"):
        plan_module.make_plan(config)


@pytest.mark.parametrize(
    ("order", "share"),
    [
        (EpochOrder(193, 64, drop_last=False), 1),
        (EpochOrder(193, 64), 64),
        (EpochOrder(192, 64, drop_last=False), 64),
        (EpochOrder(195, 64, drop_last=False, world_size=2), 1),
        (EpochOrder(193, 64, drop_last=False, world_size=2), 32),  # no share for both: left out
        (EpochOrder(1024, 64, repeats=3, sampler_ranks=4), 64),
    ],
    ids=["one left", "dropped", "even", "two ranks", "too few", "repeated"],
)
def test_the_last_share_is_what_is_drawn(order, share):
    import torch

    places, _ = order.draw(torch.Generator().manual_seed(0))
    shares = list(order.batches(places, 0))
    assert order.last_share == share == len(shares[-1])
    drawn = [sum(len(s) for s in order.batches(places, r)) for r in range(order.world_size)]
    first = sum(len(next(order.batches(places, r))) for r in range(order.world_size))
    assert order.seen(2 * order.steps) == 2 * sum(drawn)
    assert order.seen(order.steps + 1) == sum(drawn) + first


def test_a_short_last_batch_counts_by_its_examples_in_record_and_forecast(tmp_path):
    words = [
        "recipe=cifar_resnet", "recipe.drop_last=false", "recipe.global_batch_size=1000",
        "recipe.max_steps=3", "recipe.warmup_epochs=0", "estimator=ste",
    ]  # fmt: skip
    folder = train(tmp_path, *words)
    record = json.loads((folder / "record.json").read_text())
    assert (record["steps"], record["images_seen"]) == (3, 1437 + 1000)
    assert forecast(compose_run("dataset=digits", *words)).units == record["images_seen"]
