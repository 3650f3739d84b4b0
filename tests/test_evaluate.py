import json
import shutil
import sys

import pytest
import torch
from short_runs import train

import fogzo_repro
from fogzo_repro import diagnose, evaluate, export
from fogzo_repro.config import UserError
from fogzo_repro.evaluate import main, parse_settings
from fogzo_repro.stored import open_run
from fogzo_repro.training.classification import InMemoryImages
from tests.forked import python

SETTINGS = ("config.yaml", "resolved.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"))


def test_evaluate_prints_the_numbers_of_the_record_to_the_last_digit(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder), "device=cpu"])
    main()
    said = capsys.readouterr().out.split()
    record = json.loads((folder / "record.json").read_text())
    expected = {
        value
        for split in ("test", "train")
        for key, value in record["metrics"]["last"][split].items()
        if key != "step"
    }
    numbers = {float(word) for word in said if word.replace(".", "").isdigit() and "." in word}
    assert len(expected) == 4
    assert expected == numbers


def test_what_was_replaced_in_the_data_is_told(folder, capsys, monkeypatch):
    monkeypatch.setattr(InMemoryImages, "skipped", lambda task: ["a.jpg: truncated"])
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder), "device=cpu"])
    main()
    assert "warning: replaced a.jpg: truncated" in capsys.readouterr().err


def test_load_run_gives_the_weights_of_the_checkpoint_without_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fogzo_repro.stored.build_task", None)  # any use of the data would raise
    model = fogzo_repro.load_run(folder)
    step, tensors, _, _ = fogzo_repro.training.checkpoint.load_checkpoint(folder)
    assert step == 10
    assert not model.training
    for name, value in model.state_dict().items():
        assert torch.equal(value, tensors[f"model/{name}"])
    initial = open_run(folder).network(torch.device("cpu")).model
    assert not torch.equal(initial.fc1.weight, model.fc1.weight)
    levels = model.fc1.weight_quantizer(model.fc1.weight) / model.fc1.weight_quantizer.scale
    assert set((levels - 0.5).round().unique().tolist()) <= {-2.0, -1.0, 0.0, 1.0}


def test_an_older_checkpoint_is_used_where_the_last_is_torn(folder, tmp_path, capsys):
    copy = shutil.copytree(folder, tmp_path / "run")
    for suffix in (".json", ".safetensors"):
        last = next(copy.glob(f"checkpoint-*{suffix}"))
        (copy / f"checkpoint-00000041{suffix}").write_bytes(last.read_bytes()[:100])
    model, intact = fogzo_repro.load_run(copy), fogzo_repro.load_run(folder)
    assert torch.equal(model.fc1.weight, intact.fc1.weight)
    assert "checkpoint-00000041 is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "is not a run folder"), (SETTINGS, "; run its command again")],
    ids=["nothing", "settings"],
)
@pytest.mark.parametrize("tool", [evaluate, diagnose, export], ids=lambda tool: tool.__name__)
def test_what_is_missing_is_one_line_and_status_2(
    tool, names, message, folder, tmp_path, capsys, monkeypatch
):
    for name in names:
        shutil.copy(folder / name, tmp_path)
    extra = [str(tmp_path / "out")] if tool is export else []
    monkeypatch.setattr(sys, "argv", ["tool", str(tmp_path), *extra])
    assert tool.main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize(
    "content", [b"", b"seed: 0", b"{", b"a:\n\tb: 1", bytes(40), b"[1, 2]", b"null"], ids=repr
)
def test_half_written_settings_are_an_error_that_can_be_mended(folder, tmp_path, name, content):
    for one in SETTINGS:
        (tmp_path / one).write_bytes(content if one == name else (folder / one).read_bytes())
    with pytest.raises(UserError):
        open_run(tmp_path)


def test_the_command_itself_leaves_with_status_2(tmp_path):
    done = python("-m", "fogzo_repro.evaluate", tmp_path / "nothing")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_misspelt_setting_names_the_nearest_one():
    with pytest.raises(UserError, match="did you mean data_dir"):
        parse_settings(["datadir=x"])
    with pytest.raises(UserError, match="batches=many"):
        parse_settings(["batches=many"], batches=int)
    assert parse_settings(["batches=7"], batches=int)["batches"] == 7


def test_a_setting_with_two_values_is_refused():
    with pytest.raises(UserError, match="batches=2 and batches=3 are given together; give one"):
        parse_settings(["batches=2", "device=cpu", "batches=3"], batches=int)
