"""The command line: every bad input ends with one line that names the remedy, and status 2."""

import errno
import io
import json
import os
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.config_store import ConfigStore

from fogzo_repro import __main__ as cli
from fogzo_repro.config import ConfigError
from scripts.table_cells import table_cells
from tests.conftest import DATA_DIR, ROOT
from tests.forked import finish, python, start


@pytest.fixture(autouse=True)
def no_cells_yet():
    """Have Hydra know no cells of the tests before, as in a process of its own."""
    ConfigStore.instance().repo.pop("experiment", None)


TINY = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=3", "hardware=cpu"]


def run_cli(monkeypatch, capsys, *arguments):
    """Call the entry point in this process; return status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["fogzo_repro/__main__.py", *arguments])
    try:
        status = cli.main()
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


class Lost(io.StringIO):
    """A standard output that takes nothing."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def write(self, text):
        raise OSError(self.number, os.strerror(self.number))


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        [*TINY, "dry_run=true"],
        ["--cfg", "job"],
        ["experiment=table1/deit-tiny-identity-fogzo", "--plain"],
    ],
    ids=lambda words: words[-1],
)
def test_what_cannot_be_printed_is_one_line_unless_its_reader_has_left(
    monkeypatch, capsys, arguments
):
    for number, expected in ((errno.EPIPE, 0), (errno.ENOSPC, 2)):
        monkeypatch.setattr(sys, "stdout", Lost(number))
        status, _, err = run_cli(monkeypatch, capsys, *arguments)
        assert status == expected
        lost = "error: cannot write to standard output: No space left on device\n"
        assert err == ("" if expected == 0 else lost)


def test_data_that_the_system_does_not_give_are_one_line(monkeypatch, capsys):
    def unread(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "data/images")

    monkeypatch.setattr("fogzo_repro.run.execute", unread)
    status, _, err = run_cli(monkeypatch, capsys, *TINY)
    assert status == 2 and err.count("\n") == 1
    assert "cannot use data/images: Input/output error; see that you can" in err


