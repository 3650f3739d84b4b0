"""The examples in docstrings."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

from tests.conftest import ROOT

FILES = [p for p in sorted((ROOT / "fogzo_repro").rglob("*.py")) if ">>> " in p.read_text()]


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_examples_of_a_file_hold(file: Path) -> None:
    name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
    found = doctest.testmod(import_module(name))
    assert found.attempted and not found.failed
