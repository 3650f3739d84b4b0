"""Parts: models, datasets, quantizers, surrogates and estimators, built in or of the user's.

A part is one Python file with a function `build`, and one YAML file that has the part's `name`, its
`family` and its options. The family names the Python file, so that a second size of a network is
one more YAML file. The YAML file is also the part's schema: its keys, with the types of their
values, are the settings of the section. A built-in family that has rules beyond types has a
dataclass for them in this package.

Built-in parts lie in `configs/<section>/NAME.yaml` and in the folder of `FOLDERS`. A user's lie
side by side in a folder of the user's: `parts_dir/<section>/NAME.yaml` and
`parts_dir/<section>/FAMILY.py`. A surrogate is chosen by `quantizer.surrogate=NAME` and needs no
YAML file: it is `surrogate/OPERATOR_NAME.py`, where the operator is `sign` or `round`.

`build` gets what it names: keys of its YAML file, and what the run gives to parts of its kind.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, make_dataclass
from functools import cache
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from fogzo_repro.config.own_errors import OWN, located
from fogzo_repro.config.rules import ConfigError, choice, did_you_mean, finite, require
from fogzo_repro.config.yaml_files import read_yaml
from fogzo_repro.project import CONFIGS, PACKAGE
from fogzo_repro.terminal import path_of

FOLDERS = {  # section: where in the package its Python files are
    "model": "models",
    "dataset": "data",
    "quantizer": "quantization",
    "surrogate": "quantization/surrogates",
    "estimator": "estimators",
}
# Keys of an estimator that the run reads, with their values where its YAML file leaves them out.
WITHOUT_KEY: dict[str, Any] = {
    "n": 0, "start_fraction": 0.0, "probe_fraction": 1.0, "evaluator": "auto",
    "random_sign": False, "probe_gradients": False,
}  # fmt: skip
# Keys that the run itself reads, so that a `build` need not name them.
READ_BY_THE_RUN = {
    "name", "family",
    "first_last", "inputs", "context", "vocabulary", "quest_lr", "tokens", "held_out",
    "weight_bits", "activation_bits", "operator", "learned_scales",
    "noise", *WITHOUT_KEY,
}  # fmt: skip


BITS = ("weight_bits", "activation_bits")  # keys of a quantizer
FULL_PRECISION = 16  # of either: not quantized


@dataclass(frozen=True)
class Part:
    """The settings that every part has."""

    name: str
    family: str


@dataclass(frozen=True)
class ModelPart(Part):
    """What every model has: the layers that `quantizer.first_last` is about."""

    first_last: list[str]


@dataclass(frozen=True)
class EstimatorPart(Part):
    """What an estimator may have; keys of these names mean the same for all of them.

    `n` is the number of probe pairs that it measures at each of its steps; the run sees to
    `start_fraction`, `probe_fraction`, `evaluator` and `random_sign`. With `probe_gradients` each
    probe adds the STE's gradient at its point to the weights' `.grad`.
    """

    def __getattr__(self, key: str) -> Any:
        """Return what a key means that the YAML file of the part does not have."""
        if key not in WITHOUT_KEY:
            raise AttributeError(key)
        return WITHOUT_KEY[key]

    def __post_init__(self) -> None:
        n = self.n
        require(type(n) is int and n >= 0, f"estimator.n={n} is not a number of probe pairs")
        finite("estimator.n", n, 0)
        for key in ("start_fraction", "probe_fraction"):
            value = getattr(self, key)
            require(0 <= value <= 1, f"estimator.{key}={value} is outside [0, 1]")
            require(value > 0 or key != "probe_fraction", f"estimator.{key}=0.0 must be above 0")
        choice("estimator.evaluator", self.evaluator, ("auto", "sequential", "batched"))
        if self.probe_gradients:
            what = f"estimator={self.name} takes the STE's gradient at its probes"
            said = f"{what}, which estimator.evaluator=batched has not"
            require(self.evaluator != "batched", said)
            said = f"{what} and no difference of losses: leave out random_sign"
            require(not self.random_sign, said)


@dataclass(frozen=True)
class QuantizerPart(Part):
    """What every quantizer of a user's has; `FULL_PRECISION` bits are not quantized."""

    weight_bits: int
    activation_bits: int
    first_last: str

    def __post_init__(self) -> None:
        for key in BITS:
            bits = getattr(self, key)
            said = f"quantizer.{key}={bits} is outside 1..8 (16 is full precision)"
            require(1 <= bits <= 8 or bits == FULL_PRECISION, said)
        choice("quantizer.first_last", self.first_last, FIRST_LAST)


FIRST_LAST = ("float", "8bit", "quantized")
SHARED = {
    "model": ModelPart,
    "dataset": Part,
    "quantizer": QuantizerPart,
    "estimator": EstimatorPart,
}


def own_parts() -> str | None:
    """Return the folder of the user's parts, which FOGZO_PARTS names; None without one."""
    given = os.environ.get("FOGZO_PARTS")
    return str(path_of("FOGZO_PARTS", given).absolute()) if given else None


