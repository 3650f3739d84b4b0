"""Every script runs as the README calls it: from anywhere, without the package installed."""

from pathlib import Path

import pytest

from tests.forked import python

FOLDER = Path(__file__).resolve().parents[2] / "scripts"
IMPORTED = {"experiments", "bench_clock", "bench_networks"}
WITHOUT_OPTIONS = {"demo", *IMPORTED}
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in WITHOUT_OPTIONS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_tells_its_usage_from_any_folder(script, tmp_path):
    process = python(script, "--help", cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage:")
