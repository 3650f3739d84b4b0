"""Whole runs with learned and recomputed scales: resume, and a quantizer added by a user."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

from fogzo_repro.config import parse_config
from fogzo_repro.run import execute
from tests.forked import python

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {
    "lsq": ["quantizer=lsq", "quantizer.activation_bits=2", "quantizer.unsigned_inputs=[fc2]"],
    "quest": ["quantizer=quest", "quantizer.activation_bits=2"],
}


def run(output: Path, *overrides: str) -> Path:
    """Run 6 steps of the digits with a checkpoint at each; return the run folder."""
    settings = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=6", "hardware=cpu"]
    settings += ["estimator.noise=0.01", "checkpoint_minutes=0", f"output_root={output}"]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        composed = compose("config", [*settings, *overrides])
    record = execute(parse_config(composed), quiet=True)
    assert record["status"] == "finished"
    return output / record["run_id"]


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resumed_run_ends_with_the_bytes_of_the_uninterrupted_one(name, tmp_path):
    folder = run(tmp_path, *SETTINGS[name])
    whole = {p.name: p.read_bytes() for p in folder.glob("*") if p.name == "metrics.jsonl"}
    last = folder / "checkpoint-00000006.safetensors"
    whole[last.name] = last.read_bytes()
    for path in [last, last.with_suffix(".json"), folder / "record.json"]:
        path.unlink()  # as if it had been killed after step 5

    assert run(tmp_path, *SETTINGS[name]) == folder
    assert "resumed after step 5" in (folder / "log.txt").read_text()
    for file, content in whole.items():
        assert (folder / file).read_bytes() == content, file


def test_a_checkpoint_holds_the_starts_of_the_activation_steps(tmp_path):
    folder = run(tmp_path, *SETTINGS["lsq"])
    tensors = load_file(folder / "checkpoint-00000006.safetensors")
    starts = [v for k, v in tensors.items() if k.endswith("input_quantizer.start")]
    assert len(starts) == 2
    assert all(start > 0 for start in starts)


QUANTIZER = '''"""`quantizer=ternary`: levels -a, 0 and a; a follows the initial weights."""

from torch import nn

from fogzo_repro.quantization.functional import with_surrogate_gradient


class Ternary(nn.Module):
    """a * round(clip(w / a, -1, 1)) with derivative 1."""

    smoothing = ("round", "identity")

    def __init__(self, weight, factor):
        super().__init__()
        self.register_buffer("scale", factor * weight.detach().abs().mean())

    def units(self, weight):
        return weight / self.scale

    def levels(self, units):
        return units.clamp(-1, 1).round()

    def perturbation_scale(self, weight):
        return self.scale

    def forward(self, weight):
        return with_surrogate_gradient(self.scale * self.levels(self.units(weight)), weight)


class Ramp(nn.Module):
    """Inputs clipped to +-2 and rounded to fifteenths of it."""

    def forward(self, x):
        clipped = x.clamp(-2, 2)
        return with_surrogate_gradient((clipped * 7.5).round() / 7.5, clipped)


def build(weight, *, bits, factor):
    return Ternary(weight, factor)


def build_input(layer, *, bits, factor):
    return Ramp()
'''
SECTION = """# A quantizer of three levels, added as one file and this YAML.
name: ternary
weight_bits: 2
activation_bits: 4
first_last: float
options:
  factor: 1.5
"""


def test_a_quantizer_is_added_by_one_file_and_one_yaml(tmp_path):
    for part in ("fogzo_repro", "configs"):
        shutil.copytree(ROOT / part, tmp_path / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fogzo_repro/quantization/ternary.py").write_text(QUANTIZER)
    (tmp_path / "configs/quantizer/ternary.yaml").write_text(SECTION)
    arguments = ["quantizer=ternary", "dataset=digits", "recipe=digits_mlp", "hardware=cpu"]
    arguments += ["recipe.max_steps=20", "estimator.noise=1e-3", "output_root=runs"]
    done = python("-m", "fogzo_repro", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "runs").glob("mlp-digits-ternary-fogzo-s0-*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["config"]["quantizer"]["options"] == {"factor": 1.5}
    tensors = load_file(sorted(path.parent.glob("*.safetensors"))[-1])
    assert torch.is_nonzero(tensors["model/fc1.weight_quantizer.scale"])
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert sum(row.get("flips", 0) > 0 for row in rows) > 0