def check_own_parts() -> None:
    """Refuse a folder that is not there, and in it what the suite has under the same name.

    Hydra would say nothing of the one, and take the suite's in place of the other.

    Raises:
        ConfigError: with the folder or the file.
    """
    folder = own_parts()
    if folder is None:
        return
    if not Path(folder).is_dir():
        raise ConfigError(f"{folder}, named by --config-dir or FOGZO_PARTS, is not a folder")
    for path in sorted(Path(folder).glob("*/*")):
        section = path.parent.name
        if path.suffix == ".yaml":
            _check_encoding(path)
        places = {".yaml": CONFIGS / section, ".py": PACKAGE / FOLDERS.get(section, "-")}
        ours = places.get(path.suffix, CONFIGS) / path.name
        if ours.is_file() and not path.stem.startswith("_") and not path.samefile(ours):
            raise ConfigError(
                f"{path} has the name of a built-in {section}"
                f"{'' if path.suffix == '.yaml' else f' ({ours.relative_to(PACKAGE.parent)})'}"
                ", and one of the two would be taken for the other; give yours another name"
            )


def _check_encoding(path: Path) -> None:
    """Refuse a file that Hydra could not read: it would not say which."""
    try:
        path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not in UTF-8 ({error}); save it so") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from None


def python_file(section: str, family: str, parts_dir: str | None) -> Path:
    """Return the Python file of a family: the package's where there is one, else the user's.

    Raises:
        ConfigError: with the places where it was looked for.
    """
    places = [folder / f"{family}.py" for folder in _folders(section, parts_dir)]
    for path in places:
        if path.is_file():
            return path
    raise ConfigError(
        f"{section}: there is no Python file for the family {family}; it would be "
        f"{' or '.join(map(str, places))}{own_folder_hint(parts_dir)}"
    )


def is_own(section: str, settings: Any, parts_dir: str | None) -> bool:
    """Return whether the Python file of a part is a user's."""
    return not python_file(section, settings.family, parts_dir).is_relative_to(PACKAGE)


def names(section: str, parts_dir: str | None) -> list[str]:
    """Return the names of a section's Python files, without their ending."""
    found = (path for folder in _folders(section, parts_dir) for path in folder.glob("*.py"))
    return sorted({path.stem for path in found if not path.stem.startswith("_")})


def _folders(section: str, parts_dir: str | None) -> list[Path]:
    own = [] if parts_dir is None else [Path(parts_dir) / section]
    return [PACKAGE / FOLDERS[section], *own]


def own_folder_hint(parts_dir: str | None, place: str | None = None) -> str:
    """Return how a folder of the user's is named, for an error about what may lie in one.

    Where it is named already: at which place the user's file would lie in it, if that is given.
    """
    if parts_dir is None:
        return "; a folder of yours is named by FOGZO_PARTS"
    return f"; yours would be {Path(parts_dir) / place}" if place else ""


def schema(
    section: str, name: str, family: str, parts_dir: str | None, families: Mapping[str, type]
) -> type:
    """Return the settings of a part whose family has no dataclass of its own, by its YAML file.

    A YAML file that is based on another one has that one's rules too: `families` are the
    dataclasses of the section's built-in ones.

    Raises:
        ConfigError: where its YAML or Python file is missing or is not one.
    """
    python_file(section, family, parts_dir)
    path = _yaml_file(section, name, parts_dir)
    if path is None:
        raise ConfigError(
            f"{section}.name={name}: there is no {section}/{name}.yaml, and a part's file has the "
            f"part's name{own_folder_hint(parts_dir)}"
        )
    base = SHARED[section]
    for content in based_on(path):
        base = families.get(content.get("family", ""), base)
    return _dataclass(section, tuple(_types(path).items()), base)


def labels(section: str, option: str, parts_dir: str | None) -> dict[str, str]:
    """Return the name and the family that the YAML file of an option gives; nothing without one."""
    found: dict[str, Any] = {}
    path = _yaml_file(section, option, parts_dir)
    for content in based_on(path) if path else []:
        found |= {key: content[key] for key in ("name", "family") if key in content}
    return {k: v for k, v in found.items() if isinstance(v, str) and "${" not in v}


def _yaml_file(section: str, option: str, parts_dir: str | None) -> Path | None:
    """Return the YAML file of an option, the suite's before a user's; None without one."""
    roots = [CONFIGS, *([] if parts_dir is None else [Path(parts_dir)])]
    files = (root / section / f"{option}.yaml" for root in roots)
    return next((path for path in files if path.is_file()), None)


@cache
def _types(path: Path) -> dict[str, Any]:
    """Return the type of each key of a part's YAML file; those that it is based on come first."""
    found: dict[str, Any] = {}
    for content in based_on(path):
        found |= {key: _type(value) for key, value in content.items() if key != "defaults"}
    return found


