"""A user's parts: found, typed, passed on; one that is registered halfway ends in one line."""

import pickle
import re
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch

from fogzo_repro import __main__ as cli
from fogzo_repro import diagnose, evaluate, load_run
from fogzo_repro.composition import compose_run
from fogzo_repro.config import CONFIGS, ConfigError, UserError, added_files, build_part, to_yaml
from fogzo_repro.config.own_errors import PartError
from fogzo_repro.config.parts import SHARED, python_file
from fogzo_repro.config.run import FAMILIES
from fogzo_repro.export import export_run, load_export
from fogzo_repro.plan import make_plan
from fogzo_repro.run import execute
from fogzo_repro.stored import open_run
from fogzo_repro.sweeps.forecast import forecast
from fogzo_repro.sweeps.tables import table_files
from scripts import smoke
from scripts.table_cells import table_cells
from tests.c4_corpus import write_corpus
from tests.conftest import ROOT
from tests.forked import python

TINY = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=3", "hardware=cpu"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """Write files of a user's parts, by their place in a folder that FOGZO_PARTS names."""
    folder = tmp_path / "mine"
    folder.mkdir()
    monkeypatch.setenv("FOGZO_PARTS", str(folder))

    def write(**files):
        for name, text in files.items():
            section, _, rest = name.partition("__")
            path = folder / section / rest.replace("__", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        return folder

    return write


SHRINK = "class Shrink:\n    begin_step = lambda self, step, total: True\n"
SHRINK += "    def __init__(self, by): self.by = by\n"
SHRINK += "    def __call__(self, weights, *rest):\n"
SHRINK += "        for w in weights: w.parameter.grad.mul_(self.by)\n\n"
BUILD = "def build(by):\n    return Shrink(by)\n"
YAML = "name: shrink\nfamily: shrink\nby: 0.5\n"


def test_another_size_of_a_built_in_network_is_one_yaml(mine):
    text = (CONFIGS / "model" / "llama_9m.yaml").read_text()
    folder = mine(model__llama_5m__yaml=text.replace("llama_9m", "llama_5m"))
    config = compose_run("model=llama_5m", "model.layers=3")
    assert (config.model.name, config.model.layers) == ("llama_5m", 3)
    assert config.parts_dir == str(folder)
    assert added_files(config) == {}
    assert replace(config.model, name="llama_9m", layers=5) == compose_run("model=llama_9m").model


@pytest.mark.slow
def test_settings_have_the_types_of_the_yaml_file(mine):
    mine(
        estimator__shrink__py=SHRINK + BUILD,
        estimator__shrink__yaml=YAML + "half: false\nname_of: x\nlayers: [a]\nany: null\nmany: 3\n",
    )

    def settings(*words):
        return compose_run("estimator=shrink", *words).estimator

    assert settings("estimator.by=2").by == 2.0 and type(settings("estimator.by=2").by) is float
    assert settings("estimator.any=[1,x]").any == [1, "x"]
    for word, said in {
        "estimator.by=big": "estimator.by=big is not a number",
        "estimator.half=1": "estimator.half=1 is not true or false",
        "estimator.many=1.5": "estimator.many=1.5 is not a whole number",
        "estimator.layers=a": "estimator.layers=a is not a list",
        "estimator.layers=[1_0]": "is a text",
        "estimator.name_of=1_0": "estimator.name_of is a text, and 1_0 without quotes is a whole",
    }.items():
        with pytest.raises(ConfigError, match=said.replace("[", r"\[")):
            settings(word)


def test_a_yaml_file_may_be_based_on_another_of_the_same_part(mine):
    mine(
        estimator__shrink__py=SHRINK + BUILD,
        estimator__shrink__yaml=YAML,
        estimator__shrink_more__yaml="defaults:\n  - shrink\n  - _self_\n\nname: shrink_more\n",
    )
    settings = compose_run("estimator=shrink_more", "estimator.by=0.25").estimator
    assert asdict(settings) == {"name": "shrink_more", "family": "shrink", "by": 0.25}
    assert build_part("estimator", settings, compose_run().parts_dir).by == 0.25


HALFWAY = {  # its Python file, its YAML file, what is said
    "no file": ("", YAML, "there is no Python file for the family shrink; it"),
    "no build": (SHRINK, YAML, r"shrink.py has no function build\(...\)"),
    "unread key": (
        SHRINK + BUILD,
        YAML + "bye: 1\n",
        r"estimator.bye: build\(\) in .*shrink.py has no parameter bye; did you mean by\?",
    ),
    "no key": (
        SHRINK + BUILD,
        YAML.replace("by:", "factor:"),
        r"build\(\) asks for by, which is not a key of estimator=shrink, nor does the run give",
    ),
    "anything": (
        SHRINK + BUILD.replace("by):", "**by):"),
        YAML,
        r"build\(\) gets what its parameters name; by is not such a one",
    ),
    "no family": (
        SHRINK + BUILD,
        YAML.replace("family: shrink\n", ""),
        "estimator.family is missing; the YAML file of estimator gives it",
    ),
    "other name": (
        SHRINK + BUILD,
        YAML.replace("name: shrink", "name: shrunk"),
        r"estimator.name=shrunk stands in the file of estimator=shrink, and a part's file has",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "yaml", "said"), HALFWAY.values(), ids=HALFWAY)
def test_a_part_that_is_registered_halfway_ends_in_one_line(mine, tmp_path, code, yaml, said):
    mine(estimator__shrink__yaml=yaml, **({"estimator__shrink__py": code} if code else {}))
    with pytest.raises(ConfigError, match=said) as caught:
        execute(compose_run("estimator=shrink", *TINY, f"output_root={tmp_path}"), quiet=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("estimator__ste__py", r"ste.py has the name of a built-in estimator \(fogzo_repro/est"),
        ("dataset__mnist__py", r"mnist.py has the name of a built-in dataset \(fogzo_repro/data/"),
        ("surrogate__sign_tanh__py", "sign_tanh.py has the name of a built-in surrogate"),
        ("estimator__ste__yaml", "ste.yaml has the name of a built-in estimator, and one of the"),
        ("recipe__cifar_deit__yaml", "cifar_deit.yaml has the name of a built-in recipe"),
        ("table__table1__yaml", "table1.yaml has the name of a built-in table, and one of the two"),
    ],
    ids=lambda value: value.partition(" ")[0],
)
def test_a_file_with_the_name_of_a_built_in_one_is_refused(mine, file, said):
    folder = mine(**{file: "a: 1\n"}, model____init____py="", table__own__yaml="a: 1\n")
    for command in (compose_run, lambda: table_cells("own", []), table_files):
        with pytest.raises(ConfigError, match=f"{folder}/.*{said}") as error:
            command()
        assert "give yours another name" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-16", "latin-1"])
