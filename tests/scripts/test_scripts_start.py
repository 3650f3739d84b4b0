"""Every command runs as the README calls it, without the package installed."""

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
