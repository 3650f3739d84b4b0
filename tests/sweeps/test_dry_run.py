"""The dry run: no data, no card, nothing started."""

from __future__ import annotations

import json
import math
import re
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fogzo_repro import __main__ as cli
from fogzo_repro.composition import compose_run
from fogzo_repro.config import RunConfig, UserError, to_yaml
from fogzo_repro.data.decoded import command
from fogzo_repro.reporting.benches import read_benches
from fogzo_repro.sweeps.benched import (
    Peak,
    by_card,
    flop_per_token,
    loader_rates,
    peak_memory,
    run_hours,
)
from fogzo_repro.sweeps.dry_run import describe_without_data, dry_run
from fogzo_repro.sweeps.forecast import forecast, missing_disk, missing_here
from fogzo_repro.sweeps.recorded import hours_by_records, peak_by_records, recorded_seconds
from fogzo_repro.sweeps.status import known_runs
from scripts.table_cells import table_cells
from tests.composed import TABLES, composed
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

RECORDS = ROOT / "results" / "records"


def config(name: str, *overrides: str) -> RunConfig:
    return table_cells(name, list(overrides))[0].config


@pytest.mark.parametrize("table", TABLES, ids=TABLES)
def test_every_cell_is_forecast_without_its_data(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cells = [replace(c, config=replace(c.config, data_dir=str(tmp_path))) for c in composed(table)]
    lines = dry_run(table, cells, RECORDS)
    text = "\n".join(lines)
    begins = [line.split("  ")[1] for line in lines if line.startswith("  ")]
    wanted = [cell.config.cell.column for cell in cells]
    assert [begin for begin in begins if begin not in ("sum", "")] == wanted  # one line a cell
    assert "GPU-hours of the missing runs on one NVIDIA H200" in text
    assert f"{tmp_path}/c4/manifest.json is not there" in text
    assert list(tmp_path.iterdir()) == []


def test_the_tokens_to_prepare_are_those_of_the_largest_cell(tmp_path: Path) -> None:
    names = ("table3/95m-full-precision", "table3/300m-full-precision")
    cells = [cell for name in names for cell in table_cells(name, [f"data_dir={tmp_path}"])]
    lines = dry_run("table3", cells, RECORDS)
    (said,) = (x for x in lines if x.startswith("missing on") and "prepare_c4" in x)
    assert "--tokenizer meta-llama/Llama-2-7b-hf --out" in said  # QuEST's, RECIPES C.2
    assert said.endswith("--tokens 2.04e+10")
    assert any(line.endswith("data: c4 41 GB") for line in lines)  # two bytes a token of these


def test_a_mini_needs_a_small_text_that_keeps_documents_out(tmp_path: Path) -> None:
    cells = table_cells("mini-llama/hardtanh-ste-6", [f"data_dir={tmp_path}"])
    lines = dry_run("mini-llama", cells, RECORDS)
    (said,) = (x for x in lines if x.startswith("missing on") and "prepare_c4" in x)
    assert "--tokens 1.02e+08 --held-out 0.005; the recorded runs had another text" in said


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("table3/95m-quest-ste", " until make bench-language HARDWARE=NAME measured them"),
        ("mini-llama/hardtanh-ste", ""),  # records tell
    ],
)
def test_what_measures_another_card_is_said(name: str, said: str) -> None:
    assert f"other cards: unknown{said}" in dry_run(name, table_cells(name, []), RECORDS)


def test_a_disk_that_is_too_small_is_named(tmp_path: Path) -> None:
    root = tmp_path / "not" / "there"
    assert missing_disk(root, 1) == []
    (line,) = missing_disk(root, 10**18)
    assert line.startswith(f"1000000000 GB on the disk of output_root={root}: ")


def test_runs_with_a_committed_record_are_not_missing() -> None:
    cells = table_cells("figure-shallow/full-precision", ["hardware=h200"], (*range(10), 9999))
    (line,) = (x for x in dry_run("figure-shallow", cells, RECORDS) if x.startswith("  -"))
    assert "  1 of 11  " in line


def test_runs_on_a_cpu_have_no_hours_of_a_card_and_no_record_of_one() -> None:
    cells = table_cells("figure-shallow/full-precision", ["hardware=cpu"], (2000,))
    lines = dry_run("figure-shallow", cells, RECORDS)
    assert any("  1 of 1  " in line for line in lines)
    assert "no hours are recorded for a CPU" in lines
    assert not any("NVIDIA" in line for line in lines)