def test_a_file_in_another_encoding_is_named(mine, encoding):
    folder = mine(recipe__own__yaml="defaults: [digits_mlp, _self_]\n")
    path = folder / "recipe" / "own.yaml"
    path.write_bytes("defaults: [digits_mlp, _self_]  # größer\n".encode(encoding))
    with pytest.raises(ConfigError, match=r"recipe/own\.yaml is not in UTF-8 .*; save it so"):
        compose_run("recipe=own")


@pytest.mark.parametrize("words", [[], ["dataset=digits"], ["scale=smoke"]], ids=str)
def test_a_model_that_brings_no_data_is_one_line(mine, words):
    mine(model__bare__py="", model__bare__yaml="name: bare\nfamily: bare\nfirst_last: []\n")
    with pytest.raises(ConfigError, match="model=bare brings no dataset, so that none can be chos"):
        compose_run("model=bare", *words)


@pytest.mark.parametrize(
    ("section", "yaml", "said"),
    [
        ("recipe", "defaults: [digits_mlp, _self_]\nlr: fast\n", "recipe.lr=fast is not a number"),
        ("recipe", "defaults: [digits_mlp, _self_]\nlrr: 3\n", "recipe.lrr is not a setting; did"),
        ("estimator", "defaults: [fogzo, _self_]\nname: own\nnoise: 3\n", "noise=3.0 is outside"),
    ],
    ids=["type", "key", "rule"],
)
def test_a_wrong_value_in_a_file_of_the_users_is_told_with_it(mine, section, yaml, said):
    folder = mine(**{f"{section}__own__yaml": yaml})
    with pytest.raises(ConfigError) as error:
        compose_run("dataset=digits", f"{section}=own")
    assert str(error.value).startswith(f"{folder}/{section}/own.yaml: {section}.")
    assert said in str(error.value)


def test_a_wrong_value_of_a_cell_is_not_told_with_the_parts_file(mine):
    table = (
        "seeds: 0\nrows: {a: {label: A, cell.column: A, estimator: shrink, estimator.by: fast}}\n"
    )
    mine(estimator__shrink__py=SHRINK + BUILD, estimator__shrink__yaml=YAML, table__own__yaml=table)
    with pytest.raises(ConfigError, match=r"own\.yaml, a: estimator\.by=fast is not a number"):
        compose_run("experiment=own/a")


