"""A run keeps its name: what is part of its identity, and what is not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fogzo_repro.composition import compose_run
from fogzo_repro.config import cell_id, parse_stored, result_fields, run_id
from fogzo_repro.config.identity import FREE, HOW_COMPUTED, NEUTRAL
from fogzo_repro.config.rules import spelled
from fogzo_repro.estimators import noise_from_rho
from tests.conftest import ROOT

RECORDS = {
    folder.name: sorted(folder.glob("*.json"))
    for folder in (ROOT / "results" / "records").iterdir()
    if folder.name not in ("bench", "diagnosis")
}


def named(config):
    return run_id(config, result_fields(config, {}))


@pytest.mark.parametrize("table", sorted(RECORDS))
def test_committed_records_keep_their_run_ids(table, monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / "examples" / "rivals"))
    for path in RECORDS[table]:
        record = json.loads(path.read_text())
        seeds = record.get("seeds")  # of lanes
        config = parse_stored({**record["config"], "seed": seeds[0]} if seeds else record["config"])
        resolved = {k: v for k, v in record["resolved"].items() if k not in HOW_COMPUTED}
        result = result_fields(config, resolved)
        made = cell_id(config, result, seeds) if seeds else run_id(config, result)
        assert made == record["run_id"] == path.stem, path


LATER = {  # a run that has the setting, and another value of it
    "dataset.decoded": (["model=resnet18", "dataset=imagenet1k"], "256"),
    "model.stem": (["model=resnet18"], "small"),
    "quantizer.scale_factor": (["quantizer=round"], "1.5"),
}


def test_every_setting_that_came_later_is_tried():
    assert set(LATER) | {"estimator.rho", "recipe.start_from"} == set(NEUTRAL)


@pytest.mark.slow
@pytest.mark.parametrize("key", LATER)
def test_a_setting_that_came_later_counts_where_it_is_not_as_before(key):
    words, other = LATER[key]
    before = compose_run(*words)
    section, name = key.split(".")
    assert name not in result_fields(before, {})[section]
    assert named(compose_run(*words, f"{key}={spelled(NEUTRAL[key])}")) == named(before)
    assert named(compose_run(*words, f"{key}={other}")) != named(before)


def test_rho_is_in_the_identity_as_the_noise_that_it_amounts_to():
    by_rho = compose_run("estimator.rho=7.948")
    assert by_rho.estimator.noise is None
    noise = noise_from_rho(7.948, 7940)
    assert noise == pytest.approx(7.948 / (7.948 + 7940), rel=1e-15)
    resolved = replace(by_rho, estimator=replace(by_rho.estimator, noise=noise, rho=None))
    by_noise = compose_run(f"estimator.noise={resolved.estimator.noise!r}")
    assert named(by_noise) == named(resolved)


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(FREE - {"cell", "hardware", "tracker"}))
def test_what_changes_no_number_is_not_part_of_the_identity(key):
    other = {"parts_dir": str(Path.cwd()), "eval_every_steps": 7, "snapshots": 3}.get(key)
    config = compose_run()
    if other is None:
        value = getattr(config, key)
        other = "elsewhere" if isinstance(value, str) else value + 1
    assert named(replace(config, **{key: other})) == named(config)


def test_a_stored_run_without_a_setting_has_what_the_code_had_before():
    configs = (json.loads(path.read_text())["config"] for path in RECORDS["figure-shallow"])
    stored = next(config for config in configs if "family" not in config["model"])
    assert "decay_scales" not in stored["recipe"]
    config = parse_stored(stored)
    assert (config.model.family, config.recipe.decay_scales) == ("mlp", False)
