"""From cells to runs, and from runs to committed records."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from fogzo_repro.config import RunConfig
from fogzo_repro.sweeps.jobs import Cell, Job, collect, missing_jobs, plan_jobs
from tests.tracking.test_records import single

Make = Callable[..., RunConfig]


def record(job: Job, **changes: object) -> str:
    labels = {"table": "none", "row": "none", "column": "none", "run_id": job.run_id}
    return json.dumps(single(job.config.seed) | labels | changes)


def finish(job: Job) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / "record.json").write_text(record(job))


def test_planned_run_ids_are_those_of_the_runs(make_config: Make) -> None:
    from fogzo_repro.plan import make_plan

    config = make_config("estimator.n=10")
    jobs = plan_jobs([Cell(config, (0, 7))])
    assert [job.run_id for job in jobs] == [
        make_plan(replace(config, seed=seed)).run_id for seed in (0, 7)
    ]
    assert (jobs[0].total_steps, jobs[0].cost) == (5, 5 * 23)


def test_the_most_expensive_missing_run_comes_first(make_config: Make, tmp_path: Path) -> None:
    config = make_config()
    jobs = [Job(config, f"run-{cost}", 5, cost) for cost in (3, 9, 5)]
    finish(jobs[2])
    assert [job.cost for job in missing_jobs(jobs, tmp_path)] == [9, 3]


def test_force_runs_what_is_over(make_config: Make, tmp_path: Path) -> None:
    job = Job(make_config("force=true"), "run", 5, 3)
    finish(job)
    assert missing_jobs([job], tmp_path) == [job]


def test_a_committed_record_counts_as_a_run_that_is_over(make_config: Make, tmp_path: Path) -> None:
    job = Job(make_config(), "run", 5, 3)
    finish(job)
    collect([job], tmp_path / "records")
    (job.folder / "record.json").unlink()
    assert missing_jobs([job], tmp_path / "records") == []


def test_two_cells_that_are_one_run_are_run_once(make_config: Make, tmp_path: Path) -> None:
    jobs = [Job(make_config(f"cell.column={c}"), "run", 5, 3) for c in "ab"]
    assert missing_jobs(jobs, tmp_path) == jobs[:1]
    finish(jobs[0])
    assert collect(jobs, tmp_path / "records") == [
        "STE | b, seed 0 is the same run as STE | a with these settings; "
        "its record stands for that cell alone"
    ]


def test_an_older_record_of_the_cell_gives_way_and_an_equal_one_does_not(
    make_config: Make, tmp_path: Path
) -> None:
    old = Job(make_config(), "mlp-s0-old", 5, 3)
    new = Job(make_config(), "mlp-s0-new", 5, 3)
    folder = tmp_path / "miniature"
    for version, kept in ((0, "mlp-s0-new"), (1, "mlp-s0-old")):
        folder.mkdir(exist_ok=True)
        text = record(old, row="STE", column="-", method_version=version)
        (folder / "mlp-s0-old.json").write_text(text)
        if not new.folder.exists():
            finish(new)
        said = collect([new], tmp_path)
        assert [path.stem for path in folder.glob("*.json")] == [kept]
        assert bool(said) == (kept == "mlp-s0-old")
        (folder / f"{kept}.json").unlink()