def test_the_settings_of_the_suite_are_no_second_ones(monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(CONFIGS))
    assert compose_run("estimator=ste").estimator.name == "ste"


KEYS = {  # of the YAML file of a part that is wrong
    "model": "defaults:\n  - /dataset@_global_.dataset: digits\n"
    "  - /recipe@_global_.recipe: digits_mlp\n  - _self_\nfirst_last: []\n",
    "dataset": "held_out: 0\n",
    "quantizer": "weight_bits: 4\nactivation_bits: 16\nfirst_last: float\n",
}


def wrong(mine, section, code):
    """Write a part that is wrong; return the words of a run with it, and its file."""
    if section == "surrogate":
        folder = mine(surrogate__sign_own__py=code)
        words = ["quantizer=sign", "quantizer.surrogate=own"]
        return [*TINY, *words, "estimator=ste"], folder / "surrogate" / "sign_own.py"
    yaml = f"name: own\nfamily: own\n{KEYS.get(section, '')}"
    folder = mine(**{f"{section}__own__py": code, f"{section}__own__yaml": yaml})
    words = [word for word in TINY if not word.startswith(f"{section}=")]
    return [*words, f"{section}=own"], folder / section / "own.py"


SURROGATE = "from torch import tanh\nfrom fogzo_repro.quantization import Surrogate\n"
LAW = "from fogzo_repro.estimators import SmoothingLaw\n"
PYTHON_ERRORS = {  # section, file, what is said
    "a name": ("estimator", "import math\n\nx = undefined\n", "line 3: NameError: name 'undef"),
    "syntax": ("estimator", "import math\ndef build(:\n", "line 2: SyntaxError: invalid syntax"),
    "an import": ("estimator", "\nimport no_such_thing\n", "line 2: ModuleNotFoundError: No"),
    "in build": ("estimator", "def build():\n    return 1 / 0\n", "line 2: ZeroDivisionError: div"),
    "a value": ("estimator", "def build():\n    raise ValueError('size < 0')\n", "line 2: size"),
    "a model's": ("model", "def build():\n    return {}['x']\n", "line 2: KeyError: 'x'"),
    "a dataset's": ("dataset", "def build():\n    return None.x\n", "line 2: AttributeError"),
    "a quantizer's": ("quantizer", "def build():\n    int('x')\n", "line 2: invalid literal"),
    "a surrogate's": ("surrogate", "def build():\n    return x\n", "line 2: NameError: name"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("section", "code", "said"), PYTHON_ERRORS.values(), ids=PYTHON_ERRORS)
def test_an_error_of_python_in_a_part_is_one_line_before_and_in_a_run(
    mine, tmp_path, monkeypatch, capsys, section, code, said
):
    settings, file = wrong(mine, section, code)
    settings.append(f"output_root={tmp_path / 'runs'}")
    for more_words in (["dry_run=true"], [], ["-m", "seed=0,1"]):
        monkeypatch.setattr(sys, "argv", ["fogzo_repro/__main__.py", *more_words, *settings])
        assert cli.main() == 2
        err = capsys.readouterr().err
        assert err.count("error: ") == 1 and "Traceback" not in err and f"{file}, {said}" in err


FAILS = "lambda *given: undefined_name\n"
NETWORK = "import torch\nclass Own(torch.nn.Sequential):\n    forward = {}"
NETWORK += "\nbuild = lambda: Own(torch.nn.Flatten(), torch.nn.Linear(784, 10))\n"
FAILING = {  # while it is used: section, file, more words
    "an estimator": (
        "estimator",
        f"class Own:\n    begin_step = lambda *given: True\n    __call__ = {FAILS}build = Own\n",
        [],
    ),
    "a model": ("model", NETWORK.format(FAILS), []),
    "a compiled model": (
        "model",
        NETWORK.format("lambda self, x: self[1](x.flatten())"),
        ["hardware.compile=true"],
    ),
    "a dataset": (
        "dataset",
        "from fogzo_repro.data.images import ImageDataset\n\n"
        f"read = {FAILS}build = lambda: ImageDataset('own', 999, (1, 8, 8), 10, read)\n",
        [],
    ),
    "a quantizer": (
        "quantizer",
        f"import torch\nclass Own(torch.nn.Module):\n    forward = {FAILS}"
        "    units = levels = perturbation_scale = lambda self, x: x\nbuild = lambda: Own()\n",
        [],
    ),
}


@pytest.fixture
def failing(mine, tmp_path, monkeypatch, capsys):
    """Train with a part that fails; return its file, the lines before the last one, and that."""

    def train(section, code, *more):
        words, file = wrong(mine, section, code)
        words += [] if section == "estimator" else ["estimator=ste"]
        argv = ["fogzo_repro/__main__.py", *words, *more, f"output_root={tmp_path / 'runs'}"]
        monkeypatch.setattr(sys, "argv", argv)
        assert cli.main() == 2
        *before, last = capsys.readouterr().err.splitlines()
        return file, before, last

    return train


@pytest.mark.slow
@pytest.mark.parametrize(("section", "code", "more"), FAILING.values(), ids=FAILING)
def test_an_error_of_a_part_in_use_is_its_traceback_and_a_line_with_the_place(
    failing, section, code, more
):
    file, trace, last = failing(section, code, *more)
    said = "TorchRuntimeError: " if more else "NameError: name 'undefined_name' is not defined"
    assert last.startswith(f"error: {file}, line 3: {said}")
    assert last.endswith("; mend it and run the same command again")
    assert "Traceback (most recent call last):" in trace
    assert any(f'File "{file}", line 3, in' in line for line in trace)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("section", "code"),
    [
        ("estimator", FAILING["an estimator"][1].replace("lambda *given: ", "lambda self: ")),
        ("quantizer", FAILING["a quantizer"][1].replace(FAILS, "lambda self, x: x.double()\n")),
    ],
    ids=["its arguments", "its result"],
)
def test_an_error_that_a_part_causes_elsewhere_names_its_file(failing, section, code):
    file, _, last = failing(section, code)
    assert re.match(r"error: (Type|Runtime)Error: ", last)
    assert "(parts of yours in use: " in last and str(file) in last


