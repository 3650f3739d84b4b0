"""Jobs of a miniature table on the digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig

MINIATURE = [
    "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=5", "hardware=cpu",
    "cell.table=miniature", "cell.row=STE", "cell.column=-",
]  # fmt: skip


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., RunConfig]:
    """A configuration of five steps on the digits, under the test's own folder."""

    def make(*overrides: str) -> RunConfig:
        return compose_run(*MINIATURE, f"output_root={tmp_path / 'runs'}", *overrides)

    return make
