"""`pip install .` brings all that a run reads; what is written goes to the working directory."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.conftest import ROOT
from tests.forked import python

pytestmark = pytest.mark.slow

WORDS = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=2", "hardware=cpu"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The wheel of this tree, unpacked as pip does it."""
    pytest.importorskip("setuptools")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("site")
    for name in ("fogzo_repro", "scripts", "configs", "results"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    code = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    built = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    with zipfile.ZipFile(source / built.stdout.split()[-1]) as wheel:
        wheel.extractall(out)
    return out


@pytest.fixture
def elsewhere(site, monkeypatch, tmp_path):
    """An empty folder to work in, where the installed suite is found, and this tree is not."""
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    monkeypatch.delenv("FOGZO_COMMIT", raising=False)
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def test_an_installed_suite_has_every_config_and_value_of_the_paper(site):
    for folder, pattern in (("configs", "*/*"), ("results/paper", "*.csv"), ("scripts", "*.py")):
        theirs = {path.name for path in (ROOT / folder).glob(pattern)}
        assert {p.name for p in (site / "fogzo_repro" / folder).glob(pattern)} >= theirs
    assert {path.name for path in site.iterdir()} == {"fogzo_repro", "fogzo_repro-0.1.0.dist-info"}


def test_an_installed_suite_runs_where_it_is_called(elsewhere):
    done = python("-m", "fogzo_repro", *WORDS, "cell.table=table1", cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    (record,) = (elsewhere / "runs").glob("*/record.json")
    assert '"commit": null' in record.read_text()
    assert "the commit of this code is not known" in done.stderr


def test_an_installed_suites_commands_work_where_they_are_called(elsewhere):
    status = python("-m", "fogzo_repro.scripts.status", cwd=elsewhere)
    assert status.returncode == 0, status.stderr
    assert "table1" in status.stdout
    words = ["-m", "fogzo_repro.scripts.run_cells", "table1/resnet18-identity-ste", "--dry-run"]
    dry = python(*words, cwd=elsewhere)
    assert dry.returncode == 0, dry.stderr
    assert "GPU-hours of the missing runs on one NVIDIA H200" in dry.stdout
    assert os.listdir(elsewhere) == []
    made = python("-m", "fogzo_repro.scripts.make_tables", cwd=elsewhere)
    assert made.returncode == 0, made.stderr
    assert (elsewhere / "results" / "tables" / "table1.md").is_file()


def test_a_remedy_names_a_command_that_is_there(elsewhere):
    words = ["model=llama_9m", "hardware=cpu", f"data_dir={elsewhere}"]
    done = python("-m", "fogzo_repro", *words, cwd=elsewhere)
    assert done.returncode == 2
    assert "python -m fogzo_repro.scripts.prepare_c4 --source hub" in done.stderr