@pytest.mark.slow
@pytest.mark.parametrize(
    ("raised", "said"),
    [
        ("raise SystemExit", "SystemExit; mend it and run the same command again"),
        ("raise ValueError", "ValueError; mend it and run the same command again"),
        ("raise MemoryError('too much')", "MemoryError: too much"),
    ],
)
def test_what_a_part_raises_is_told_whatever_it_is(failing, raised, said):
    code = f"import torch\nclass Own(torch.nn.Sequential):\n    def forward(self, x): {raised}\n"
    code += "build = lambda: Own(torch.nn.Linear(784, 10))\n"
    file, _, last = failing("model", code)
    assert last == f"error: {file}, line 3: {said}"


OTHER = "error: the weights of {folder} are of another network than the files of its parts build"
OWN_TABLE = "rows: {a: {label: A, cell.column: A, dataset: digits, recipe: digits_mlp"
OWN_TABLE = f"seeds: 0\n{OWN_TABLE}, estimator: own, hardware: cpu}}}}\n"


@pytest.mark.slow
def test_tools_and_tables_name_a_part_that_fails_or_has_changed(
    mine, tmp_path, monkeypatch, capsys
):
    words, file = wrong(mine, "model", NETWORK.format("torch.nn.Sequential.forward"))
    run = compose_run(*words, "estimator=ste", f"output_root={tmp_path / 'runs'}")
    folder = tmp_path / "runs" / execute(run, quiet=True)["run_id"]
    monkeypatch.setattr(sys, "argv", ["evaluate", str(folder)])
    assert evaluate.main() == 0
    assert "changed" not in capsys.readouterr().err
    for code, said in (
        (NETWORK.format(FAILS), f"error: {file}, line 3: NameError: "),
        (NETWORK.format("torch.nn.Sequential.forward").replace("torch.nn.Flatten(), ", ""), OTHER),
    ):
        sys.modules.pop("fogzo_parts.model.own")
        wrong(mine, "model", code)
        assert evaluate.main() == 2
        first, *_, last = capsys.readouterr().err.splitlines()
        assert f"the file of its model in {file.parents[1]} has changed since" in first
        assert last.startswith(said.format(folder=folder))
    _, file = wrong(mine, "estimator", FAILING["an estimator"][1])
    mine(table__mytable__yaml=OWN_TABLE)
    monkeypatch.setattr(sys, "argv", ["smoke.py", "mytable"])
    assert smoke.main() == 1
    assert f"mytable | A | A: {file}, line 3: NameError: name 'und" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new"),
    [("torch.nn.Flatten(), ", ""), ("784, 10", "784, 10, bias=False")],
    ids=["names", "a tensor"],
)
def test_weights_of_another_network_are_refused_in_one_line(mine, tmp_path, monkeypatch, old, new):
    code = NETWORK.format("lambda self, x: torch.nn.Sequential.forward(self, x.flatten(1))")
    words, _ = wrong(mine, "model", code)
    # As where a file has changed that the part's own file imports: the run id is the same.
    monkeypatch.setattr("fogzo_repro.plan.added_files", lambda config: {})
    config = compose_run(*words, "estimator=ste", "snapshots=1", f"output_root={tmp_path / 'runs'}")
    folder = tmp_path / "runs" / execute(config, quiet=True)["run_id"]
    out = export_run(folder, tmp_path / "out").parent
    sys.modules.pop("fogzo_parts.model.own")
    wrong(mine, "model", code.replace(old, new))
    with pytest.raises(UserError, match=r"recipe\.start_from=\S+ is of another network: "):
        make_plan(replace(config, recipe=replace(config.recipe, start_from=str(folder))))
    few, cpu = diagnose.Effort(200, 2, 100), torch.device("cpu")
    (folder / "record.json").unlink()
    for use in (
        lambda: load_run(folder),
        lambda: export_run(folder, tmp_path / "again"),
        lambda: load_export(out),
        lambda: diagnose.diagnose(open_run(folder), None, cpu, vars(few)),
        lambda: execute(config, quiet=True),
    ):
        with pytest.raises(UserError, match="are of another network than the files of its parts"):
            use()


