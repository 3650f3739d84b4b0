"""--help of every command says what a setting means, and shows an example."""

import argparse
import importlib
import re
import sys
from dataclasses import fields

import pytest

from fogzo_repro import __main__ as cli
from fogzo_repro.config.explained import MEANINGS, SAID_BY_THE_GROUP
from fogzo_repro.config.run import (
    FAMILIES,
    RECIPE_KINDS,
    SECTIONS,
    TRACKERS,
    CellConfig,
    HardwareConfig,
    RunConfig,
)
from tests.conftest import ROOT
from tests.scripts.test_scripts_start import commands

SCRIPTS = [
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for path in [*commands("."), *commands("bench")]
]
TOOLS = [f"fogzo_repro.{name}" for name in ("compare", "diagnose", "evaluate", "export", "summary")]


def names(kind):
    return {field.name for field in fields(kind)} - {*SAID_BY_THE_GROUP}


def test_every_setting_is_explained_and_nothing_else():
    kinds = {**FAMILIES, "recipe": RECIPE_KINDS, "tracker": TRACKERS}
    known = {
        section: set().union(*map(names, by_name.values())) for section, by_name in kinds.items()
    }
    known["dataset"].add("held_out")  # a key of YAML files
    known |= {"hardware": names(HardwareConfig), "cell": names(CellConfig)}
    known[""] = names(RunConfig) - {*SECTIONS}
    assert {section: set(said) for section, said in MEANINGS.items()} == known


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [[], ["model=resnet18", "quantizer=lsq"], ["model=llama_9m", "estimator=nspsa", "scale=mini"]],
    ids=["mlp", "resnet", "llama"],
)
def test_help_shows_each_setting_with_its_value_and_meaning(words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fogzo_repro", *words, "--help"])
    assert cli.main() == 0
    out = capsys.readouterr().out
    lines = re.findall(r"^  ([\w.]+)=(.*?)  +(.*)$", out, re.M)
    assert len(lines) > 50
    assert "see its YAML file" not in out
    config = cli.compose_run(*words)
    assert ("recipe.lr", f"{config.recipe.lr}", "peak learning rate; above 0") in lines
    assert "python -m fogzo_repro dataset=digits recipe=digits_mlp" in out
    assert "Exit status: 0 finished" in out


def test_help_of_a_wrong_setting_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["fogzo_repro", "recipe.lrr=1", "--help"])
    assert cli.main() == 2
    assert "recipe.lr" in capsys.readouterr().err


def test_settings_of_a_part_of_the_users_point_to_its_file(tmp_path, monkeypatch, capsys):
    (tmp_path / "estimator").mkdir()
    (tmp_path / "estimator" / "mine.yaml").write_text("name: mine\nfamily: mine\nsize: 0.1\n")
    (tmp_path / "estimator" / "mine.py").write_text("def build(size):\n    return size\n")
    words = ["--config-dir", str(tmp_path), "estimator=mine", "--help"]
    monkeypatch.setattr(sys, "argv", ["fogzo_repro", *words])
    assert cli.main() == 0
    out = capsys.readouterr().out
    assert re.search(r"estimator.size=0.1 +see its YAML file", out)
    assert re.search(r"estimator= +fogzo, mine, nspsa, ste", out)


def test_surrogates_and_tables_of_the_users_stand_beside_those_of_the_suite(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "surrogate").mkdir()
    (tmp_path / "surrogate" / "sign_erf.py").write_text("")
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "own.yaml").write_text("")
    monkeypatch.setattr(sys, "argv", ["fogzo_repro", "--config-dir", str(tmp_path), "--help"])
    assert cli.main() == 0
    out = capsys.readouterr().out
    said = "; round: identity; sign: approxsign | erf | hardtanh | tanh"
    assert re.search(rf"quantizer.surrogate=\S+ +what the STE derives{re.escape(said)}$", out, re.M)
    assert re.search(r"experiment= figure-shallow/CELL, .*table4/CELL, own/CELL$", out, re.M)


class Built(Exception):
    """A command has built its parser."""


@pytest.mark.parametrize("module", [*SCRIPTS, *TOOLS])
def test_every_option_is_explained_and_an_example_is_shown(module, monkeypatch):
    def stop(self, *arguments, **named):
        raise Built(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(sys, "argv", [module])
    with pytest.raises(Built) as built:
        importlib.import_module(module).main()
    (parser,) = built.value.args
    assert [action.dest for action in parser._actions if not action.help] == []
    text = parser.format_help()
    assert re.search(r"^    (python|make|torchrun) ", text, re.M), "no example"
    assert not re.search(r"^    python .*\S {5,}--", text, re.M), "two lines of it are one"
