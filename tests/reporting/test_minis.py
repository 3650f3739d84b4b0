"""The mini tables: what was chosen is what stands in configs/table/, and what became of claims."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean
from typing import Any

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.reporting.claims import Claim, judge, read_claims
from fogzo_repro.reporting.figures.minis import write_gain, write_noise
from fogzo_repro.reporting.figures.time import write_cost
from fogzo_repro.reporting.hypotheses import read_tested, spearman
from fogzo_repro.reporting.minis import FINETUNED, TITLES, choices
from fogzo_repro.reporting.results import read_paper, read_results
from fogzo_repro.reporting.tuning import chosen, on_edge
from fogzo_repro.sweeps.tables import Entry, find_entries, table_files
from tests.conftest import ROOT
from tests.reporting.conftest import Save, page, read_csv

TABLE = "mini-llama"
HARDTANH = "sign, hardtanh"
TABLES = [*TITLES, *FINETUNED]
RATES = {  # of the recipes
    "mini-deit-tiny": 1e-3, "mini-resnet18": 0.2, "mini-llama": 6e-4, "mini-finetune": 0.02,
}  # fmt: skip


@pytest.fixture
def save_mini(save: Save) -> Save:
    """Write a record of the LLaMA's table."""

    def write(row: str, column: str, seed: int, loss: float, **changes: Any) -> dict[str, Any]:
        losses = {"val": {"loss": loss, "perplexity": 10 * loss}, "train": {"loss": loss - 0.2}}
        made = {
            "table": TABLE, "scale": "mini", "rate": 6e-4, "wall_seconds": 100.0,
            "metrics": {"last": losses, "best": {}}, "resolved": {"corpus": "some text"},
        }  # fmt: skip
        return save(row, column, seed, 0.0, **made | changes)

    return write


def entry(table: str, name: str) -> Entry:
    return find_entries(f"{table}/{name}", table_files())[0]


def rows_of(table: str) -> dict[str, str]:
    """Return the names of a table's rows by their labels."""
    found = {}
    for one in find_entries(table, table_files()):
        for cell in one.cells():
            found[cell.row] = one.name.split("-")[0]
    return found


@pytest.mark.parametrize("table", TABLES)
def test_the_chosen_values_in_the_table_file_follow_from_the_records(table: str) -> None:
    names = rows_of(table)
    for choice in choices(read_results(ROOT / "results", table)):
        side = "full-precision" if choice.row == "full precision" else choice.side.lower()
        own = entry(table, f"{names[choice.row]}-{side}").settings
        where = f"configs/table/{table}.yaml, {choice.row}, {choice.side}: {choice.what}"
        if choice.what == "noise":
            assert own["estimator.noise"] == choice.cell.noise, where
        else:
            recipe = RATES[table]
            assert own.get("recipe.lr", recipe) == choice.cell.rate, where


@pytest.mark.parametrize("table", TABLES)
def test_controls_have_the_noise_and_the_rate_of_what_they_are_compared_with(table: str) -> None:
    cells = {
        e.name: e.settings for e in find_entries(table, table_files()) if "sweep" not in e.name
    }
    for name, own in cells.items():
        row, _, column = name.partition("-")
        if column == "fogzo-accuracy":  # chosen by another metric: the next test
            continue
        side = cells.get(f"{row}-fogzo" if "estimator.noise" in own else f"{row}-ste", own)
        if column not in ("beta1", "ste-rate", "two-points"):
            assert own.get("estimator.noise") == side.get("estimator.noise"), name
        if column in ("ste-rate", "two-points"):
            assert own.get("estimator.noise") == cells[f"{row}-fogzo"].get("estimator.noise")
            side = cells[f"{row}-ste"]
        assert own.get("recipe.lr") == side.get("recipe.lr"), name


def test_the_noise_chosen_by_accuracy_follows_from_the_records() -> None:
    table, row = "mini-resnet18", "sign, hardtanh"
    found: dict[tuple[str, str], list[float]] = {}
    for path in (ROOT / "results" / "records" / table).glob("*.json"):
        record = json.loads(path.read_text())
        if record["row"] in (f"{row}: FOGZO, noise", f"{row}: STE, rate"):
            top1 = record["metrics"]["last"]["val"]["top1"]
            found.setdefault((record["row"], record["column"]), []).append(top1)
    best = {
        of: max((mean(v), column) for (one, column), v in found.items() if one == of)[1]
        for of, _ in found
    }
    own = entry(table, "hardtanh-fogzo-accuracy").settings
    assert best[f"{row}: FOGZO, noise"] == f"1-beta={own['estimator.noise']:g}"
    assert best[f"{row}: STE, rate"] == f"lr={own.get('recipe.lr', RATES[table])}"


