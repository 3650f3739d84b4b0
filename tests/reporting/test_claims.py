"""From claims and records to verdicts."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import NO_CLAIM, Judged, check_claimed, judge, read_claims
from fogzo_repro.reporting.minis import FINETUNED, sections
from fogzo_repro.reporting.minis import TITLES as MINIS
from fogzo_repro.reporting.results import read_paper, read_results
from fogzo_repro.reporting.tables import PAPER_TITLES, write_table
from fogzo_repro.reporting.tuning import chosen, on_edge
from tests.conftest import ROOT
from tests.reporting.conftest import Save, line_of, page

TABLE = "figure-shallow"
STE = ("STE, integer grid", "lr=0.032")
FOGZO = ("FOGZO n=1, integer grid", "1-beta=0.001")
LATE = "70% STE + 30% FOGZO, 3.0B tokens"


def verdict_of(results: Path, claim: str = "fogzo-0.999-better") -> Judged:
    judged = judge(read_results(results, TABLE), read_claims(results / "paper/claims.csv", TABLE))
    return next(j for j in judged if j.claim.id == claim)


def save_pairs(save: Save, gains: list[float]) -> None:
    """FOGZO at 0.5 on every seed, the STE worse by the gain."""
    for seed, gain in enumerate(gains):
        save(*FOGZO, seed, 0.5)
        save(*STE, seed, 0.5 + gain)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.10, 0.11, 0.09, 0.12, 0.10], "holds"),
        ([-0.10, -0.11, -0.09, -0.12, -0.10], "contradicted"),
        ([0.10, -0.11, 0.09, -0.12, 0.10], "inconclusive"),
        ([], "not run"),
    ],
    ids=["better", "worse", "unclear", "no runs"],
)
def test_the_verdict_follows_the_sign_of_a_clear_gain(
    results: Path, save: Save, gains: list[float], verdict: str
) -> None:
    save_pairs(save, gains)
    assert verdict_of(results).verdict == verdict


def test_fewer_than_five_seeds_are_at_most_inconclusive(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, 0.11, 0.09, 0.10])
    judged = verdict_of(results)
    assert judged.adjusted_p < 0.05
    assert (judged.verdict, judged.note) == ("inconclusive", "only 4 seeds")


def test_one_seed_gives_no_p_and_no_verdict(results: Path, save: Save) -> None:
    save_pairs(save, [0.1])
    judged = verdict_of(results)
    assert judged.test is not None and math.isnan(judged.test.p)
    assert judged.verdict == "inconclusive"


def test_other_numbers_of_seeds_are_compared_without_pairs(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, 0.11, 0.09, 0.12, 0.10])
    save(*FOGZO, 5, 0.506)
    judged = verdict_of(results)
    assert judged.test is not None and not judged.test.paired
    assert judged.test.n == (6, 5) and judged.test.gain == pytest.approx(0.103)
    start = "| FOGZO beta=0.999 n=1 is better than the STE (integer"
    assert "| 6, 5 |" in line_of(page(results), start)


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        ([0.001, -0.002, 0.003, -0.001, 0.0], "no difference above 0.02"),
        ([0.006, 0.007, 0.005, 0.006, 0.007], "no difference above 0.02"),
        ([0.019, 0.021, 0.018, 0.022, 0.020], "holds"),
        ([0.05, -0.05, 0.04, -0.04, 0.0], "inconclusive"),
    ],
    ids=["none", "small but there", "at the bound", "too noisy"],
)
def test_a_gain_shown_to_be_below_the_bound_is_no_difference(
    results: Path, save: Save, gains: list[float], verdict: str
) -> None:
    save_pairs(save, gains)
    judged = verdict_of(results)
    assert judged.said == verdict
    if judged.verdict == "no difference":
        assert judged.deciding_p == judged.adjusted_same < 0.05
        assert ("is there" in judged.note) == (judged.adjusted_p < 0.05)


def test_a_bound_in_percent_is_one_of_the_worse_sides_mean(results: Path, save: Save) -> None:
    # perplexity 100.2 against 100.0: +0.2 is within 0.5% of 100, and not within 0.15%
    path = results / "paper" / "claims.csv"
    for seed, noise in enumerate((0.0, 0.01, -0.01, 0.02, -0.02)):
        for column, value in (("LSQ-STE, 3.522B tokens", 100.2 + noise), (LATE, 100.0)):
            metrics = {"last": {"val": {"perplexity": value}, "train": {"loss": 1.0}}, "best": {}}
            save("30M", column, seed, 0.0, table="table4", metrics=metrics)
    found = read_results(results, "table4")
    (judged,) = judge(found, read_claims(path, "table4"))
    assert judged.said == "no difference above 0.5%"
    path.write_text(path.read_text().replace("lower,0,0.5%,,[rep]", "lower,0,0.15%,,[rep]"))
    (judged,) = judge(found, read_claims(path, "table4"))
    assert judged.said == "holds"


def test_an_inconclusive_verdict_says_what_could_have_been_seen(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, -0.11, 0.09, -0.12, 0.10])
    judged = verdict_of(results)
    assert judged.test is not None
    assert judged.note == f"could have seen {judged.test.visible:.2g}"


@pytest.mark.parametrize(
    ("best", "edge"),
    [("0.334", True), ("0.001", False), ("1e-06", True)],
    ids=["largest", "inner", "smallest"],
)
def test_a_choice_on_the_edge_of_its_grid_is_marked(
    results: Path, save: Save, best: str, edge: bool
) -> None:
    for value in ("0.334", "0.001", "1e-06"):
        for seed in (100, 101, 102):
            save("FOGZO n=1, integer grid", f"1-beta={value}", seed, 0.5 if value == best else 0.7)
    for seed in (100, 101, 102):
        save(*STE, seed, 0.7)
    for value in ("0.334", "0.001", "1e-06"):
        for seed in range(5):
            save("FOGZO n=1, integer grid", f"1-beta={value}", seed, 0.5 + seed / 100)
            save(*STE, seed, 0.7)
    found = read_results(results, TABLE)
    cell = chosen(found, "FOGZO n=1, integer grid")
    assert cell is not None and on_edge(found, cell) == edge
    assert (
        "is on the edge of its grid" in verdict_of(results, "fogzo-beats-tuned-ste").note
    ) == edge
    assert ("chosen, on the edge of its grid" in page(results)) == edge


def test_a_diverged_run_forbids_a_clear_verdict(results: Path, save: Save) -> None:
    save_pairs(save, [0.10, 0.11, 0.09, 0.12, 0.10])
    save(*FOGZO, 5, 0.5, status="diverged", metrics={})
    judged = verdict_of(results)
    assert (judged.verdict, judged.note) == (
        "inconclusive",
        "diverged: FOGZO n=1, integer grid, seed 5",
    )


def test_a_margin_is_part_of_the_claim(results: Path, save: Save) -> None:
    gains = [0.10, 0.11, 0.09, 0.12, 0.10]  # clearly better, clearly not by 0.3
    for seed, gain in enumerate(gains):
        save(*STE, seed, 0.5)
        save("n-SPSA n=1, integer grid", "-", seed, 0.5 + gain)
    assert verdict_of(results, "spsa-1-far-worse").verdict == "contradicted"


def test_beta_is_chosen_on_the_tuning_seeds_alone(results: Path, save: Save) -> None:
    for column, tuned, reported in (("1-beta=0.001", 0.7, 0.1), ("1-beta=1e-05", 0.6, 0.9)):
        for seed in (100, 101, 102):
            save("FOGZO n=1, integer grid", column, seed, tuned)
        save("FOGZO n=1, integer grid", column, 0, reported)
    best = chosen(read_results(results, TABLE), "FOGZO n=1, integer grid")
    assert best is not None and best.column == "1-beta=1e-05"


def test_an_incomplete_tuning_sweep_chooses_nothing(results: Path, save: Save) -> None:
    for seed in (100, 101, 102):
        save("FOGZO n=1, integer grid", "1-beta=0.001", seed, 0.7)
    save("FOGZO n=1, integer grid", "1-beta=1e-05", 100, 0.6)
    assert chosen(read_results(results, TABLE), "FOGZO n=1, integer grid") is None
    judged = verdict_of(results, "fogzo-beats-tuned-ste")
    assert (judged.verdict, judged.note) == ("not run", "the tuning sweep is not complete")


def test_a_cell_that_diverged_in_tuning_is_not_chosen(results: Path, save: Save) -> None:
    for seed in (100, 101, 102):
        save("FOGZO n=1, integer grid", "1-beta=0.001", seed, 0.7)
        ended = {"status": "diverged", "metrics": {}} if seed == 102 else {}
        save("FOGZO n=1, integer grid", "1-beta=1e-05", seed, 0.1, **ended)
    best = chosen(read_results(results, TABLE), "FOGZO n=1, integer grid")
    assert best is not None and best.column == "1-beta=0.001"


def test_fresh_seeds_take_the_place_of_those_that_were_looked_at(results: Path, save: Save) -> None:
    for seed in range(5):
        save(*FOGZO, seed, 0.5 + seed / 1e3)
        save(*STE, seed, 0.6 + seed / 1e3)
    for seed in range(2000, 2006):
        save(*STE, seed, 0.4 + seed / 1e5)
    found = read_results(results, TABLE).cells[STE]
    assert list(found.values("train", "loss")) == list(range(2000, 2006))
    judged = verdict_of(results)
    assert judged.verdict == "contradicted"
    assert judged.test is not None and judged.test.n == (5, 6) and not judged.test.paired


def test_both_grids_of_section_4_1_have_the_same_claims() -> None:
    claims = {c.id: c for c in read_claims(ROOT / "results/paper/claims.csv", TABLE)}
    halves = {name for name in claims if name.startswith("half-")}
    assert claims.keys() == {name.removeprefix("half-") for name in halves} | halves
    assert len(halves) == 7
    for name in halves:
        half, whole = claims[name], claims[name.removeprefix("half-")]
        assert (half.margin, half.bound) == (whole.margin, whole.bound)
        assert half.direction == whole.direction
        for one, other in ((half.better, whole.better), (half.worse, whole.worse)):
            assert one[0].endswith("half_integer grid")
            assert one[0].replace("half_integer", "integer") == other[0]


def test_a_claim_about_an_unknown_cell_is_one_clear_error(results: Path) -> None:
    path = results / "paper" / "claims.csv"
    path.write_text(path.read_text().replace(' grid",lr=0.032', ' grid",lr=7'))
    with pytest.raises(UserError, match=r"unknown cell STE, half_integer grid \| lr=7"):
        verdict_of(results)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",lower,0.3,", ",lower,much,", "margin=much; give a number"),
        (",lower,0.3,", ",lower,nan,", "margin=nan; give a number"),
        (",lower,0.3,", ",lower,0.3,0.1,", "not as many values as the first line"),
        (",margin,", ",marign,", "has no column margin; restore it with git"),
        (",lower,0.3,", ",down,0.3,", "lower or"),
        (",lower,0,0.02,", ",lower,0,some,", "no_difference_below=some; give a number"),
        (",lower,0,0.02,", ",lower,0,0,", "give one above 0"),
    ],
    ids=["margin", "no number", "more values", "header", "direction", "bound", "bound of zero"],
)
def test_a_claim_that_cannot_be_tested_is_refused(
    results: Path, old: str, new: str, message: str
) -> None:
    path = results / "paper" / "claims.csv"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(UserError, match=message):
        read_claims(path, TABLE)


CLAIMED = (ROOT / "results" / "paper" / "claims.csv").read_text().splitlines(keepends=True)


@pytest.mark.parametrize("table", [*PAPER_TITLES, *MINIS, *FINETUNED])
def test_a_claim_that_is_taken_out_is_missed(results: Path, table: str) -> None:
    path = results / "paper" / "claims.csv"
    check_claimed(results, table)
    lines = [line for line in CLAIMED if line.split(",")[1] == table]
    assert lines
    for line in lines:
        path.write_text("".join(other for other in CLAIMED if other is not line))
        with pytest.raises(UserError, match=f"has no (claim|rank correlation) on {table}"):
            check_claimed(results, table)
            sections(results, read_results(results, table))


def test_what_has_a_claim_does_not_say_why_it_has_none() -> None:
    for table in (*MINIS, *FINETUNED):
        claims = read_claims(ROOT / "results" / "paper" / "claims.csv", table)
        named = {place for claim in claims for place in (claim.better, claim.worse)}
        for entry in read_paper(ROOT / "results" / "paper" / f"{table}.csv"):
            if NO_CLAIM in entry["source"]:
                assert (entry["row"], entry["column"]) not in named


def test_a_cell_without_a_claim_is_one_line_with_both_remedies(results: Path) -> None:
    path = results / "paper" / "claims.csv"
    path.write_text("".join(x for x in CLAIMED if "mini-llama-hardtanh-noise" not in x))
    with pytest.raises(UserError) as error:
        write_table(results, "mini-llama")
    said = str(error.value)
    assert "mini-llama: sign, hardtanh | FOGZO, beta=1, perplexity, which is there" in said
    assert "restore it with git" in said and "`no claim, ...`" in said and "\n" not in said


def test_a_record_of_another_table_is_refused_by_name(results: Path, save: Save) -> None:
    record = save("STE, integer grid", "lr=0.032", 3, 0.7)
    path = results / "records" / TABLE / f"{record['run_id']}.json"
    path.write_text(path.read_text().replace(f'"table": "{TABLE}"', '"table": "table1"'))
    found = read_results(results, TABLE)
    assert found.refused == [f"{path.name}: of the table table1"]
    assert not found.cells["STE, integer grid", "lr=0.032"].runs
