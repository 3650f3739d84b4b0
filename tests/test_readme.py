"""What README.md says is run from there."""

import hashlib
import json
import re
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

from fogzo_repro import load_run
from fogzo_repro.reporting import readme
from tests.conftest import ROOT
from tests.forked import python

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```\w+\n(.*?)```", TEXT, re.S)
(LIBRARY,) = (code for code in BLOCKS if not code.startswith("# mine/"))
FILES = {code.split("\n")[0].removeprefix("# mine/"): code for code in BLOCKS if code != LIBRARY}


@pytest.fixture
def mine(tmp_path):
    """A folder of a user's with the files that README.md writes there."""
    for name, code in FILES.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return tmp_path / "mine"


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


def train(mine, tmp_path, *words):
    """Train on the digits with the parts of a folder; return the record and its folder."""
    done = python(
        "-m", "fogzo_repro", "--config-dir", mine, *words, "hardware=cpu", "recipe.max_steps=10",
        f"output_root={tmp_path}/runs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    return record, path.parent


DIGITS = ("dataset=digits", "recipe=digits_mlp")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_estimator_is_one_file_and_one_yaml_and_stands_in_a_table(mine, tmp_path):
    labels = ("cell.table=figure-shallow", "cell.row=signed", "cell.column=size 0.01")
    words = ("estimator=signed", "estimator.size=0.01", *DIGITS, *labels)
    record, _ = train(mine, tmp_path, *words)
    assert record["config"]["estimator"] == {"name": "signed", "family": "signed", "size": 0.01}
    assert record["resolved"]["parts"] == {"estimator": sha256(mine / "estimator" / "signed.py")}

    results = tmp_path / "results"
    (results / "records" / "figure-shallow").mkdir(parents=True)
    record |= {"dirty": False, "commit": "0" * 40}
    (results / "records" / "figure-shallow" / f"{record['run_id']}.json").write_text(
        json.dumps(record)
    )
    shutil.copytree(ROOT / "results" / "paper", results / "paper")
    with open(results / "paper" / "figure-shallow.csv", "a") as file:
        file.write("figure-shallow,signed,size 0.01,loss,train,,ours\n")
    done = python("scripts/make_tables.py", "--results", results)
    assert done.returncode == 0, done.stderr
    table = (results / "tables" / "figure-shallow.md").read_text()
    assert "| signed | size 0.01 |" in table


INPUTS = """

class Ramp(nn.Module):
    def forward(self, x):
        clipped = x.clamp(-2, 2)
        return with_surrogate_gradient((clipped * 7.5).round() / 7.5, clipped)


def build_input(layer, activation_bits):
    return Ramp()
"""


@pytest.mark.parametrize(("inputs", "bits"), [("", 16), (INPUTS, 4)], ids=["weights", "both"])
def test_a_quantizer_is_one_file_and_one_yaml(mine, tmp_path, inputs, bits):
    with open(mine / "quantizer" / "ternary.py", "a") as file:
        file.write(inputs)
    record, folder = train(
        mine, tmp_path, "quantizer=ternary", "quantizer.factor=1.2",
        f"quantizer.activation_bits={bits}", "estimator.noise=1e-3", *DIGITS,
    )  # fmt: skip
    assert record["config"]["quantizer"]["factor"] == 1.2
    assert record["run_id"].startswith("mlp-digits-ternary-fogzo-s0-")
    last = load_file(sorted(folder.glob("*.safetensors"))[-1])
    assert last["model/fc1.weight_quantizer.scale"] > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("flips", 0) > 0 for row in rows)
    assert load_run(folder)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)  # finds the folder again


def test_a_surrogate_with_its_law_is_one_file(mine, tmp_path):
    record, folder = train(
        mine, tmp_path, "quantizer=sign", "quantizer.surrogate=erf", "estimator.noise=1e-3", *DIGITS
    )
    assert record["resolved"]["parts"] == {"surrogate": sha256(mine / "surrogate" / "sign_erf.py")}
    quantizer = load_run(folder).fc1.weight_quantizer
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert torch.equal(quantizer.h(x), torch.erf(x))
    law = quantizer.smoothing
    u = law.from_symmetric((2 * torch.arange(100_001, dtype=torch.float64) + 1) / 100_001 - 1)
    assert u.mean().abs() < 1e-9 and abs(u.var() - 1) < 1e-4
    smoothed = torch.stack([torch.sign(v + law.epsilon_bar * u).mean() for v in x])
    assert torch.allclose(smoothed, torch.erf(x), atol=1e-4)


def test_a_model_is_one_file_and_one_yaml_that_brings_data_and_recipe(mine, tmp_path):
    record, folder = train(mine, tmp_path, "model=conv", "model.width=6")
    assert record["run_id"].startswith("conv-digits-round-fogzo-s0-")
    assert record["config"]["model"]["width"] == 6
    assert record["perturbed_weights"] == 6 * 9 + 16 * 6 * 10
    assert load_run(folder)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_readme_results_are_those_of_the_records(tmp_path):
    copy = tmp_path / "README.md"
    copy.write_text(TEXT)
    readme.update_readme(copy, ROOT / "results")
    assert copy.read_text() == TEXT, "run `make tables`"


@pytest.mark.parametrize("path", re.findall(r"\]\(([^)#]+)\)", TEXT), ids=str)
def test_readme_links_lead_somewhere(path):
    assert (ROOT / path).exists()


@pytest.mark.parametrize("held_out", [0, 100])
def test_a_dataset_in_memory_is_one_file_and_one_yaml(mine, tmp_path, held_out):
    words = ("dataset=stripes", f"dataset.held_out={held_out}", "recipe=digits_mlp")
    record, folder = train(mine, tmp_path, *words)
    assert record["resolved"]["data"] == "stripes 1"
    assert record["resolved"]["parts"] == {"dataset": sha256(mine / "dataset" / "stripes.py")}
    assert set(record["metrics"]["last"]) == {"train", "val" if held_out else "test"}
    assert record["metrics"]["last"]["train"]["top1"] > 90
    assert load_run(folder)(torch.zeros(2, 1, 28, 28)).shape == (2, 2)
