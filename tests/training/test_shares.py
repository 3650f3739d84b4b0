"""A batch that cannot be trained on is refused before the first step, in one line.

And how many examples the batches of a run hold.
"""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fogzo_repro import plan as plan_module
from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.data.order import EpochOrder
from fogzo_repro.sweeps.forecast import forecast
from fogzo_repro.training.ranks import Ranks
from fogzo_repro.training.shares import check_batch, normalises_one_place, pass_sizes
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
        ["recipe.global_batch_size=287"],  # the last batch has 2 images
    ],
    ids=["dropped", "more places", "more images"],
)
def test_what_can_be_normalised_is_not_refused(words):
    plan_module.make_plan(compose_run(*RESNET, *words))


def test_a_share_of_one_image_is_refused(monkeypatch):
    monkeypatch.setattr(plan_module, "current_ranks", lambda: Ranks(0, 2))
    config = compose_run(*RESNET, "recipe.global_batch_size=2", "recipe.drop_last=true")
    with pytest.raises(UserError, match=r"by recipe\.global_batch_size=2, has one value"):
        plan_module.make_plan(config)


def test_whether_a_place_is_normalised_is_found_without_a_trace():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert normalises_one_place(network, (1, 3, 3)) and not normalises_one_place(network, (1, 4, 4))
    assert network.training and network(torch.zeros(2, 1, 3, 3)).grad_fn is not None
    assert not network[1]._forward_pre_hooks
    network.load_state_dict(before)


@pytest.mark.parametrize(
    ("words", "images", "sizes"),
    [
        ([], 64, [64]),
        (["recipe.micro_batch_size=32"], 65, [65]),
        (["recipe.micro_batch_size=32", "recipe.accumulate=true"], 65, [1]),
        (["recipe.micro_batch_size=32", "recipe.accumulate=true"], 64, [32]),
        (["recipe.micro_batch_size=32", "recipe.accumulate=true"], 20, [20]),
        (["estimator.probe_fraction=0.03"], 64, [64, 2]),
        (["estimator.probe_fraction=0.03"], 10, [10, 1]),
        (
            [
                "recipe.micro_batch_size=32",
                "recipe.accumulate=true",
                "estimator.probe_fraction=0.52",
            ],
            64,
            [32, 1],
        ),
    ],
    ids=["whole", "one pass", "rest", "even", "short", "probes", "least", "rest of the probes"],
)
def test_the_sizes_of_the_passes_over_a_batch(words, images, sizes):
    config = compose_run(*RESNET, "recipe.global_batch_size=64", *words)
    assert [size for size, _ in pass_sizes(config, images, "-")] == sizes


def check(batch, examples, world_size, *words, run=RESNET):
    config = compose_run(*run, f"recipe.global_batch_size={batch}", *words)
    batches = SimpleNamespace(order=EpochOrder(examples, batch, world_size=world_size))
    check_batch(config, batches, examples, Ranks(0, world_size))


MIXUP = ("recipe.mixup=0.8", "recipe.mix_probability=1.0", "recipe.drop_last=true")


def test_batches_that_the_processes_can_share_are_taken():
    check(9, 9, 3)  # one step an epoch
    check(6, 9, 2)  # 3 images each, and nothing pairs them
    check(6, 9, 2, run=["dataset=digits", "recipe=digits_mlp"])  # a recipe that knows of no pairs
    check(12, 12, 2, *MIXUP)
    check(36, 36, 6, *MIXUP)


@pytest.mark.parametrize(
    ("batch", "world_size", "words", "message"),
    [
        (9, 2, (), "recipe.global_batch_size=9 is not a multiple of the 2 processes"),
        (12, 2, (), "recipe.global_batch_size=12 exceeds the 11 training examples"),
        (6, 2, MIXUP, "gives each of 2 processes 3 images, and mixup pairs them"),
    ],
    ids=["no multiple", "no step", "no pairs"],
)
def test_batches_that_the_processes_cannot_share_are_refused(batch, world_size, words, message):
    with pytest.raises(UserError, match=message):
        check(batch, 11, world_size, *words)


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
