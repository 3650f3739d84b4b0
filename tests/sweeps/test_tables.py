"""Table files: what stands in which cell, and one line for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from fogzo_repro.config import ConfigError
from fogzo_repro.sweeps.tables import Entry, evaluation_seeds, parse_seeds, read_table

TABLE = """
seeds: 0..2
settings: {hardware: cpu, recipe.lr: 0.1}
sets:
  fogzo: {estimator: fogzo, estimator.noise: 1e-9}
rows:
  small: {label: Small, model: mlp}
  large: {label: "Large, on C4", model: llama_9m, recipe.lr: 0.2}
columns:
  ste: {label: STE, estimator: ste, seeds: [0..1, 100..102]}
  fogzo: {label: FOGZO, use: [fogzo], rows: [large], estimator.n: 2}
only:
  large-fogzo: {recipe.lr: 0.3}
sweeps:
  noise:
    of: large-fogzo
    cell.row: "Large: FOGZO"
    cell.column: "1-beta=${estimator.noise}, lr=${recipe.lr}"
    over: {estimator.noise: [1e-6, 1e-7]}
"""


def read(folder: Path, text: str) -> dict[str, Entry]:
    file = folder / "tiny.yaml"
    file.write_text(text)
    return {entry.name: entry for entry in read_table(file)}


def test_a_cell_is_its_row_its_column_and_what_it_has_alone(tmp_path: Path) -> None:
    entries = read(tmp_path, TABLE)
    assert list(entries) == ["small-ste", "large-ste", "large-fogzo", "noise"]
    assert entries["large-fogzo"].path == "tiny/large-fogzo"
    assert entries["large-fogzo"].settings == {
        "cell.table": "tiny", "hardware": "cpu", "recipe.lr": 0.3, "model": "llama_9m",
        "cell.row": "Large, on C4", "estimator": "fogzo", "estimator.noise": 1e-9,
        "estimator.n": 2, "cell.column": "FOGZO",
    }  # fmt: skip
    assert [entries["small-ste"].settings[k] for k in ("model", "recipe.lr")] == ["mlp", 0.1]
    assert entries["large-ste"].settings["recipe.lr"] == 0.2
    assert entries["small-ste"].seeds == (0, 1, 100, 101, 102)
    assert entries["large-fogzo"].seeds == (0, 1, 2)


def test_a_sweep_has_the_settings_of_its_cell_and_the_tuning_seeds(tmp_path: Path) -> None:
    sweep = read(tmp_path, TABLE)["noise"]
    assert "estimator.noise" not in sweep.settings and sweep.settings["recipe.lr"] == 0.3
    assert [(cell.row, cell.column, cell.seeds) for cell in sweep.cells()] == [
        ("Large: FOGZO", "1-beta=1e-06, lr=0.3", (100, 101, 102)),
        ("Large: FOGZO", "1-beta=1e-07, lr=0.3", (100, 101, 102)),
    ]


GRID = """
seeds: 0
settings: {cell.row: "n=${estimator.n}"}
columns:
  grid: {label: "lr=${recipe.lr}", over: {estimator.n: [1, 2, 3], recipe.lr: [0.1, 0.2]}}
