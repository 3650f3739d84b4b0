"""Runs of a few steps on the digits, for tests of the tools that read finished runs."""

from pathlib import Path

from hydra import compose, initialize_config_dir

from fogzo_repro import run
from fogzo_repro.config import parse_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def train(folder: Path, *overrides: str) -> Path:
    """Train the MLP on the digits for 10 steps; return the run folder."""
    settings = [
        "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=10", "hardware=cpu",
        f"output_root={folder}", *overrides,
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = parse_config(compose("config", settings))
    return folder / run.execute(config, quiet=True)["run_id"]
