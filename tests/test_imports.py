"""The import direction of the package, and what may be imported where."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

PACKAGE = ROOT / "fogzo_repro"
SIX = {"quantization", "estimators", "models", "data", "tracking", "reporting"}
PACKAGES = 3
LAYERS = {  # everything else is on top
    "terminal": 0,
    "project": 1,
    "files": 1,
    "randomness": 1,
    "config": 2,
    **dict.fromkeys(SIX, PACKAGES),
    "training": 4,
}
TOP = 5
# Records are written, read and checked in one place, and tables are made of nothing but records.
ARROWS = {("reporting", "fogzo_repro.tracking.records")}
LAZY = {"torchvision", "timm", "transformers", "datasets", "sklearn", "matplotlib", "wandb"}
ALLOWED = {  # library: files that may import it, relative to the package
    "hydra": {"__main__.py", "composition.py"},
    "omegaconf": {"config/parse.py", "config/yaml_files.py"},
    "wandb": {"tracking/wandb.py"},
}

Import = tuple[str, int, bool]  # dotted name, line, at module level


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.Module) -> Iterator[Import]:
    """Every import of a module; those under `if TYPE_CHECKING` too, since they bind names."""
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno, id(node) not in inner
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute, so that a reader can search for them"
            assert node.module is not None
            if node.module == "fogzo_repro":
                for alias in node.names:
                    yield f"fogzo_repro.{alias.name}", node.lineno, id(node) not in inner
            else:
                yield node.module, node.lineno, id(node) not in inner


def part(path: Path) -> str:
    """The part of the package that a file belongs to: a subpackage or a top-level module."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def breaches(part_name: str, name: str) -> bool:
    """Whether a file of one part may not import `fogzo_repro.<...>`."""
    target = name.split(".")[1]
    if target == part_name or target == "METHOD_VERSION":
        return False
    if (part_name, name) in ARROWS:
        return False
    mine, other = (LAYERS.get(p, TOP) for p in (part_name, target))
    return other > mine or (mine == other and mine <= PACKAGES)


def walk() -> Iterator[tuple[str, str, Import]]:
    for path in sources():
        for found in imports(ast.parse(path.read_text())):
            yield path.relative_to(PACKAGE).as_posix(), part(path), found


def test_import_direction_is_ground_config_packages_training_run() -> None:
    found = [
        f"{file}:{line} imports {name}"
        for file, part_name, (name, line, _) in walk()
        if name.startswith("fogzo_repro.") and file != "__init__.py" and breaches(part_name, name)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("part_name", "name", "breach"),
    [
        ("estimators", "fogzo_repro.quantization.sign", True),
        ("data", "fogzo_repro.training.loop", True),
        ("training", "fogzo_repro.run", True),
        ("config", "fogzo_repro.data", True),
        ("reporting", "fogzo_repro.tracking.records", False),
        ("reporting", "fogzo_repro.tracking.metrics", True),
        ("randomness", "fogzo_repro.config", True),
        ("estimators", "fogzo_repro.randomness", False),
        ("estimators", "fogzo_repro.estimators.spsa", False),
        ("training", "fogzo_repro.models", False),
        ("data", "fogzo_repro.config", False),
        ("run", "fogzo_repro.training.loop", False),
    ],
    ids=lambda value: str(value).removeprefix("fogzo_repro."),
)
def test_the_direction_test_knows_a_breach(part_name: str, name: str, breach: bool) -> None:
    assert breaches(part_name, name) == breach


@pytest.mark.slow
@pytest.mark.parametrize("library", ALLOWED)
def test_hydra_omegaconf_and_wandb_stay_where_they_belong(library: str) -> None:
    users = {file for file, _, (name, _, _) in walk() if name.split(".")[0] == library}
    assert users <= ALLOWED[library]
    assert users, f"nothing imports {library}: this test would prove nothing"


