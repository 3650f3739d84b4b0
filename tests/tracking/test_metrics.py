"""What a run writes as it goes, and what is taken for whole after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fogzo_repro.tracking.metrics import Journal


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
    assert found.lacks(3, None) is None
    assert found.lacks(0, 0) is None


def test_steps_that_are_not_there_are_lacking(tmp_path: Path) -> None:
    assert journal(tmp_path).lacks(4, None) == "metrics.jsonl ends after step 3"


@pytest.mark.parametrize("tail", [b'{"step": 4, "lo', bytes(30), b'{"step": 4}\n', b"null\n"])
def test_what_follows_is_no_lack_and_is_cut(tmp_path: Path, tail: bytes) -> None:
    found = journal(tmp_path)
    size, before = found.sync(), found.metrics.read_bytes()
    found.metrics.write_bytes(before + tail)
    assert found.lacks(3, size) is None
    found.rewind(3)
    assert found.metrics.read_bytes() == before


def test_zeros_in_the_middle_end_the_file(tmp_path: Path) -> None:
    found = journal(tmp_path)
    content = found.metrics.read_bytes().splitlines(keepends=True)
    content[1] = bytes(len(content[1]) - 1) + b"\n"
    found.metrics.write_bytes(b"".join(content))
    assert found.lacks(3, None) == "metrics.jsonl ends after step 1"


def test_a_process_that_only_reads_along_writes_nothing(tmp_path: Path) -> None:
    found = journal(tmp_path)
    before = found.metrics.read_bytes(), found.timing.read_bytes()
    other = Journal(tmp_path, writes=False)
    other.append([{"step": 4, "loss": 0.0}])
    other.time(4)
    other.rewind(1)
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
    found.rewind(3)
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
    assert found.lacks(3, None) is None
    found.rewind(3)
    assert found.metrics.read_bytes() == before


def test_the_mean_loss_is_that_of_the_examples_of_the_steps_alone(tmp_path: Path) -> None:
    found, seen = journal(tmp_path), {1: 8, 2: 16, 3: 18}
    assert found.mean_loss(1, lambda steps: 8 * steps) == 2.5
    assert found.mean_loss(1, seen.__getitem__) == pytest.approx((8 * 2.0 + 2 * 3.0) / 10)
    assert Journal(tmp_path / "nothing").mean_loss(0, seen.__getitem__) is None