def test_a_run_on_a_cpu_says_that_it_has_no_hours(tmp_path: Path) -> None:
    run = compose_run("model=llama_9m", "hardware=cpu", f"data_dir={tmp_path}")
    text = describe_without_data(run)
    assert text is not None and text.splitlines()[-1] == "no hours are recorded for a CPU"


@pytest.mark.parametrize("card", [False, True], ids=["no card", "a card"])
def test_hardware_auto_counts_the_records_of_the_device_that_it_takes(
    card: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card)
    cells = table_cells("figure-shallow/full-precision", [], (2000, 9999))
    lines = dry_run("figure-shallow", cells, RECORDS)
    said = [line for line in lines if "have a record of a GPU" in line]
    assert any(f"  {1 if card else 2} of 2  " in line for line in lines)
    assert len(said) == (not card)
    if said:
        assert said[0].startswith("1 of the missing runs") and "hardware=h200" in said[0]


def test_run_folders_of_another_device_do_not_count(tmp_path: Path) -> None:
    one = config("figure-shallow/full-precision", "hardware=cpu", "recipe.max_steps=1")
    one = replace(one, output_root=str(tmp_path))
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(to_yaml(one))
    (folder / "resolved.json").write_text('{"resolved": {"device": "cpu"}}')
    found = {d: known_runs(tmp_path / "none", [tmp_path], d) for d in ("cpu", "cuda", None)}
    assert [len(found[device]) for device in ("cpu", "cuda", None)] == [1, 0, 1]


def test_a_row_of_several_blocks_stands_once_and_runs_side_by_side_leave_no_folders() -> None:
    cells = [
        *table_cells("figure-shallow/ste", [], (9999,)),
        *table_cells("figure-shallow/sweep-ste", ["recipe.lr=0.002"]),
    ]
    lines = dry_run("figure-shallow", cells, RECORDS)
    rows = [line for line in lines if line.startswith("STE")]
    assert len(rows) == len(set(rows)) == 2
    assert any(line.startswith("disk: 0 GB for the run folders") for line in lines)


def test_a_row_has_the_sum_of_its_cells() -> None:
    cells = [c for c in composed("table1") if c.config.cell.row == "DeiT-Tiny, ImageNet-100"]
    lines = dry_run("table1", cells, RECORDS)
    (total,) = (line for line in lines if line.startswith("  sum"))
    hours = [float(line.split()[-1]) for line in lines if " images " in line and "of 5" in line]
    assert len(hours) == len(cells)
    assert float(total.split()[-1]) == pytest.approx(sum(hours), abs=1)


def test_photographs_take_as_long_as_their_loader_where_that_is_slower() -> None:
    deit, record = config("table1/deit-tiny-identity-ste"), bench("vision")
    rate = bench("loader")["recipes"]["deit_tiny"]["images_per_s"]
    hours = run_hours(deit, 1000, [record], loader_rates(read_benches(RECORDS / "bench")))
    assert hours is not None and hours.loader
    assert hours.hours == pytest.approx(1000 * 1024 / rate / 3600)
    fast = run_hours(deit, 1000, [record], {"deit_tiny": 1e9})
    assert fast == run_hours(deit, 1000, [record]) and not fast.loader
    images = config("table1/deit-tiny-identity-ste", "scale=mini")  # in memory
    assert images.dataset.family != "imagenet"


def test_classes_and_the_decoded_tree_are_missed_before_a_run_misses_them(tmp_path: Path) -> None:
    listing = {split: {"n01558993": ["1.JPEG"]} for split in ("train", "val")}
    (tmp_path / "imagenet" / "train").mkdir(parents=True)
    manifest = json.dumps({"version": 1, **listing})
    (tmp_path / "imagenet" / "manifest.json").write_text(manifest)

    def missed(*words: str) -> str:
        resnet = config("table1/resnet18-identity-ste", f"data_dir={tmp_path}", *words)
        return missing_here(resnet, forecast(resnet))[-1]

    assert missed().startswith("99 of 100 classes have no images")
    part = ("dataset.allow_partial=true", "dataset.decoded=256")
    assert missed(*part).endswith(f"run {command(tmp_path / 'imagenet', 256)}")


