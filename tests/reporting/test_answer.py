"""The first screen of README.md: what is known, and what is not."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.reporting.answer import answer
from tests.conftest import ROOT
from tests.reporting.conftest import Save


def line(text: str, start: str) -> list[str]:
    (found,) = (x for x in text.splitlines() if x.startswith(start))
    return [part.strip() for part in found.strip("|").split("|")]


def test_without_records_it_says_that_nothing_is_known(results: Path) -> None:
    text = answer(results)
    assert "no reading of what the paper leaves open was run" in text
    assert (
        "by a verdict (significantly over seeds), in 0 of 0, behind in 0 (on average: 0 and 0)"
        in text
    )
    assert "not run (0 tuning runs and 0 evaluation runs)" in text
    assert "nothing is known here of the paper's numbers" in text
    assert text.count("\n| ") == 2  # title and rule
    assert "Nothing was run yet of MLP, MNIST: round, half-integer grid (default)" in text


@pytest.mark.slow
def test_the_verdict_is_that_of_both_sides_at_their_chosen_values(full_table: Path) -> None:
    shutil.copytree(ROOT / "results" / "records" / "readings", full_table / "records" / "readings")
    text = answer(full_table)
    _, quantizer, metric, ste, fogzo, cost, *gains = line(text, "| MLP, MNIST | round, in")
    assert (quantizer, metric) == ("round, integer grid", "train loss (nats)")
    assert all("(10)" in cell for cell in (ste, fogzo, cost))
    assert len(gains) == 2 and all(re.match(r"[+-]\S+ \[.*\]: \w+, p = ", gain) for gain in gains)
    assert "picked *because* of that; on fresh seeds of 7 claims on it: " in text


def test_tuning_runs_are_named_without_a_number_and_give_no_verdict(
    results: Path, save: Save
) -> None:
    row, table = "sign, hardtanh", "mini-deit-tiny"
    for rate, loss in ((1e-3, 2.2), (5e-4, 2.1)):  # of more that are planned
        losses = {"val": {"loss": loss, "top1": 50.0}, "train": {"loss": 2.0}}
        more = {"table": table, "scale": "mini", "metrics": {"last": losses}}
        save(f"{row}: STE, rate", f"lr={rate}", 100, 0.0, **more)
    cells = line(answer(results), "| DeiT-Tiny on CIFAR-100 | sign, hardtanh")
    assert cells[3:] == ["partly tuned, not run", *["not run"] * 4]
    assert "not run (2 tuning runs and 0 evaluation runs)" in answer(results)
    for rate in (2.5e-4, 2e-3, 4e-3):
        more |= {"status": "diverged", "metrics": {}}
        save(f"{row}: STE, rate", f"lr={rate}", 100, 0.0, **more)
    cells = line(answer(results), "| DeiT-Tiny on CIFAR-100 | sign, hardtanh")
    assert cells[3] == "tuned, not run"


def test_it_counts_who_is_ahead_and_the_table_says_by_how_much(results: Path, save: Save) -> None:
    table, row = "mini-llama", "sign, hardtanh"
    perplexities = {
        "STE": 60.0, "FOGZO": 50.0, "STE, equal cost": 45.0, "FOGZO, random sign": 200.0,
    }  # fmt: skip
    for k, (column, perplexity) in enumerate(perplexities.items()):
        for seed in range(5):
            near = 0.001 * (seed * (k + 1) % 5 - 2)  # mean 0
            last = {
                "val": {"loss": 4.0, "perplexity": perplexity + near},
                "train": {"loss": 3.9 + near},
            }
            save(row, column, seed, 0.0, table=table, scale="mini", metrics={"last": last})
    save("full precision", "-", 0, 1.0, table="mini-resnet18", scale="mini")
    text = answer(results)
    assert "**Deep networks at small scale** (LLaMA-9m, " in text  # the others compare nothing
    assert (
        "FOGZO n=1 is ahead of the STE, by a verdict (significantly over seeds), in 1 of 1, "
        "behind in 0 (on average: 1 and 0)."
        "\n   * At equal cost it is ahead in 0 of 1, behind in 1 (on average: 0 and 1).\n"
        "   * From a trained network, equal cost counted too, it is ahead in 0 of 0, behind in 0 "
        "(on average: 0 and 0).\n"
        "   * It is ahead of FOGZO with random signs of the loss differences, which turn the STE's "
        "part around too, in 1 of 1, behind in 0 (on average: 1 and 0).\n"
    ) in text
    *_, gain, at_cost = line(text, "| LLaMA-9m | sign, hardtanh")
    assert re.match(r"\+10\.000 \[\+9\.99\d, \+10\.00\d\]: holds, p = ", gain)
    assert re.match(r"-5\.000 \[-5\.00\d, -4\.99\d\]: contradicted, p = ", at_cost)


def test_one_seed_a_side_is_shown_and_counted_nowhere(results: Path, save: Save) -> None:
    for column, top1 in (("STE", 60.0), ("FOGZO", 61.0)):
        last = {"test": {"top1": top1}, "train": {"loss": 1.0}}
        more = {"table": "mini-deit-tiny", "scale": "mini", "metrics": {"last": last}}
        save("LSQ, 2 bits", column, 0, 0.0, **more)
    text = answer(results)
    assert line(text, "| DeiT-Tiny on CIFAR-100 | LSQ")[-2] == "+1.000: inconclusive"
    assert (
        "by a verdict (significantly over seeds), in 0 of 0, behind in 0" in text
        and "2 evaluation runs" in text
    )


def test_a_network_without_its_claim_is_one_line(results: Path) -> None:
    claims = results / "paper" / "claims.csv"
    lines = claims.read_text().splitlines(keepends=True)
    claims.write_text("".join(x for x in lines if not x.startswith("mini-llama-hardtanh-perplex")))
    with pytest.raises(
        UserError,
        match=r"no claim in perplexity on sign, hardtanh \| FOGZO against",
    ):
        answer(results)