def test_the_whole_traceback_is_shown_where_it_is_asked_for(mine, monkeypatch):
    words, _ = wrong(mine, "estimator", "def build():\n    return 1 / 0\n")
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.setattr(sys, "argv", ["fogzo_repro/__main__.py", *words, "dry_run=true"])
    with pytest.raises(PartError) as error:
        cli.main()
    assert isinstance(error.value.__cause__, ZeroDivisionError)


def test_a_dry_run_of_a_table_reads_the_estimators_file(mine):
    mine(estimator__shrink__py="x = undefined\n", estimator__shrink__yaml=YAML)
    config = compose_run("estimator=shrink", *TINY)
    with pytest.raises(ConfigError, match=r"shrink\.py, line 1: NameError"):
        forecast(config)


def test_an_error_of_the_package_is_not_told_as_the_users(monkeypatch):
    monkeypatch.setattr("fogzo_repro.estimators.ste.build", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_part("estimator", compose_run("estimator=ste").estimator, None)


MODULE = "import torch\nclass Own(torch.nn.Module):\n    {}\n\nbuild = lambda: Own()\n"
LINEAR = "import torch\nbuild = lambda: torch.nn.Linear\n"
HALF = "units = levels = lambda self, x: x"
LAWFUL = "smoothing = ('round', 'identity')"
SHAPES = MODULE.format(f"forward = perturbation_scale = {HALF}\n    {LAWFUL}\n    {{}}")
WRONG = {  # section, file, what is said
    "surrogate: nothing": ("surrogate", "build = lambda: None\n", "a NoneType, not a Surr"),
    "surrogate: its function": ("surrogate", f"{SURROGATE}build = lambda: tanh\n", "not a Surro"),
    "surrogate: three": ("surrogate", "build = lambda: (1, 2, 3)\n", "a tuple, not a Surr"),
    "surrogate: no function": (
        "surrogate", f"{SURROGATE}build = lambda: Surrogate(0.5)\n", "with a function h",
    ),
    "surrogate: a mean": (
        "surrogate",
        f"{SURROGATE}build = lambda: Surrogate(lambda x: x.mean())\n",
        r"whose h turns 5 numbers into tensor\(",
    ),
    "surrogate: it fails": (
        "surrogate",
        f"{SURROGATE}build = lambda: Surrogate(lambda x: x.tan_h())\n",
        "whose h fails: AttributeError: 'Tensor' object has no attribute 'tan_h'",
    ),
    "surrogate: a law of no name": (
        "surrogate",
        f"{SURROGATE}build = lambda: Surrogate(tanh, ('sign', 'tan'))\n",
        r"whose law is \('sign', 'tan'\), neither a SmoothingLaw nor .*known: \(round, identity\)",
    ),
    "surrogate: a law's class": (
        "surrogate",
        f"{SURROGATE}{LAW}build = lambda: Surrogate(tanh, SmoothingLaw)\n",
        "neither a SmoothingLaw nor",
    ),
    "surrogate: a law without a return": (
        "surrogate",
        f"{SURROGATE}{LAW}build = lambda: Surrogate(tanh, SmoothingLaw(1, 1, lambda t: None))\n",
        "line 4: the transform of a SmoothingLaw does not change its tensor in place and return it",
    ),
    "surrogate: a law that is not in place": (
        "surrogate",
        f"{SURROGATE}{LAW}build = lambda: Surrogate(tanh, SmoothingLaw(1, 1, lambda t: t * 2))\n",
        "line 4: the transform of a SmoothingLaw does not change its tensor in place and return it",
    ),
    "quantizer: nothing": ("quantizer", "build = lambda: None\n", "build.. returned a NoneType"),
    "quantizer: half": ("quantizer", MODULE.format("pass"), r"which has no units\(weight\)"),
    "quantizer: no scale": ("quantizer", MODULE.format(HALF), "has no perturbation_scale"),
    "quantizer: a wrong law": (
        "quantizer",
        MODULE.format(f"forward = perturbation_scale = {HALF}\n    smoothing = 'tanh'"),
        "Own.smoothing is 'tanh', neither a SmoothingLaw",
    ),
    "quantizer: another shape": (
        "quantizer",
        SHAPES.format("forward = lambda self, x: x[1:]"),
        r"Own\.forward\(weight\) returned a tensor of shape \(9, 784\), which does not fit the "
        r"weight's shape, \(10, 784\)",
    ),
    "quantizer: no return": (
        "quantizer", SHAPES.format("forward = lambda self, x: None"), "returned a NoneType, which",
    ),
    "quantizer: a level for all": (
        "quantizer", SHAPES.format("levels = lambda self, x: x.mean()"), r"shape \(\), which does",
    ),
    "quantizer: a scale too many": (
        "quantizer",
        SHAPES.format("perturbation_scale = lambda self, x: torch.ones(11, 1)"),
        r"perturbation_scale\(weight\) returned a tensor of shape \(11, 1\), which does not",
    ),
    "model: nothing": ("model", "build = lambda: None\n", "model=own: build.. returned a NoneType"),
    "model: a class": ("model", LINEAR, "returned a type, not a torch.nn.Module"),
    "estimator: nothing": ("estimator", "build = lambda: None\n", "a NoneType, which has no begin"),
    "dataset: nothing": ("dataset", "build = lambda: None\n", "returned a NoneType, not one of"),
}  # fmt: skip


@pytest.mark.parametrize(("section", "code", "said"), WRONG.values(), ids=WRONG)
def test_what_is_no_part_is_one_line(mine, section, code, said):
    words, _ = wrong(mine, section, code)
    with pytest.raises(UserError, match=said) as error:
        make_plan(compose_run(*words))
    assert "\n" not in str(error.value)


def test_a_law_that_is_not_the_surrogates_is_told_of_and_may_be_meant(mine):
    code = f"{SURROGATE}build = lambda: Surrogate(tanh, ('sign', 'hardtanh'))\n"
    words, _ = wrong(mine, "surrogate", code)
    said = r"law is not that of its h: h\(-1.0\) is -0.762, and the mean of sign at -1.0 \+ "
    with pytest.warns(RuntimeWarning, match=said):
        make_plan(compose_run(*words))


def test_a_dry_run_without_the_data_finds_another_shape_too(mine):
    words, _ = wrong(mine, "quantizer", SHAPES.format("forward = lambda self, x: x[1:]"))
    with pytest.raises(UserError, match=r"forward\(weight\) returned a tensor of shape"):
        forecast(compose_run(*words))


def test_a_quantizer_that_needs_numbers_is_forecast_without_them(mine):
    code = SHAPES.format("forward = lambda self, x: x / x.sum().item()")
    words, _ = wrong(mine, "quantizer", code)
    assert forecast(compose_run(*words)).perturbed == 7940


def test_looking_at_a_quantizers_shapes_is_no_pass_of_its_training(mine):
    code = "calls = 0\n    def forward(self, x):\n        self.calls += self.training\n"
    mine(
        quantizer__own__py=SHAPES.format(f"{code}        return x + torch.rand(()) * 0"),
        quantizer__own__yaml=OWN_YAML,
    )
    model = make_plan(compose_run("quantizer=own", *TINY)).network.model
    own = [q for q in model.modules() if type(q).__name__ == "Own"]
    assert own and all(q.training and not q.calls for q in own)


def test_a_quantizer_of_inputs_that_is_none_is_one_line(mine):
    code = OWN.replace("SMOOTHING", "") + "\ndef build_input(layer):\n    return None\n"
    mine(quantizer__own__py=code, quantizer__own__yaml=OWN_YAML)
    words = ["quantizer=own", "quantizer.activation_bits=4", "estimator=ste"]
    with pytest.raises(UserError, match=r"quantizer=own: build_input\(\) returned a NoneType"):
        make_plan(compose_run(*TINY, *words))


def test_a_misspelt_option_is_refused_before_torch_is_imported(mine):
    mine(estimator__shrink__py="raise ImportError\n", estimator__shrink__yaml=YAML)
    code = """
import sys
from fogzo_repro.composition import compose_run
from fogzo_repro.config import ConfigError
try:
    compose_run("estimator=shrink", "+estimator.buy=1")
except ConfigError as error:
    print(error)
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    said, torch_is_there = done.stdout.splitlines()
    assert said == "estimator.buy is not a setting; did you mean estimator.by?"
    assert torch_is_there == "False"


@pytest.mark.slow
def test_another_process_gets_a_run_with_parts_of_a_users(mine, tmp_path):
    mine(estimator__shrink__py=SHRINK + BUILD, estimator__shrink__yaml=YAML)
    config = compose_run("estimator=shrink", *TINY, f"output_root={tmp_path / 'runs'}")
    (tmp_path / "config").write_bytes(pickle.dumps(config))
    script = tmp_path / "script.py"
    script.write_text(f"""
import pickle, os, sys
sys.path.insert(0, {str(ROOT)!r})
del os.environ["FOGZO_PARTS"]  # the configuration knows the folder
from fogzo_repro.run import execute
config = pickle.loads(open({str(tmp_path / "config")!r}, "rb").read())
print(execute(config, quiet=True)["status"])
""")
    done = python(script)
    assert done.stdout.strip() == "finished", done.stderr
    assert pickle.loads(pickle.dumps(config)) == config
    assert "by: 0.5" in to_yaml(config)


OWN = """
import torch
from fogzo_repro.estimators import SmoothingLaw
from fogzo_repro.quantization.functional import with_surrogate_gradient

class Own(torch.nn.Module):
    SMOOTHING
    perturbation_scale = lambda self, weight: torch.tensor(0.1)
    units = lambda self, weight: weight / 0.1
    levels = lambda self, units: units.round()
    def forward(self, weight):
        return with_surrogate_gradient(weight.div(0.1).round() * 0.1, torch.sinh(weight))

def build(weight):
    return Own()
"""
OWN_YAML = "name: own\nfamily: own\nweight_bits: 4\nactivation_bits: 16\nfirst_last: float\n"


def test_a_quantizer_without_a_law_trains_by_the_ste_alone(mine, tmp_path):
    mine(quantizer__own__py=OWN.replace("SMOOTHING", ""), quantizer__own__yaml=OWN_YAML)
    words = ["quantizer=own", *TINY, f"output_root={tmp_path}"]
    record = execute(compose_run(*words, "estimator=ste"), quiet=True)
    assert (record["status"], record["perturbed_weights"]) == ("finished", 7940)
    said = "estimator=fogzo perturbs the weights, and their quantizer has no smoothing law"
    with pytest.raises(UserError, match=said):
        execute(compose_run(*words, "estimator=fogzo"), quiet=True)


def test_a_quantizer_with_a_law_in_its_file_trains_by_fogzo(mine, tmp_path):
    law = "smoothing = SmoothingLaw(0.3, 3**0.5, lambda t: t)"
    mine(quantizer__own__py=OWN.replace("SMOOTHING", law), quantizer__own__yaml=OWN_YAML)
    words = ["quantizer=own", *TINY, f"output_root={tmp_path}", "estimator=fogzo"]
    assert execute(compose_run(*words), quiet=True)["status"] == "finished"


@pytest.mark.parametrize("said", [True, False], ids=["learned", "not said"])
def test_a_quantizer_says_itself_that_it_has_learned_scales(mine, said):
    more = "learned_scales: true\n" if said else ""
    mine(quantizer__own__py=OWN.replace("SMOOTHING", ""), quantizer__own__yaml=OWN_YAML + more)
    words = ["quantizer=own", "recipe.decay_scales=true", "estimator=ste"]
    if said:
        assert compose_run(*words).quantizer.learned_scales
    else:
        with pytest.raises(ConfigError, match="quantizer=own has none"):
            compose_run(*words)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("quantizer.weight_bits=9", "weight_bits=9 is outside 1..8"),
        ("quantizer.first_last=both", "options: float, 8bit, quantized"),
    ],
    ids=str,
)
def test_what_all_quantizers_have_has_the_same_rules(mine, setting, said):
    mine(quantizer__own__py=OWN.replace("SMOOTHING", ""), quantizer__own__yaml=OWN_YAML)
    with pytest.raises(ConfigError, match=said):
        compose_run("quantizer=own", setting)


@pytest.mark.parametrize(
    "word",
    [
        "estimator.name=ste", "estimator.family=spsa", "quantizer.name=sign", "model.name=../../x",
        "model.name=resnet18", "dataset.name=mnist", "recipe.name=other", "hardware.name=a100",
        "tracker.name=wandb", "quantizer.family=sign", "++estimator.name=ste",
    ],
    ids=str,
)  # fmt: skip
def test_what_names_a_part_is_no_setting(word):
    section = word.strip("+").partition(".")[0]
    with pytest.raises(ConfigError, match=f"names the part, which is {section}=") as caught:
        compose_run(*TINY, word)
    assert "choose another one by " + section in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_names_an_added_part_is_no_setting_either(mine):
    mine(
        estimator__fast__yaml="defaults:\n  - fogzo\n  - _self_\n\nname: fast\nn: 2\n",
        estimator__nameless__yaml="defaults:\n  - fogzo\n  - _self_\n\nn: 2\n",
        estimator__shrink__py=SHRINK + BUILD,
        estimator__other__py=SHRINK + BUILD,
        estimator__shrink__yaml=YAML,
        hardware__mine__yaml="defaults:\n  - cpu\n  - _self_\n",
    )
    fast = compose_run("estimator=fast", "hardware=mine").estimator
    assert (fast.name, fast.family, fast.n) == ("fast", "fogzo", 2)
    for words in (
        ["estimator=fast", "estimator.name=fogzo"],
        ["estimator=fogzo", "estimator.name=fast"],
        ["estimator=shrink", "estimator.family=other"],
    ):
        with pytest.raises(ConfigError, match=f"names the part, which is {words[0]} here"):
            compose_run(*words)
    with pytest.raises(ConfigError, match="name=fogzo stands in the file of estimator=nameless"):
        compose_run("estimator=nameless")


BIGRAM = """
import torch.nn.functional as F
from torch import nn

class Bigram(nn.Module):
    def __init__(self, vocabulary, width):
        super().__init__()
        self.embed, self.head = nn.Embedding(vocabulary, width), nn.Linear(width, vocabulary)
    def forward(self, tokens, targets=None):
        logits = self.head(self.embed(tokens.long()))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten().long())

