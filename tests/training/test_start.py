"""recipe.start_from: a run begins with the weights of another, and its name tells of which."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from fogzo_repro import load_run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError, parse_stored, published, result_fields, run_id
from fogzo_repro.plan import make_plan
from fogzo_repro.sweeps.lanes import group_key
from tests.forked import python
from tests.short_runs import train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A finished full-precision run."""
    return train(tmp_path_factory.mktemp("source"), "quantizer=none", "estimator=ste")


def planned(*words):
    """Return the plan of a run on the digits."""
    return make_plan(compose_run("dataset=digits", "recipe=digits_mlp", "hardware=cpu", *words))


def from_(path):
    return f"recipe.start_from={path}"


@pytest.fixture
def copy(source, tmp_path):
    return shutil.copytree(source, tmp_path / "copy")


@pytest.mark.parametrize("quantizer", ["round", "lsq", "sign", "quest"])
def test_latent_weights_are_those_of_the_run_and_scales_come_from_them(source, quantizer):
    words = [f"quantizer={quantizer}", "estimator=ste"]
    trained = load_run(source).state_dict()
    begun, fresh = (
        planned(*words, *more).network.model.state_dict() for more in ([from_(source)], [])
    )
    assert all(torch.equal(begun[name], value) for name, value in trained.items())
    scales = begun.keys() - trained.keys()
    assert all(not torch.equal(begun[s], fresh[s]) for s in scales if begun[s].is_floating_point())
    if quantizer == "round":
        assert torch.equal(begun["fc1.weight_quantizer.scale"], trained["fc1.weight"].std())
    if quantizer == "lsq":
        expected = 2 * trained["fc1.weight"].abs().mean()
        assert torch.equal(begun["fc1.weight_quantizer.step"], expected)


def test_scales_of_a_quantized_run_are_left_behind(source, tmp_path):
    words = ["quantizer=lsq", "estimator=ste"]
    quantized = train(tmp_path, *words, from_(source))
    model = planned(*words, from_(quantized)).network.model
    weight = load_run(quantized).fc1.weight
    assert torch.equal(model.fc1.weight, weight)
    assert torch.equal(model.fc1.weight_quantizer.step, 2 * weight.abs().mean())


def test_training_goes_on_from_there(source, tmp_path):
    def first_loss(folder):
        return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])["loss"]

    words = ["quantizer=none", "estimator=ste"]
    last = json.loads((source / "record.json").read_text())["metrics"]["last"]["train"]["loss"]
    begun = first_loss(train(tmp_path, *words, from_(source)))
    assert abs(begun - last) < 0.3 < first_loss(source) - begun


def test_the_name_of_a_run_depends_on_the_weights_and_not_on_their_place(source, copy, tmp_path):
    plain = planned().run_id
    begun = planned(from_(source)).run_id
    assert begun != plain and planned(from_(copy)).run_id == begun
    tensors = {name: t.contiguous() for name, t in load_run(source).state_dict().items()}
    save_file(tensors, tmp_path / "weights.safetensors")
    assert planned(from_(tmp_path / "weights.safetensors")).run_id == begun
    (checkpoint,) = source.glob("checkpoint-*.safetensors")
    assert planned(from_(checkpoint)).run_id == begun
    tensors["fc2.bias"][0] += 1e-7
    save_file(tensors, tmp_path / "weights.safetensors")
    assert planned(from_(tmp_path / "weights.safetensors")).run_id not in (begun, plain)


def test_without_a_start_a_run_is_called_as_before():
    plan = planned()
    assert "start_from" not in plan.result["recipe"] and "start_from" not in plan.result["resolved"]


def test_a_record_names_the_run_and_no_place(source, tmp_path):
    folder = train(tmp_path, "estimator=ste", from_(source))
    record = json.loads((folder / "record.json").read_text())
    assert record["config"]["recipe"]["start_from"] == source.name
    (tmp_path / "link").symlink_to(source)
    linked = published(compose_run(from_(tmp_path / "link")))
    assert linked["recipe"]["start_from"] == source.name
    config = parse_stored(record["config"])
    assert run_id(config, result_fields(config, record["resolved"])) == record["run_id"]
    plain = train(tmp_path, "estimator=ste")
    assert "start_from" not in json.loads((plain / "record.json").read_text())["config"]["recipe"]


def test_a_finished_run_needs_its_start_no_more(copy, tmp_path):
    folder = train(tmp_path / "runs", "estimator=ste", from_(copy))
    shutil.rmtree(copy)
    assert load_run(folder)(torch.zeros(1, 1, 28, 28)).shape == (1, 10)


def test_such_runs_do_not_train_side_by_side():
    assert group_key(compose_run()) is not None
    assert group_key(compose_run("recipe.start_from=elsewhere")) is None


def without(folder, *names):
    for name in names:
        for path in folder.glob(name):
            path.unlink()


def cut(folder):
    for path in folder.glob("checkpoint-*.safetensors"):
        path.write_bytes(path.read_bytes()[:-5])