BAD = {
    "misspelt key": (["estimator.betamin=0.9"], "did you mean estimator.beta_min?"),
    "misspelt group": (["estimatr=ste"], "did you mean estimator?"),
    "another dataset's": (["dataset.allow_partial=true"], "not a setting of dataset=mnist"),
    "unknown option": (["estimator=magic"], "fogzo"),
    "no direction": (["estimator=nspsa", "estimator.n=0"], "estimator.n=0 must be at least 1"),
    "beta too large": (["estimator.beta_min=1.5"], "estimator.beta_min=1.5 is outside [0, 1]"),
    "beta and noise": (["estimator.beta_min=0.9", "estimator.noise=0.1"], "not both"),
    "too many layers": (["model=llama_9m", "model.layers=2147483647"], "must be at most 1000"),
    "negative lr": (["recipe.lr=-1"], "recipe.lr=-1.0 must be above 0"),
    "lr not a number": (["recipe.lr=fast"], "recipe.lr=fast is not a number"),
    "lr not finite": (["recipe.lr=nan"], "recipe.lr=nan must be a finite number"),
    "a list of options": (
        ["estimator=[ste,fogzo]"],
        "estimator=[ste,fogzo] is a list, of which the last option would win; give one, or with "
        "-m several, estimator=ste,fogzo",
    ),
    "bits out of range": (["quantizer.weight_bits=9"], "quantizer.weight_bits=9 is outside 2..8"),
    "one bit of round": (["quantizer.weight_bits=1"], "use quantizer=sign"),
    "no quantized weight": (["quantizer=none"], "quantizer=round or estimator=ste"),
    "spelling in a sweep": (["-m", "cell.row=1_0,1_1"], "by 'cell.row=\"1_0\"'"),
    "syntax": (["estimator=[ste"], "estimator=[ste"),
    "a sweep without -m": (["seed=0,1"], "add --multirun"),
    "no evaluations": (["eval_every_steps=0"], "eval_every_steps=0 must be at least 1"),
    "evaluations not a number": (["eval_every_steps=often"], "=often is not a whole number"),
    "seed": (["seed=-1"], "seed=-1 is outside"),
    "two values": (
        ["seed=1", "estimator=ste", "seed=2"],
        "seed=1 and seed=2 are given together; give one",
    ),
    "a value beside a sweep": (["-m", "seed=0,1", "seed=2"], "seed=0,1 and seed=2 are given"),
    "two values, one added": (["estimator.n=1", "++estimator.n=2"], "=1 and ++estimator.n=2 are"),
    "two options": (["estimator=ste", "estimator=fogzo"], "estimator=ste and estimator=fogzo are"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_setting_is_one_line_and_status_2(monkeypatch, capsys, arguments, said):
    status, out, err = run_cli(monkeypatch, capsys, *arguments)
    assert status == 2
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert said in err
    assert not out


TABLE = """
seeds: 0..1
settings: {dataset: digits, recipe: digits_mlp, recipe.max_steps: 3, hardware: cpu, cell.row: MLP}
columns:
  ste: {label: "STE, plain", estimator: ste}
  nspsa: {label: "n=${estimator.n}", estimator: nspsa, over: {estimator.n: [1, 2]}}
  wrong: {label: wrong, estimator: fogzo, estimator.noice: 1e-9}
  unknown: {label: "u=${estimator.nn}", estimator: fogzo, over: {estimator.nn: [1, 2]}}
"""


@pytest.fixture
def tiny_table(monkeypatch, tmp_path):
    """Put a table of small cells into a folder of the user's; return its file."""
    file = tmp_path / "own" / "table" / "tiny.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(TABLE)
    monkeypatch.setenv("FOGZO_PARTS", str(tmp_path / "own"))
    return file


def labels(folder):
    """Return the labels and seeds of the runs in a folder."""
    records = [json.loads(path.read_text()) for path in folder.glob("*/record.json")]
    return sorted((r["table"], r["row"], r["column"], r["seed"]) for r in records)


@pytest.mark.slow
def test_a_cell_runs_its_values_and_seeds(monkeypatch, capsys, tmp_path, tiny_table):
    runs = f"output_root={tmp_path}/runs"
    assert run_cli(monkeypatch, capsys, "experiment=tiny/nspsa", "seed=5,6", runs)[0] == 0
    expected = [("tiny", "MLP", f"n={n}", seed) for n in (1, 2) for seed in (5, 6)]
    assert labels(tmp_path / "runs") == expected
    words = ["experiment=tiny/nspsa", "estimator.n=2", "recipe.max_steps=2", runs]
    assert run_cli(monkeypatch, capsys, *words)[0] == 0
    assert labels(tmp_path / "runs") == sorted(
        [*expected, ("tiny", "MLP", "n=2", 0), ("tiny", "MLP", "n=2", 1)]
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "cells", ["tiny/nspsa,tiny/ste", "glob([tiny/n*,tiny/s*])"], ids=["list", "glob"]
)
def test_each_of_several_cells_is_run_as_by_itself(
    monkeypatch, capsys, tmp_path, tiny_table, cells
):
    """With all its seeds and values, and in a sweep over something else."""
    words = ["-m", f"experiment={cells}", f"output_root={tmp_path}/runs", "recipe.max_steps=2,3"]
    assert run_cli(monkeypatch, capsys, *words)[0] == 0
    columns = ["STE, plain", "n=1", "n=2"]
    expected = [("tiny", "MLP", column, seed) for column in columns for seed in (0, 1)]
    assert labels(tmp_path / "runs") == sorted(2 * expected)
    records = [json.loads(p.read_text()) for p in (tmp_path / "runs").glob("*/record.json")]
    words[2] = "output_root=runs"  # a record is published without what stands above
    assert {r["command"] for r in records} == {shlex.join(["python", "-m", "fogzo_repro", *words])}


def test_typed_values_stand_in_place_of_those_of_each_cell(monkeypatch, capsys, tiny_table):
    """A setting of the cells' own estimator, which the default one has not, is one of all too."""
    words = ["-m", "experiment=glob(tiny/n*,exclude=tiny/nothing)", "estimator.n=4", "seed=7,8"]
    status, out, err = run_cli(monkeypatch, capsys, *words, "dry_run=true")
    assert (status, err) == (0, "")
    assert out.count("\n  'n': 4\n") == out.count("seeds: 7..8, a run each") == 1
    words = ["-m", "experiment=tiny/nspsa,tiny/ste", "estimator=nspsa", "seed=1", "dry_run=true"]
    status, out, err = run_cli(monkeypatch, capsys, *words)
    assert (status, out.count("  name: nspsa")) == (0, 3), err


def test_a_sweep_over_many_seeds_is_composed_once(monkeypatch, capsys, tiny_table):
    seen, parse = [], cli.parse_composed
    monkeypatch.setattr(cli, "parse_composed", lambda *each: seen.append(1) or parse(*each))
    tiny_table.write_text(TABLE.replace("0..1", "0..499"))
    status, out, err = run_cli(monkeypatch, capsys, "experiment=tiny/nspsa", "dry_run=true")
    assert (status, err, len(seen)) == (0, "", 4)  # two values, checked and described
    assert out.count("seeds: 0..499, a run each") == 2
    status, out, err = run_cli(
        monkeypatch, capsys, "-m", *TINY, "seed=0,1,x", "dry_run=true", "estimator=ste"
    )
    assert (status, out, err) == (2, "", "error: seed=x is not a whole number\n")


@pytest.mark.slow
def test_cells_of_two_scales_each_have_theirs(monkeypatch, capsys):
    word = f"{MINI},table1/deit-tiny-tanh-ste"
    status, out, _ = run_cli(monkeypatch, capsys, "-m", word, "hardware=cpu", "dry_run=true")
    assert status == 0
    assert out.count("scale: mini\n") == out.count("scale: full\n") == 1
    assert out.count("seeds: 0..4, a run each") == 2


MINI = "experiment=mini-deit-tiny/hardtanh-ste"


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [[MINI], ["-m", MINI], [MINI, "seed=3"], ["-m", MINI, "seed=3,4"]],
    ids=["run", "sweep", "seed", "seeds"],
)
def test_a_setting_of_a_cells_own_data_is_taken_at_the_cells_scale(monkeypatch, capsys, words):
    words = [*words, "dataset.held_out=5000", "hardware=cpu", "dry_run=true"]
    status, out, err = run_cli(monkeypatch, capsys, *words)
    seeds = {word: word.partition("=")[2].split(",") for word in words if "seed=" in word}
    expected = next(iter(seeds.values()), ["0", "1", "2", "3", "4"])
    assert (status, err) == (0, "")
    assert [line for line in out.splitlines() if line.startswith("seed:")] == [
        f"seed: {expected[0]}"
    ]
    assert out.count("scale: mini\n") == out.count("  held_out: 5000\n") == 1
    several = f"seeds: {expected[0]}..{expected[-1]}, a run each" in out
    assert several == (len(expected) > 1)


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg", "job", "-p", "dataset"]], ids=len)
def test_the_configuration_of_a_cell_is_shown_at_its_scale(monkeypatch, capsys, flags):
    status, out, err = run_cli(monkeypatch, capsys, MINI, "dataset.held_out=5000", *flags)
    assert (status, err) == (0, "")
    assert "name: cifar100" in out and "held_out: 5000" in out


def test_a_typed_scale_comes_before_the_cells(monkeypatch, capsys):
    status, out, _ = run_cli(monkeypatch, capsys, MINI, "scale=smoke", "--cfg", "job")
    assert status == 0 and "\nscale: smoke\n" in out and "name: digits" in out


def test_scripts_compose_a_cell_at_its_scale():
    config = cli.compose_run(MINI, "dataset.held_out=5000")
    dataset = config.dataset
    assert (config.scale, dataset.name, dataset.held_out) == ("mini", "cifar100", 5000)
    assert cli.compose_run(MINI, "scale=full").dataset.name == "imagenet100"


@pytest.mark.slow
def test_the_plain_command_is_the_cell(monkeypatch, capsys, tiny_table):
    def settings(*words):
        status, out, err = run_cli(monkeypatch, capsys, *words, "--cfg", "job")
        assert status == 0, err
        return out

    mini = "mini-resnet18/round-ste"
    for cell in ("tiny/ste", "table1/deit-tiny-random-sign", "figure-shallow/fogzo", mini):
        status, out, _ = run_cli(monkeypatch, capsys, f"experiment={cell}", "--plain", "force=true")
        assert status == 0 and out.count("\n") == 1
        python, *start, more = shlex.split(out)
        assert [python, *start[:3], more] == ["python", "-m", "fogzo_repro", "-m", "force=true"]
        swept = [word for word in start[3:] if "," in word and '"' not in word]
        plain = [word for word in start[3:] if word not in swept]
        assert settings(*plain) == settings(f"experiment={cell}")
        shown = ["--cfg", "hydra", "-p", "hydra.sweeper.params"]
        _, hydra, _ = run_cli(monkeypatch, capsys, f"experiment={cell}", *shown)
        assert swept == [line.replace(": ", "=") for line in hydra.splitlines()[1:]]


@pytest.mark.slow
def test_the_plain_command_has_what_is_typed_in_place_of_the_cells(monkeypatch, capsys, tiny_table):
    words = ["seed=5", "estimator.n=7", "hardware=auto", "recipe.max_steps=2"]
    for cells in ("tiny/nspsa", "tiny/nspsa,tiny/nspsa", "glob(tiny/ns*)"):
        status, out, _ = run_cli(monkeypatch, capsys, f"experiment={cells}", *words, "--plain")
        assert (status, out.count("\n")) == (0, 1)
        plain = shlex.split(out)
        assert plain[-4:] == words
        keys = [word.partition("=")[0] for word in plain[4:]]
        assert len(keys) == len({*keys}) and "estimator" in keys


OVER = """
seeds: 0..1
settings: {dataset: digits, recipe: digits_mlp, recipe.max_steps: 3, hardware: cpu, cell.row: MLP}
sets: {slow: {recipe.lr: -1}}
columns:
  ste: {label: STE, estimator: ste}
  nspsa: {label: "n=${estimator.n}", estimator: nspsa, over: {estimator.n: [1, 2]}}
  fogzo: {label: FOGZO, estimator: fogzo, estimator.noise: 1e-3}
  zero: {label: "zero, n=${estimator.n}", estimator: nspsa, over: {estimator.n: [1, 0]}}
  set: {label: set, estimator: ste, use: slow}
  reference: {label: reference, estimator: ste, recipe.lr: "${recipe.lrr}"}
  option: {label: option, estimator: ste, quantizer: "${x}"}
  two: {label: two, estimator: ste, model: llama_9m}
  batch: {label: batch, estimator: ste, recipe.global_batch_size: 2000}
"""
TOO_LARGE = "recipe.global_batch_size=2000 exceeds the 1437 training"
CANNOT = {  # a command, and what its line begins with and has
    "swept": (
        "experiment=tiny/nspsa estimator=ste",
        "estimator=ste cannot stand over experiment=tiny/nspsa: estimator.n is not a setting of "
        "estimator=ste; it has none; give a cell with estimator=ste, as tiny/ste, or what "
        "`experiment=tiny/nspsa --plain` prints, changed",
    ),
    "set": (
        "experiment=tiny/fogzo seed=1 estimator=nspsa",
        "estimator=nspsa cannot stand over experiment=tiny/fogzo: estimator.noise is not a setting",
    ),
    "a rule": (
        "experiment=tiny/fogzo quantizer=none recipe.lr=0.1",
        "quantizer=none cannot stand over experiment=tiny/fogzo: estimator=fogzo perturbs "
        "quantized weights and quantizer=none has none; add quantizer=round or estimator=ste; give",
    ),
    "of the model": (
        "experiment=tiny/ste model=llama_9m",
        "model=llama_9m cannot stand over experiment=tiny/ste: model=llama_9m does not go with "
        "dataset=digits: the model takes tokens and the data are images; give a cell with "
        "model=llama_9m, as tiny/two, or",
    ),
    "of a list": (
        "-m experiment=tiny/ste,tiny/fogzo estimator=nspsa",
        "estimator=nspsa cannot stand over experiment=tiny/fogzo: estimator.noise is not",
    ),
    "typed": ("experiment=tiny/ste recipe.lr=-1", "recipe.lr=-1.0 must be above 0"),
    "typed of a sweep": ("-m experiment=tiny/ste recipe.lr=1,-1", "recipe.lr=-1.0 must be above 0"),
    "value over": ("experiment=tiny/zero", "FILE, zero: estimator.n=0 must be at least 1"),
    "value beside": (
        "experiment=tiny/zero recipe.lr=0.1 seed=1",
        "FILE, zero: estimator.n=0 must be at least 1",
    ),
    "value of a set": ("experiment=tiny/set", "FILE, set: recipe.lr=-1.0 must be above 0"),
    "value of a list": ("-m experiment=tiny/ste,tiny/set", "FILE, set: recipe.lr=-1.0 must be"),
    "reference": ("experiment=tiny/reference", "FILE, reference: Interpolation key 'recipe.lrr'"),
    "option": ("experiment=tiny/option", "FILE, option: Error resolving interpolation '${x}'"),
    "two values": ("experiment=tiny/two", "FILE, two: model=llama_9m does not go with dataset"),
    "found by the run": ("experiment=tiny/batch", f"FILE, batch: {TOO_LARGE}"),
    "typed, found by the run": ("experiment=tiny/ste recipe.global_batch_size=2000", TOO_LARGE),
}


@pytest.mark.slow
@pytest.mark.parametrize(("words", "said"), CANNOT.values(), ids=CANNOT)
def test_what_is_wrong_in_a_cell_is_its_tables_or_a_word_over_it(
    monkeypatch, capsys, tmp_path, tiny_table, words, said
):
    tiny_table.write_text(OVER)
    root = f"output_root={tmp_path}/runs"
    status, _, err = run_cli(monkeypatch, capsys, *words.split(), root)
    assert status == 2 and err.count("error: ") == 1 and "Traceback" not in err
    assert err.startswith(f"error: {said.replace('FILE', str(tiny_table))}"), err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["value over", "value of a set", "set", "swept"])