@pytest.mark.parametrize("table", TABLES)
def test_both_sides_are_tuned_over_one_grid(table: str) -> None:
    rates: dict[tuple[str, str], set[float]] = {}
    for one in find_entries(f"{table}/sweep-*", table_files()):
        row, side = one.settings["cell.row"].split(": ")
        recipe = RATES[table]
        found = rates.setdefault((row, side.split(",")[0]), set())
        found |= {*one.over.get("recipe.lr", [recipe])}
    for row in {row for row, _ in rates} - {"full precision"}:  # which has one side
        assert rates[row, "STE"] == rates[row, "FOGZO"], row
        assert len(rates[row, "STE"]) >= 4


@pytest.mark.parametrize("table", TABLES)
def test_each_quantizer_has_its_claims_with_the_stated_bounds(table: str) -> None:
    claims = read_claims(ROOT / "results" / "paper" / "claims.csv", table)
    rows = {e["row"] for e in read_paper(ROOT / "results/paper" / f"{table}.csv")}
    for row in (r for r in rows if ": " not in r and r != "full precision"):
        own = [c for c in claims if c.better == (row, "FOGZO") and c.worse == (row, "STE")]
        bounds = {c.metric: (c.bound, c.relative) for c in own}
        held_out = {"perplexity": (0.005, True)} if table == TABLE else {"top1": (0.3, False)}
        assert bounds == {"loss": (0.01, False), **held_out}


def test_the_page_names_the_corpus_and_what_the_records_chose(
    results: Path, save_mini: Save
) -> None:
    for column, loss in (("1-beta=1e-08", 4.0), ("1-beta=1e-09", 4.1)):
        save_mini(f"{HARDTANH}: FOGZO, noise", column, 100, loss)
    text = page(results, TABLE)
    cells = len(read_results(results, TABLE).cells)
    assert f"2 of {cells} cells run (2 on the seeds that choose alone: below), on some" in text
    assert (
        "| sign, hardtanh | FOGZO | noise | 1e-08 | 7.9e-05 | 0.0006 | 100 | on the edge " in text
    )
    assert "2 of 4 values were tried" in text


def test_the_recipes_rate_is_a_choice_among_the_rates_of_its_noise(
    results: Path, save_mini: Save
) -> None:
    for seed in (100, 101):
        save_mini(f"{HARDTANH}: FOGZO, noise", "1-beta=1e-08", seed, 3.0 + seed / 1000)
        save_mini(f"{HARDTANH}: FOGZO, noise", "1-beta=1e-07", seed, 2.0)
    for rate, loss in ((0.0003, 3.2), (0.0012, 3.15)):
        save_mini(f"{HARDTANH}: FOGZO, rate", f"1-beta=1e-08, lr={rate}", 100, loss)
    found, row = read_results(results, TABLE), f"{HARDTANH}: FOGZO, rate"
    best = chosen(found, row)
    assert best is not None and best.column == "1-beta=1e-08"
    assert not on_edge(found, best, row)  # 0.0006 lies between the others
    above = found.cells[row, "1-beta=1e-08, lr=0.0012"]
    below = found.cells[row, "1-beta=1e-08, lr=0.0003"]
    assert on_edge(found, above) and on_edge(found, below)
    save_mini(f"{HARDTANH}: FOGZO, rate", "1-beta=1e-08, lr=0.0024", 100, 1.0)
    found = read_results(results, TABLE)
    best = chosen(found, f"{HARDTANH}: FOGZO, rate")
    assert best is not None and best.column == "1-beta=1e-08, lr=0.0024" and on_edge(found, best)


def test_the_lowest_rate_of_a_sweep_is_no_edge_where_the_recipes_own_is_lower(
    results: Path, save_mini: Save
) -> None:
    save_mini(f"{HARDTANH}: FOGZO, noise", "1-beta=1e-08", 100, 4.2)
    for rate, loss in ((0.0012, 4.0), (0.0024, 4.1)):
        save_mini(f"{HARDTANH}: FOGZO, rate", f"1-beta=1e-08, lr={rate}", 100, loss)
    found, row = read_results(results, TABLE), f"{HARDTANH}: FOGZO, rate"
    best = chosen(found, row)
    assert best is not None and best.column == "1-beta=1e-08, lr=0.0012"
    assert not on_edge(found, best)


