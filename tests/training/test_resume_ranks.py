"""Two processes that are killed end with the bytes of two that are not; two that part stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ranks_worker import join

from fogzo_repro.training.ranks import Ranks
from tests.forked import finish, free_port, start

pytestmark = pytest.mark.slow

STEPS = 14
ESTIMATORS = {
    "ste": ["estimator=ste"],
    "nspsa": ["estimator=nspsa", "estimator.n=2"],
    "fogzo": ["estimator=fogzo", "estimator.noise=1e-4"],
}


def start_both(arguments: list[str], errors: Path) -> list[int]:
    """Fork two ranks of one run; return their process ids."""
    port = free_port()
    return [start(arguments, errors, before=partial(join, rank, port)) for rank in (0, 1)]


def test_processes_whose_weights_differ_stop_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ranks, "average_gradients", lambda ranks, parameters: None)
    errors = tmp_path / "errors"
    both = start_both(
        [
            "dataset=digits", "recipe=digits_mlp", "hardware=cpu", "recipe.max_steps=6",
            "estimator=ste", f"output_root={tmp_path}",
        ],
        errors,
    )  # fmt: skip
    assert [finish(pid) for pid in both] == [2, 2]
    assert "error: step 6: the processes hold different weights" in errors.read_text()
    assert not list(tmp_path.glob("*/record.json"))


def test_what_both_processes_lack_is_said_once(tmp_path: Path) -> None:
    errors = tmp_path / "errors"
    words = ["model=resnet18", "hardware=cpu", "estimator=ste", f"data_dir={tmp_path}"]
    both = start_both([*words, f"output_root={tmp_path / 'runs'}"], errors)
    assert [finish(pid) for pid in both] == [2, 2]
    assert errors.read_text().count("error: ") == 1
    assert f"{tmp_path}/imagenet/train is not there" in errors.read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_what_one_process_lacks_ends_both(tmp_path: Path, rank: int) -> None:
    """The other one must not wait for it."""
    words = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", "estimator=ste"]
    errors, port = tmp_path / "errors", free_port()

    def lack(number: int) -> None:
        join(number, port)
        if number == rank:
            from fogzo_repro.config import UserError
            from fogzo_repro.training.classification import InMemoryImages

            def load(*_: object) -> None:
                raise UserError("the data are not here")

            InMemoryImages.load = load  # type: ignore[method-assign, assignment]

    words += [f"output_root={tmp_path / 'runs'}"]
    both = [start(words, errors, before=partial(lack, number)) for number in (0, 1)]
    assert [finish(pid) for pid in both] == [2, 2]
    assert errors.read_text() == "error: the data are not here\n"


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("name", ["across_epochs", "evaluated"])
def test_what_one_process_cannot_read_ends_both(tmp_path: Path, name: str, rank: int) -> None:
    """In training and in an evaluation: the other one said how its connection was lost."""
    words = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", "estimator=ste"]
    errors, port = tmp_path / "errors", free_port()

    def lose(number: int) -> None:
        join(number, port)
        if number == rank:
            from fogzo_repro.config import UserError
            from fogzo_repro.training import classification, loop

            module: Any = {"across_epochs": loop, "evaluated": classification}[name]
            usual = getattr(module, name)

            def one(batches: Iterable[Any]) -> Iterator[Any]:
                yield next(iter(batches))
                raise UserError("the disk is gone")

            broken = {
                "across_epochs": lambda *rest: one(usual(*rest)),
                "evaluated": lambda batches, ranks: usual(one(batches), ranks),
            }
            setattr(module, name, broken[name])

    words += [f"output_root={tmp_path / 'runs'}", "recipe.max_steps=6"]
    both = [start(words, errors, before=partial(lose, number)) for number in (0, 1)]
    assert [finish(pid) for pid in both] == [2, 2]
    assert errors.read_text().count("error: the disk is gone") == 1
    assert "Traceback" not in errors.read_text()


def test_a_folder_that_the_first_process_cannot_write_ends_both(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", "estimator=ste"]
    errors = tmp_path / "errors"
    both = start_both([*words, f"output_root={tmp_path / 'file' / 'runs'}"], errors)
    assert [finish(pid) for pid in both] == [2, 2]
    assert errors.read_text().count("error: ") == 1 and "is not writable" in errors.read_text()


def final_bytes(root: Path) -> dict[str, bytes]:
    names = ("metrics.jsonl", f"checkpoint-{STEPS:08d}.safetensors", f"checkpoint-{STEPS:08d}.json")
    return {name: next(root.glob(f"*/{name}")).read_bytes() for name in names}


@pytest.mark.parametrize("overrides", ESTIMATORS.values(), ids=ESTIMATORS)
def test_killed_ranks_end_with_the_bytes_of_the_uninterrupted_ones(
    tmp_path: Path, overrides: list[str]
) -> None:
    whole, killed, errors = tmp_path / "whole", tmp_path / "killed", tmp_path / "errors"
    common = [
        "dataset=digits", "recipe=digits_mlp", "hardware=cpu", f"recipe.max_steps={STEPS}",
        "eval_every_steps=4", *overrides,
    ]  # fmt: skip
    both = start_both([*common, f"output_root={whole}"], errors)
    assert [finish(pid) for pid in both] == [0, 0], errors.read_text()

    often = [*common, f"output_root={killed}", "checkpoint_minutes=0"]
    both = start_both(often, errors)
    deadline = time.monotonic() + 60
    while not list(killed.glob("*/checkpoint-0000000[5-9].json")):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    for pid in both:
        os.kill(pid, signal.SIGKILL)
    for pid in both:
        finish(pid)
    assert not list(killed.glob("*/record.json"))

    both = start_both([*common, f"output_root={killed}"], errors)
    assert [finish(pid) for pid in both] == [0, 0], errors.read_text()
    assert "resumed after step" in next(killed.glob("*/log.txt")).read_text()
    assert final_bytes(killed) == final_bytes(whole)
