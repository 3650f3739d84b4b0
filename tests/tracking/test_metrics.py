"""What a run writes as it goes, what is taken for whole after an interruption, and its course.

The course, metrics.jsonl averaged over equal bins, is held against closed forms.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro.tracking.metrics import BINS, Journal, binned_history, stream_metrics
from fogzo_repro.tracking.records import read_record
from fogzo_repro.training.row import course
from tests.short_runs import train

binned = partial(binned_history, quantities=course)


def journal(folder: Path, steps: int = 3) -> Journal:
    """Return a journal of some steps, with an evaluation at the last."""
    found = Journal(folder)
    for step in range(1, steps + 1):
        found.append([{"step": step, "loss": float(step)}])
        found.time(step)
    found.append([{"step": steps, "split": "test", "loss": 9.0}])
    return found


def test_whole_files_lack_nothing(tmp_path: Path) -> None:
    found = journal(tmp_path)
    assert found.lacks(3, found.sync()) is None
    assert found.lacks(3, {}) is None
    assert found.lacks(0, {"metrics_bytes": 0}) is None


def test_steps_that_are_not_there_are_lacking(tmp_path: Path) -> None:
    assert journal(tmp_path).lacks(4, {}) == "metrics.jsonl ends after step 3"


@pytest.mark.parametrize("tail", [b'{"step": 4, "lo', bytes(30), b'{"step": 4}\n', b"null\n"])
def test_what_follows_is_no_lack_and_is_cut(tmp_path: Path, tail: bytes) -> None:
    found = journal(tmp_path)
    state, before = found.sync(), found.metrics.read_bytes()
    found.metrics.write_bytes(before + tail)
    assert found.lacks(3, state) is None
    found.rewind(3, state)
    assert found.metrics.read_bytes() == before


def test_zeros_in_the_middle_end_the_file(tmp_path: Path) -> None:
    found = journal(tmp_path)
    content = found.metrics.read_bytes().splitlines(keepends=True)
    content[1] = bytes(len(content[1]) - 1) + b"\n"
    found.metrics.write_bytes(b"".join(content))
    assert found.lacks(3, {}) == "metrics.jsonl ends after step 1"


def test_a_process_that_only_reads_along_writes_nothing(tmp_path: Path) -> None:
    found = journal(tmp_path)
    before = found.metrics.read_bytes(), found.timing.read_bytes()
    other = Journal(tmp_path, writes=False)
    other.append([{"step": 4, "loss": 0.0}])
    other.time(4)
    other.rewind(1, {})
    assert (found.metrics.read_bytes(), found.timing.read_bytes()) == before
    assert len(list(other.lines())) == 4


def test_the_clock_goes_on_from_earlier_processes(tmp_path: Path) -> None:
    (tmp_path / "timing.jsonl").write_text('{"step": 1, "seconds": 500.0}\n')
    found = Journal(tmp_path)
    found.start_clock()
    assert 500 <= found.seconds() < 560
    found.time(2, pause="evaluation")
    last = json.loads(found.timing.read_text().splitlines()[-1])
    assert last["step"] == 2 and last["pause"] == "evaluation" and last["seconds"] >= 500


@pytest.mark.parametrize(
    "line",
    [
        '{"step": "2", "seconds": 2.0}', '{"step": null, "seconds": 2.0}', '{"step": 2}',
        '{"step": 2, "seconds": null}', '{"step": 2, "seconds": NaN}', "[2]", "null", "\0\0",
        '{"step": 2, "seconds": 1' + "0" * 400 + "}", '{"step": 2, "seconds": "2.0"}',
    ],
    ids=lambda line: line[:40].replace("\0", "0"),
)  # fmt: skip
def test_a_line_without_a_step_or_seconds_is_lost_like_a_cut_one(tmp_path: Path, line: str) -> None:
    lines = ['{"step": 1, "seconds": 500.0}', line, '{"step": 3, "seconds": 700.0}']
    (tmp_path / "timing.jsonl").write_text("".join(f"{one}\n" for one in lines))
    found = Journal(tmp_path)
    reader = Journal(tmp_path, writes=False)
    assert reader.lost_times() == ""
    reader.start_clock()
    assert reader.seconds_before == 500
    found.rewind(3, {})
    assert [json.loads(one) for one in found.timing.read_text().splitlines()] == [
        {"step": 1, "seconds": 500.0},
        {"step": 3, "seconds": 500.0, "pause": "resume", "lost_from": 2},
    ]
    assert "steps 2 to 3" in found.lost_times()


@pytest.mark.parametrize("step", ['"4"', "null", "[4]"])
def test_metrics_end_at_a_line_whose_step_is_no_number(tmp_path: Path, step: str) -> None:
    found = journal(tmp_path)
    before = found.metrics.read_bytes()
    found.metrics.write_bytes(before + b'{"step": %s, "loss": 1.0}\n' % step.encode())
    assert found.lacks(3, {}) is None
    found.rewind(3, {})
    assert found.metrics.read_bytes() == before


def test_the_mean_loss_is_that_of_the_examples_of_the_steps_alone(tmp_path: Path) -> None:
    found, seen = journal(tmp_path), {1: 8, 2: 16, 3: 18}
    assert found.mean_loss(1, lambda steps: 8 * steps) == 2.5
    assert found.mean_loss(1, seen.__getitem__) == pytest.approx((8 * 2.0 + 2 * 3.0) / 10)
    assert Journal(tmp_path / "nothing").mean_loss(0, seen.__getitem__) is None


def line(step: int, **changes: Any) -> dict[str, Any]:
    """A step of FOGZO whose loss is its number and whose c is a tenth of it, with both signs."""
    probed = {"coefficient": 0.1 * step * (-1) ** step, "flips": 3.0, "guide_norm": 0.5}
    return (
        {"step": step, "loss": float(step), "noise": 1e-3 * step, "skipped": 0.0} | probed | changes
    )


def test_a_bin_holds_the_mean_of_its_steps() -> None:
    # bins of 3: the mean of 3k+1, 3k+2, 3k+3 is 3k+2
    history = binned([line(t) for t in range(1, 121)], 120)
    middle = [3 * k + 2 for k in range(BINS)]
    assert history["step"] == history["loss"] == middle
    assert history["noise"] == pytest.approx([1e-3 * m for m in middle], rel=1e-4)
    assert history["c_over_g"] == pytest.approx([0.2 * m for m in middle], rel=1e-4)


def test_bins_are_equal_to_one_step_and_cover_every_step() -> None:
    history = binned([line(t, loss=1.0) for t in range(1, 1171)], 1170, bins=40)
    sizes = [1170 * (k + 1) // 40 - 1170 * k // 40 for k in range(40)]
    assert len(history["step"]) == 40 and set(sizes) == {29, 30}
    assert history["loss"] == [1.0] * 40


def test_a_run_shorter_than_the_bins_keeps_every_step() -> None:
    history = binned([line(t) for t in range(1, 6)], 5)
    assert history["step"] == [1, 2, 3, 4, 5]


def test_evaluations_are_left_out() -> None:
    lines = [line(1), {"step": 1, "split": "test", "loss": 99.0}]
    assert binned(lines, 1)["loss"] == [1.0]


def test_steps_before_the_probes_count_for_the_loss_alone() -> None:
    before = {"coefficient": 0.0, "flips": 0.0, "guide_norm": 0.0}
    lines = [line(t, **before) for t in (1, 2)] + [line(t) for t in (3, 4)]
    history = binned(lines, 4, bins=2)
    assert history["c_over_g"] == [None, pytest.approx(0.7)]
    assert history["loss"] == [1.5, 3.5]


def test_the_ste_has_no_c_and_no_flips() -> None:
    lines = [line(t, coefficient=0.0, flips=0.0, guide_norm=0.0) for t in (1, 2)]
    for entry in lines:
        del entry["noise"]
    assert set(binned(lines, 2)) == {"step", "loss", "skipped"}


def test_what_was_not_finite_is_left_out_of_the_mean() -> None:
    lines = [line(1), line(2, loss=None, coefficient=None), line(3), line(4)]
    history = binned(lines, 4, bins=2)
    assert history["loss"] == [1.0, 3.5]
    assert history["c_over_g"] == pytest.approx([0.2, 0.7])


def test_skipped_is_the_share_of_skipped_steps() -> None:
    lines = [line(t, skipped=float(t == 1)) for t in range(1, 5)]
    assert binned(lines, 4, bins=1)["skipped"] == [0.25]


def test_the_record_of_a_run_has_its_history(tmp_path: Path) -> None:
    run = train(tmp_path, "estimator.noise=0.001")
    history = read_record(run / "record.json")["history"]
    lines = [entry for entry in stream_metrics(run / "metrics.jsonl") if "split" not in entry]
    assert history["step"] == list(range(1, 11))
    assert history["loss"] == pytest.approx([entry["loss"] for entry in lines], rel=1e-4)
    assert history["noise"] == [0.001] * 10 and all(c > 0 for c in history["c_over_g"])
