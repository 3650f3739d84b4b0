"""Jobs of a miniature table on the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from fogzo_repro.config import RunConfig, parse_config

ROOT = Path(__file__).resolve().parents[2]
MINIATURE = [
    "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=5", "hardware=cpu",
    "cell.table=miniature", "cell.row=STE", "cell.column=-",
]  # fmt: skip


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration of five steps on the digits, under the test's own folder."""

    def make(*overrides: str) -> RunConfig:
        with initialize_config_dir(str(ROOT / "configs"), version_base=None):
            place = f"output_root={tmp_path / 'runs'}"
            return parse_config(compose("config", [*MINIATURE, place, *overrides]))

    return make
