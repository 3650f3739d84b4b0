"""Progress lines where there is no terminal."""

from __future__ import annotations

import pytest

from fogzo_repro.tracking import progress as module
from fogzo_repro.tracking.progress import RunProgress


def test_a_long_step_is_shown_before_its_numbers_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = RunProgress("run", total=10, done=0)
    for step in (1, 2, 3):
        now[0] += 10.0
        progress.tick(step)
    progress.update(3, {"loss": 0.5})
    now[0] += 20.0
    progress.tick(4)
    assert capsys.readouterr().err.splitlines() == [
        "run  step 2/10  eta 1:20",
        "run  step 4/10  loss 0.5  eta 1:15",
    ]


def test_ticks_within_a_second_cost_nothing_and_say_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[int] = []
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    progress = RunProgress("run", total=1000, done=0, quiet=True)
    monkeypatch.setattr(progress, "update", lambda step, said: shown.append(step))
    for step in range(1, 11):
        now[0] += 0.05
        progress.tick(step)
    assert not shown


def test_a_name_in_brackets_is_shown_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    progress = RunProgress("run", total=10, done=0)
    progress.say("run ([/row] | [bold]): 10 steps")
    assert capsys.readouterr().err == "run ([/row] | [bold]): 10 steps\n"
