"""Rankings of added parts: who is ranked, beside whom, and who stands apart."""

import random
from dataclasses import replace

import pytest

from fogzo_repro.config import ConfigError, UserError
from fogzo_repro.reporting.ranking import (
    check_places,
    chosen_place,
    foreseen,
    page,
    rank,
    read_rules,
)
from fogzo_repro.reporting.results import read_recorded

OWN = "own"
RULES = """
rank:
  beside: figure-shallow
  against: [[STE, chosen], [FOGZO n=1, chosen]]
  controls: [[Full precision, "-"]]
  split: train
  metric: loss
  direction: lower
  no_difference_below: 0.02
"""
RATES = ("lr=0.01", "lr=0.02", "lr=0.04")
TUNING, SEEDS = (100, 101, 102), tuple(range(10))


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "own.yaml").write_text(RULES)
    return read_rules(tmp_path / "own.yaml")


@pytest.fixture
def row(save):
    """Write the records of a row: tuned over three rates, of which the middle one is best."""

    def write(label, loss, table=OWN, seeds=SEEDS, rates=RATES, spread=0.01, **changes):
        draw = random.Random(label)
        for number, rate in enumerate(rates):
            worse = 0.1 * (number != 1)
            for seed in TUNING:
                save(label, rate, seed, loss + worse, table=table, **changes)
        for seed in seeds:
            value = loss + draw.gauss(0, spread)
            save(label, rates[min(1, len(rates) - 1)], seed, value, table=table, **changes)

    return write


@pytest.fixture
def reference(row):
    row("STE", 0.7, table="figure-shallow")
    row("FOGZO n=1", 0.6, table="figure-shallow", rates=("1-beta=0.1", "1-beta=0.01", "1-beta=0.2"))
    row("Full precision", 0.3, table="figure-shallow", rates=("-",))


def ranked(results, rules, *labels, columns=RATES, seeds=SEEDS):
    rows = {label: columns for label in labels}
    return rank(results, OWN, rules, rows, {label: seeds for label in labels}, {})


def test_rows_stand_in_order_with_their_verdicts(results, rules, reference, row):
    row("Mine", 0.5)
    row("Bad", 0.8)
    row("Same", 0.6)
    found = ranked(results, rules, "Mine", "Bad", "Same")
    assert [one.label for one in found.places] in (
        ["Mine", "FOGZO n=1 (chosen)", "Same", "STE (chosen)", "Bad"],
        ["Mine", "Same", "FOGZO n=1 (chosen)", "STE (chosen)", "Bad"],
    )
    verdicts = {one.label: [j and j.verdict for j in one.compared] for one in found.places}
    assert verdicts["Mine"] == ["holds", "holds"] and verdicts["Bad"] == ["contradicted"] * 2
    assert verdicts["Same"] == ["holds", "no difference"]
    text = page(found)
    assert "| 1 | Mine | lr=0.02 | 9 runs | 0." in text
    assert "no difference above 0.02, " in text and "| better, +0.1" in text
    assert "| Full precision | - |" in text.partition("## Controls")[2]


def test_one_seed_has_no_p(results, rules, reference, row):
    row("Mine", 0.5, seeds=[3])
    text = page(ranked(results, rules, "Mine", seeds=[3]))
    assert "| inconclusive, +0.1" in text and "nan" not in text


def test_the_chosen_cell_is_that_of_the_tuning_seeds(results, rules, reference, row, save):
    row("Mine", 0.5)
    for seed in SEEDS:  # better on the seeds that report, which do not choose
        save("Mine", RATES[0], seed, 0.1, table=OWN)
    (mine, *_) = ranked(results, rules, "Mine").places
    assert mine.cell.column == RATES[1] and mine.summary.mean == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"steps": 2340}, "steps=2340, not 1170"),
        ({"seeds": range(20, 30)}, "its seeds are 20 to 29, not among 0 to 9"),
        ({"seeds": range(5)}, "5 of 10 runs"),
        ({"seeds": range(12)}, "its seeds are 0 to 11, not among 0 to 9"),
        ({"rates": (*RATES, "lr=0.08")}, "tuned by 12 runs, not 9"),
        ({"resolved": {"data": "other"}}, "data=other, not None"),
    ],
    ids=["longer", "other seeds", "fewer seeds", "more seeds", "tuned more", "other data"],
)
def test_another_run_stands_apart_with_its_reason(results, rules, reference, row, changes, said):
    row("Mine", 0.5, **changes)
    stated = changes.get("seeds", SEEDS)
    seeds = stated if len(stated) >= len(SEEDS) else SEEDS
    found = ranked(results, rules, "Mine", columns=changes.get("rates", RATES), seeds=seeds)
    assert [one.label for one in found.places] == ["FOGZO n=1 (chosen)", "STE (chosen)"]
    (mine,) = found.apart
    assert mine.apart == said and f"| {said} |" in page(found)


def test_what_will_keep_a_row_apart_is_known_before_it_is_run(results, rules, reference):
    seeds = {"Good": [0, 1], "Other seeds": [1, 20], "Tuned more": SEEDS}
    tuned = {"Good": 9, "Other seeds": 9, "Tuned more": 12}
    assert foreseen(results, rules, seeds, tuned, {row: [] for row in seeds}) == {
        "Other seeds": "its seeds are 1, 20, not among 0 to 9",
        "Tuned more": "tuned by 12 runs, not 9",
    }


