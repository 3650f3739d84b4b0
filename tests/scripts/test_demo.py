"""The demo: what it shows follows from the runs and from the records, whatever they say."""

import statistics
import sys

import pytest

from fogzo_repro.tracking.records import read_record
from scripts import demo
from tests.short_runs import train

SEEDS = (0, 1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def records(folder):
    """Runs of ten steps in place of whole ones."""
    common = [word for word in demo.COMMON if not word.startswith(("output_root", "hardware"))]
    return {
        cell: [
            read_record(train(folder / "runs", *common, *words, f"seed={seed}") / "record.json")
            for seed in SEEDS
        ]
        for cell, words in demo.cells().items()
    }


@pytest.fixture
def shown(folder, records, monkeypatch, capsys):
    monkeypatch.setattr(demo, "FOLDER", folder)
    monkeypatch.setattr(demo, "run_cells", lambda seeds: records)
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == 0
    return capsys.readouterr().out


@pytest.mark.slow
def test_the_table_has_what_the_records_have(shown, records):
    losses = [r["metrics"]["last"]["train"]["loss"] for r in records["derivative cut", "FOGZO"]]
    value = f"{statistics.mean(losses):.3f} ± {statistics.stdev(losses):.3f} (2)"
    (line,) = (x for x in shown.splitlines() if x.startswith("derivative cut  FOGZO"))
    assert value in line
    (plain,) = (x for x in shown.splitlines() if x.startswith("derivative 1    STE"))
    assert plain.endswith(" 0%") and not line.endswith(" 0%")


@pytest.mark.slow
def test_it_shows_a_figure_and_ends_with_the_next_command(shown, folder):
    assert (folder / "loss.png").read_bytes()[1:4] == b"PNG"
    assert shown.splitlines()[-1].startswith("  python -m fogzo_repro dataset=digits")


@pytest.mark.slow
def test_the_records_of_both_quantizers_stand_beside_the_digits(shown):
    assert shown.count("MNIST, 16 seeds, from the records: ") == 2
    assert "tuned for none" in shown and "tuned rates the STE is ahead on MNIST" in shown
    for clip in (False, True):
        assert demo.compared(*demo.recorded(clip))[1] in shown


@pytest.mark.parametrize(
    ("shift", "word"), [(-1.0, "lower"), (1.0, "higher"), (0.0, "same")], ids=str
)
def test_the_words_follow_the_numbers(shift, word):
    ste = {seed: 1.0 + 0.1 * (seed % 3) for seed in range(6)}
    fogzo = {seed: 1.0 + 0.1 * (seed % 2) + shift for seed in range(6)}
    assert demo.compared(fogzo, ste)[0] == word


def test_one_seed_has_no_spread(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["demo", "--seeds", "1"])
    assert demo.main() == 2
    assert "--seeds" in capsys.readouterr().err