def build(vocabulary, width):
    return Bigram(vocabulary, width)
"""
BIGRAM_YAML = """
defaults:
  - /dataset@_global_.dataset: c4
  - /recipe@_global_.recipe: c4_llama
  - _self_

name: bigram
family: bigram
first_last: []
inputs: tokens
context: 16
vocabulary: 24
width: 8
quest_lr: 1.0e-3
tokens: 3.0e+3
"""


def test_a_language_model_of_a_users_trains_on_tokens(mine, tmp_path):
    mine(model__bigram__py=BIGRAM, model__bigram__yaml=BIGRAM_YAML)
    text = torch.randint(24, (4400,), generator=torch.Generator().manual_seed(0)).tolist()
    write_corpus(tmp_path / "data", {"train": [text[:3000]], "heldout": [text[3000:]]}, 24)
    record = execute(
        compose_run(
            "model=bigram", "recipe.global_batch_size=8", "recipe.max_steps=3", "hardware=cpu",
            f"data_dir={tmp_path / 'data'}", f"output_root={tmp_path / 'runs'}",
        ),
        quiet=True,
    )  # fmt: skip
    assert record["status"] == "finished" and record["tokens_seen"] == 3 * 8 * 16
    assert record["metrics"]["last"]["val"]["perplexity"] > 1


def test_a_model_goes_with_data_of_its_kind_alone(mine):
    mine(model__bigram__py=BIGRAM, model__bigram__yaml=BIGRAM_YAML)
    said = "model=bigram does not go with dataset=digits: the model takes tokens and the data are"
    with pytest.raises(ConfigError, match=said):
        compose_run("model=bigram", "dataset=digits")
    text = BIGRAM_YAML.replace("context: 16\n", "")
    mine(model__bigram__yaml=text)
    with pytest.raises(ConfigError, match=r"model\.context is missing"):
        compose_run("model=bigram", "recipe=digits_mlp")


def built_in():
    for section in SHARED:
        for path in sorted((CONFIGS / section).glob("*.yaml")):
            yield section, path.stem


@pytest.mark.slow
@pytest.mark.parametrize(("section", "name"), built_in(), ids=lambda value: value)
def test_every_built_in_part_has_the_file_that_its_family_names(section, name):
    needed = {"dataset": ["model=llama_9m"] if name == "c4" else [], "quantizer": ["estimator=ste"]}
    settings = compose_run(f"{section}={name}", *needed.get(section, []))
    part = getattr(settings, section)
    if part.family != "none":
        assert python_file(section, part.family, None).is_file()
    nothing_to_check = set(asdict(part)) <= {"name", "family", "held_out"}
    assert part.family in FAMILIES[section] or nothing_to_check