@cache
def based_on(path: Path) -> list[dict[str, Any]]:
    """Return the contents of the YAML files that a part's is based on, and then its own."""
    content = read_yaml(path)
    found: list[dict[str, Any]] = []
    for other in content.get("defaults", ()):
        if isinstance(other, str) and other != "_self_":
            file = f"{other.removeprefix(f'/{path.parent.name}/')}.yaml"
            places = [CONFIGS / path.parent.name / file, path.parent / file]
            found += next((based_on(place) for place in places if place.is_file()), [])
    return [*found, content]


def _type(value: Any) -> Any:
    """Return the type that another value of the setting must have; null stands for any."""
    if isinstance(value, list):
        kinds = {type(item) for item in value}
        return list[kinds.pop()] if len(kinds) == 1 and kinds <= _PLAIN else list[Any]  # type: ignore[misc]
    if isinstance(value, dict):
        return dict[str, Any]
    refers = isinstance(value, str) and "${" in value
    return type(value) if type(value) in _PLAIN and not refers else Any


_PLAIN = {bool, int, float, str}


@cache
def _dataclass(section: str, types: tuple[tuple[str, Any], ...], base: type) -> type:
    """Make a dataclass with these keys beside those of its base; the same ones give the same."""
    shared = {field.name for field in fields(base)}
    made = make_dataclass(
        f"Added{section.capitalize()}",
        [(key, kind) for key, kind in types if key not in shared],
        bases=(base,),
        frozen=True,
    )

    def reduce(self: Any) -> Any:  # for another process, which makes the class itself
        return _restore, (section, types, base, vars(self))

    made.__reduce__ = reduce  # type: ignore[assignment]
    return made


def _restore(
    section: str, types: tuple[tuple[str, Any], ...], base: type, values: dict[str, Any]
) -> Any:
    return _dataclass(section, types, base)(**values)


def build_part(
    section: str, settings: Any, parts_dir: str | None, function: str = "build", **given: Any
) -> Any:
    """Import the Python file of a part and call its `build`, or another function of the file.

    The function gets what it names of the part's settings and of what the run has `given`.

    Raises:
        ConfigError: where the file has no such function, the function names something that is
            neither, or the YAML file of a user's part has a key that nothing reads; as `PartError`
            where a user's file raises something itself.
    """
    path = python_file(section, settings.family, parts_dir)
    module = _import(section, path)
    wanted = _parameters(path, module, function)
    offered = {**vars(settings), **given}
    for name, parameter in wanted.items():
        if name not in offered and parameter.default is parameter.empty:
            raise ConfigError(
                f"{path}: {function}() asks for {name}, which is not a key of "
                f"{section}={settings.name}, nor does the run give it"
                f"{did_you_mean(name, offered)} (the run gives {', '.join(given) or 'nothing'})"
            )
    if not path.is_relative_to(PACKAGE):
        others = ("build", "build_input")
        read = {n for f in others if hasattr(module, f) for n in _parameters(path, module, f)}
        read |= {*READ_BY_THE_RUN, *getattr(settings, "ONE_OF", ())}
        for key in vars(settings):
            if key not in read:
                raise ConfigError(
                    f"{section}.{key}: build() in {path} has no parameter {key}"
                    f"{did_you_mean(key, read)}"
                )
    with located(path):
        return getattr(module, function)(**{k: offered[k] for k in wanted if k in offered})


@cache  # so that blocks that are alike share the function itself, and their compiled code
def build_surrogate(operator: str, name: str, parts_dir: str | None) -> Any:
    """Return what the file of a surrogate builds, by the operator that it belongs to."""
    path = python_file("surrogate", f"{operator}_{name}", parts_dir)
    _parameters(path, module := _import("surrogate", path), "build")
    with located(path):
        return module.build()


def _import(section: str, path: Path) -> ModuleType:
    if path.is_relative_to(PACKAGE):
        return import_module(".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts))
    name = f"{OWN}.{section}.{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    try:
        with located(path):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _parameters(path: Path, module: ModuleType, function: str) -> Mapping[str, inspect.Parameter]:
    found: Callable[..., Any] | None = getattr(module, function, None)
    require(callable(found), f"{path} has no function {function}(...), which makes the part")
    assert found is not None
    wanted = inspect.signature(found).parameters
    loose = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    for name, parameter in wanted.items():
        if parameter.kind in (*loose, inspect.Parameter.POSITIONAL_ONLY):
            raise ConfigError(
                f"{path}: {function}() gets what its parameters name; {name} is not such a one"
            )
    return wanted


def added_files(config: Any) -> dict[str, str]:
    """Return the sha256 of the Python file of each of the run's parts that lies in parts_dir."""
    families = {section: getattr(config, section).family for section in SHARED}
    operator = getattr(config.quantizer, "operator", None)
    if operator is not None:
        families["surrogate"] = f"{operator}_{config.quantizer.surrogate}"
    found = {k: python_file(k, v, config.parts_dir) for k, v in families.items() if v != "none"}
    own = {k: path for k, path in found.items() if not path.is_relative_to(PACKAGE)}
    return {k: hashlib.sha256(path.read_bytes()).hexdigest() for k, path in own.items()}