def test_a_row_of_fewer_seeds_is_compared_on_these_alone(results, rules, reference, row, save):
    few = SEEDS[2:8]
    row("Mine", 0.5, seeds=few)
    save("Mine", RATES[1], 50, 9.0, table=OWN)  # of a seed that the table does not have any more
    found = ranked(results, rules, "Mine", seeds=few)
    (mine,) = (one for one in found.places if one.label == "Mine")
    assert mine.summary.n == 6 and [judged.test.n for judged in mine.compared] == [(6, 6)] * 2
    (ste,) = (one for one in found.places if one.label == "STE (chosen)")
    assert ste.summary.n == len(SEEDS)
    values = ste.cell.values("train", "loss")
    mean = sum(values[seed] for seed in few) / len(few)
    assert mine.compared[0].test.gain == pytest.approx(mean - mine.summary.mean)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("recipe", {"lr": 0.02, "weight_decay": 0.1}, "recipe.weight_decay=0.1, not 0.01"),
        ("model", {"name": "mlp", "hidden": 20}, "model.hidden=20, not 10"),
        ("recipe", {"lr": 0.02, "weight_decay": 0.01}, ""),
    ],
    ids=["recipe", "model", "the rate alone"],
)
def test_another_recipe_or_network_stands_apart(results, rules, row, key, value, said):
    plain = {
        "model": {"name": "mlp", "hidden": 10}, "dataset": {"name": "mnist"},
        "quantizer": {"name": "round"}, "estimator": {"name": "ste"},
        "recipe": {"lr": 0.01, "weight_decay": 0.01},
    }  # fmt: skip
    for label in ("STE", "FOGZO n=1"):
        row(label, 0.6, table="figure-shallow", config=plain)
    row("Mine", 0.5, rates=(RATES[1],), config={**plain, key: value})
    found = ranked(results, rules, "Mine", columns=(RATES[1],))
    assert [one.apart for one in [*found.places, *found.apart] if one.label == "Mine"] == [said]


def test_a_diverged_run_stands_apart(results, rules, reference, row, save):
    row("Mine", 0.5, seeds=range(1, 10))
    save("Mine", RATES[1], 0, 0.5, table=OWN, status="diverged")
    (mine,) = ranked(results, rules, "Mine").apart
    assert mine.apart == "diverged: seeds 0"
    assert ", 1 diverged |" in page(ranked(results, rules, "Mine"))


def test_what_was_not_run_is_said(results, rules, reference, row):
    (mine,) = ranked(results, rules, "Mine").apart
    assert mine.apart == "not run: its tuning is not complete"
    row("Mine", 0.5, rates=RATES[:2])
    assert chosen_place(read_recorded(results, OWN), "Mine", RATES, rules) is None


def test_without_the_other_tables_runs_nothing_is_ranked(results, rules, row):
    row("Mine", 0.5)
    found = ranked(results, rules, "Mine")
    assert not found.places
    assert {one.apart for one in found.apart} == {
        "STE (chosen) of figure-shallow is not run", "not run",
    }  # fmt: skip


def test_a_row_of_the_same_name_is_refused(results, rules, reference, row):
    row("STE", 0.5)
    with pytest.raises(UserError, match="both have a row STE; rename yours"):
        ranked(results, rules, "STE")


def test_a_cell_that_the_other_table_does_not_have_is_named(rules):
    known = {"STE": ["lr=0.1"], "FOGZO n=1": ["1-beta=0.1"], "Full precision": ["-"]}
    check_places(rules, known)
    with pytest.raises(ConfigError, match=r"has no row FOGZO n=1; did you mean FOGZO n=2\?"):
        check_places(rules, {"STE": [], "FOGZO n=2": []})
    with pytest.raises(ConfigError, match=r"has no cell Full precision \| -"):
        check_places(rules, {**known, "Full precision": ["lr=0.1"]})


@pytest.mark.parametrize("changed", [{"split": "val"}, {"metric": "perplexity"}], ids=str)
def test_a_metric_that_the_other_cells_do_not_have_is_refused(results, rules, reference, changed):
    """It was taken for a damaged record, to be deleted."""
    other = replace(rules, **changed)
    said = f"STE .* of figure-shallow has no {other.split} {other.metric}; it has train loss"
    with pytest.raises(ConfigError, match=said):
        foreseen(results, other, {"CAGE": SEEDS}, {"CAGE": 9}, {"CAGE": []})


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("  metric: loss\n", "", "rank.metric is missing"),
        ("metric: loss", "metric: los", "rank.metric=los is none of loss, top1, perplexity"),
        ("split:", "splitt:", r"rank.splitt is not a setting; did you mean split\?"),
        ("lower", "higher", "rank.direction=higher, and a lower loss is better; give lower"),
        ("metric: loss", "metric: top1", "direction=lower, and a higher top1 is better; give h"),
        ("split: train", "split: trane", "rank.split=trane is none of train, val, test"),
        ("0.02", "0", "rank.no_difference_below=0 is not a number above 0"),
        ("[[STE, chosen], [FOGZO n=1, chosen]]", "[STE, chosen]", "is not a list of pairs"),
        ("[[STE, chosen], [FOGZO n=1, chosen]]", "[]", "rank.against names no cell"),
        ("rank:", "rows:", "has no section `rank`"),
    ],
    ids=[
        "missing",
        "metric",
        "key",
        "direction",
        "top1",
        "split",
        "bound",
        "pairs",
        "none",
        "no section",
    ],
)
def test_a_bad_section_is_one_line(tmp_path, old, new, said):
    assert old in RULES
    (tmp_path / "own.yaml").write_text(RULES.replace(old, new))
    with pytest.raises(ConfigError, match=said) as error:
        read_rules(tmp_path / "own.yaml")
    assert "\n" not in str(error.value)
