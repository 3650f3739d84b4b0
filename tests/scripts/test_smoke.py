"""scripts/smoke.py on a few cells of every kind."""

from __future__ import annotations

import re
import sys

import pytest

from scripts import smoke

CELLS = [
    "figure-shallow/full-precision", "table1/llama-9m-tanh-fogzo", "table1/resnet18-identity-fogzo",
    "table2/llama-20m-random-sign", "table3/95m-quest-fogzo", "table4/lsq-ste",
]  # fmt: skip


@pytest.mark.slow
def test_cells_of_every_table_run_without_any_download(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FOGZO_DATA", "/nowhere")
    monkeypatch.setattr(sys, "argv", ["smoke.py", *CELLS])
    assert smoke.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(CELLS) + 1
    assert lines[-1].startswith(f"{len(CELLS)} cells, 0 failed")
    assert all(re.search(r": runs, \d+\.\d s$", line) for line in lines[:-1])  # no result in it


def test_a_cell_that_fails_is_named_and_does_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fogzo_repro.sweeps import smoke as cells

    execute = cells.execute

    def fail_on_ste(config, **options):  # type: ignore[no-untyped-def]
        if config.estimator.name == "ste":
            raise RuntimeError("no such kernel")
        return execute(config, **options)

    monkeypatch.setattr(cells, "execute", fail_on_ste)
    monkeypatch.setattr(sys, "argv", ["smoke.py", "table4/lsq-ste", "table4/random-sign"])
    assert smoke.main() == 1
    said = capsys.readouterr().out
    assert "LSQ-STE, 3.522B tokens: RuntimeError: no such kernel" in said
    assert "2 cells, 1 failed" in said


@pytest.mark.slow
def test_of_tuning_sweeps_one_is_run_for_each_estimator() -> None:
    cells = smoke.table_cells("mini-deit-tiny", ["scale=smoke"], each_value_once=True)
    kept = smoke.without_most_sweeps(cells)
    tuned = [cell for cell in kept if max(cell.seeds) >= 100]
    assert sorted(cell.config.estimator.name for cell in tuned) == ["fogzo", "ste"]
    assert [c for c in cells if max(c.seeds) < 100] == [c for c in kept if max(c.seeds) < 100]