def test_the_best_recorded_loader_counts(tmp_path: Path) -> None:
    for name, rate in (("a", 100.0), ("b", 300.0)):
        recipes = {"hardware": "a card", "recipes": {"deit_tiny": {"images_per_s": rate}}}
        (tmp_path / f"{name}.json").write_text(json.dumps(recipes))
    assert loader_rates(read_benches(tmp_path)) == {"deit_tiny": 300.0}


def test_a_run_from_a_decoded_tree_has_the_rate_of_that_way(tmp_path: Path) -> None:
    ways = {"decoded_device": {"images_per_s": 700.0}}
    recipes = {
        "hardware": "a card",
        "recipes": {"deit_tiny": {"images_per_s": 300.0, "ways": ways}},
    }
    (tmp_path / "a.json").write_text(json.dumps(recipes))
    rates, record = loader_rates(read_benches(tmp_path)), bench("vision")
    assert rates == {"deit_tiny": 300.0, "deit_tiny decoded": 700.0}
    for more, rate in (((), 300.0), (("dataset.decoded=256",), 700.0)):
        deit = config("table1/deit-tiny-identity-ste", *more)
        hours = run_hours(deit, 1000, [record], rates)
        assert hours is not None and hours.hours == pytest.approx(1000 * 1024 / rate / 3600)


@pytest.mark.parametrize("table", ["table1", "table3"])
def test_the_way_to_try_a_cell_can_be_run(table: str) -> None:
    lines = dry_run(table, composed(table)[:1], RECORDS)
    (line,) = (line for line in lines if "recipe.max_steps=" in line)
    words = line.split("python -m fogzo_repro ")[1].split()
    tried = compose_run(*words)
    assert (tried.recipe.max_steps, tried.recipe.global_batch_size) == (5, 8)
    assert tried.scale == "full" and tried.cell.table == "none"
    if table == "table1":
        assert tried.dataset.allow_partial


def test_parameters_are_those_of_the_known_networks() -> None:
    llama = forecast(config("table3/95m-quest-fogzo"))
    assert llama.parameters == 94_871_680  # RECIPES C.9
    assert llama.perturbed == 30_482_560 - 640 * (2 * 6 + 1)  # all but the norms' gains
    assert (llama.steps, llama.units) == (91_552, 91_552 * 32_768)


def test_the_steps_of_deit_are_upstreams_on_imagenet_1k() -> None:
    deit = config("table1/deit-tiny-identity-ste", "dataset=imagenet1k")
    assert forecast(deit).steps == 375_300  # RECIPES B.3


def bench(group: str) -> dict[str, Any]:
    return json.loads((RECORDS / f"bench/{group}-h200.json").read_text())


def test_hours_are_steps_by_the_measured_times() -> None:
    record = bench("language-lsq-w2")
    measured = record["networks"]["llama_30m"]["lsq-w2"]
    cell = config("table4/lsq-fogzo-last-30", "quantizer.activation_bits=16")
    hours = run_hours(cell, 1000, [record])
    ste, fogzo = (measured[k]["median"] / 1000 for k in ("ste_ms", "fogzo_ms"))
    assert hours is not None and not hours.scaled
    assert hours.hours == pytest.approx(1000 * (0.7 * ste + 0.3 * fogzo) / 3600)


def test_photographs_are_scaled_to_the_batch_of_the_recipe() -> None:
    record = bench("vision")
    measured = record["networks"]["deit_tiny"]["round-w2"]
    hours = run_hours(config("table1/deit-tiny-identity-ste"), 1000, [record])
    assert hours is not None and not hours.scaled
    assert hours.hours == pytest.approx(4 * measured["ste_ms"]["median"] / 3600)


def test_a_quantizer_that_was_not_measured_is_estimated_by_round_and_marked() -> None:
    record, cell = bench("vision"), config("table2/resnet50-lsq-ste")
    hours = run_hours(cell, 1000, [record])
    measured = record["networks"]["resnet50"]["round-w2"]
    assert hours is not None and hours.scaled
    assert hours.hours == pytest.approx(measured["ste_ms"]["median"] / 3600)
    better = bench("vision-lsq-w2")  # wherever it stands
    hours = run_hours(cell, 1000, [record, better])
    measured = better["networks"]["resnet50"]["lsq-w2"]
    assert hours is not None and not hours.scaled
    assert hours.hours == pytest.approx(measured["ste_ms"]["median"] / 3600)


