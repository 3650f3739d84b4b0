"""The first screen of README.md: what is known, and what is not."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fogzo_repro.config import UserError
from fogzo_repro.reporting.answer import answer
from fogzo_repro.reporting.results import read_results
from fogzo_repro.reporting.tables import FORMS
from tests.conftest import ROOT

Save = Callable[..., dict[str, Any]]


def said(results: Path) -> str:
    return answer(results, [read_results(results, table) for table in FORMS])


def line(text: str, start: str) -> list[str]:
    (found,) = (x for x in text.splitlines() if x.startswith(start))
    return [part.strip() for part in found.strip("|").split("|")]


def test_without_records_it_says_that_nothing_is_known(results: Path) -> None:
    text = said(results)
    assert "no reading of what the paper leaves open was run" in text
    assert "0 tuning runs and no evaluation run, so that no verdict stands" in text
    assert "nothing is known here of the paper's numbers" in text
    assert text.count("\n| ") == 3  # title, rule, and the default reading all the same
    assert "Nothing was run yet of MLP, MNIST: round, half-integer grid (default)" in text


@pytest.mark.slow
def test_the_verdict_is_that_of_both_sides_at_their_chosen_values(full_table: Path) -> None:
    shutil.copytree(ROOT / "results" / "records" / "readings", full_table / "records" / "readings")
    text = said(full_table)
    _, quantizer, metric, ste, fogzo, cost, gain, verdict = line(text, "| MLP, MNIST | round, in")
    assert (quantizer, metric) == ("round, integer grid", "train loss (nats)")
    assert all(cell.endswith("(10)") for cell in (ste, fogzo, cost))
    assert gain.startswith(("+", "-")) and "[" in gain and verdict != "not run"
    assert "picked *because* the claims come out under it; on fresh seeds it was not run" in text


def test_tuning_runs_stand_in_brackets_and_give_no_verdict(results: Path, save: Save) -> None:
    row, table = "sign, hardtanh", "mini-deit-tiny"
    for rate, loss in ((1e-3, 2.2), (5e-4, 2.1)):
        config = {
            "model": {"name": "deit_tiny"}, "dataset": {"name": "cifar100"}, "quantizer": {},
            "estimator": {"name": "ste"}, "recipe": {"lr": rate},
        }  # fmt: skip
        losses = {"val": {"loss": loss, "top1": 50.0}, "train": {"loss": 2.0}}
        more = {"table": table, "scale": "mini", "metrics": {"last": losses}, "config": config}
        save(f"{row}: STE, rate", f"lr={rate}", 100, 0.0, **more)
    cells = line(said(results), "| DeiT-Tiny on CIFAR-100 | sign, hardtanh")
    assert cells[3:] == ["[2.100 (1), lr=0.0005, edge]", "not run", "not run", "", "not run"]
    assert "2 tuning runs and no evaluation run, so that no verdict stands" in said(results)


def test_it_says_who_is_ahead_by_how_much_and_what_the_train_loss_says_at_equal_cost(
    results: Path, save: Save
) -> None:
    table, row = "mini-llama", "sign, hardtanh"
    perplexities = {"STE": 60.0, "FOGZO": 50.0, "STE, equal cost": 55.0}
    losses = {"STE": 3.9, "FOGZO": 3.7, "STE, equal cost": 3.6}
    for k, (column, perplexity) in enumerate(perplexities.items()):
        for seed in range(5):
            near = 0.001 * (seed * (k + 1) % 5 - 2)  # mean 0
            last = {
                "val": {"loss": 4.0, "perplexity": perplexity + near},
                "train": {"loss": losses[column] + near},
            }
            config = {
                "model": {"name": "llama_9m"}, "dataset": {"name": "c4"}, "quantizer": {},
                "estimator": {"name": "ste"}, "recipe": {"lr": 1e-3},
            }  # fmt: skip
            more = {"table": table, "scale": "mini", "metrics": {"last": last}, "config": config}
            save(row, column, seed, 0.0, **more)
    text = said(results)
    found = re.sub(r" \[[^]]*\]", " []", text)
    assert (
        "which the others share: FOGZO n=1 is ahead of the STE on LLaMA-9m under "
        "sign, hardtanh by 10.00 [] of perplexity. At equal cost FOGZO n=1 is ahead of the STE on "
        "LLaMA-9m under sign, hardtanh by 5.00 [] of perplexity (in train loss behind by 0.100 "
        "[] nats)."
    ) in found
    low, high = map(float, re.findall(r"behind by 0\.100 \[(.*), (.*)\]", text)[0])
    assert 0.09 < low < 0.1 < high < 0.11


def test_where_the_metric_does_not_decide_it_says_what_the_train_loss_does(
    results: Path, save: Save
) -> None:
    row, losses = "LSQ, 2 bits", {"STE": 1.3, "FOGZO": 1.1}
    for k, (column, loss) in enumerate(losses.items()):
        for seed in range(5):
            top1 = 60.0 + (seed * (k + 1) % 5 - 2)  # the same means
            last = {"test": {"top1": top1}, "train": {"loss": loss + 0.001 * (seed * (k + 1) % 5)}}
            config = {
                "model": {"name": "deit_tiny"}, "dataset": {"name": "cifar100"}, "quantizer": {},
                "estimator": {"name": "ste"}, "recipe": {"lr": 1e-3},
            }  # fmt: skip
            more = {"scale": "mini", "metrics": {"last": last}, "config": config}
            save(row, column, seed, 0.0, table="mini-deit-tiny", **more)
    assert (
        "There is no verdict yet on DeiT-Tiny under LSQ, 2 bits (by means +0.00 [] points; in "
        "train loss ahead by 0.200 [] nats)."
    ) in re.sub(r" \[[^]]*\]", " []", said(results))


def test_a_network_without_its_claim_is_one_line(results: Path) -> None:
    claims = results / "paper" / "claims.csv"
    lines = claims.read_text().splitlines(keepends=True)
    claims.write_text("".join(x for x in lines if not x.startswith("mini-llama-hardtanh-perplex")))
    with pytest.raises(
        UserError,
        match=r"no claim in perplexity on sign, hardtanh \| FOGZO against",
    ):
        said(results)