def test_heavy_libraries_are_imported_inside_the_functions_that_use_them() -> None:
    found = [
        f"{file}:{line} imports {name}"
        for file, _, (name, line, outside) in walk()
        if outside and name.split(".")[0] in LAZY
    ]
    assert not found, "\n".join(found)


def test_nothing_is_called_utils_common_helpers_misc_or_base() -> None:
    names = {p.stem for p in sources()} | {p.parent.name for p in sources()}
    assert not names & {"utils", "common", "helpers", "misc", "base"}


def test_nothing_pickles() -> None:
    assert not [file for file, _, (name, _, _) in walk() if name.split(".")[0] == "pickle"]
    assert not [p for p in sources() if re.search(r"\btorch\.(save|load)\(", p.read_text())]


def python(code: str, *options: str) -> str:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, *options, "-c", code],
        capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_config_errors_come_before_torch_and_hydra() -> None:
    code = "import sys, fogzo_repro.config; print(sorted({'torch', 'hydra'} & set(sys.modules)))"
    assert python(code).strip() == "[]"


def closure(name: str) -> set[str]:
    """A distribution and all that it requires on this machine, without extras."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    todo = [name]
    while todo:
        current = todo.pop()
        if current in found:
            continue
        found.add(current)
        for line in metadata.requires(current) or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                todo.append(requirement.name.lower())
    return found


def site_with(distributions: set[str], folder: Path) -> None:
    """Link the importable top-level files of the distributions into a folder."""
    for name in distributions:
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top in ("..", "__pycache__") or top.endswith((".dist-info", ".pth")):
                continue
            source = Path(str(metadata.distribution(name).locate_file(top)))
            if not (folder / top).exists():
                (folder / top).symlink_to(source)


@pytest.mark.slow
def test_estimators_need_torch_alone(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    distributions = closure("torch")
    assert not distributions & {"numpy", "hydra-core", "omegaconf", "timm", "scipy"}
    site_with(distributions, site)
    assert (site / "torch").exists() and not (site / "numpy").exists()
    code = f"""
import sys
sys.path += [{str(site)!r}, {str(ROOT)!r}]
import torch
from fogzo_repro.estimators import QuantizedWeight, fogzo, smoothing_law

layer = torch.nn.Linear(4, 2)
alpha = layer.weight.detach().std()
x = torch.randn(8, 4)

def loss_fn():
    rounded = alpha * (layer.weight / alpha).round()
    return ((layer.weight + (rounded - layer.weight).detach()) @ x.T).square().mean()

loss_fn().backward()
weights = [QuantizedWeight(layer.weight, alpha, smoothing_law("round", "identity"))]
fogzo(weights, loss_fn, beta=0.9, n=4, generator=torch.Generator().manual_seed(0))
assert layer.weight.grad.isfinite().all()
own = {{name.split(".")[0] for name in sys.modules}} & {{"numpy", "hydra", "omegaconf"}}
parts = sorted(name for name in sys.modules if name.startswith("fogzo_repro."))
assert not own, own
allowed = "fogzo_repro.estimators", "fogzo_repro.randomness"
assert all(name.startswith(allowed) for name in parts), parts
print("written")
"""
    assert python(code, "-I", "-S").strip() == "written"


LOADED = """
import runpy, sys
sys.argv = ["fogzo_repro", {word!r}]
try:
    runpy.run_module("fogzo_repro", run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", *{{name.split(".")[0] for name in sys.modules}}, *sys.modules)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("word", "heavy"),
    [
        ("--help", {"torch", "numpy", *LAZY}),  # 0.6 s of a core
        ("dry_run=true", {"sympy", "torch._dynamo", "triton", *LAZY}),  # 3 s, of which torch 2.4
    ],
    ids=["help", "dry-run"],
)
def test_help_and_the_mlps_dry_run_import_little(word: str, heavy: set[str]) -> None:
    loaded = python(LOADED.format(word=word)).rpartition("loaded:")[2].split()
    assert "hydra" in loaded
    assert not heavy & set(loaded)