def test_a_size_that_was_not_measured_is_taken_from_one_with_the_quantizer() -> None:
    records = [bench("language-large"), bench("language-quantizers")]  # the first: round, nearer
    hours = run_hours(config("table3/300m-quest-ste"), 1000, records)
    alone = run_hours(config("table3/300m-quest-ste"), 1000, records[1:])
    assert hours is not None and hours == alone and hours.scaled


def test_a_size_that_was_not_measured_is_scaled_by_flop_and_marked() -> None:
    record = bench("language")
    small, large = config("table3/95m-quest-ste"), config("table3/300m-quest-ste")
    hours = [run_hours(c, 1000, [record]) for c in (small, large)]
    assert hours[0] and hours[1] and hours[1].scaled
    ratio = flop_per_token(large.model) / flop_per_token(small.model)
    assert hours[1].hours / hours[0].hours == pytest.approx(ratio)


def test_a_network_that_was_not_measured_is_unknown() -> None:
    record = {"bench": "vision", "networks": {"resnet18": {"round-w2": {"size": 224}}}}
    assert run_hours(config("table2/resnet50-lsq-ste"), 1000, [record]) is None
    assert peak_memory(config("table2/resnet50-lsq-ste"), [record]) is None
    assert peak_memory(config("table1/llama-9m-identity-ste"), [record]) is None


@pytest.mark.parametrize(
    ("cell", "group", "network", "factor", "scaled"),
    [
        ("table3/95m-quest-fogzo", "language-quantizers", ("llama_30m", "quest-w2a2"), 1, False),
        ("table1/resnet18-identity-ste", "vision", ("resnet18", "round-w2"), 1, False),
        ("table1/resnet18-tanh-ste", "vision", ("resnet18", "round-w2"), 1, True),
        ("table1/deit-tiny-identity-ste", "vision", ("deit_tiny", "round-w2"), 4, True),
        ("table3/200m-quest-ste", "language-exact-300m", ("llama_300m", "quest-w2a2"), 1, True),
    ],
    ids=["llama", "resnet", "another quantizer", "another batch", "a larger one"],
)
def test_the_memory_of_a_run_is_the_peak_that_was_measured(
    cell: str, group: str, network: tuple[str, str], factor: int, scaled: bool
) -> None:
    record, (name, quantizer) = bench(group), network
    peak = peak_memory(config(cell), [record])
    assert peak is not None and peak.scaled == scaled
    assert peak.memory == factor * 2**20 * record["networks"][name][quantizer]["peak_memory_mb"]


def test_a_dry_run_says_the_measured_memory_and_what_is_not_measured() -> None:
    cells = [*composed("table3")[:1], *table_cells("table1/llama-9m-identity-ste", [])]
    quest, small = (x.split() for x in dry_run("table3", cells, RECORDS) if " of 5 " in x)
    assert "7.3" in quest  # GiB; 1.41 without the activations
    assert "~6.5" in small
    cells = table_cells("table1/llama-9m-identity-ste", ["hardware=cpu"])
    (line,) = (x for x in dry_run("table1", cells, RECORDS) if " of 5 " in x)
    assert "0.71+" in line.split()


def test_a_card_counts_by_its_training_benches_alone() -> None:
    said = {
        record.get("bench", "mnist")
        for records in by_card(read_benches(RECORDS / "bench")).values()
        for record in records
    }
    assert said == {"language", "mnist", "vision"}


@pytest.mark.parametrize(
    ("bench", "where"),
    [
        ("vision-deit-small-h200", ("networks", "deit_small", "round-w2", "ste_ms")),
        ("mnist-h200", ("jobs", "mnist_ste", "seconds")),
        ("loader-h200", ("recipes", "resnet18", "images_per_s")),
    ],
)
@pytest.mark.parametrize("damage", ["fast", None, 0])
def test_a_damaged_figure_of_a_bench_is_one_line(
    tmp_path: Path, bench: str, where: tuple[str, ...], damage: Any
) -> None:
    part = record = json.loads((RECORDS / "bench" / f"{bench}.json").read_text())
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = damage
    (tmp_path / "a.json").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"a\.json .*; put back the committed file"):
        read_benches(tmp_path)


