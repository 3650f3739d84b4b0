"""The cells of Tables 1 to 4: the table files have the listed cells, each as its label says."""

from __future__ import annotations

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fogzo_repro.config import ConfigError
from fogzo_repro.reporting.minis import FINETUNED
from fogzo_repro.reporting.minis import TITLES as MINIS
from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps.jobs import Cell
from fogzo_repro.sweeps.tables import find_entries, table_files
from scripts.table_cells import table_cells
from tests.composed import TABLES, composed
from tests.conftest import ROOT

PAPER = ROOT.parent / "shared" / "PAPER.md"


@pytest.fixture(scope="module")
def cells() -> dict[str, list[Cell]]:
    return {table: composed(table) for table in TABLES}


def listed(table: str) -> list[dict[str, str]]:
    with open(ROOT / "results" / "paper" / f"{table}.csv") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("table", [*TABLES, "figure-shallow", *MINIS, *FINETUNED])
def test_the_cells_are_those_that_are_listed(table: str) -> None:
    planned = [(c.row, c.column) for e in find_entries(table, table_files()) for c in e.cells()]
    lines = [(e["row"], e["column"], e["metric"]) for e in listed(table)]
    assert sorted(planned) == sorted({(row, column) for row, column, _ in lines})
    assert len(lines) == len(set(lines))


@pytest.mark.slow
def test_a_cell_reports_on_five_seeds_and_a_sweep_chooses_on_three(
    cells: dict[str, list[Cell]],
) -> None:
    for cell in (c for table in TABLES for c in cells[table]):
        swept = "=" in cell.config.cell.column
        assert cell.seeds == (TUNING_SEEDS if swept else tuple(range(5)))


def test_a_setting_with_several_values_that_is_none_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FOGZO_PARTS", str(tmp_path))
    (tmp_path / "table").mkdir()
    table = """
    seeds: 0
    settings: {dataset: digits, recipe: digits_mlp, cell.column: "-"}
    rows: {a: {label: "n=${estimator.nn}", over: {estimator.nn: [1, 2]}}}
    """
    (tmp_path / "table" / "tiny.yaml").write_text(table)
    with pytest.raises(
        ConfigError, match=r"tiny\.yaml, a: estimator\.nn is not a setting; did you"
    ):
        table_cells("tiny", [])


@pytest.mark.slow
def test_every_cell_is_what_its_label_says(cells: dict[str, list[Cell]]) -> None:
    for config in (c.config for table in TABLES for c in cells[table]):
        label = f"{config.cell.row} {config.cell.column}"
        kind = next(k for k in ("ImageNet-100", "C4", "95M", "200M", "300M", "30M") if k in label)
        dataset = "imagenet100" if kind == "ImageNet-100" else "c4"
        quantizer = {"full precision": "none", "tanh": "sign", "approxsign": "sign", "LSQ": "lsq",
                     "QuEST": "quest", "identity": "round"}  # fmt: skip
        expected = next((q for word, q in quantizer.items() if word in label), "lsq")  # Table 4
        assert (config.scale, config.dataset.name, config.quantizer.name) == (
            "full", dataset, expected,
        )  # fmt: skip
        assert config.estimator.name == ("fogzo" if "FOGZO" in label else "ste")
        if "FOGZO" in label:
            assert (config.estimator.n, config.estimator.beta_schedule) == (1, "linear")
            assert config.estimator.random_sign == label.endswith("random sign")


@pytest.mark.slow
def test_the_activations_of_tables_3_and_4_have_two_bits(cells: dict[str, list[Cell]]) -> None:
    for config in (c.config for t in ("table3", "table4") for c in cells[t]):
        if config.quantizer.name != "none":
            assert (config.quantizer.weight_bits, config.quantizer.activation_bits) == (2, 2)


@pytest.mark.slow
def test_table_4_has_the_papers_tokens_and_its_last_30_percent(
    cells: dict[str, list[Cell]],
) -> None:
    found = {c.config.cell.column: c.config for c in cells["table4"]}
    tokens = {k: c.recipe.max_steps * 64 * 512 for k, c in found.items()}
    assert tokens["LSQ-STE, 3.522B tokens"] == pytest.approx(3.522e9, rel=1e-4)
    fogzo = found["70% STE + 30% FOGZO, 3.0B tokens"]
    assert tokens[fogzo.cell.column] == pytest.approx(3.0e9, rel=1e-4)
    assert fogzo.estimator.start_fraction == 0.7


