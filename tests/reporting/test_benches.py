"""What the pages say of speed: few rows, from records alone."""

import json
import math
from pathlib import Path

import pytest
from conftest import ROOT

from fogzo_repro.config import UserError
from fogzo_repro.reporting.benches import SHOWN, read_benches, speed, speed_sentence

COMMITTED = ROOT / "results" / "records" / "bench"
LOOP = {
    "bench": "loop", "hardware": "NVIDIA H200",
    "loop": {
        "llama_30m": {
            "round-w2": {"fogzo_step_over_train_step": 1.0104, "fogzo_step_over_captured": 1.02}
        }
    },
}  # fmt: skip


def rows(text: str) -> list[str]:
    """Return the lines of tables below their heads and rules."""
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if line.startswith("| ---")]
    heads = {i - 1 for i in rules} | set(rules)
    return [x for i, x in enumerate(lines) if x.startswith("|") and i not in heads]


def filed(folder: Path, name: str, record: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(record))


def test_a_reader_sees_at_most_twelve_rows_and_a_link_to_every_record(tmp_path):
    for path in COMMITTED.glob("*.json"):
        record = json.loads(path.read_text())
        for copy in (path.stem, f"{path.stem}-again"):  # of another go, or card
            filed(tmp_path, copy, record)
    filed(tmp_path, "loop", LOOP)
    said = speed(read_benches(tmp_path))
    assert len(rows(said)) == len(SHOWN) + 4 == 12
    for path in tmp_path.glob("*.json"):
        assert f"[{path.stem}](../results/records/bench/{path.name})" in said


def test_the_object_is_shown_beside_both_of_the_suites_steps(tmp_path):
    filed(tmp_path, "loop", LOOP)
    (row,) = rows(speed(read_benches(tmp_path)))
    assert "llama_30m round-w2, NVIDIA H200" in row
    assert "1.010 × launched by kernels, 1.020 × as a CUDA graph" in row


def test_a_record_with_a_floor_goes_before_an_older_one(tmp_path):
    record = json.loads((COMMITTED / "vision-h200.json").read_text())
    filed(tmp_path, "a", record)
    assert "× floor" not in speed(read_benches(tmp_path))
    figures = record["networks"]["deit_tiny"]["round-w2"]
    figures |= {"floor": {"fogzo": {"measured_over": 2.347}}, "fogzo_over_ste": 1.111}
    filed(tmp_path, "b", record)
    (row,) = (row for row in rows(speed(read_benches(tmp_path))) if "deit_tiny" in row)
    assert "| 1.111 |" in row and "| 2.35 |" in row
    assert "[b](" in row


def test_of_equal_records_that_of_the_card_with_most_is_shown(tmp_path):
    record = json.loads((COMMITTED / "vision-h200.json").read_text())
    filed(tmp_path, "a", record | {"hardware": "another card"})
    for name in ("b", "c"):
        filed(tmp_path, name, record)
    said = rows(speed(read_benches(tmp_path)))
    assert said and all("[b](" in row and "NVIDIA H200" in row for row in said)


def test_the_readme_says_the_range_of_all_cases(tmp_path):
    assert speed_sentence(read_benches(tmp_path)) == ""
    record = json.loads((COMMITTED / "vision-h200.json").read_text())
    for name, ratio in {"resnet18": 1.2345, "resnet50": 1.5, "deit_tiny": 1.75}.items():
        record["networks"][name]["round-w2"]["fogzo_over_ste"] = ratio
    filed(tmp_path, "vision", record)
    said = speed_sentence(read_benches(tmp_path))
    assert "takes 1.23 to 1.75 times as long as an STE step" in said and ", on one H200 (" in said
    of_resnet = record["networks"]["resnet18"]
    of_resnet["own"] = of_resnet["round-w2"] | {"fogzo_over_ste": 1.9}
    filed(tmp_path, "vision", record)
    said = speed_sentence(read_benches(tmp_path))
    assert "takes 1.23 to 1.90 times" in said  # the table has no such row


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"hardware": 3}'])
def test_what_is_no_record_of_a_bench_is_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json is not the record of a bench .*; put back the"):
        speed(read_benches(tmp_path))


@pytest.mark.parametrize(
    ("bench", "where", "damage"),
    [
        ("vision-h200", ("networks",), 3),
        ("vision-h200", ("networks", "resnet18", "round-w2", "ste_per_s"), "fast"),
        ("vision-h200", ("networks", "resnet18", "round-w2", "fogzo_over_ste"), None),
        ("cards-h100", ("cards", "resnet18", "together"), []),
        ("loader-h200", ("recipes", "resnet18", "images_per_s"), "fast"),
        ("peers-h200", ("peers",), 3),
        ("peers-h200", ("peers", "llama_30m", "none", "quest_over_suite"), math.nan),
        ("peers-h200", ("peers", "llama_30m", "none", "suite_ms", "median"), "fast"),
        ("peers-h200", ("peers", "llama_30m", "none", "suite_ms", "max"), math.inf),
        ("start-quest-h200", ("starts", "llama_30m quest-w2a2", "seconds_kept"), 0),
        ("start-quest-h200", ("starts",), []),
        ("language-head-h200", ("networks", "llama_30m", "none", "ste_kernels", 0, "ms"), -1.0),
        ("language-head-h200", ("networks", "llama_200m", "none", "peak_memory_mb"), [1.0]),
    ],
)
def test_a_damaged_figure_is_one_line_that_names_the_record(tmp_path, bench, where, damage):
    record = json.loads((COMMITTED / f"{bench}.json").read_text())
    part = record
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = damage
    filed(tmp_path, "a", record)
    with pytest.raises(UserError, match=r"a\.json is not the record of a bench .*; put back the"):
        read_benches(tmp_path)
