"""Every command runs as the README calls it, without the package installed."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.forked import ROOT, new_python, python

IMPORTED = {"__init__", "table_cells", "root", "clock", "networks", "floor", "record"}


def commands(folder: str) -> list[Path]:
    found = (ROOT / "scripts" / folder).glob("*.py")
    return sorted(path for path in found if path.stem not in IMPORTED)


@pytest.mark.slow
@pytest.mark.parametrize("script", commands("."), ids=lambda path: path.stem)
def test_script_tells_its_usage_from_any_folder(script, tmp_path):
    process = python(script, "--help", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage:")


SCRIPTS = [f"scripts/{path.name}" for path in commands(".")]


@pytest.mark.parametrize(
    "command",
    ["-m fogzo_repro", "-m fogzo_repro.summary runs", "-m scripts.bench.mnist", *SCRIPTS],
)
def test_without_the_packages_a_command_ends_in_one_line(command):
    words = [sys.executable, "-S", *command.split()]  # -S: no site-packages
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env={"PATH": ""})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "has not the packages of the suite: in the clone, make install" in done.stderr


def test_the_library_needs_them_not():
    words = [sys.executable, "-S", "-c", "import fogzo_repro", "-m", "fogzo_repro"]
    assert subprocess.run(words, cwd=ROOT, env={"PATH": ""}, check=False).returncode == 0


@pytest.mark.slow
def test_tests_of_the_gpu_say_that_there_are_none(monkeypatch):
    monkeypatch.setenv("FOGZO_TEST_GPU", "1")
    process = new_python("-m", "pytest", "tests/config/test_identity.py", cwd=ROOT)
    assert process.returncode == 5 and "none of the chosen does: unset it" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("bench", commands("bench"), ids=lambda path: path.stem)
def test_bench_tells_its_usage_from_the_projects_folder(bench):
    process = python("-m", f"scripts.bench.{bench.stem}", "--help")
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage:")
    assert "[(" not in process.stdout  # a default is written as the user would