def diverge(folder):
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps({**record, "status": "diverged"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: without(f, "record.json"), "is not finished; run its command again"),
        (lambda f: without(f, "config.yaml"), "is not a run folder"),
        (lambda f: without(f, "checkpoint-*"), "has no whole checkpoint of its last step, 10"),
        (cut, "no whole checkpoint in .*do not match their checksum"),
        (diverge, "has diverged: its weights are no start"),
        (shutil.rmtree, "is not there; give the folder of a finished run"),
    ],
    ids=["not finished", "no folder of a run", "no checkpoint", "torn", "diverged", "gone"],
)
def test_half_a_run_is_one_line(copy, spoil, said):
    spoil(copy)
    with pytest.raises(UserError, match=said) as error:
        planned(from_(copy))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("fc2.bias"), "is of another network: it lacks fc2.bias"),
        (
            lambda t: t.update({f"fc3.{k}": t[f"fc1.{k}"].clone() for k in ("bias", "weight")}),
            "is of another network: the network does not have its fc3.bias and 1 more",
        ),
        (
            lambda t: t.update({"fc2.weight": t["fc2.weight"][:5].clone()}),
            r"its fc2.weight has shape \(5, 10\), and this network's has \(10, 10\)",
        ),
        *(
            (lambda t, k=kind: t.update({"fc2.bias": t["fc2.bias"].to(k)}), f"{said} in fc2.bias")
            for kind, said in (
                (torch.int8, r"whole values \(torch.int8\)"),
                (torch.bool, r"boolean values \(torch.bool\)"),
                (torch.complex64, r"complex values \(torch.complex64\)"),
            )
        ),
        (lambda t: t["fc2.bias"].__setitem__(3, float("nan")), "in fc2.bias that are not finite"),
        (
            lambda t: t.update({"fc2.bias": t["fc2.bias"].double() + 1e300}),
            "in fc2.bias that are not finite in torch.float32",
        ),
    ],
    ids=["missing", "strange", "shape", "int8", "bool", "complex", "nan", "too large"],
)
def test_a_file_of_other_tensors_is_one_line(source, tmp_path, change, said):
    tensors = {name: t.contiguous() for name, t in load_run(source).state_dict().items()}
    change(tensors)
    save_file(tensors, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=said):
        planned(from_(tmp_path / "weights.safetensors"))


def test_a_torn_file_is_one_line(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"abc")
    with pytest.raises(UserError, match="is no whole file of tensors"):
        planned(from_(tmp_path / "weights.safetensors"))


def test_a_file_of_a_run_with_a_flipped_bit_is_one_line(copy):
    (checkpoint,) = copy.glob("checkpoint-*.safetensors")
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="was changed since it was written; write it again"):
        planned(from_(checkpoint))


def test_a_run_of_another_network_is_one_line(source):
    words = ["model.hidden=12", from_(source)]
    with pytest.raises(
        UserError, match=r"another network: it has model\.hidden=10, and this run 12"
    ):
        planned(*words)


HALF = ["quantizer=quest", "quantizer.hadamard=half", "estimator=ste"]


def test_rotated_weights_go_where_weights_are_rotated_and_nowhere_else(source, tmp_path):
    """With half, the stored weight lies in a rotated basis unless inputs are rotated as well."""
    words = [*HALF, "model.first_last=[]"]
    rotated = train(tmp_path, *words)
    begun = planned(*words, from_(rotated)).network.model
    assert torch.equal(begun.fc1.weight, load_run(rotated).fc1.weight)
    planned(*words, "quantizer.activation_bits=4", from_(source))  # H meets H: no basis is lost
    for start, others in (
        (rotated, ["quantizer=none", "estimator=ste", "model.first_last=[]"]),
        (rotated, [*words, "quantizer.hadamard=full"]),
        (rotated, [*words, "quantizer.activation_bits=4"]),
        (rotated, [*HALF, "model.first_last=[fc1]"]),
        (source, words),
        (source, [*words, "quantizer.weight_bits=16", "quantizer.activation_bits=4"]),
    ):
        with pytest.raises(UserError, match="has weights in another basis than this run's") as said:
            planned(*others, from_(start))
        assert "\n" not in str(said.value)
    (checkpoint,) = rotated.glob("checkpoint-*.safetensors")
    with pytest.raises(UserError, match="is a file, which does not tell in which basis"):
        planned(*words, from_(checkpoint))


def test_the_command_line_says_it_in_one_line(source, tmp_path):
    words = ["dataset=digits", "recipe=digits_mlp", "hardware=cpu", f"output_root={tmp_path}"]
    done = python("-m", "fogzo_repro", *words, from_(tmp_path / "nowhere"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: recipe.start_from=") and not list(tmp_path.iterdir())


def test_the_recipe_for_fine_tuning_goes_with_scale_mini():
    words = ["model=resnet18", "scale=mini", "recipe=cifar_resnet_finetune", "quantizer=lsq"]
    config = compose_run(*words, from_("runs/a"))
    assert (config.recipe.name, config.recipe.epochs) == ("cifar_resnet_finetune", 15)
    assert (config.dataset.name, config.model.stem) == ("cifar100", "small")
    assert config.recipe.start_from == "runs/a"


def test_a_run_that_goes_on_does_not_begin_again(source, tmp_path):
    folder = train(tmp_path, "estimator=ste", from_(source))
    first = json.loads((folder / "record.json").read_text())
    (folder / "record.json").unlink()
    assert train(tmp_path, "estimator=ste", from_(source)) == folder
    assert "resumed after step 10 of 10" in (folder / "log.txt").read_text()
    assert json.loads((folder / "record.json").read_text())["metrics"] == first["metrics"]