def test_a_script_says_the_same_of_it(tiny_table, name):
    tiny_table.write_text(OVER)
    words, said = CANNOT[name]
    said = said.partition(" of estimator=ste")[0]
    cell, *overrides = (word for word in words.split() if not word.startswith("seed="))
    with pytest.raises(ConfigError) as error:
        table_cells(cell.partition("=")[2], overrides)
    assert str(error.value).startswith(said.replace("FILE", str(tiny_table)))


@pytest.mark.parametrize("flag", ["--plian", "--cfg=jobb"], ids=str)
def test_a_flag_that_is_none_is_one_line(monkeypatch, capsys, flag):
    status, out, err = run_cli(monkeypatch, capsys, "seed=1", flag)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert flag.partition("=")[0] in err and "--help lists" in err


@pytest.mark.slow
def test_a_sweep_on_held_out_images_is_tried_at_smoke(monkeypatch, capsys):
    """The digits have no `held_out`; scripts/smoke.py tries the same cells."""
    word = "experiment=mini-deit-tiny/sweep-noise-hardtanh"
    status, out, err = run_cli(monkeypatch, capsys, word, "scale=smoke", "dry_run=true")
    assert (status, err) == (0, "") and "name: digits" in out and "held_out" not in out


def test_settings_and_flags_stand_in_any_order(monkeypatch, capsys):
    words = ["seed=7", "--cfg", "job", "estimator=ste", "-p", "estimator", "recipe.lr=0.1"]
    status, out, err = run_cli(monkeypatch, capsys, *words)
    assert (status, err) == (0, "") and "name: ste" in out


