"""Readings of Section 4.1: which claims each gives, and which is picked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fogzo_repro.composition import compose_run
from fogzo_repro.config import RoundConfig, UserError
from fogzo_repro.reporting.claims import read_claims
from fogzo_repro.reporting.figures.readings import write_figure
from fogzo_repro.reporting.readings import (
    CLAIMS,
    DERIVATIVES,
    FOGZO,
    FOGZO_10,
    SPSA,
    SPSA_7960,
    STE,
    TABLE,
    picked,
    read_readings,
    write_readings,
)
from tests.conftest import ROOT
from tests.reporting.conftest import Save, read_csv

SaveReading = Callable[..., None]
ALL = {STE: 0.9, SPSA: 1.9, SPSA_7960: 0.74, FOGZO: 0.8, FOGZO_10: 0.73}  # gives every claim
SEEDS = (1000, 1001, 1002)


@pytest.fixture
def save_reading(save: Save) -> SaveReading:
    """Write the cells of a reading, n-SPSA's with derivative 1 alone, as the table has them."""

    def write(
        losses: dict[str, float],
        grid: str = "half_integer",
        clip: bool | str = False,
        spacing: float = 1.0,
        rate: float = 0.032,
    ) -> None:
        for row, loss in losses.items():
            if row.startswith("n-SPSA") and clip is not False:
                continue
            quantizer = {
                "name": "round", "grid": grid, "clip_gradient": clip, "scale_factor": spacing,
            }  # fmt: skip
            config = {
                "model": {"name": "mlp"}, "dataset": {"name": "mnist"}, "quantizer": quantizer,
                "estimator": {"name": "ste"}, "recipe": {"lr": rate},
            }  # fmt: skip
            column = f"{grid} {clip} {spacing} {rate}"
            for k, seed in enumerate(SEEDS):
                slug = f"{row}-{column}-s{seed}".replace(" ", "-").replace(",", "")
                more = {"table": TABLE, "config": config, "run_id": slug}
                save(row, column, seed, loss + k * len(row) / 1e5, **more)

    return write


def given(results: Path) -> dict[str, int]:
    return {
        f"{one.reading.named}, {one.reading.rate:g}": one.given for one in read_readings(results)[1]
    }


@pytest.mark.parametrize(
    ("row", "loss"),
    [(SPSA, 1.19), (SPSA_7960, 0.91), (FOGZO, 0.91), (FOGZO_10, 0.77)],
    ids=["A", "B", "C", "D"],
)
def test_each_claim_is_given_by_the_means_alone(
    results: Path, save_reading: SaveReading, row: str, loss: float
) -> None:
    save_reading(ALL)
    (one,) = read_readings(results)[1]
    assert one.given == len(CLAIMS)
    save_reading(ALL | {row: loss}, grid="integer")
    (other,) = (t for t in read_readings(results)[1] if t.reading.grid == "integer")
    assert other.given == len(CLAIMS) - 1


def test_margins_are_those_of_the_claims_that_were_written_down() -> None:
    claims = read_claims(ROOT / "results" / "paper" / "claims.csv", "figure-shallow")
    ids = ("spsa-1-far-worse", "spsa-7960-better", "fogzo-0.999-better", "cost-796")
    stated = {claim.id: claim.margin for claim in claims}
    assert [stated[name] for name in ids] == [claim.margin for claim in CLAIMS]


def test_n_spsa_is_shared_by_the_derivatives(results: Path, save_reading: SaveReading) -> None:
    save_reading(ALL)
    save_reading(ALL, clip=True)
    assert list(given(results).values()) == [4, 4]


def test_the_most_claims_win_and_then_what_quest_has(
    results: Path, save_reading: SaveReading
) -> None:
    save_reading(ALL | {FOGZO: 0.95})
    save_reading(ALL, clip=True)
    best = picked(read_readings(results)[1])
    assert best is not None and best.reading.derivative == "0 beyond the outer levels"
    shutil.rmtree(results / "records")
    for grid in ("integer", "half_integer"):
        for clip in (True, "half_step", False):
            save_reading(ALL, grid=grid, clip=clip)
    assert set(given(results).values()) == {4}
    best = picked(read_readings(results)[1])
    assert best is not None and best.reading.named == "half-integer grid, derivative 1, 1 σ"


@pytest.mark.parametrize("other", [{"spacing": 2.0}, {"rate": 0.008}], ids=["spacing", "rate"])
def test_the_default_is_picked_at_spacing_1_and_the_papers_rate(
    results: Path, save_reading: SaveReading, other: dict[str, float]
) -> None:
    save_reading(ALL | {FOGZO: 0.95}, grid="integer")
    save_reading(ALL, **other)
    best = picked(read_readings(results)[1])
    assert best is not None and (best.reading.grid, best.given) == ("integer", 3)


def test_the_page_says_what_was_picked_and_why(results: Path, save_reading: SaveReading) -> None:
    save_reading(ALL)
    save_reading({STE: 0.7, FOGZO: 0.8}, grid="integer", clip=True, spacing=2.0)
    save_reading(ALL | {FOGZO: 0.95}, rate=0.008)
    save_reading(ALL, clip=True, rate=0.008)
    write_readings(results)
    text = (results / "tables" / "readings.md").read_text()
    assert "picked **because** the claims come out under it" in text
    assert "Picked: **half-integer grid, derivative 1, 1 σ**, with 4 of 4; no other one" in text
    assert "At lr 0.008 it gives 3; more are given there by: half-integer grid, deriv" in text
    assert "| 0.032 | 2.0 | integer | 0 beyond the outer levels | not run | not run | no, " in text


def test_the_figure_shows_the_paired_gain_at_both_noises(
    results: Path, save_reading: SaveReading
) -> None:
    save_reading(ALL | {"FOGZO n=1, 1-beta=1e-05": 0.7})
    assert write_figure(results / "figures" / "t", read_readings(results)[1])
    points = read_csv(results / "figures" / "t.csv")
    assert [(p["noise"], round(float(p["mean"]), 9)) for p in points] == [
        ("0.001", 0.0998), ("1e-05", 0.1998),
    ]  # fmt: skip


def test_a_record_without_the_quantizer_of_a_reading_is_one_line(
    results: Path, save_reading: SaveReading
) -> None:
    save_reading({STE: 0.9})
    for path in (results / "records" / TABLE).glob("*.json"):
        path.write_text(path.read_text().replace('"grid"', '"gird"'))
    with pytest.raises(UserError, match=r"^the record .* of readings .*; delete it and run"):
        read_readings(results)


def test_without_records_nothing_is_picked_or_drawn(results: Path) -> None:
    _, tried = write_readings(results)
    assert not write_figure(results / "figures" / "t", tried)
    assert "None was run." in (results / "tables" / "readings.md").read_text()


def test_the_default_of_quantizer_round_is_what_the_records_pick() -> None:
    best = picked(read_readings(ROOT / "results")[1])
    quantizer = compose_run("quantizer=round").quantizer
    assert best is not None and isinstance(quantizer, RoundConfig)
    assert best.reading.grid == quantizer.grid.replace("_", "-")
    assert best.reading.derivative == DERIVATIVES[quantizer.clip_gradient]
    assert best.reading.spacing == quantizer.scale_factor