def test_equal_cost_controls_have_the_measured_ratio() -> None:
    text = "\n".join(file.read_text() for file in table_files().values())
    named = r"(\d\.\d+) \((\S+), (\w+) ([\w-]+)(?: probe_fraction=([\d.]+))?"
    sources = re.findall(named, text)
    for ratio, bench, network, quantizer, part in sources:
        record = json.loads((ROOT / f"results/records/bench/{bench}.json").read_text())
        found = record["networks"][network][quantizer]
        measured = (found["probe_fraction"][part] if part else found)["fogzo_over_ste"]
        assert float(ratio) == pytest.approx(measured, abs=6e-4), (bench, network, quantizer)
    products = re.findall(
        r"(?:epochs|max_steps): (\d+)[,}\s].*# (\d+)(?: / (\d))? x (\d\.\d+)", text
    )
    for length, plain, cost, ratio in products:  # cost of a step in steps of the STE
        assert int(length) == pytest.approx(int(plain) * float(ratio) / int(cost or 1), abs=1)
    assert len(sources) == len(products) == 20
    assert [cost for _, _, cost, _ in products if cost] == ["3"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=TABLES)
def test_a_control_at_equal_cost_stretches_the_whole_schedule(
    cells: dict[str, list[Cell]], table: str
) -> None:
    recipes = {cell.place: cell.config.recipe for cell in cells[table]}
    for (row, column), longer in recipes.items():
        if not column.endswith("equal cost"):
            continue
        plain = recipes[row, "full precision"]
        length = "max_steps" if plain.max_steps else "epochs"
        ratio = getattr(longer, length) / getattr(plain, length)
        assert ratio > 1.2
        if plain.schedule == "step":
            assert longer.step_epochs / plain.step_epochs == pytest.approx(ratio, rel=0.02)
        if plain.schedule == "epoch_cosine":
            assert longer.warmup_epochs == round(ratio * plain.warmup_epochs)


@pytest.mark.slow
@pytest.mark.parametrize("table", table_files(), ids=str)
def test_the_labels_that_are_read_are_those_that_are_composed(table: str) -> None:
    entries = find_entries(table, table_files())
    planned = {(c.row, c.column): c for entry in entries for c in entry.cells()}
    for cell in composed(table):
        label = cell.config.cell
        read = planned[label.row, label.column]
        assert (read.table, read.scale, read.seeds) == (table, cell.config.scale, cell.seeds)


PAPER_TABLES = {  # table: heading in PAPER.md, metrics in the order of its cells
    "table1": (r"\*\*Table 1", ["identity STE", "identity FOGZO", "tanh STE", "tanh FOGZO"]),
    "table2": (r"\*\*Table 2", ["LSQ-STE", "LSQ-FOGZO"]),
    "table3": (r"\*\*Table 3", ["QuEST", "QuEST-FOGZO", "LSQ", "LSQ-FOGZO"]),
}


@pytest.mark.skipif(not PAPER.is_file(), reason="PAPER.md is not beside the project")
@pytest.mark.parametrize("table", PAPER_TABLES, ids=list(PAPER_TABLES))
def test_the_transcribed_values_are_those_of_the_summary(table: str) -> None:
    heading, columns = PAPER_TABLES[table]
    section = re.split(heading, PAPER.read_text())[1].split("**Table")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| [\w-]", line)][1:]
    said = {}
    for line in lines:
        row, *values = [part.strip() for part in line.strip("|").split("|")]
        row = re.sub(r" \(.*\)$", "", row)
        for column, value in zip(columns, values, strict=False):
            if value != "–":
                said[row, column] = [part.strip() for part in value.split("/")]
    ours: dict[tuple[str, str], list[str]] = {}
    for entry in listed(table):
        if entry["value"]:
            ours.setdefault((entry["row"], entry["column"]), []).append(entry["value"])
    assert ours == said


@pytest.mark.skipif(not PAPER.is_file(), reason="PAPER.md is not beside the project")
def test_the_transcribed_values_of_table_4_are_those_of_the_summary() -> None:
    section = PAPER.read_text().split("**Table 4: ")[1]
    for entry in listed("table4"):
        if entry["value"]:
            method = entry["column"].split(",")[0]
            assert re.search(rf"\| {re.escape(method)} \| \S+ \| {entry['value']} \|", section)


@pytest.mark.slow
@pytest.mark.parametrize("table", TABLES, ids=TABLES)
def test_no_two_cells_of_a_table_are_the_same_run(cells: dict[str, list[Cell]], table: str) -> None:
    found = [
        (replace(cell.config, cell=None), seed)  # type: ignore[arg-type]
        for cell in cells[table]
        for seed in cell.seeds
    ]
    assert len({repr(run) for run in found}) == len(found)
