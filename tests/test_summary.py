"""`python -m fogzo_repro.summary`: what differs between runs, means over seeds, plots."""

import csv
import json
import shutil
import statistics
import sys
from dataclasses import replace

import pytest

from fogzo_repro import summary
from fogzo_repro.config import UserError
from tests.conftest import deny_folder
from tests.forked import python
from tests.reporting.conftest import make_record
from tests.short_runs import train

NOISES = ("1e-3", "1e-9")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of FOGZO at two noises, one of the STE, and one that was stopped."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for noise in NOISES:
            train(folder, "estimator=fogzo", f"estimator.noise={noise}", f"seed={seed}")
    stopped = train(folder, "estimator=ste", "seed=7")
    (stopped / "record.json").unlink()
    train(folder, "estimator=ste", "seed=0")
    return folder


def rows(folder, by=None):
    return summary.table(summary.group(summary.find_runs([folder])), by)


@pytest.mark.slow
def test_a_row_is_mean_and_sd_over_the_seeds_of_equal_settings(runs):
    records = [json.loads(path.read_text()) for path in runs.glob("*fogzo*/record.json")]
    losses = [
        r["metrics"]["last"]["train"]["loss"]
        for r in records
        if r["config"]["estimator"]["noise"] == 1e-3
    ]
    expected = f"{statistics.mean(losses):.4f} ± {statistics.stdev(losses):.4f} (2)"
    (line,) = (line for line in rows(runs).splitlines() if " 0.001 " in line)
    assert expected in line and "fogzo" in line


def test_only_what_differs_is_a_column_and_the_rest_is_said_once(runs):
    text = rows(runs)
    head = next(line for line in text.splitlines() if line.startswith("estimator"))
    settings = [word for word in head.split("  ") if word.strip()]
    assert [w.strip() for w in settings[:2]] == ["estimator", "estimator.noise"]
    assert settings[2].strip() == "train loss"  # not estimator.n, which only one of them has
    assert "all with model=mlp dataset=digits quantizer=round" in text.splitlines()[0]
    assert "change together with a column: " in text and "estimator.beta_min" in text


def test_rows_are_sorted_by_the_size_of_the_setting(runs):
    table = rows(runs, "estimator.noise").splitlines()
    assert table[2].startswith("estimator.noise")
    assert [line.split()[0] for line in table[3:6]] == ["1e-09", "0.001", "-"]


def test_a_run_that_is_not_over_is_named_and_in_no_mean(runs):
    text = rows(runs)
    (line,) = (line for line in text.splitlines() if "in no mean" in line)
    assert "-ste-s7-" in line and line.endswith("at step 10")
    (ste,) = (line for line in text.splitlines() if line.startswith("ste"))
    assert "(1)" in ste


def test_a_row_without_a_mean_says_why(tmp_path):
    saved(tmp_path, "a")
    for seed, status in enumerate(["diverged", "diverged", "finished"]):
        record = make_record("FOGZO", "1-beta=0.1", seed, 1.0, status=status)
        (tmp_path / f"{seed}.json").write_text(json.dumps(record))
        text = rows(tmp_path)
        (line,) = (line for line in text.splitlines() if line.startswith("mlp"))
        assert ("2 diverged" if seed else "1 diverged") in line and "not run" not in text
    assert "1.0000 ± – (1), 2 diverged" in line
    run = summary.find_runs([tmp_path / "0.json"])[0]
    open_ = summary.Row(run.settings, [replace(run, state="at step 10")])
    both = [open_, *summary.group(summary.find_runs([tmp_path / "a.json"]))]
    assert "not over" in summary.table(both)


@pytest.mark.slow
def test_a_plot_has_a_point_for_each_value_and_a_level_for_those_without(runs, tmp_path):
    done = python(
        "-m", "fogzo_repro.summary", runs, "--by", "estimator.noise", "--plot", tmp_path / "s.pdf"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "s.pdf").read_bytes()[:4] == b"%PDF"
    assert (tmp_path / "s.png").read_bytes()[1:4] == b"PNG"
    points = list(csv.DictReader((tmp_path / "s.csv").open()))
    loss = [p for p in points if p["panel"] == "train loss"]
    assert {(p["line"], p["x"]) for p in loss} == {
        ("fogzo", "1e-09"), ("fogzo", "0.001"), ("ste", ""),
    }  # fmt: skip


def test_beta_is_drawn_as_the_noise_in_decimal(runs):
    found = summary.group(summary.find_runs([runs]))
    points, axis = summary.along_setting(found, "estimator.beta_min")
    assert axis == "1 - estimator.beta_min"
    assert {point.x for point in points} == {1e-9, 1e-3, None}


def test_without_a_setting_the_logged_loss_is_drawn_of_unfinished_runs_too(runs, tmp_path):
    (stopped,) = runs.glob("*-ste-s7-*")
    shutil.copytree(stopped, tmp_path / "runs" / stopped.name)
    found = summary.group(summary.find_runs([tmp_path / "runs"]))
    points = summary.along_steps(found)
    logged = [json.loads(x) for x in (stopped / "metrics.jsonl").read_text().splitlines()]
    assert [p.mean for p in points] == pytest.approx(
        [x["loss"] for x in logged if "split" not in x], rel=1e-4
    )


def test_a_run_that_has_logged_no_finite_loss_is_one_clear_error(runs, tmp_path):
    (stopped,) = runs.glob("*-ste-s7-*")
    logged = shutil.copytree(stopped, tmp_path / "run") / "metrics.jsonl"
    lines = [json.loads(line) | {"loss": None} for line in logged.read_text().splitlines()]
    logged.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(UserError, match="these runs have no loss along the steps; give --by"):
        summary.along_steps(summary.group(summary.find_runs([tmp_path])))