SEVERAL = "is 2 cells; -m runs them all"
UNKNOWN = {
    "cell": ("experiment=tiny/nspsaa", "tiny.yaml has no cell nspsaa; did you mean nspsa?"),
    "far cell": (
        "experiment=tiny/x",
        "tiny.yaml has no cell x; it has: ste, nspsa, wrong, unknown",
    ),
    "table": ("experiment=tinny/ste", "tinny is not a table; did you mean tiny?"),
    "no table at all": (
        "experiment=null",
        "null is not a table; tables: figure-shallow, mini-deit",
    ),
    "whole table": ("experiment=tiny", "experiment=tiny stands for 4 cells; give one, as "),
    "setting": ("experiment=tiny/wrong", "tiny.yaml, wrong: estimator.noice is not a setting"),
    "setting over": (
        "experiment=tiny/unknown",
        "tiny.yaml, unknown: estimator.nn is not a setting",
    ),
    "option": ("estimator=fogso", "estimator=fogso is not an option; did you mean fogzo?"),
    "setting of its data": (
        f"{MINI} dataset.held_outt=5000",
        "dataset.held_outt is not a setting of dataset=cifar100; did you mean dataset.held_out?",
    ),
    "setting with no near one": (
        "quantizer=sign quantizer.bits=2",
        "quantizer.bits is not a setting of quantizer=sign; its settings: quantizer.activation_b",
    ),
    "setting of an option without": (
        "estimator=ste estimator.noise=0.1",
        "estimator.noise is not a setting of estimator=ste; it has none",
    ),
    "several without -m": ("experiment=tiny/ste,tiny/nspsa", SEVERAL),
    "several over another word": ("experiment=tiny/ste,tiny/nspsa dry_run=true", SEVERAL),
    "two in place of a list": (
        "experiment=tiny/ste -m experiment=tiny/nspsa",
        "experiment=tiny/ste and experiment=tiny/nspsa are given together; give one, or a list",
    ),
    "several shown": ("-m experiment=tiny/ste,tiny/nspsa --cfg job", SEVERAL),
    "a list as YAML has it": ("experiment=[tiny/ste,tiny/nspsa]", SEVERAL),
    "one of several": ("-m experiment=tiny/ste,tiny/nspsaa", "tiny.yaml has no cell nspsaa; did"),
    "table of several": ("-m experiment=tiny/ste,tinny/ste", "tinny is not a table; did you mean"),
    "glob": ("-m experiment=glob(tiny/x*)", "tiny.yaml has no cell x*; it has: ste, nspsa, wrong"),
    "glob of a table": ("-m experiment=glob(tinny/*)", "tinny is not a table; did you mean tiny?"),
    "glob of tables": ("-m experiment=glob(t*/x*)", "t*/x* is no cell; there are figure-shallow/*"),
    "one glob of two": (
        "-m experiment=glob([tiny/n*,tiny/x*])",
        "tiny.yaml has no cell x*; it has",
    ),
    "glob of nothing": ("-m experiment=glob(tiny/n*,exclude=tiny/*)", "leaves none of tiny/nspsa"),
    "glob of options": (
        "-m estimator=glob(x*)",
        "estimator=glob(x*) has no value; options: fogzo, nspsa, ste",
    ),
    "range of nothing": ("-m seed=range(3,3)", "seed=range(3,3) has no value"),
    "no setting": ("table=tiny", "a cell is run by experiment=TABLE/CELL"),
    "added setting": ("estimator.noice=1", "did you mean estimator.noise?"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("word", "said"), UNKNOWN.values(), ids=UNKNOWN)
def test_what_a_table_does_not_have_is_named(monkeypatch, capsys, tmp_path, tiny_table, word, said):
    words = [*word.split(), f"output_root={tmp_path}/runs"]
    status, _, err = run_cli(monkeypatch, capsys, *words)
    assert status == 2 and said in err
    assert err.startswith("error: ") and err.count("\n") == 1


@pytest.mark.parametrize(
    "word", ["experiment=own/ste", "estimator=cage", "quantizer.surrogate=erf"]
)
def test_how_a_folder_of_the_users_is_named_is_told(word, monkeypatch, capsys):
    """What is not there may lie in one; beside a near name it is more likely a slip."""
    monkeypatch.delenv("FOGZO_PARTS", raising=False)
    status, _, err = run_cli(monkeypatch, capsys, word)
    assert status == 2 and err.endswith("; a folder of yours is named by FOGZO_PARTS\n")


@pytest.mark.parametrize(
    ("word", "place"),
    [
        ("experiment=own/ste", "table/own.yaml"),
        ("estimator=cage", "estimator/cage.yaml"),
        ("quantizer.surrogate=erf", "surrogate/round_erf.py"),
    ],
)
def test_where_a_file_of_the_users_would_lie_is_told(word, place, monkeypatch, capsys, tmp_path):
    """As where it lies in `estimators/`, or in the folder itself."""
    monkeypatch.setenv("FOGZO_PARTS", str(tmp_path))
    status, _, err = run_cli(monkeypatch, capsys, word)
    assert status == 2 and err.endswith(f"; yours would be {tmp_path / place}\n")


def test_a_table_with_a_mistake_is_named(monkeypatch, capsys, tiny_table):
    tiny_table.write_text(TABLE.replace("columns:", "colums:"))
    status, _, err = run_cli(monkeypatch, capsys, "experiment=tiny/ste")
    assert status == 2 and err.count("\n") == 1
    assert f"{tiny_table}: colums is not a part of this table; did you mean columns?" in err


@pytest.mark.slow
def test_a_sweep_with_one_bad_value_starts_none_of_its_runs(monkeypatch, capsys, tmp_path):
    words = ["-m", f"output_root={tmp_path}", *TINY, "estimator.beta_min=0.9,0.99,1.5"]
    status, _, err = run_cli(monkeypatch, capsys, *words)
    assert status == 2 and err == "error: estimator.beta_min=1.5 is outside [0, 1]\n"
    assert [path.name for path in tmp_path.iterdir()] == ["multirun.yaml"]


def test_an_experiment_of_the_users_own_is_hydras(monkeypatch, capsys, tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nrecipe:\n  lr: 0.125\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(text)
    words = ["--config-dir", str(tmp_path), "experiment=mine", "--cfg", "job", "-p", "recipe"]
    status, out, err = run_cli(monkeypatch, capsys, *words)
    assert (status, err) == (0, "") and "\nlr: 0.125\n" in out


@pytest.mark.slow
def test_a_file_that_is_not_yaml_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "estimator").mkdir()
    (tmp_path / "estimator" / "tabbed.yaml").write_text("name: fogzo\n\tn: 1\n")
    words = ["--config-dir", str(tmp_path), "estimator=tabbed"]
    status, _, err = run_cli(monkeypatch, capsys, *words)
    assert status == 2 and err.count("\n") == 1
    assert f'in "{tmp_path}/estimator/tabbed.yaml", line 2' in err


def test_a_sweep_into_a_folder_that_cannot_be_made_is_one_line(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    words = ["-m", "seed=0,1", f"output_root={tmp_path}/file/runs", *TINY]
    status, _, err = run_cli(monkeypatch, capsys, *words)
    assert status == 2 and err.count("\n") == 1
    assert f"{tmp_path}/file/runs: not a directory; a sweep writes to output_root" in err


def test_a_configuration_is_shown_and_refused_without_torch(tmp_path):
    code = "import sys; sys.modules['torch'] = None; from fogzo_repro.__main__ import main; "
    for words in (["recipe.lr=-1"], ["-m", "seed=0,1", "recipe.lr=-1", f"output_root={tmp_path}"]):
        command = [sys.executable, "-c", f"{code}sys.argv[1:] = {words}; sys.exit(main())"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (2, "error: recipe.lr=-1.0 must be above 0\n")
    shown = [sys.executable, "-c", f"{code}sys.argv[1:] = ['--cfg', 'job']; sys.exit(main())"]
    done = subprocess.run(shown, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "") and "output_root: runs" in done.stdout


@pytest.mark.slow
def test_what_runs_of_a_sweep_lack_is_said_once_and_at_the_end_how_many(
    monkeypatch, capsys, tmp_path
):
    sizes = "recipe.global_batch_size=2000,10"
    words = ["-m", f"output_root={tmp_path}", *TINY, "seed=0,1", sizes, "recipe.lr=1e30"]
    status, out, err = run_cli(monkeypatch, capsys, *words)
    (said,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 2 and said.startswith("error: recipe.global_batch_size=2000 ")
    assert err.splitlines()[-1] == said.replace("error:", "2 of 4 jobs failed:")
    assert out.count(": diverged") == 2  # which the errors stand before


def run_error(monkeypatch, capsys, tmp_path, *arguments):
    given = {word.partition("=")[0] for word in arguments}
    words = [f"output_root={tmp_path}/runs", *TINY]
    words = [word for word in words if word.partition("=")[0] not in given]
    status, _, err = run_cli(monkeypatch, capsys, *words, *arguments)
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_a_job_of_a_cluster_passes_its_error_on(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    settings = [f"output_root={tmp_path}/runs", *TINY, "recipe.global_batch_size=2000"]
    status, _, err = run_cli(monkeypatch, capsys, *settings)
    assert status == 1, "Hydra's, which the launching command sees"
    assert "error: recipe.global_batch_size=2000 exceeds" in err


def test_the_last_line_of_a_run_keeps_last_and_best_apart():
    metrics = {
        "last": {"val": {"step": 9, "top1": 70.0, "top5": 90.0}, "train": {"step": 9, "loss": 2.5}},
        "best": {"val": {"step": 6, "split": "val", "top1": 71.25, "top5": 91.0}},
    }
    record = {"run_id": "r", "status": "finished", "scale": "full", "metrics": metrics}
    record |= {"wall_seconds": 1, "notes": ""}
    assert "loss" not in cli.summary({**record, "scale": "smoke"})  # two steps are no result
    assert cli.summary(record) == (
        "r: finished  val top1 70.0000  val top5 90.0000  train loss 2.5000  "
        "best val: top1 71.2500 top5 91.0000 at step 6  1.0 s"
    )


@pytest.mark.slow
def test_one_of_several_processes_says_what_is_wrong(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        status, _, err = run_cli(monkeypatch, capsys, "recipe.lr=-1")
        assert status == 2 and err.count("error: ") == lines


def test_missing_device_is_refused(monkeypatch, capsys, tmp_path):
    line = run_error(monkeypatch, capsys, tmp_path, "hardware.device=cuda:99")
    assert "hardware.device=cuda:99" in line


@pytest.mark.slow
def test_missing_mnist_names_both_remedies(monkeypatch, capsys, tmp_path):
    from torchvision.datasets import MNIST

    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(MNIST, "__init__", offline)
    line = run_error(monkeypatch, capsys, tmp_path, "dataset=mnist", f"data_dir={tmp_path}/none")
    assert "dataset=digits" in line
    assert "data_dir=" in line


def test_corrupt_mnist_names_the_file(monkeypatch, capsys, tmp_path, data_dir):
    folder = tmp_path / "data" / "MNIST" / "raw"
    shutil.copytree(data_dir / "MNIST" / "raw", folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    line = run_error(monkeypatch, capsys, tmp_path, "dataset=mnist", f"data_dir={tmp_path}/data")
    assert str(path) in line
    assert "expected ec29112dd5afa0611ce80d1b7f02629c" in line


def test_unwritable_output_root_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = run_error(monkeypatch, capsys, tmp_path, f"output_root={tmp_path}/file/runs")
    assert "output_root=" in line
    assert "is not writable" in line


@pytest.mark.slow
def test_folder_of_another_configuration_is_refused_with_the_differing_keys(
    monkeypatch, capsys, tmp_path
):
    run_cli(monkeypatch, capsys, f"output_root={tmp_path}/runs", *TINY)
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    (folder / "record.json").unlink()
    resolved = folder / "resolved.json"
    resolved.write_text(resolved.read_text().replace('"seed": 0', '"seed": 7'))
    assert "it differs in seed" in run_error(monkeypatch, capsys, tmp_path)


@pytest.mark.slow
def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A child that may not write more than 40 kB a file, as on a full disk."""
    arguments = [*TINY, f"output_root={tmp_path}", "checkpoint_minutes=0"]
    assert finish(start(arguments, tmp_path / "err")) == 0
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    for name in ("record.json", "checkpoint-00000003.json", "checkpoint-00000003.safetensors"):
        (folder / name).unlink()
    whole = folder / "checkpoint-00000002.safetensors"
    content = whole.read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    assert finish(start(arguments, tmp_path / "full", before=limit)) == 2
    errors = [e for e in (tmp_path / "full").read_text().splitlines() if e.startswith("error: ")]
    assert len(errors) == 1
    assert "run the same command again" in errors[0]
    assert whole.read_bytes() == content
    assert not list(folder.glob("*.tmp"))


@pytest.mark.slow
def test_finished_run_is_skipped_and_force_runs_it_again(monkeypatch, capsys, tmp_path):
    arguments = [f"output_root={tmp_path}", *TINY]
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0
    status, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert status == 0
    assert "skipped (force=true runs it again)" in out
    status, out, _ = run_cli(monkeypatch, capsys, *arguments, "force=true")
    assert status == 0
    assert "skipped" not in out


def test_dry_run_prints_what_a_run_takes_and_starts_nothing(monkeypatch, capsys, tmp_path):
    arguments = [f"output_root={tmp_path}/runs", "dry_run=true", *TINY, "dataset=digits"]
    status, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert status == 0
    for said in ("7,960", "7,940", "2 probes", "7.948", "MiB", "beta_min: 0.999"):
        assert said in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_without_the_data_says_what_it_takes_and_what_is_missing(
    monkeypatch, capsys, tmp_path
):
    words = ["model=llama_9m", f"data_dir={tmp_path}", f"output_root={tmp_path}/runs"]
    status, out, _ = run_cli(monkeypatch, capsys, *words, "dry_run=true")
    assert status == 0
    for said in ("27,465", "8,847,360", "GiB", "hours, NVIDIA", "c4/manifest.json is not there"):
        assert said in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_sweep_runs_each_value_and_skips_them_the_second_time(monkeypatch, capsys, tmp_path):
    arguments = ["-m", f"output_root={tmp_path}", *TINY, "estimator.beta_min=0.9,1", "seed=0,1"]
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0
    assert len(list(tmp_path.glob("*/record.json"))) == 4
    _, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert out.count("skipped") == 4


@pytest.mark.slow
def test_mnist_runs_from_the_command_line(tmp_path):
    if not (DATA_DIR / "MNIST").is_dir():
        pytest.skip(f"no MNIST at {DATA_DIR}; set FOGZO_DATA")
    words = [f"output_root={tmp_path}", f"data_dir={DATA_DIR}", "recipe.max_steps=2"]
    done = python("-m", "fogzo_repro", *words, "hardware=cpu")
    assert done.returncode == 0, done.stderr
    assert "train loss" in done.stdout
    assert Path(tmp_path, done.stdout.split(":")[0], "record.json").is_file()


@pytest.mark.slow
def test_a_tilde_is_the_home_folder(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FOGZO_DATA", "~/data")
    monkeypatch.chdir(tmp_path)
    words = ['output_root="~/runs"', *TINY]
    status, out, _ = run_cli(monkeypatch, capsys, *words, "dry_run=true")
    assert status == 0 and f"data_dir: {tmp_path}/home/data" in out
    assert run_cli(monkeypatch, capsys, "-m", *words, "seed=0,1")[0] == 0
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
    assert len(list(tmp_path.glob("home/runs/*/record.json"))) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "data", "said"),
    [
        ([], "", "data_dir=, by FOGZO_DATA is empty; a dot stands for the current folder"),
        (["data_dir="], "", "data_dir= is empty; a dot"),
        (["output_root="], "x", "output_root= is empty"),
        (['data_dir="~nobody-here/x"'], "x", "data_dir=~nobody-here/x names a home folder that"),
        ([f"output_root={300 * 'x'}"], "x", "is longer than a name may be; give a shorter one"),
    ],
    ids=["FOGZO_DATA", "data_dir", "output_root", "no such home", "too long"],
)
def test_a_place_that_is_none_is_refused(monkeypatch, capsys, words, data, said):
    monkeypatch.setenv("FOGZO_DATA", data)
    status, _, err = run_cli(monkeypatch, capsys, *TINY, *words)
    assert status == 2 and said in err and err.count("\n") == 1
