"""The cells of the mini tables: what they compose to, which seeds, which controls."""

from __future__ import annotations

import csv
import importlib.util
import itertools
from types import ModuleType
from typing import Any

import pytest
import yaml

from fogzo_repro.reporting.results import MINIS, TUNING_SEEDS
from fogzo_repro.sweeps.jobs import Cell
from tests.conftest import ROOT

EXPERIMENTS = ROOT / "configs" / "experiment"
NOISES = [1e-10, 1e-9, 1e-8, 1e-7]
QUANTIZERS = {"2-bit": ("round", "identity"), "1-bit": ("sign", "tanh")}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_cells", ROOT / "scripts" / "run_cells.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def cells(script: ModuleType) -> dict[str, list[Cell]]:
    """Every cell of the small language model; of the vision tables the first of each file."""
    first = {"scale": "mini", "recipe.lr": "0.03", "estimator.noise": "1e-9"}
    found = {"mini-llama": script.table_cells("mini-llama", [])}
    for table in ("mini-resnet18", "mini-deit-tiny"):
        found[table] = []
        for path in sorted((EXPERIMENTS / table).glob("*.yaml")):
            swept = settings(path)["hydra"]["sweeper"]["params"]
            given = [f"{key}={value}" for key, value in first.items() if key in swept]
            found[table] += script.table_cells(f"{table}/{path.stem}", given)
    return found


def settings(path: Any) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


def labels(table: str) -> list[tuple[str, str]]:
    """Rows and columns that the files of a table sweep over, without composing them."""
    found = []
    for path in (EXPERIMENTS / table).glob("*.yaml"):
        given = settings(path)
        sweep, column = given["hydra"]["sweeper"]["params"], given["cell"]["column"]
        for key in ("recipe.lr", "estimator.noise"):
            values = [float(v) for v in str(sweep.get(key, "nan")).split(",")]
            if f"${{{key}}}" in column:
                columns = [column.replace(f"${{{key}}}", str(v)) for v in values]
                found += [(given["cell"]["row"], c) for c in columns]
        if column == "-":
            found.append((given["cell"]["row"], column))
    return found


@pytest.mark.parametrize("table", MINIS, ids=MINIS)
def test_the_experiment_files_are_the_cells_of_the_table(table: str) -> None:
    with open(ROOT / "results" / "paper" / f"{table}.csv") as file:
        listed = [(line["row"], line["column"]) for line in csv.DictReader(file)]
    assert sorted(labels(table)) == sorted(listed)


def test_the_labels_are_those_of_the_composed_cells(cells: dict[str, list[Cell]]) -> None:
    composed = [(c.config.cell.row, c.config.cell.column) for c in cells["mini-llama"]]
    assert sorted(composed) == sorted(labels("mini-llama"))


@pytest.mark.parametrize(
    ("table", "model", "dataset", "recipe"),
    [
        ("mini-resnet18", "resnet18", "mnist", "mnist_resnet"),
        ("mini-deit-tiny", "deit_tiny", "mnist", "mnist_deit"),
        ("mini-llama", "llama_mini", "c4", "c4_llama_mini"),
    ],
    ids=MINIS,
)
def test_every_cell_is_composed_at_scale_mini(
    cells: dict[str, list[Cell]], table: str, model: str, dataset: str, recipe: str
) -> None:
    for config in (c.config for c in cells[table]):
        assert (config.scale, config.cell.table) == ("mini", table)
        found = config.model.name, config.dataset.name, config.recipe.name
        assert found == (model, dataset, recipe)


def test_every_cell_is_what_its_label_says(cells: dict[str, list[Cell]]) -> None:
    for config in (c.config for c in itertools.chain(*cells.values())):
        row, estimator = config.cell.row, config.estimator
        quantizer = QUANTIZERS.get(row.split()[0], ("none", None))
        assert (config.quantizer.name, getattr(config.quantizer, "surrogate", None)) == quantizer
        assert estimator.name == ("fogzo" if "FOGZO" in row else "ste")
        if estimator.name == "fogzo":
            assert (estimator.n, estimator.beta_schedule) == (1, "linear")
            assert config.cell.column == f"1-beta={estimator.noise}"
            assert estimator.random_sign == row.endswith("random sign")


def test_the_noises_go_from_1e_10_to_1e_7(cells: dict[str, list[Cell]]) -> None:
    for row in ("2-bit FOGZO", "2-bit FOGZO, random sign"):
        swept = [c.config for c in cells["mini-llama"] if c.config.cell.row == row]
        assert sorted(c.estimator.noise for c in swept) == NOISES


def test_the_small_llama_trains_for_2000_steps(cells: dict[str, list[Cell]]) -> None:
    for config in (c.config for c in cells["mini-llama"]):
        if config.cell.row != "2-bit STE, equal cost":
            assert config.recipe.max_steps == 2000


def test_five_seeds_report_and_the_tuned_rows_have_the_tuning_seeds(
    cells: dict[str, list[Cell]],
) -> None:
    for cell in itertools.chain(*cells.values()):
        tuned = cell.config.cell.row.endswith((" STE", " FOGZO"))
        assert cell.seeds == (*range(5), *(TUNING_SEEDS if tuned else ()))


@pytest.mark.parametrize("table", MINIS, ids=MINIS)
def test_the_ste_gets_as_many_tuning_runs_as_fogzo(table: str) -> None:
    rows = [row for row, _ in labels(table)]
    for bits in {row.split()[0] for row in rows if "FOGZO" in row}:
        assert rows.count(f"{bits} STE") == rows.count(f"{bits} FOGZO") == 4


@pytest.mark.parametrize("table", MINIS, ids=MINIS)
def test_at_equal_cost_the_whole_schedule_is_stretched_by_one_ratio(
    cells: dict[str, list[Cell]], table: str
) -> None:
    plain = next(c.config.recipe for c in cells[table] if c.config.cell.row.endswith(" STE"))
    longer = [c.config.recipe for c in cells[table] if "equal cost" in c.config.cell.row]
    for recipe in longer:
        length = "max_steps" if plain.max_steps else "epochs"
        ratio = getattr(recipe, length) / getattr(plain, length)
        assert ratio > 1
        if plain.schedule == "step":
            assert recipe.step_epochs == round(ratio * plain.step_epochs)
        if plain.schedule == "epoch_cosine":
            assert recipe.warmup_epochs == round(ratio * plain.warmup_epochs)


def test_the_rows_of_both_quantizers_have_the_same_controls() -> None:
    for table in ("mini-resnet18", "mini-deit-tiny"):
        found: dict[str, list[Any]] = {"1-bit": [], "2-bit": []}
        for row, column in labels(table):
            bits, _, kind = row.partition(" ")
            found.setdefault(bits, []).append((kind, column))
        assert sorted(found["1-bit"]) == sorted(found["2-bit"])


def test_an_override_replaces_the_sweep_of_a_file(script: ModuleType) -> None:
    (cell,) = script.table_cells("mini-llama/2bit-random-sign", ["estimator.noise=1e-9"])
    assert cell.config.cell.column == "1-beta=1e-09"


def test_the_scale_of_the_command_line_has_the_last_word(script: ModuleType) -> None:
    (cell,) = script.table_cells("mini-resnet18/full-precision", ["scale=smoke"])
    assert (cell.config.scale, cell.config.recipe.max_steps) == ("smoke", 2)
    assert cell.config.hardware.device == "cpu"
