"""Runs of a few steps on data that are always there, for tests of what reads finished runs."""

from pathlib import Path

from fogzo_repro import run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig
from fogzo_repro.sweeps.smoke import CONTEXT, VOCABULARY


def train(folder: Path, *overrides: str) -> Path:
    """Train the MLP on the digits for 10 steps; return the run folder."""
    settings = [
        "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=10", "hardware=cpu",
        f"output_root={folder}", *overrides,
    ]  # fmt: skip
    return folder / run.execute(compose_run(*settings), quiet=True)["run_id"]


def smoke(folder: Path, model: str, *words: str) -> RunConfig:
    """Return the composed smoke run of a model; a LLaMA's needs the invented corpus in data/."""
    if model.startswith("llama"):
        words = (f"model.context={CONTEXT}", f"model.vocabulary={VOCABULARY}", *words)
    places = [f"data_dir={folder}/data", f"output_root={folder}/runs"]
    return compose_run("scale=smoke", f"model={model}", *places, *words)