def test_a_rate_at_which_a_run_diverged_was_tried(results: Path, save_mini: Save) -> None:
    row = f"{HARDTANH}: STE, rate"
    for rate, loss in ((0.0003, 3.2), (0.0006, 3.1), (0.0012, 3.0)):
        save_mini(row, f"lr={rate}", 100, loss)
    found = read_results(results, TABLE)
    best = chosen(found, row)
    assert best is not None and on_edge(found, best)
    save_mini(row, "lr=0.0024", 100, 9.0, status="diverged", metrics={})
    found = read_results(results, TABLE)
    best = chosen(found, row)
    assert best is not None and best.column == "lr=0.0012" and not on_edge(found, best)
    text = page(results, TABLE)
    assert "| 4 of 5 values were tried |" in text
    assert f"| {row} | lr=0.0024 |  | val loss | 1 diverged | 1 diverged |" in text


def hardtanh_loss(results: Path) -> Claim:
    claims = read_claims(results / "paper" / "claims.csv", TABLE)
    return next(c for c in claims if c.id == "mini-llama-hardtanh-loss")


def test_p_between_the_halves_is_inconclusive_in_a_table_that_may_be_looked_at_twice(
    results: Path, save_mini: Save
) -> None:
    for seed, gain in enumerate((0.05, 0.01, 0.06, 0.0, 0.05)):  # p = 0.041
        save_mini(HARDTANH, "STE", seed, 4.0)
        save_mini(HARDTANH, "FOGZO", seed, 4.0 - gain)
    (judged,) = judge(read_results(results, TABLE), [hardtanh_loss(results)])
    assert judged.test is not None and 0.025 < judged.test.p < 0.05
    assert judged.verdict == "inconclusive"


def said_of(results: Path, start: str) -> Any:
    found = read_tested(results, read_results(results, TABLE))
    return next(t for t in found if t.line["claim"].startswith(start))


@pytest.mark.slow
def test_the_rank_correlation_is_of_gain_and_what_the_ste_holds_back(
    results: Path, save_mini: Save
) -> None:
    rows = [r for r in rows_of(TABLE) if ": " not in r and r != "full precision"]
    for k, row in enumerate(rows):
        history = {"step": [1.0, 2.0], "loss": [2.0, 1.0], "held_back": [None, 0.1 * k]}
        save_mini(row, "STE", 0, 4.0, history=history)
        save_mini(row, "FOGZO", 0, 4.0 - 0.01 * k**2)
    said = said_of(results, "H1")
    assert (said.value, said.n, said.verdict) == (1.0, 7, "holds")
    assert said.note == "p = 0.0004"  # 2 of 7! orders
    found = read_results(results, TABLE)
    assert write_gain(results / "figures" / "gain", [found])
    points = read_csv(results / "figures" / "gain.csv")
    assert [(p["quantizer"], round(float(p["mean"]), 6)) for p in points] == [
        (row, round(0.01 * k**2, 6)) for k, row in enumerate(rows)
    ]


def test_the_exact_p_of_a_rank_correlation_is_scipys() -> None:
    from scipy import stats

    x, y = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], [2.0, 1.0, 4.0, 3.0, 6.0, 5.0]
    exact = stats.permutation_test(
        (x,), lambda a: stats.spearmanr(a, y).statistic, permutation_type="pairings"
    )
    value, p = spearman(x, y)
    assert (value, p) == pytest.approx((exact.statistic, exact.pvalue))


def test_the_carried_noise_is_held_against_the_best_of_the_sweep(
    results: Path, save_mini: Save
) -> None:
    for noise, loss in (("1e-08", 4.03), ("1e-09", 4.0), ("1e-07", 4.1)):
        for seed in (100, 101):
            save_mini(f"{HARDTANH}: FOGZO, noise", f"1-beta={noise}", seed, loss)
    said = said_of(results, "H2: sign")
    assert said.value == pytest.approx(0.03) and said.n == 2
    assert (said.verdict, said.note) == ("inconclusive", "best 1-beta=1e-09, only 2 seeds")


def bench_llama(results: Path) -> None:
    """Write the record of a bench: FOGZO's step, and its step with probes on a quarter."""
    (results / "records" / "bench").mkdir(parents=True)
    case = {
        "units_per_step": 1, "peak_memory_mb": 1.0, "ste_ms": {"median": 1.0},
        "fogzo_over_ste": 1.6, "probe_fraction": {"0.25": {"fogzo_over_ste": 1.3}},
    }  # fmt: skip
    bench = {"hardware": "a card", "networks": {"llama_30m": {"round-w2": case}}}
    (results / "records" / "bench" / "steps.json").write_text(json.dumps(bench))


