"""Every stored run loads as what it was: each command on a smoke run of each network, old runs."""

import json
import re
import sys
from dataclasses import replace

import pytest
import torch

from fogzo_repro import compare, diagnose, evaluate, load_run, run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError, load_stored, to_yaml
from fogzo_repro.export import export_run, load_export
from fogzo_repro.stored import open_run
from fogzo_repro.sweeps.smoke import CONTEXT, VOCABULARY, write_invented_corpus
from fogzo_repro.training.checkpoint import load_checkpoint
from tests.short_runs import smoke, train

MODELS = [
    "mlp", "resnet18", "resnet50", "deit_tiny", "deit_small",
    "llama_9m", "llama_20m", "llama_30m", "llama_95m", "llama_200m", "llama_300m",
]  # fmt: skip


@pytest.fixture(scope="module", params=["mlp", "resnet18", "deit_tiny", "llama_9m"])
def trained(request, tmp_path_factory):
    """A smoke run of each network: its configuration and its folder."""
    base = tmp_path_factory.mktemp(request.param)
    write_invented_corpus(base / "data")
    config = smoke(base, request.param, "snapshots=1")
    return config, base / "runs" / run.execute(config, quiet=True)["run_id"]


def example(model, folder):
    """Return inputs of a model."""
    generator = torch.Generator().manual_seed(0)
    if "llama" in folder.name:
        return torch.randint(VOCABULARY, (2, CONTEXT), generator=generator)
    return torch.randn(20, 1, 28, 28, generator=generator)


def outputs(model, folder):
    """Return what a model gives for `example`."""
    with torch.no_grad():
        return model(example(model, folder))


@pytest.mark.slow
def test_a_smoke_run_is_loaded_with_its_own_widths(trained):
    config, folder = trained
    stored = open_run(folder).config
    for section in ("model", "dataset", "quantizer", "recipe"):
        assert getattr(stored, section) == getattr(config, section)
    _, tensors, _, _ = load_checkpoint(folder)
    for name, value in load_run(folder).state_dict().items():
        assert torch.equal(value, tensors[f"model/{name}"])


@pytest.mark.slow
def test_evaluate_gives_the_numbers_of_a_smoke_run(trained, capsys, monkeypatch):
    _, folder = trained
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder), "device=cpu"])
    evaluate.main()
    said = capsys.readouterr().out
    last = json.loads((folder / "record.json").read_text())["metrics"]["last"]
    values = [v for split in last.values() for k, v in split.items() if k != "step"]
    assert len(values) > 2 and all(repr(value) in said for value in values)


@pytest.mark.slow
def test_an_export_of_a_smoke_run_computes_the_same(trained, tmp_path):
    _, folder = trained
    exported = load_export(export_run(folder, tmp_path).parent)
    assert torch.equal(outputs(exported, folder), outputs(load_run(folder), folder))


@pytest.mark.slow
def test_diagnose_measures_a_smoke_run(trained, capsys, monkeypatch):
    _, folder = trained
    monkeypatch.setattr(diagnose, "SIZES", (1,))
    monkeypatch.setattr(diagnose, "NOISES", (1e-3,))
    monkeypatch.setattr(diagnose, "RHOS", (1.0,))
    effort = ["directions=4", "batches=2", "draws=2"]
    monkeypatch.setattr(sys, "argv", ["diagnose", str(folder), "device=cpu", *effort])
    diagnose.main()
    said = capsys.readouterr().out
    assert "STE" in said and "FOGZO" in said
    assert len((folder / "diagnose.csv").read_text().splitlines()) == 4  # a head, 3 estimators


@pytest.mark.slow
def test_compare_finds_nothing_between_a_smoke_run_and_itself(trained):
    _, folder = trained
    said = compare.compare(folder, folder)
    assert said.count(" 0 differ") == 3 and "metrics.jsonl: equal" in said


@pytest.mark.slow
def test_a_run_begins_with_the_weights_of_a_smoke_run(trained, tmp_path):
    config, folder = trained
    start = replace(config.recipe, start_from=str(folder))
    begun = run.execute(
        replace(config, recipe=start, output_root=str(tmp_path), seed=1), quiet=True
    )
    assert begun["status"] == "finished" and begun["resolved"]["start_from"]


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["full", "mini", "smoke"])
@pytest.mark.parametrize("model", MODELS)
def test_settings_come_back_from_a_run_folder_as_they_were(model, scale, tmp_path):
    config = compose_run(f"model={model}", f"scale={scale}")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_stored(tmp_path / "config.yaml") == config


def test_a_folder_whose_name_begins_with_a_tilde_is_no_home_when_loaded(tmp_path, monkeypatch):
    config = compose_run("data_dir='./~data'", "output_root='./~'")
    assert (config.data_dir, config.output_root) == ("~data", "~")
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert load_stored(tmp_path / "config.yaml") == config


def test_settings_that_were_changed_after_the_run_are_refused(tmp_path):
    """Evaluated with three bits, say, weights that were trained with two tell nothing."""
    folder = train(tmp_path)
    path = folder / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("weight_bits: 2", "weight_bits: 3").replace("lr: 0.", "lr: 1."))
    assert path.read_text() != text
    with pytest.raises(UserError, match=r"differ in quantizer\.weight_bits, recipe\.lr: one was"):
        open_run(folder)
    path.write_text(text)
    assert open_run(folder).config.quantizer.weight_bits == 2
    path.write_text(re.sub(r"^quantizer:\n(  .*\n)+", "quantizer: 3\n", text, flags=re.M))
    with pytest.raises(UserError, match="differ in quantizer: one was"):
        open_run(folder)
    path.write_text(re.sub(r"^parts_dir:.*$", "parts_dir: 3", text, flags=re.M))
    with pytest.raises(UserError, match=r"config\.yaml: parts_dir=3 is not a text"):
        open_run(folder)
    path.write_text(text)
    resolved = folder / "resolved.json"
    resolved.write_text(json.dumps({**json.loads(resolved.read_text()), "quantizer": None}))
    with pytest.raises(UserError, match="differ in quantizer: one was"):
        open_run(folder)
