"""Every script runs as the README calls it: from anywhere, without the package installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "scripts"
WITHOUT_OPTIONS = {"demo", "experiments"}  # the second is no script: others import it
SCRIPTS = sorted(path for path in FOLDER.glob("*.py") if path.stem not in WITHOUT_OPTIONS)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_script_tells_its_usage_from_any_folder(script, tmp_path):
    clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, str(script), "--help"], cwd=tmp_path, env=clean, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("usage:")
