"""The estimators of docs/estimator.md, as the page has them, have all that a built-in one has."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fogzo_repro import diagnose
from fogzo_repro.composition import compose_run
from fogzo_repro.config import ConfigError, UserError
from fogzo_repro.diagnose import Effort
from fogzo_repro.run import execute
from fogzo_repro.stored import open_run
from tests.conftest import ROOT
from tests.forked import python
from tests.test_readme import FILES

pytestmark = pytest.mark.slow

DIGITS = ("dataset=digits", "recipe=digits_mlp", "recipe.max_steps=8", "hardware=cpu")
UNBOUNDED = ("estimator=bounded", "estimator.bound=1e30")  # FOGZO, computed by the user's file


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of docs/estimator.md with its estimators."""
    folder = tmp_path / "mine"
    for name in (name for name in FILES if name.startswith("estimator/")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(FILES[name])
    monkeypatch.setenv("FOGZO_PARTS", str(folder))
    return folder


def train(tmp_path: Path, *words: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Train on the digits; return the record and the lines of metrics.jsonl."""
    config = compose_run(*DIGITS, *words, f"output_root={tmp_path / 'runs'}")
    record = execute(config, quiet=True)
    lines = (tmp_path / "runs" / record["run_id"] / "metrics.jsonl").read_text().splitlines()
    return record, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    "words",
    [
        ["estimator.noise=1e-3"],
        ["estimator.random_sign=true"],
        ["estimator.probe_fraction=0.25", "estimator.beta_min=0.9"],
        ["estimator.start_fraction=0.5", "estimator.beta_schedule=linear", "estimator.rho=20"],
        ["estimator.n=50"],
        ["estimator.n=3", "estimator.evaluator=sequential"],
    ],
    ids=["plain", "random signs", "part of the batch", "late, by a schedule", "batched", "n=3"],
)
def test_a_file_that_computes_algorithm_1_gives_the_run_of_fogzo(mine, tmp_path, words):
    """Bit for bit, whatever is set: all that stands around an estimator is the same for both."""
    record, lines = train(tmp_path, *UNBOUNDED, *words)
    expected, built_in = train(tmp_path, "estimator=fogzo", *words)
    assert record["run_id"] != expected["run_id"]
    assert lines == built_in
    for key in ("evaluations_per_step", "metrics", "history", "perturbed_weights"):
        assert record[key] == expected[key]
    evaluators = [r["resolved"]["evaluator"] for r in (record, expected)]
    assert evaluators == ["batched" if words == ["estimator.n=50"] else "sequential"] * 2


def test_start_schedule_noise_and_counts_are_those_of_the_settings(mine, tmp_path):
    """So that both runs of the test above cannot be wrong in the same way."""
    words = ["estimator.n=50", "estimator.start_fraction=0.5", "estimator.noise=0.03"]
    record, lines = train(tmp_path, *UNBOUNDED, *words, "estimator.beta_schedule=linear")
    steps = [line for line in lines if "split" not in line]
    assert record["evaluations_per_step"] == {"probes": 100, "total": 103}
    assert [line.get("noise") for line in steps[:4]] == [None] * 4
    assert [line["noise"] for line in steps[4:]] == pytest.approx([0, 0.01, 0.02, 0.03])
    assert ["null_level" in line for line in steps] == [t == 4 for t in range(8)]
    assert [line["coefficient"] > 0 for line in steps] == [t >= 4 for t in range(8)]


def test_the_bound_of_the_page_holds(mine, tmp_path):
    _, lines = train(tmp_path, "estimator=bounded", "estimator.bound=1e-3")
    for line in lines:
        if "split" not in line:
            assert line["coefficient"] <= 1.001e-3 * line["guide_norm"]


def test_an_estimator_without_probes_costs_no_evaluation(mine, tmp_path):
    record, lines = train(tmp_path, "estimator=signed")
    assert record["evaluations_per_step"] == {"probes": 0, "total": 3}
    assert not any("null_level" in line for line in lines)
    _, plain = train(tmp_path, "estimator=ste")
    grown = lines[0]["grad_norm_quantized"] / plain[0]["grad_norm_quantized"]
    assert 1.01 < grown <= 1.1  # by a tenth of the mean absolute value, along the sign


def write(mine: Path, name: str, yaml: str, code: str) -> None:
    (mine / "estimator" / f"{name}.yaml").write_text(f"name: {name}\nfamily: {name}\n{yaml}")
    (mine / "estimator" / f"{name}.py").write_text(code)


def test_pairs_that_no_setting_tells_of_are_refused(mine, tmp_path):
    """The record would say 0 of an estimator that measures 50."""
    code = FILES["estimator/bounded.py"].replace("build(n, ", "build(").replace("(n, ", "(50, ")
    yaml = "noise: 0.1\nbeta_schedule: constant\nbound: 1.0\n"
    write(mine, "silent", yaml, code.replace("__init__(self, 50,", "__init__(self, n,"))
    said = "measured 50 probe pairs at a step and estimator.n is 0: give n: 50 in its YAML file"
    with pytest.raises(UserError, match=said):
        train(tmp_path, "estimator=silent")
    write(mine, "told", yaml + "n: 50\n", code.replace("__init__(self, 50,", "__init__(self, n,"))
    record, _ = train(tmp_path, "estimator=told")
    assert record["evaluations_per_step"]["probes"] == 100
    assert record["resolved"]["evaluator"] == "batched"  # where it can be, without a setting


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "class Half:\n    def __call__(self, *rest): pass\nbuild = Half\n",
            r"build\(\) returned a Half, which has no begin_step\(step, total_steps\)",
        ),
        ("def build():\n    return 3\n", r"build\(\) returned a int, which has no begin_step"),
        (
            "class Half:\n    begin_step = lambda *_: True\n    __call__ = lambda *_: 0.5\n"
            "build = Half\n",
            "the estimator returned a float; return an Estimate",
        ),
    ],
    ids=["no begin_step", "not an estimator", "returns a number"],
)
def test_half_an_estimator_is_refused_in_one_line(mine, tmp_path, code, said):
    write(mine, "half", "", code)
    with pytest.raises(UserError, match=said):
        train(tmp_path, "estimator=half")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["estimator.n=0"], "estimator.n=0 must be at least 1"),
        (["estimator.probe_fraction=0"], "estimator.probe_fraction=0.0 must be above 0"),
        (["estimator.evaluator=fast"], "options: auto, sequential, batched"),
        (["estimator.noise=1e-3", "estimator.rho=2"], "say the same; give one of them, not both"),
        (["estimator.beta_schedule=cosine"], "options: constant, linear"),
        (["estimator.bound=wide"], "estimator.bound=wide is not a number"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_is_based_on_fogzo_has_its_rules(mine, words, said):
    with pytest.raises(ConfigError, match=said):
        compose_run("estimator=bounded", *words)


def test_keys_that_all_estimators_may_have_have_the_same_rules(mine):
    yaml = "n: 2\nprobe_fraction: 1.0\nstart_fraction: 0.0\nevaluator: auto\n"
    write(mine, "plain", yaml, "build = lambda: None\n")
    for word in ("n=-1", "probe_fraction=0", "start_fraction=2", "evaluator=fast"):
        with pytest.raises(ConfigError, match=f"estimator.{word.split('=')[0]}"):
            compose_run("estimator=plain", f"estimator.{word}")


def test_diagnose_measures_the_runs_own_estimator_beside_the_others(mine, tmp_path):
    """The user's FOGZO has the moments that the built-in one is measured to have."""
    words = ("estimator.n=10", "estimator.noise=0.1", "snapshots=2")
    record, _ = train(tmp_path, *UNBOUNDED, *words)
    run = open_run(tmp_path / "runs" / record["run_id"])
    effort = Effort(directions=400, batches=3, draws=200)
    rows = diagnose.diagnose(run, None, torch.device("cpu"), vars(effort))
    found = {(r.step, r.estimator, r.n, r.noise and round(r.noise, 3)): r for r in rows}
    for step in (0, 8):
        own, built_in = found[step, "bounded", 10, None], found[step, "fogzo", 10, 0.1]
        assert own.label == "bounded"
        assert own.norm_ratio.value == pytest.approx(built_in.norm_ratio.value, rel=0.3)
        assert own.variance.value == pytest.approx(built_in.variance.value, rel=0.5)
        assert not any(name == "bounded" and n != 10 for _, name, n, _ in found)


TABLE = """
seeds: 0..1
settings: {dataset: digits, recipe: digits_mlp, recipe.max_steps: 8, estimator: bounded}
rows:
  bounded: {label: Bounded, cell.column: "n=${estimator.n}", estimator.n: 4}
  random: {label: "Bounded, random sign", cell.column: "n=1", estimator.random_sign: true}
"""


def test_it_stands_in_a_table_of_ones_own_with_its_control(mine, tmp_path):
    (mine / "table").mkdir()
    (mine / "table" / "own.yaml").write_text(TABLE)
    records = []
    for cell in ("bounded", "random"):
        done = python(
            "-m", "fogzo_repro", "--config-dir", mine, f"experiment=own/{cell}", "seed=1",
            "hardware=cpu", f"output_root={tmp_path}/{cell}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (path,) = (tmp_path / cell).glob("*/record.json")
        records.append(json.loads(path.read_text()))
    assert [(r["table"], r["row"], r["column"]) for r in records] == [
        ("own", "Bounded", "n=4"),
        ("own", "Bounded, random sign", "n=1"),
    ]
    assert [r["evaluations_per_step"]["probes"] for r in records] == [8, 2]


def test_the_commands_of_the_page_run(mine, tmp_path):
    page = (ROOT / "docs" / "estimator.md").read_text()
    commands = [line.split() for line in page.splitlines() if "estimator=bounded" in line]
    assert len(commands) == 2
    for number, words in enumerate(commands):
        assert words[:5] == ["python", "-m", "fogzo_repro", "--config-dir", "mine"]
        done = python(
            "-m", "fogzo_repro", "--config-dir", mine, *words[5:], *DIGITS,
            f"output_root={tmp_path}/{number}",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (record,) = (tmp_path / str(number)).glob("*/record.json")
        assert json.loads(record.read_text())["status"] == "finished"
