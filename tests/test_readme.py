"""What README.md says is run from there."""

import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file
from torch import nn

from fogzo_repro.reporting import readme
from tests.conftest import ROOT
from tests.forked import python

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, re.S)
LIBRARY, ESTIMATOR, SETTINGS, QUANTIZER, QUANTIZER_SETTINGS = (code for _, code in BLOCKS)


def test_three_lines_train_a_network_of_the_users():
    from fogzo_repro.estimators import QuantizedWeight, fogzo, smoothing_law

    torch.manual_seed(0)
    x, y = torch.randn(256, 20), torch.randint(4, (256,))
    layers = [nn.Linear(20, 16), nn.Linear(16, 4)]
    for layer in layers:
        layer.alpha = layer.weight.detach().std()

    def quantized(layer):
        value = (layer.weight / layer.alpha).round().clamp(-2, 1) * layer.alpha
        return layer.weight + (value - layer.weight).detach()

    def loss_fn():
        hidden = F.relu(F.linear(x, quantized(layers[0]), layers[0].bias))
        return F.cross_entropy(F.linear(hidden, quantized(layers[1]), layers[1].bias), y)

    optimizer = torch.optim.AdamW([p for layer in layers for p in layer.parameters()], lr=0.02)
    code = compile(LIBRARY, "README.md", "exec")
    names = {
        "QuantizedWeight": QuantizedWeight, "fogzo": fogzo,
        "law": smoothing_law("round", "identity"),
        "layers": layers, "loss_fn": loss_fn, "optimizer": optimizer,
        "generator": torch.Generator().manual_seed(0),
    }  # fmt: skip
    first = loss_fn().item()
    for _ in range(60):
        optimizer.zero_grad()
        loss_fn().backward()
        ste = layers[0].weight.grad.clone()
        exec(code, names)
        assert not torch.equal(layers[0].weight.grad, ste)
    assert len(LIBRARY.strip().splitlines()) == 3
    assert loss_fn().item() < first - 0.1


def test_added_estimator_is_one_file_and_one_yaml_and_stands_in_a_table(tmp_path):
    project = tmp_path / "project"
    for name in ("fogzo_repro", "configs", "scripts"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", project)
    (project / "fogzo_repro" / "estimators" / "signed.py").write_text(ESTIMATOR)
    settings = SETTINGS.replace("NAME", "signed")
    (project / "configs" / "estimator" / "signed.yaml").write_text(settings)
    done = python(
        "-m", "fogzo_repro", "estimator=signed", "estimator.options.size=0.01",
        "dataset=digits", "recipe=digits_mlp", "recipe.max_steps=4", "hardware=cpu",
        "cell.table=figure-shallow", "cell.row=signed", "cell.column=0.01", "snapshots=0",
        cwd=project,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = project.glob("runs/*/record.json")
    record = json.loads(path.read_text())
    assert record["config"]["estimator"] == {"name": "signed", "options": {"size": 0.01}}

    results = project / "results"
    (results / "records" / "figure-shallow").mkdir(parents=True)
    record |= {"dirty": False, "commit": "0" * 40}
    (results / "records" / "figure-shallow" / f"{record['run_id']}.json").write_text(
        json.dumps(record)
    )
    shutil.copytree(ROOT / "results" / "paper", results / "paper")
    with open(results / "paper" / "figure-shallow.csv", "a") as file:
        file.write("figure-shallow,signed,0.01,loss,train,,ours\n")
    done = python("scripts/make_tables.py", "--results", results, cwd=project)
    assert done.returncode == 0, done.stderr
    table = (results / "tables" / "figure-shallow.md").read_text()
    assert "| signed | 0.01 |" in table


INPUTS = """

class Ramp(nn.Module):
    def forward(self, x):
        clipped = x.clamp(-2, 2)
        return with_surrogate_gradient((clipped * 7.5).round() / 7.5, clipped)


def build_input(layer, bits, factor):
    return Ramp()
"""


@pytest.mark.parametrize(("inputs", "bits"), [("", 16), (INPUTS, 4)], ids=["weights", "both"])
def test_added_quantizer_is_one_file_and_one_yaml(tmp_path, inputs, bits):
    for name in ("fogzo_repro", "configs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fogzo_repro" / "quantization" / "ternary.py").write_text(QUANTIZER + inputs)
    settings = QUANTIZER_SETTINGS.replace("NAME", "ternary")
    (tmp_path / "configs" / "quantizer" / "ternary.yaml").write_text(settings)
    done = python(
        "-m", "fogzo_repro", "quantizer=ternary", "quantizer.options.factor=1.2",
        f"quantizer.activation_bits={bits}", "dataset=digits", "recipe=digits_mlp",
        "recipe.max_steps=10", "hardware=cpu", "estimator.noise=1e-3",
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/mlp-digits-ternary-fogzo-s0-*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    assert record["config"]["quantizer"]["options"] == {"factor": 1.2}
    last = load_file(sorted(path.parent.glob("*.safetensors"))[-1])
    assert last["model/fc1.weight_quantizer.scale"] > 0
    rows = [json.loads(line) for line in (path.parent / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("flips", 0) > 0 for row in rows)


def test_readme_results_are_those_of_the_records(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(TEXT)
    readme.update_readme(copy, ROOT / "results")
    assert copy.read_text() == TEXT, "run `make tables`"


def test_readme_yaml_is_yaml():
    assert yaml.safe_load(SETTINGS) == {"name": "NAME", "options": {"size": 0.001}}
    assert yaml.safe_load(QUANTIZER_SETTINGS)["options"] == {"factor": 1.5}


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+)\)", TEXT), ids=str)
def test_readme_links_lead_somewhere(path):
    assert (ROOT / path).exists()
