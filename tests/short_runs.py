"""Runs of a few steps on the digits, for tests of the tools that read finished runs."""

from pathlib import Path

from fogzo_repro import run
from fogzo_repro.__main__ import compose_run


def train(folder: Path, *overrides: str) -> Path:
    """Train the MLP on the digits for 10 steps; return the run folder."""
    settings = [
        "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=10", "hardware=cpu",
        f"output_root={folder}", *overrides,
    ]  # fmt: skip
    return folder / run.execute(compose_run(*settings), quiet=True)["run_id"]
