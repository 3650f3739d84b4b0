"""The tables as data: what configs/table/<table>.yaml says of its cells, their labels and seeds.

A table file has rows and columns as the paper's table has, each with a label and with settings by
their names on the command line:

    seeds: 0..4                                   # of every cell, unless it has its own
    settings: {hardware: h200}                    # of every cell
    sets: {fogzo: {estimator: fogzo, estimator.n: 1}}
    rows: {deit: {label: DeiT-Tiny, model: deit_tiny}}
    columns: {lsq-fogzo: {label: LSQ-FOGZO, quantizer: lsq, use: [fogzo]}}
    only: {deit-lsq-fogzo: {recipe.epochs: 400}}  # what one cell has beside its row and column

The cell `deit-lsq-fogzo` has the table's settings, then its row's, its column's and its own; of two
values for one setting, or for settings that say the same, the later one stands, and `use` comes
before the settings beside it. A column with `rows: [deit]` stands in these rows alone. A table may
have rows alone, or columns alone, which then name the cells; the other label is the setting
`cell.column` or `cell.row`. The table's name is the file's, no setting.

`over: {estimator.noise: [1e-6, 1e-7]}` makes one cell of each value, or of each combination; the
labels refer to it, as in "1-beta=${estimator.noise}". `sweeps:` has such cells on the tuning seeds,
each with the settings of the cell that `of` names.

`rank:` is about tables of added parts, see `reporting.ranking`.

Nothing is composed here, and neither torch nor Hydra is needed to know where runs belong.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from fogzo_repro.config import (
    CONFIGS,
    ConfigError,
    FogzoConfig,
    RunConfig,
    check_own_parts,
    did_you_mean,
    read_yaml,
)
from fogzo_repro.config.parts import own_folder_hint, own_parts
from fogzo_repro.reporting.results import TUNING_SEEDS

# Settings that choose among files. So does `scale`, which comes after the cell: see `Entry.node`.
GROUPS = ("model", "dataset", "quantizer", "estimator", "recipe", "hardware", "tracker")
SECTIONS = {field.name for field in fields(RunConfig)} - {"seed"}  # a setting begins with one
SAME = tuple(f"estimator.{key}" for key in FogzoConfig.ONE_OF)  # say the same, each in its way
FOLDED = (*GROUPS, "cell")  # have settings of their own, as in recipe.lr
WORDS = {  # the parts of a table file, and what an entry of each may say beside settings
    "settings": (),
    "sets": (),
    "rows": ("label", "use", "over", "seeds"),
    "columns": ("label", "use", "over", "seeds", "rows"),
    "only": ("use", "over", "seeds"),
    "sweeps": ("of", "use", "over", "seeds"),
}
LAST_SEED, MOST_SEEDS = 2**31 - 1, 100_000  # the second, so that a slip fills no memory
NAME = re.compile(r"[A-Za-z0-9_.-]+")  # of a row, a column or a sweep: a shell and Hydra take it
REFERENCE = re.compile(r"\$\{([\w.]+)\}")
PLAIN = re.compile(r"(?!(true|false|null|nan|inf)$)[a-z][\w./-]*", re.I)  # needs no quotes


@dataclass(frozen=True)
class Planned:
    """A cell by its labels, and the scale and the seeds that it is run with."""

    table: str
    row: str
    column: str
    scale: str
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """What `experiment=TABLE/NAME` stands for: a cell, or one for each combination of `over`."""

    file: Path  # the table's
    name: str  # within the table
    settings: Mapping[str, Any]  # as on the command line; the labels are cell.row and cell.column
    over: Mapping[str, list[Any]]  # settings with several values
    seeds: tuple[int, ...]

    @property
    def path(self) -> str:
        """The name on the command line."""
        return f"{self.file.stem}/{self.name}"

    def with_seeds(self, seeds: tuple[int, ...] | None) -> Entry:
        """Return the entry with other evaluation seeds; without evaluation seeds it gets none."""
        if seeds is None or set(self.seeds) <= set(TUNING_SEEDS):
            return self
        return replace(self, seeds=(*seeds, *(s for s in self.seeds if s in TUNING_SEEDS)))

    def without(self, given: Iterable[str]) -> Entry:
        """Return the entry without its values for settings that are given otherwise."""
        return replace(self, over={k: v for k, v in self.over.items() if k not in given})

    def combinations(self, each_value_once: bool = False) -> Iterator[dict[str, Any]]:
        """Yield the values of `over` for each cell, or no more than show each value."""
        first = {key: values[0] for key, values in self.over.items()}
        for values in itertools.product(*self.over.values()):
            chosen = dict(zip(self.over, values, strict=True))
            if not each_value_once or sum(chosen[key] != first[key] for key in first) < 2:
                yield chosen

    def cells(self) -> list[Planned]:
        """Return the cells, with the values that the labels refer to in their places."""
        found = []
        for values in self.combinations():
            known = {**self.settings, **values}
            row, column = (self._fill(str(known[f"cell.{k}"]), known) for k in ("row", "column"))
            scale = self.settings.get("scale", "full")
            found.append(Planned(self.file.stem, row, column, scale, self.seeds))
        return found

    def _fill(self, label: str, known: Mapping[str, Any]) -> str:
        for name in REFERENCE.findall(label):
            if name not in known:
                said = f"the label {label} refers to {name}, which is not set"
                raise ConfigError(f"{self.file}, {self.name}: {said}{did_you_mean(name, known)}")
        return REFERENCE.sub(lambda match: str(known[match[1]]), label)

    def node(self) -> dict[str, Any]:
        """Return what Hydra is offered, the content of a file `experiment/TABLE/NAME.yaml`.

        Not the scale, whose defaults come after the experiment: it is a word of the command line.
        """
        chosen = [{f"override /{k}": v} for k, v in self.settings.items() if k in GROUPS]
        node: dict[str, Any] = {"defaults": chosen}
        for key, value in self.settings.items():
            if key not in (*GROUPS, "scale"):
                *sections, last = key.split(".")
                place = node
                for section in sections:
                    place = place.setdefault(section, {})
                place[last] = value
        params = {key: value for key, _, value in (w.partition("=") for w in self.swept())}
        return {**node, "hydra": {"mode": "MULTIRUN", "sweeper": {"params": params}}}

    def command(self, more: Iterable[str] = ()) -> str:
        """Return the plain command of the entry; more words stand in place of its own."""
        given = {word.partition("=")[0].lstrip("+") for word in more}
        labels_last = sorted(self.settings, key=lambda key: key.startswith("cell."))
        words = [f"{k}={as_word(self.settings[k])}" for k in labels_last]
        own = [w for w in [*words, *self.swept()] if w.partition("=")[0] not in given]
        return shlex.join(["python", "-m", "fogzo_repro", "-m", *own, *more])

    def swept(self) -> list[str]:
        """Return what makes the runs of the cells, as words of the command line."""
        swept = {k: ",".join(map(as_word, v)) for k, v in self.over.items()}
        seeds = ",".join(map(str, self.seeds))
        return [f"{k}={v}" for k, v in {**swept, "seed": seeds}.items()]


def table_files() -> dict[str, Path]:
    """Return the files of all tables by their names: ours, and those of the user's folder.

    Raises:
        ConfigError: where one of the user's has the name of one of ours.
    """
    check_own_parts()
    return option_files("table")


def option_files(group: str) -> dict[str, Path]:
    """Return the files of a folder of the configuration by their names."""
    own = own_parts()
    folders = [CONFIGS, *([Path(own)] if own else [])]
    found = [path for folder in folders for path in sorted((folder / group).glob("*.yaml"))]
    return {path.stem: path for path in found}


def find_entries(name: str, files: Mapping[str, Path]) -> list[Entry]:
    """Return the entries of a table, or those that are named, as `table3/95m-*`.

    Raises:
        ConfigError: in one line with the nearest name.
    """
    table, _, pattern = name.partition("/")
    if table not in files:
        near = did_you_mean(table, files)
        hint = "" if near else own_folder_hint(own_parts(), f"table/{table}.yaml")
        raise ConfigError(f"{table} is not a table{near}; tables: {', '.join(sorted(files))}{hint}")
    entries = _read_once(files[table], files[table].stat().st_mtime_ns)
    found = [entry for entry in entries if fnmatchcase(entry.name, pattern or "*")]
    if not found:
        names = [entry.name for entry in entries]
        near = did_you_mean(pattern, names) or f"; it has: {', '.join(names)}"
        raise ConfigError(f"{files[table]} has no cell {pattern}{near}")
    return found


@cache
def _read_once(file: Path, changed: int) -> list[Entry]:
    """Read a table, as long as its file is not changed once."""
    return read_table(file)


def read_table(file: Path) -> list[Entry]:
    """Read a table.

    Raises:
        ConfigError: in one line with the file, the place in it, and the nearest name.
    """
    entries = _Reader(file).entries()
    owners: dict[tuple[str, str], str] = {}
    for entry in entries:
        for cell in entry.cells():
            place = cell.row, cell.column
            if place in owners:
                said = f"{owners[place]} and {entry.name} have the same labels, {' | '.join(place)}"
                raise ConfigError(f"{file}: {said}; their runs could not be told apart")
            owners[place] = entry.name
    return entries


def parse_seeds(text: Any) -> tuple[int, ...]:
    """Return seeds from a number, a range or a list of them.

    Raises:
        ValueError: where a part is neither a number nor a range, or a seed stands there twice.

    >>> parse_seeds("0..3"), parse_seeds(["0..1", 100]), parse_seeds("0,1,2")
    ((0, 1, 2, 3), (0, 1, 100), (0, 1, 2))
    """
    found: list[int] = []
    for part in text if isinstance(text, list) else str(text).split(","):
        bounds = re.fullmatch(r"(\d{1,10})(?:\.\.(\d{1,10}))?", str(part).strip())
        if not bounds or int(bounds[2] or bounds[1]) > LAST_SEED:
            raise ValueError(f"{part} is neither a number in 0..{LAST_SEED} nor a range of them")
        seeds = range(int(bounds[1]), int(bounds[2] or bounds[1]) + 1)
        if not seeds:
            raise ValueError(f"{part} is an empty range")
        if len(found) + len(seeds) > MOST_SEEDS:
            raise ValueError(f"{part} makes more than {MOST_SEEDS} seeds")
        found += seeds
    if not found:
        raise ValueError("there is no seed")
    if twice := Counter(found) - Counter(set(found)):
        raise ValueError(f"{min(twice)} stands there twice")
    return tuple(found)


def shown_seeds(seeds: Iterable[int]) -> str:
    """Return seeds as `parse_seeds` takes them.

    >>> shown_seeds([0, 1, 2, 100]), shown_seeds([7, 5])
    ('0..2,100', '7,5')
    """
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}..{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def evaluation_seeds(text: str | None) -> tuple[int, ...] | None:
    """Return the seeds that the option --seeds gives.

    Raises:
        ConfigError: where one is not a number, or is a tuning seed.
    """
    if text is None:
        return None
    try:
        seeds = parse_seeds(text)
    except ValueError as error:
        said = f"--seeds={text} is not a list of numbers, as 0,1,2 or 0..4: {error}"
        raise ConfigError(said) from None
    for seed in seeds:
        if seed in TUNING_SEEDS:
            raise ConfigError(f"--seeds={text}: {seed} is a tuning seed, it reports nothing")
    return seeds


@dataclass
class _Part:
    """One mapping of a table file: a row, a column, what one cell has, or a sweep."""

    settings: dict[str, Any]
    words: dict[str, Any]  # what it says beside settings, see WORDS
    label: str = ""  # the setting that its `label` is


class _Reader:
    """Makes the entries of one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        content = read_yaml(file)
        self._check("part", content, ("seeds", "rank", *WORDS), "")
        self.seeds = content.get("seeds")
        self.parts = {kind: self._mapping(kind, content.get(kind, {})) for kind in WORDS}
        for kind in ("rows", "columns", "sweeps"):
            for name in self.parts[kind]:
                if not NAME.fullmatch(name):
                    said = f"{kind}: the name {name!r} has other than letters, digits, - _ and ."
                    raise self._mistake(said)
        if not (self.parts["rows"] or self.parts["columns"]):
            raise self._mistake("it has neither rows nor columns")

    def entries(self) -> list[Entry]:
        """Return the cells, rows times columns, then the sweeps."""
        common = self._part("settings", self.parts["settings"])
        common.settings = {"cell.table": self.file.stem, **common.settings}
        cells: dict[str, list[_Part]] = {}
        for row in self.parts["rows"] or [""]:
            for column in self.parts["columns"] or [""]:
                in_row, in_column = self._named("rows", row), self._named("columns", column)
                in_row.label, in_column.label = "cell.row", "cell.column"
                rows = _listed(in_column.words.get("rows", [row]))
                self._check("row", rows, self.parts["rows"] or [""], f"columns.{column}.rows")
                if row in rows:
                    name = "-".join(filter(None, (row, column)))
                    if name in cells:
                        said = f"two cells have the name {name}; give a row or column another one"
                        raise self._mistake(said)
                    cells[name] = [common, in_row, in_column]
        self._check("cell", self.parts["only"], cells, "only")
        for name in self.parts["only"]:
            cells[name].append(self._named("only", name))
        sweeps = {}
        for name in self.parts["sweeps"]:
            if name in cells:
                raise self._mistake(f"{name} is a cell and a sweep; give the sweep another name")
            sweep = self._named("sweeps", name)
            sweep.words.setdefault("seeds", list(TUNING_SEEDS))
            of = _listed(sweep.words.get("of", []))
            self._check("cell", of, cells, f"sweeps.{name}.of")
            if len(of) > 1:
                raise self._mistake(f"sweeps.{name}.of names {len(of)} cells; name one")
            sweeps[name] = [*(cells[of[0]] if of else [common]), sweep]
        made = [self._entry(name, parts) for name, parts in {**cells, **sweeps}.items()]
        for entry in made[len(cells) :]:
            if wrong := set(entry.seeds) - set(TUNING_SEEDS):
                choose = ", ".join(map(str, TUNING_SEEDS))
                said = f"seed {min(wrong)} reports, and a sweep chooses on the seeds {choose}"
                raise self._mistake(f"sweeps.{entry.name}: {said}")
        return made

    def _entry(self, name: str, parts: Iterable[_Part]) -> Entry:
        """Put the parts of an entry together; of two values the later one stands."""
        settings: dict[str, Any] = {}
        over: dict[str, list[Any]] = {}
        seeds = self.seeds
        for part in parts:
            label = {part.label: part.words["label"]} if "label" in part.words else {}
            sets = [self._named("sets", n).settings for n in _listed(part.words.get("use", []))]
            for given in (*sets, {**part.settings, **label}):
                settings = _without(settings, _other_ways(given)) | given
                over = _without(over, {*given, *_other_ways(given)})
            several = part.words.get("over", {})
            settings = _without(settings, _other_ways(several))
            over = _without(over, _other_ways(several)) | several
            seeds = part.words.get("seeds", seeds)
        for key in ("cell.row", "cell.column"):
            if key not in settings:
                raise self._mistake(f"{name} has no {key}; give its row or column a label")
        try:
            found = parse_seeds(seeds)
        except ValueError as error:
            wrong = f"{seeds} are not seeds, as 0..4 or [0..9, 100]: {error}"
            raise self._mistake(f"{name}: {wrong}") from None
        for key in settings:
            for above in (key[: dot.start()] for dot in re.finditer(r"\.", key)):
                if above in settings and above not in GROUPS:
                    raise self._mistake(f"{name}: {above} has a value, so there is no {key}")
        return Entry(self.file, name, _without(settings, over), over, found)

    def _named(self, kind: str, name: str) -> _Part:
        return self._part(f"{kind}.{name}", self.parts[kind].get(name, {}))

    def _part(self, where: str, said: Any) -> _Part:
        """Sort what a mapping of the file says into settings and other words."""
        known = WORDS[where.partition(".")[0]]
        part = _Part({}, {})
        for key, value in self._mapping(where, said).items():
            if key not in known and key.partition(".")[0] not in SECTIONS:
                near = did_you_mean(key, {*known, *SECTIONS})
                raise self._mistake(f"{where}: {key} is not a setting{near}")
            self._check_value(where, key, value)
            (part.words if key in known else part.settings)[key] = value
        self._check("set", _listed(part.words.get("use", [])), self.parts["sets"], f"{where}.use")
        over = self._mapping(f"{where}.over", part.words.get("over", {}))
        if "cell.table" in {*part.settings, *over}:
            raise self._mistake(f"{where}: cell.table is the file's name, no setting")
        if len(both := [key for key in SAME if key in {*part.settings, *over}]) > 1:
            raise self._mistake(f"{where}: {' and '.join(both)} say the same; give one of them")
        for key, values in over.items():
            if key.partition(".")[0] not in SECTIONS:
                near = did_you_mean(key, SECTIONS)
                raise self._mistake(f"{where}.over: {key} is not a setting{near}")
            if key in (*GROUPS, "scale"):
                said = f"give each {key} a row or a column of its own"
                raise self._mistake(f"{where}.over: {key} chooses a file; {said}")
            if not (isinstance(values, list) and values):
                raise self._mistake(f"{where}.over.{key} is not a list of values")
        return part

    def _check_value(self, where: str, key: str, value: Any) -> None:
        """Refuse an option that is none, and a plain value where settings are, or the reverse."""
        section, dot, _ = key.partition(".")
        if key == "dry_run":
            raise self._mistake(f"{where}: dry_run is said of a command, not in a table")
        if key in (*GROUPS, "scale"):
            options = option_files(key)
            if not isinstance(value, str) or ("${" not in value and value not in options):
                near = did_you_mean(str(value), options)
                said = f"{key}: {value} is not an option{near}; options: {', '.join(options)}"
                raise self._mistake(f"{where}: {said}")
        elif key in FOLDED:
            raise self._mistake(f"{where}: {key} has settings, given one by one as {key}.NAME")
        elif dot and section not in FOLDED:
            raise self._mistake(f"{where}: {key}: {section} is one value and has no settings")

    def _mapping(self, where: str, said: Any) -> dict[str, Any]:
        if not isinstance(said, dict):
            raise self._mistake(f"{where} is not a mapping of names to values")
        return {str(key): value for key, value in said.items()}

    def _check(self, kind: str, names: Iterable[str], known: Iterable[str], where: str) -> None:
        for name in names:
            if name not in known:
                place = f"{where}: " if where else ""
                near = did_you_mean(name, known)
                raise self._mistake(f"{place}{name} is not a {kind} of this table{near}")

    def _mistake(self, said: str) -> ConfigError:
        return ConfigError(f"{self.file}: {said}")


def _without(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in {*keys}}


def _other_ways(given: Iterable[str]) -> set[str]:
    """Return the settings that say in another way what these say."""
    said = {*given} & {*SAME}
    return {*SAME} - said if said else set()


def _listed(names: Any) -> list[str]:
    """Return one name, or a list of them, as a list."""
    return [str(name) for name in names] if isinstance(names, list) else [str(names)]


def as_word(value: Any) -> str:
    """Return a value of a table as Hydra's command line takes it."""
    if isinstance(value, list):
        return f"[{','.join(map(as_word, value))}]"
    if isinstance(value, str) and not PLAIN.fullmatch(value):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else json.dumps(value)
