import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save
from short_runs import train

from fogzo_repro import load_run
from fogzo_repro.config import UserError
from fogzo_repro.export import METADATA, WEIGHTS, export_run, load_export
from fogzo_repro.quantization.uniform import Round

CASES = {  # name: (overrides, levels as stored, offset)
    "integer": (["quantizer=round", "quantizer.grid=integer"], {-2, -1, 0, 1}, 0.0),
    "half_integer": (["quantizer=round", "quantizer.grid=half_integer"], {-2, -1, 0, 1}, 0.5),
    "half_integer_8bit": (
        ["quantizer=round", "quantizer.grid=half_integer", "quantizer.weight_bits=8"],
        set(range(-128, 128)),
        0.5,
    ),
    "sign": (["quantizer=sign"], {-1, 1}, 0.0),
}


@pytest.fixture(params=list(CASES), ids=list(CASES), scope="module")
def exported(request, tmp_path_factory):
    """Return a run, its export, and what the case expects."""
    overrides, levels, offset = CASES[request.param]
    base = tmp_path_factory.mktemp(request.param)
    folder = train(base, "recipe.max_steps=3", *overrides)
    return folder, export_run(folder, base / "out").parent, levels, offset


@pytest.fixture
def copied(exported, tmp_path):
    """An export that a test may damage."""
    return shutil.copytree(exported[1], tmp_path / "copy")


@torch.no_grad()
def check_logits(folder, out):
    x = torch.randn(200, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits, again = load_run(folder)(x), load_export(out)(x)
    assert torch.equal(logits, again)
    assert logits.std() > 0


@pytest.mark.slow
def test_reloaded_logits_are_bitwise_equal(exported):
    folder, out, _, _ = exported
    check_logits(folder, out)


def test_levels_are_on_the_grid_and_times_the_scale_they_are_the_weights(exported):
    folder, out, levels, offset = exported
    tensors = load_file(out / WEIGHTS)
    metadata = json.loads((out / METADATA).read_text())
    model = load_run(folder)
    for name in ("fc1", "fc2"):
        stored, scale = tensors[f"{name}.levels"], tensors[f"{name}.scale"]
        assert stored.dtype == torch.int8
        assert set(stored.unique().tolist()) <= levels
        assert len(stored.unique()) > 1
        assert metadata["offsets"][name] == offset
        layer = getattr(model, name)
        value = layer.weight_quantizer(layer.weight)
        assert torch.equal((stored.float() + metadata["offsets"][name]) * scale, value)


def test_a_weight_takes_one_byte(exported):
    _, out, _, _ = exported
    others = 4 * (20 + 2)  # biases and scales, float32
    header = 1024
    size = (out / WEIGHTS).stat().st_size
    assert 7940 + others < size < 7940 + others + header


def test_an_export_holds_no_path_of_the_machine(exported):
    folder, out, _, _ = exported
    assert str(folder.parent) not in (out / METADATA).read_text()


def test_a_full_precision_run_is_exported_as_it_is(tmp_path):
    folder = train(tmp_path, "recipe.max_steps=2", "quantizer=none", "estimator=ste")
    model = load_export(export_run(folder, tmp_path / "out").parent)
    assert torch.equal(model.fc1.weight, load_run(folder).fc1.weight)


def test_a_quantizer_that_is_not_levels_times_a_scale_is_refused(tmp_path, monkeypatch):
    folder = train(tmp_path, "recipe.max_steps=2")
    forward = Round.forward
    monkeypatch.setattr(Round, "forward", lambda self, w: forward(self, w) * 1.0001)
    with pytest.raises(UserError, match=r"fc1: .* export supports"):
        export_run(folder, tmp_path / "out")


LEARNED = {
    "lsq-w2a2": ["quantizer=lsq", "quantizer.activation_bits=2"],
    "lsq-a2": [
        "quantizer=lsq", "quantizer.weight_bits=16", "quantizer.activation_bits=2", "estimator=ste",
    ],
    "quest-plain": ["quantizer=quest", "quantizer.hadamard=none", "quantizer.activation_bits=2"],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("overrides", LEARNED.values(), ids=LEARNED)
def test_scales_that_move_and_quantized_inputs_are_exported_too(tmp_path, overrides):
    folder = train(tmp_path, "recipe.max_steps=3", *overrides)
    check_logits(folder, export_run(folder, tmp_path / "out").parent)


def test_a_folder_that_is_no_export_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not an export"):
        load_export(tmp_path)


def test_weights_of_another_export_are_not_taken_for_its_own(copied):
    """So an interruption between the two files leaves a folder with an older export."""
    tensors = load_file(copied / WEIGHTS)
    tensors["fc1.scale"] = tensors["fc1.scale"] * 2
    (copied / WEIGHTS).write_bytes(save(tensors))
    with pytest.raises(UserError, match=r"is not the one of export.json; export again"):
        load_export(copied)


@pytest.mark.parametrize("name", [WEIGHTS, METADATA])
@pytest.mark.parametrize("content", [b"", b"{", bytes(40)], ids=repr)
def test_a_half_written_export_is_none(copied, name, content):
    (copied / name).write_bytes(content)
    with pytest.raises(UserError, match=r"is not an export|is not the one of"):
        load_export(copied)


def test_settings_that_were_changed_since_are_refused(copied):
    """An offset of 0 in place of 0.5, say, gives another network without a word."""
    metadata = json.loads((copied / METADATA).read_text())
    metadata["offsets"]["fc1"] += 0.5
    (copied / METADATA).write_text(json.dumps(metadata))
    with pytest.raises(UserError, match=r"export.json was changed since it was written; export"):
        load_export(copied)


def test_a_half_written_export_without_a_checksum_is_named(copied):
    metadata = json.loads((copied / METADATA).read_text())
    del metadata["sha256"], metadata["checksum"]  # an export of earlier code
    (copied / METADATA).write_text(json.dumps(metadata))
    (copied / WEIGHTS).write_bytes((copied / WEIGHTS).read_bytes()[:-10])
    with pytest.raises(UserError, match=r"weights.safetensors is no whole file of tensors"):
        load_export(copied)