"""


def test_each_value_once_is_no_product(tmp_path: Path) -> None:
    grid = read(tmp_path, GRID)["grid"]
    assert len(list(grid.combinations())) == 6
    found = [tuple(values.values()) for values in grid.combinations(each_value_once=True)]
    assert found == [(1, 0.1), (1, 0.2), (2, 0.1), (3, 0.1)]


def test_other_evaluation_seeds_leave_the_tuning_seeds(tmp_path: Path) -> None:
    entries = read(tmp_path, TABLE)
    seeds = {name: entry.with_seeds((7, 8)).seeds for name, entry in entries.items()}
    assert seeds["small-ste"] == (7, 8, 100, 101, 102)
    assert seeds["large-fogzo"] == (7, 8)
    assert seeds["noise"] == (100, 101, 102)


def test_seeds_are_numbers_ranges_and_lists_of_them() -> None:
    assert parse_seeds("0..499") == tuple(range(500))
    assert parse_seeds(["0..1", 100]) == parse_seeds("0,1,100") == (0, 1, 100)
    assert parse_seeds(7) == (7,)
    assert evaluation_seeds("5,0..1") == (5, 0, 1)


BAD_SEEDS = [
    "0,x", "1..", "0,100", "0,0", "0..2,1", "-1", "2147483648", "0..99999999999", "0..2147483647",
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_SEEDS, ids=str)
def test_seeds_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=f"--seeds={text}"):
        evaluation_seeds(text)


MISTAKES = {  # what is written in place of what, and what is said
    "a part": ("sets:", "set:", "set is not a part of this table; did you mean sets?"),
    "a row": ("[large]", "[larg]", "columns.fogzo.rows: larg is not a row of this table; did "),
    "a set": ("[fogzo]", "[fogso]", "columns.fogzo.use: fogso is not a set of this table; did "),
    "a cell": ("large-fogzo: {", "small-fogz: {", "only: small-fogz is not a cell of this table"),
    "the cell of a sweep": ("of: large-fogzo", "of: large-fog", "did you mean large-fogzo?"),
    "a section": ("recipe.lr: 0.1", "recip.lr: 0.1", "settings: recip.lr is not a setting"),
    "a word": ("label: STE", "lable: STE", "lable is not a setting; did you mean label?"),
    "the seed": ("model: mlp", "seed: 1", "seed is not a setting; did you mean seeds?"),
    "no label": ("label: STE, ", "", "small-ste has no cell.column; give its row or column a "),
    "no seeds": ("seeds: 0..2", "", "large-fogzo: None are not seeds, as 0..4 or [0..9, 100]"),
    "one label twice": ("label: FOGZO", "label: STE", "have the same labels, Large, on C4 | STE"),
    "one value twice": ("1e-6, 1e-7", "1e-7, 1e-7", "noise and noise have the same labels"),
    "a reference": ("lr=${recipe.lr}", "lr=${recipe.l}", "recipe.l, which is not set; did you "),
    "a seed twice": ("seeds: 0..2", "seeds: [0, 0]", "[0..9, 100]: 0 stands there twice"),
    "a negative seed": ("seeds: 0..2", "seeds: -1", "-1 is neither a number in 0..2147483647"),
    "too many seeds": ("seeds: 0..2", "seeds: 0..99999999999", "99999 is neither a number"),
    "a cell and a sweep": ("  noise:", "  small-ste:", "small-ste is a cell and a sweep; give the"),
    "another table": ("[1e-6, 1e-7]", "[1e-6], cell.table: [x]", "sweeps.noise: cell.table is the"),
    "another table of a row": ("model: mlp", "cell.table: x", "rows.small: cell.table is the"),
    "a sweep of two cells": ("of: large-fogzo", "of: [large-fogzo, small-ste]", "of names 2 cells"),
    "a value of a section": ("model: mlp", "cell: 3", "rows.small: cell has settings, given "),
    "settings of a value": ("model: mlp", "data_dir: x, data_dir.y: 1", "data_dir is one value"),
    "settings below a value": ("model: mlp", "recipe.lr.x: 1", "small-ste: recipe.lr has a value"),
    "an unknown section over": ("{estimator.n", "{estimatr.n", "over: estimatr.noise is not a "),
    "an option": ("estimator: ste", "estimator: fogzoo", "columns.ste: estimator: fogzoo is not "),
    "its near name": ("estimator: ste", "estimator: fogzoo", "did you mean fogzo?; options: fogzo"),
    "a mapping for an option": ("estimator: ste", "estimator: {n: 3}", "{'n': 3} is not an option"),
    "a scale": ("model: mlp", "scale: smok", "scale: smok is not an option; did you mean smoke?"),
    "options over": ("{estimator.noise: [1e-6, 1e-7]", "{estimator: [ste]", "chooses a file"),
    "no seed": ("seeds: 0..2", "seeds: []", "there is no seed"),
    "scales over": ("{estimator.noise: [1e-6, 1e-7]", "{scale: [full]", "scale chooses a file"),
    "a dry run": ("model: mlp", "dry_run: true", "dry_run is said of a command, not in a table"),
    "a name with a slash": ("  small:", "  a/b:", "rows: the name 'a/b' has other than letters, "),
    "a name with a comma": ("  small:", "  a b,c:", "rows: the name 'a b,c' has other than"),
    "the name of a sweep": ("  noise:", "  a=b:", "sweeps: the name 'a=b' has other than letters"),
    "evaluation seeds": ("of: large", "seeds: 1..2\n    of: large", "sweeps.noise: seed 1 reports"),
    "no values": ("[1e-6, 1e-7]", "1e-6", "sweeps.noise.over.estimator.noise is not a list"),
    "no mapping": ("{label: Small, model: mlp}", "mlp", "rows.small is not a mapping of names"),
    "one thing twice": ("noise: 1e-9", "noise: 1, estimator.rho: 1", "sets.fogzo: estimator.no"),
    "one of them over": ("over: {", "estimator.rho: 1\n    over: {", "estimator.noise and est"),
    "no table": (TABLE, "- 1", "is not a mapping of keys to values"),
    "a tab": ("rows:", "rows:\t\n\t", "cannot be read"),
    "one key twice": ("columns:", "seeds: 1\ncolumns:", "seeds"),
}  # fmt: skip


@pytest.mark.parametrize(("there", "written", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_line_with_the_file(
    tmp_path: Path, there: str, written: str, said: str
) -> None:
    assert there in TABLE
    with pytest.raises(ConfigError) as error:
        read(tmp_path, TABLE.replace(there, written))
    assert str(error.value).startswith(f"{tmp_path}/tiny.yaml")
    assert said in str(error.value)


def test_two_cells_of_one_name_are_refused(tmp_path: Path) -> None:
    table = """
    seeds: 0
    rows: {a: {label: A}, a-b: {label: AB}}
    columns: {b-c: {label: BC}, c: {label: C}}
    """
    with pytest.raises(ConfigError, match=r"tiny\.yaml: two cells have the name a-b-c"):
        read(tmp_path, table)


def test_of_settings_that_say_the_same_the_later_one_stands(tmp_path: Path) -> None:
    table = """
    seeds: 0
    settings: {cell.column: "-", estimator: fogzo, estimator.noise: 0.1}
    sets: {rho: {estimator.rho: 0.2}}
    rows:
      a: {label: A}
      b: {label: B, estimator.beta_min: 0.9}
      c: {label: C, use: rho, estimator.noise: 0.3}
      d: {label: "D ${estimator.rho}", over: {estimator.rho: [1, 2]}}
      e: {label: "E ${estimator.rho}", over: {estimator.rho: [1, 2]}}
    only: {e: {estimator.noise: 0.4, cell.row: E}}
    sweeps: {s: {of: b, over: {estimator.noise: [0.5]}, cell.row: S}}
    """
    entries = read(tmp_path, table)
    found = {name: {**entry.settings, **entry.over} for name, entry in entries.items()}
    said = {
        name: {k: v for k, v in each.items() if k.startswith("estimator.")}
        for name, each in found.items()
    }
    assert said == {
        "a": {"estimator.noise": 0.1}, "b": {"estimator.beta_min": 0.9},
        "c": {"estimator.noise": 0.3}, "d": {"estimator.rho": [1, 2]},
        "e": {"estimator.noise": 0.4}, "s": {"estimator.noise": [0.5]},
    }  # fmt: skip


def test_a_later_value_stands_against_several_earlier_ones(tmp_path: Path) -> None:
    table = """
    seeds: 0
    settings: {cell.column: "-"}
    sets: {slow: {recipe.lr: 0.01}}
    rows:
      a: {label: "A ${recipe.lr}", over: {recipe.lr: [0.1, 0.2]}}
      b: {label: "B ${recipe.lr}", over: {recipe.lr: [0.1, 0.2]}}
    only: {a: {recipe.lr: 0.3}, b: {use: [slow]}}
    sweeps: {s: {of: a, over: {recipe.lr: [1, 2]}, cell.row: "S ${recipe.lr}"}}
    """
    entries = read(tmp_path, table)
    assert [(entries[k].over, entries[k].settings["recipe.lr"]) for k in "ab"] == [
        ({}, 0.3), ({}, 0.01),
    ]  # fmt: skip
    assert entries["s"].over == {"recipe.lr": [1, 2]} and "recipe.lr" not in entries["s"].settings