def record_of(folder: Path, name: str, run: RunConfig, hours: float, **changes: Any) -> None:
    made = {"config": asdict(run), "gpu_hours": hours, "steps": 100, "hardware": "a card"}
    made["peak_memory_mb"] = 1024 * hours
    made["command"] = "python -m fogzo_repro"
    (folder / "t").mkdir(exist_ok=True)
    (folder / "t" / f"{name}.json").write_text(json.dumps(made | changes))


def test_runs_side_by_side_take_their_share_of_the_groups_time(tmp_path: Path) -> None:
    one, ten, hundred = (config(f"figure-shallow/fogzo{k}") for k in ("", "-10", "-100"))
    record_of(tmp_path, "one", one, 2.0, seeds=[0, 1, 2, 3])
    record_of(tmp_path, "ten", ten, 8.0, seeds=[0, 1])
    seconds = recorded_seconds(tmp_path)["a card"]
    found = [hours_by_records(c, 200, seconds) for c in (one, ten, hundred)]
    assert [(h.hours, h.scaled) for h in found if h] == [(1.0, False), (8.0, False), (80.0, True)]


def test_probes_on_a_part_take_what_was_recorded_of_that_part(tmp_path: Path) -> None:
    whole, quarter, late, eighth = (
        config("mini-deit-tiny/lsq-fogzo", *words)
        for words in (
            [],
            ["estimator.probe_fraction=0.25"],
            ["estimator.start_fraction=0.5"],
            ["estimator.probe_fraction=0.125"],
        )
    )
    for name, run, hours in (("a", whole, 3.0), ("b", quarter, 2.0)):
        record_of(tmp_path, name, run, hours)
    seconds = recorded_seconds(tmp_path)["a card"]
    found = [hours_by_records(c, 100, seconds) for c in (whole, quarter, late, eighth)]
    expected = [(3.0, False), (2.0, False), (3.0, True), (3.0, True)]
    assert [(h.hours, h.scaled) for h in found if h] == expected


def test_probes_on_a_part_take_what_the_bench_has_measured() -> None:
    figures = bench("vision-regions")["networks"]["resnet18"]["round-w2"]
    cell = "table1/resnet18-identity-"
    ste = run_hours(config(f"{cell}ste"), 1000, [bench("vision-regions")])
    for share, ratio in (
        ("0.25", figures["probe_fraction"]["0.25"]["fogzo_over_ste"]),
        ("0.125", figures["probe_fraction"]["0.125"]["fogzo_over_ste"]),
        ("0.5", figures["fogzo_over_ste"]),
    ):
        part = config(f"{cell}fogzo", f"estimator.probe_fraction={share}")
        hours = run_hours(part, 1000, [bench("vision-regions")])
        assert ste is not None and hours is not None
        assert hours.hours / ste.hours == pytest.approx(ratio)
        assert hours.scaled == (share == "0.5")


def test_runs_at_scale_mini_take_what_recorded_ones_took(tmp_path: Path) -> None:
    lsq, other = (config(f"mini-deit-tiny/{name}-ste") for name in ("lsq", "clipped"))
    for k, hours in enumerate((1.0, 2.0, 9.0)):
        record_of(tmp_path, f"{k}", lsq, hours)
    (tmp_path / "t" / "half.json").write_text("{")
    for k, damage in enumerate(({"gpu_hours": math.nan}, {"steps": math.nan}, {"gpu_hours": -1.0})):
        record_of(tmp_path, f"damaged{k}", lsq, 0.5, **damage)
    record_of(tmp_path, "diverged", lsq, 0.5, steps=3, status="diverged")
    seconds = recorded_seconds(tmp_path)["a card"]
    found = [hours_by_records(c, 100, seconds) for c in (lsq, other)]
    assert [(h.hours, h.scaled) for h in found if h] == [(2.0, False), (2.0, True)]
    assert hours_by_records(config("mini-llama/lsq-ste"), 100, seconds) is None


def test_an_estimator_without_a_record_takes_what_the_ste_or_fogzo_takes(tmp_path: Path) -> None:
    ste, fogzo = (config(f"mini-deit-tiny/lsq-{name}") for name in ("ste", "fogzo"))
    record_of(tmp_path, "ste", ste, 2.0)
    record_of(tmp_path, "fogzo", fogzo, 3.0)
    recorded = recorded_seconds(tmp_path)
    for known, hours in ((ste, 2.0), (fogzo, 3.0)):
        own = replace(known, estimator=replace(known.estimator, name="own"))
        found, peak = hours_by_records(own, 100, recorded["a card"]), peak_by_records(own, recorded)
        assert found is not None and (found.hours, found.scaled) == (hours, True)
        assert peak is not None and (peak.memory, peak.scaled) == (3 * 2**30, True)
        peak = peak_by_records(known, recorded)
        assert peak is not None and (peak.memory, peak.scaled) == (hours * 2**30, False)
    assert peak_by_records(config("mini-llama/lsq-ste"), recorded) is None