def test_committed_records_are_read_and_other_json_is_not(tmp_path):
    record = make_record("STE", "lr=0.032", 0, 0.7)
    (tmp_path / "a.json").write_text(json.dumps(record))
    (tmp_path / "bench.json").write_text('{"networks": {}}')
    assert [run.seed for run in summary.find_runs([tmp_path])] == [0]


def saved(folder, name, **changes):
    """Write a record of the LLaMA on a text, with changes of its settings."""
    record = make_record("STE", "-", 0, 4.0, run_id=name)
    record["config"] |= {"model": {"name": "llama_9m"}, "dataset": {"name": "c4"}, "scale": "full"}
    for section, values in changes.items():
        record[section] |= values
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_runs_of_two_scales_are_two_rows_and_one_scale_is_said_once(tmp_path):
    saved(tmp_path, "a")
    assert "scale=full" in rows(tmp_path).splitlines()[0]
    saved(tmp_path, "b", config={"scale": "smoke"})
    text = rows(tmp_path)
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["scale", "full", "smoke"]
    assert "scale=" not in text


def test_a_text_is_called_by_its_own_name_and_not_by_that_of_its_format(tmp_path):
    saved(tmp_path, "a", resolved={"corpus": "some text"})
    assert "dataset=some text" in rows(tmp_path).splitlines()[0]
    saved(tmp_path, "b")  # of a record that names none
    head, *lines = rows(tmp_path).splitlines()[2:5]
    assert head.startswith("dataset")
    assert [line.split("  ")[0] for line in lines] == ["c4", "some text"]


def test_another_kernel_makes_no_other_row(tmp_path):
    saved(tmp_path, "a", resolved={"head": "kernel"})
    saved(tmp_path, "b")
    assert "4.0000 ± 0.0000 (2)" in rows(tmp_path)


def test_a_damaged_record_is_named_and_left_out(runs, tmp_path, capsys):
    copy = shutil.copytree(runs, tmp_path / "runs")
    path = next(copy.glob("*ste-s0*")) / "record.json"
    path.write_text(path.read_text()[:100])
    rows(copy)
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere is not there"),
        (["."], "no run is below ."),
        (["RUNS", "--by", "estimator.nois"], "did you mean estimator.noise"),
        (["RUNS", "--plot", "a.jpg"], "neither .png nor .pdf"),
        (["RUNS", "--by", "estimator", "--plot", "a.png"], "two values of estimator, as numbers"),
    ],
    ids=["missing", "empty", "misspelt", "ending", "text"],
)
def test_what_the_user_can_mend_is_one_line(runs, tmp_path, monkeypatch, capsys, words, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["summary", *(str(runs) if w == "RUNS" else w for w in words)])
    assert summary.main() == 2
    assert said in capsys.readouterr().err


def test_a_plot_of_more_lines_than_can_be_told_apart_is_refused(tmp_path, monkeypatch, capsys):
    for k in range(1, 14):
        record = make_record("STE", "-", 0, 4.0, run_id=f"r{k}")
        record["config"]["recipe"]["lr"] = 0.1 * k
        record["history"] = {"step": [1, 2], "loss": [4.0, 3.0]}
        (tmp_path / f"{k:02}.json").write_text(json.dumps(record))
    png = str(tmp_path / "a.png")
    monkeypatch.setattr(sys, "argv", ["summary", str(tmp_path), "--plot", png])
    assert summary.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: --plot would draw 13 lines") and "or --by SETTING" in said
    (tmp_path / "13.json").unlink()
    assert summary.main() == 0


@pytest.mark.slow
def test_a_sweep_is_told_apart_in_progress_lines(tmp_path):
    done = python(
        "-m", "fogzo_repro", "-m", "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=2",
        "estimator.noise=1e-3,1e-4", "hardware=cpu", f"output_root={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for noise in ("0.001", "0.0001"):
        assert f" (estimator.noise={noise}): 2 steps on" in done.stderr
        assert f": finished  estimator.noise={noise}  test" in done.stdout


@pytest.mark.slow
def test_a_run_of_a_table_is_called_by_its_cell(tmp_path):
    folder = train(tmp_path, "estimator=ste", "cell.row=a row", "cell.column=a column")
    assert f"{folder.name} (a row | a column): 10 steps" in (folder / "log.txt").read_text()


def test_a_folder_that_cannot_be_read_is_said_to_be_left_out(tmp_path, monkeypatch, capsys):
    train(tmp_path / "runs")
    train(tmp_path / "runs" / "more", "seed=1")
    deny_folder(monkeypatch, "more")
    monkeypatch.setattr(sys, "argv", ["summary", str(tmp_path / "runs")])
    summary.main()
    said = f"left out: {tmp_path}/runs/more cannot be read (Permission denied)"
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metrics.jsonl", '{"loss": 1.0}\n{"step": 2, "loss": 1.0}\n'),
        ("metrics.jsonl", '{"step": 1, "loss": "x"}\n{"step": 2, "loss": 1.0}\n'),
        ("metrics.jsonl", '[1]\n{"step": 2, "loss": 1.0}\n'),
        ("resolved.json", '{"resolved": 3}'),
    ],
)
def test_an_unfinished_run_that_is_damaged_is_said_to_be_left_out(tmp_path, capsys, name, text):
    folder = train(tmp_path)
    (folder / "record.json").unlink()
    (folder / name).write_text(text)
    with pytest.raises(UserError, match="no run is below"):
        summary.find_runs([folder])
    assert f"left out: {folder} cannot be read" in capsys.readouterr().err