@pytest.mark.parametrize(
    ("part", "verdict"),
    [(3.92, "holds"), (3.99, "contradicted"), (None, "not run")],
    ids=["four fifths", "a tenth", "not run"],
)
def test_the_share_of_the_gain_that_cheaper_probes_keep(
    results: Path, save_mini: Save, part: float | None, verdict: str
) -> None:
    for seed in range(5):
        save_mini(HARDTANH, "STE", seed, 4.0 + seed / 1000)
        save_mini(HARDTANH, "FOGZO", seed, 3.9)
        if part is not None:
            save_mini(HARDTANH, "FOGZO, probes=0.25, start=0.0", seed, part)
    bench_llama(results)
    said = said_of(results, "H3: sign, hardtanh: probes on a quarter")
    assert said.verdict == verdict
    text = page(results, TABLE)
    cheapest = "keeps three quarters of the gain is FOGZO, probes=0.25, start=0.0, with 0.80 ["
    assert (cheapest in text) == (verdict == "holds")
    assert ("1.30 times the STE's time" in text) == (verdict == "holds")


def test_the_time_of_probes_is_that_of_their_steps_by_the_bench(
    results: Path, save_mini: Save
) -> None:
    bench_llama(results)
    found = read_results(results, TABLE)
    assert not write_cost(results / "figures" / "t", found)
    for column, loss, steps in (
        ("STE", 4.0, 3000), ("STE, equal cost of probes=0.25", 3.95, 3900), ("FOGZO", 3.9, 3000),
        ("FOGZO, probes=0.25, start=0.0", 3.92, 3000), ("FOGZO, beta=1", 4.0, 3000),
        ("FOGZO, probes=0.25, start=0.5", 3.93, 3000),
        ("FOGZO, probes=0.125, start=0.0", 3.92, 3000),  # was not benched
    ):  # fmt: skip
        for seed in (0, 1):
            save_mini(HARDTANH, column, seed, loss * (1 + seed / 1000), steps=steps)
    save_mini("round", "FOGZO", 0, 3.9)  # has no other probes
    assert write_cost(results / "figures" / "t", read_results(results, TABLE))
    drawn = read_csv(results / "figures" / "t.csv")
    assert {p["method"]: float(p["hours"]) for p in drawn} == pytest.approx({
        "STE": 1.0, "STE, equal cost of probes=0.25": 1.3, "FOGZO": 1.6,
        "FOGZO, probes=0.25, start=0.0": 1.3, "FOGZO, probes=0.25, start=0.5": 1.15,
    })  # fmt: skip
    assert "the gain is FOGZO, probes=0.25, start=0.0, with 0.80" in page(results, TABLE)


def test_an_unknown_statistic_or_cell_is_one_clear_error(results: Path) -> None:
    path = results / "paper" / "claims.csv"
    text = path.read_text()
    path.write_text(text.replace("share of gain", "share of the gain", 1))
    with pytest.raises(UserError, match="statistic=share of the gain; options: rank correlation"):
        said_of(results, "H1")
    path.write_text(text.replace("probes=0.25, start=0.0", "probes=2"))
    with pytest.raises(UserError, match="names the unknown cell"):
        said_of(results, "H1")


def test_the_noise_is_drawn_beside_the_ste_at_both_rates(results: Path, save_mini: Save) -> None:
    found = read_results(results, TABLE)
    assert not write_noise(results / "figures" / "t", found)
    for noise, loss in (("1e-08", 4.0), ("1e-09", 4.1)):
        save_mini(f"{HARDTANH}: FOGZO, noise", f"1-beta={noise}", 100, loss)
    for rate, loss in (("0.0006", 4.2), ("0.0012", 4.1), ("0.0003", 4.3)):
        save_mini(f"{HARDTANH}: STE, rate", f"lr={rate}", 100, loss)
    assert write_noise(results / "figures" / "t", read_results(results, TABLE))
    drawn = read_csv(results / "figures" / "t.csv")
    assert sorted((p["method"], float(p["rate"])) for p in drawn) == [
        ("FOGZO", 6e-4), ("FOGZO", 6e-4), ("STE, its chosen rate", 1.2e-3),
        ("STE, the recipe's rate", 6e-4),
    ]  # fmt: skip


@pytest.mark.parametrize("scale", ["full", "smoke"])
def test_a_record_of_another_scale_is_refused(results: Path, save_mini: Save, scale: str) -> None:
    save_mini(HARDTANH, "STE", 0, 4.0, scale=scale)
    assert read_results(results, TABLE).refused[0].endswith(f"scale {scale}")