def test_a_run_of_few_probe_pairs_has_not_the_memory_of_many(tmp_path: Path) -> None:
    many = config("figure-shallow/nspsa-many", "estimator.n=7960")
    record_of(tmp_path, "many", many, 2.0)
    recorded = recorded_seconds(tmp_path)
    assert peak_by_records(many, recorded) == Peak(2 * 2**30, False)
    few = config("figure-shallow/ste")
    own = replace(few, quantizer=replace(few.quantizer, name="own"))
    assert peak_by_records(own, recorded) is None


@pytest.mark.parametrize(
    ("cell", "memory"),
    [("mini-llama/round-fogzo", "memory"), ("mini-deit-tiny/round-fogzo", "memory on a card")],
    ids=["without its data", "planned"],
)
def test_a_run_at_scale_mini_has_the_hours_and_the_memory_of_recorded_ones(
    cell: str,
    memory: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = [f"experiment={cell}", f"data_dir={tmp_path}", "dry_run=true"]
    monkeypatch.setattr(sys, "argv", ["fogzo_repro/__main__.py", *words])
    monkeypatch.chdir(ROOT)
    assert cli.main() == 0
    said = capsys.readouterr().out
    assert re.search(r"^hours, NVIDIA H100 80GB HBM3  ≤?~?0\.\d+$", said, re.M)
    assert re.search(rf"^{memory} +3\.\d GiB$", said, re.M)


def test_times_of_runs_that_shared_their_card_are_bounds_and_no_times(tmp_path: Path) -> None:
    lsq, card = config("mini-deit-tiny/lsq-ste"), "NVIDIA H200"  # of which there are benches
    for k, changes in enumerate(
        [{"beside": 1}, {"notes": "shared its card with others"}, {"command": "x --workers 2"}]
    ):
        record_of(tmp_path, f"{k}", lsq, 5.0, hardware=card, **changes)
    hours = hours_by_records(lsq, 100, recorded_seconds(tmp_path)[card])
    assert hours is not None and (hours.hours, hours.shared) == (5.0, True)
    lines = dry_run("mini-deit-tiny", table_cells("mini-deit-tiny/lsq-ste", []), tmp_path)
    steps = forecast(lsq).steps / 100
    (line,) = (line for line in lines if line.startswith("  STE"))
    assert {f"≤{5 * steps:.0f}", f"≤{25 * steps:.0f}"} <= {*line.split()}
    assert f"GPU-hours of the missing runs on one {card}: ≤{25 * steps:.0f}" in lines
    record_of(tmp_path, "alone", lsq, 2.0, hardware=card)
    hours = hours_by_records(lsq, 100, recorded_seconds(tmp_path)[card])
    assert hours is not None and (hours.hours, hours.shared) == (2.0, False)


def test_a_damaged_bench_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(UserError, match=r"x\.json is not the record of a bench"):
        read_benches(tmp_path)


def test_gradients_at_probes_take_as_many_steps_of_the_ste(tmp_path: Path) -> None:
    ste, averaged = (config(f"mini-deit-tiny/hardtanh-{name}") for name in ("ste", "two-points"))
    record_of(tmp_path, "ste", ste, 2.0)
    seconds = recorded_seconds(tmp_path)["a card"]
    found = hours_by_records(averaged, 100, seconds)
    assert found is not None and (found.hours, found.scaled) == (6.0, True)
    quick = {"size": 28, "units_per_step": 512, "ste_ms": {"median": 10.0}}
    quick["fogzo_ms"] = {"median": 15.0}
    bench = {"bench": "vision", "networks": {"deit_tiny": {"round-w2": quick}}}
    full = replace(averaged, scale="full", dataset=config("table1/deit-tiny-identity-ste").dataset)
    quick["size"] = full.dataset.image_size  # type: ignore[attr-defined]
    hours = run_hours(full, 1000, [bench])
    assert hours is not None and hours.hours == pytest.approx(3 * 10.0 / 3600)
