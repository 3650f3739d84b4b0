"""The examples run, are short and print what they say; without its package one is skipped."""

import importlib.util
import math
import re

import pytest

from tests.conftest import ROOT
from tests.forked import python

NEEDS = {  # example: package, words that make it short
    "plain_pytorch": ("sklearn", "--epochs=2"),
    "huggingface_trainer": ("accelerate", "--steps=3"),
    "lightning_module": ("pytorch_lightning", "--epochs=1"),
}


def test_every_example_is_run() -> None:
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(NEEDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_prints_the_losses_of_both_on_the_same_seeds(name: str) -> None:
    package, short = NEEDS[name]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not here")
    assert len((ROOT / "examples" / f"{name}.py").read_text().splitlines()) <= 80
    done = python("-m", f"examples.{name}", short, "--seeds=2")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("seed ")]
    assert [line.split()[1:3] for line in lines] == [
        [str(seed), estimator] for seed in (0, 1) for estimator in ("ste", "fogzo")
    ]
    losses = [tuple(map(float, re.findall(r"\d+\.\d{4}", line))) for line in lines]
    assert all(len(pair) == 2 and all(map(math.isfinite, pair)) for pair in losses)
    assert losses[0] != losses[1] and losses[2] != losses[3]
