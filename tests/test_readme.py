"""What README.md and docs/ say is run from there."""

import argparse
import csv
import hashlib
import importlib
import json
import math
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import textwrap
import warnings
from dataclasses import asdict

import pytest
import torch
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from safetensors.torch import load_file

from fogzo_repro import load_run, summary
from fogzo_repro.composition import compose_run, named_cells, words_for
from fogzo_repro.estimators import check_weights
from fogzo_repro.reporting import readme
from fogzo_repro.tracking.records import read_runs
from tests.conftest import ROOT
from tests.forked import python

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md")))
}
README = PAGES["README.md"]
BLOCKS = [  # page, language, code
    (page, *block)
    for page, text in PAGES.items()
    for block in re.findall(r"```(\w*)\n(.*?)```", text, re.S)
]
FILES = {  # of the folder `mine`
    code.split("\n")[0].removeprefix("# mine/"): code
    for _, _, code in BLOCKS
    if code.startswith("# mine/")
}
PYTHON = [
    (page, code)
    for page, language, code in BLOCKS
    if language == "python" and code not in FILES.values()
]
COMMANDS = list(
    dict.fromkeys(
        line.split("  #")[0].strip().removeprefix("OMP_NUM_THREADS=1 ")
        for _, language, code in BLOCKS
        if language == "sh"
        for line in code.replace("\\\n", " ").splitlines()
    )
)


@pytest.fixture
def mine(tmp_path):
    """A folder of a user's with the files that docs/parts.md writes there."""
    for name, code in FILES.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    return tmp_path / "mine"


def test_the_librarys_page_has_a_loop_that_trains():
    loop, own, adapter = (code for page, code in PYTHON if page == "docs/library.md")
    names = {}
    exec(compile(loop, "docs/library.md", "exec"), names)
    assert names["losses"][-1] < names["losses"][0] - 0.1
    before = names["model"][0].weight.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile(own, "docs/library.md", "exec"), names)
    assert names["estimate"].coefficient != 0 and not torch.equal(names["model"][0].weight, before)
    assert names["model"][1].num_batches_tracked == 4 * 20 + 2 * 4
    exec(compile(adapter, "docs/library.md", "exec"), names)
    check_weights(names["weights"], names["model"])
    assert [w.parameter.shape for w in names["weights"]] == [(16, 20), (4, 16)]


def test_three_lines_of_the_readme_are_those_of_the_loop():
    ((_, lines),) = (each for each in PYTHON if each[0] == "README.md")
    loop = next(code for page, code in PYTHON if page == "docs/library.md")
    assert textwrap.indent(lines, " " * 8) in re.sub(r"  # .*", "", loop)


RHO_COLUMNS = {  # of docs/library.md: table, quantizer, split, learning rate, tuning seeds
    "MLP, round": ("figure-shallow", "round", "test", 0.032, (100, 101, 102)),
    "DeiT-Tiny, LSQ": ("mini-deit-tiny", "lsq", "val", 1e-3, (100, 101)),
    "DeiT-Tiny, sign": ("mini-deit-tiny", "sign", "val", 1e-3, (100, 101)),
    "ResNet-18, LSQ": ("mini-resnet18", "lsq", "val", 0.2, (100, 101)),
    "ResNet-18, sign": ("mini-resnet18", "sign", "val", 0.2, (100, 101)),
    "LLaMA 9M, LSQ": ("mini-llama", "lsq", "val", 6e-4, (100, 101)),
    "LLaMA 9M, sign": ("mini-llama", "sign", "val", 6e-4, (100, 101)),
}


def losses_by_rho():
    """Return the rows of the table of docs/library.md: losses by rho to a power of ten.

    In the end stands the STE, at the same rate and at its own, that of its lowest mean.
    """
    cells, own = {}, {}
    for column, (table, quantizer, split, lr, seeds) in RHO_COLUMNS.items():
        paths = (ROOT / "results" / "records" / table).glob("*.json")
        for record in (record for path in paths for record in read_runs(path)):
            config, d = record["config"], record["perturbed_weights"]
            estimator, noise = config["estimator"], config["estimator"].get("noise")
            if config["quantizer"]["name"] != quantizer:
                continue
            if quantizer == "round" and config["quantizer"]["grid"] != "half_integer":
                continue
            if quantizer == "sign" and config["quantizer"]["surrogate"] != "hardtanh":
                continue
            if estimator.get("n", 1) > 1 or estimator.get("random_sign") or noise == 0:
                continue
            if estimator["name"] == "nspsa" or record["seed"] not in seeds:
                continue
            if record["row"].startswith("STE, equal cost") or record["status"] != "finished":
                continue
            loss = record["metrics"]["last"][split]["loss"]
            if estimator["name"] == "ste" and not config["quantizer"].get("clip_gradient"):
                of_rate = own.setdefault(column, {}).setdefault(config["recipe"]["lr"], [])
                of_rate.append(loss)
            if config["recipe"]["lr"] != lr:
                continue
            rho = None if noise is None else noise * d / (1 - noise)
            decade = math.inf if rho is None else math.floor(math.log10(rho))
            cells.setdefault(decade, {}).setdefault(column, []).append((rho, loss))
    for _, row in sorted(cells.items()):
        rhos = sorted({float(f"{rho:.1g}") for of in row.values() for rho, _ in of if rho})
        ends = sorted({f"{rho:g}" for rho in (rhos[0], rhos[-1])}, key=float) if rhos else []
        means = [
            f"{statistics.mean(loss for _, loss in row[column]):.3f} ({len(row[column])})"
            if column in row
            else ""
            for column in RHO_COLUMNS
        ]
        yield f"| {' to '.join(ends) or 'the STE, same rate'} | {' | '.join(means)} |"
    best = [min(own[column].values(), key=statistics.mean) for column in RHO_COLUMNS]
    means = [f"{statistics.mean(losses):.3f} ({len(losses)})" for losses in best]
    yield f"| the STE, its own rate | {' | '.join(means)} |"


def test_the_table_by_rho_is_that_of_the_records():
    head = r"\| --- " * (1 + len(RHO_COLUMNS)) + r"\|\n"
    (found,) = re.findall(head + r"((?:\|.*\n)+)", PAGES["docs/library.md"])
    expected = list(losses_by_rho())
    assert found.splitlines() == expected, "docs/library.md: " + "\n".join(expected)


def train(mine, tmp_path, *words):
    """Train on the digits with the parts of a folder; return the record and its folder."""
    done = python(
        "-m", "fogzo_repro", "--config-dir", mine, *words, "hardware=cpu", "recipe.max_steps=10",
        f"output_root={tmp_path}/runs",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("runs/*/record.json")
    record = json.loads(path.read_text())
    assert record["status"] == "finished"
    return record, path.parent


DIGITS = ("dataset=digits", "recipe=digits_mlp")


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.slow
def test_an_estimator_is_one_file_and_one_yaml_and_stands_in_a_table(mine, tmp_path):
    labels = ("cell.table=figure-shallow", "cell.row=signed", "cell.column=size 0.01")
    words = ("estimator=signed", "estimator.size=0.01", *DIGITS, *labels)
    record, _ = train(mine, tmp_path, *words)
    assert record["config"]["estimator"] == {"name": "signed", "family": "signed", "size": 0.01}
    assert record["resolved"]["parts"] == {"estimator": sha256(mine / "estimator" / "signed.py")}

    results = tmp_path / "results"
    (results / "records" / "figure-shallow").mkdir(parents=True)
    record |= {"dirty": False, "commit": "0" * 40}
    (results / "records" / "figure-shallow" / f"{record['run_id']}.json").write_text(
        json.dumps(record)
    )
    shutil.copytree(ROOT / "results" / "paper", results / "paper")
    with open(results / "paper" / "figure-shallow.csv", "a") as file:
        file.write("figure-shallow,signed,size 0.01,loss,train,,ours\n")
    done = python("scripts/make_tables.py", "--results", results)
    assert done.returncode == 0, done.stderr
    table = (results / "tables" / "figure-shallow.md").read_text()
    assert "| signed | size 0.01 |" in table


INPUTS = """

class Ramp(nn.Module):
    def forward(self, x):
        clipped = x.clamp(-2, 2)
        return with_surrogate_gradient((clipped * 7.5).round() / 7.5, clipped)


def build_input(layer, activation_bits):
    return Ramp()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("inputs", "bits"), [("", 16), (INPUTS, 4)], ids=["weights", "both"])
def test_a_quantizer_is_one_file_and_one_yaml(mine, tmp_path, inputs, bits):
    with open(mine / "quantizer" / "ternary.py", "a") as file:
        file.write(inputs)
    record, folder = train(
        mine, tmp_path, "quantizer=ternary", "quantizer.factor=1.2",
        f"quantizer.activation_bits={bits}", "estimator.noise=1e-3", *DIGITS,
    )  # fmt: skip
    assert record["config"]["quantizer"]["factor"] == 1.2
    assert record["run_id"].startswith("mlp-digits-ternary-fogzo-s0-")
    last = load_file(sorted(folder.glob("*.safetensors"))[-1])
    assert last["model/fc1.weight_quantizer.scale"] > 0
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert any(row.get("flips", 0) > 0 for row in rows)
    assert load_run(folder)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)  # finds the folder again


@pytest.mark.slow
def test_a_surrogate_with_its_law_is_one_file(mine, tmp_path):
    record, folder = train(
        mine, tmp_path, "quantizer=sign", "quantizer.surrogate=erf", "estimator.noise=1e-3", *DIGITS
    )
    assert record["resolved"]["parts"] == {"surrogate": sha256(mine / "surrogate" / "sign_erf.py")}
    quantizer = load_run(folder).fc1.weight_quantizer
    x = torch.linspace(-2, 2, 41, dtype=torch.float64)
    assert torch.equal(quantizer.h(x), torch.erf(x))
    law = quantizer.smoothing
    u = law.from_symmetric((2 * torch.arange(100_001, dtype=torch.float64) + 1) / 100_001 - 1)
    assert u.mean().abs() < 1e-9 and abs(u.var() - 1) < 1e-4
    smoothed = torch.stack([torch.sign(v + law.epsilon_bar * u).mean() for v in x])
    assert torch.allclose(smoothed, torch.erf(x), atol=1e-4)


def test_a_model_is_one_file_and_one_yaml_that_brings_data_and_recipe(mine, tmp_path):
    record, folder = train(mine, tmp_path, "model=conv", "model.width=6")
    assert record["run_id"].startswith("conv-digits-round-fogzo-s0-")
    assert record["config"]["model"]["width"] == 6
    assert record["perturbed_weights"] == 6 * 9 + 16 * 6 * 10
    assert load_run(folder)(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_tables_in_the_pages_are_those_of_the_records(tmp_path):
    for page in readme.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(PAGES[page])
    readme.update_pages(tmp_path, ROOT / "results")
    for page in readme.PAGES:
        assert (tmp_path / page).read_text() == PAGES[page], "run `make tables`"


def anchors(page):
    """Return what a heading of a page is called in a link."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", PAGES[page], flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        path, _, anchor = link.partition("#")
        target = ((ROOT / page).parent / path).resolve() if path else ROOT / page
        assert target.exists(), link
        assert target.is_relative_to(ROOT), link
        if anchor:
            assert anchor in anchors(target.relative_to(ROOT).as_posix()), link


def test_every_page_is_short_and_linked_from_the_readme():
    assert len(README.splitlines()) <= 200
    for page in PAGES:
        assert len(PAGES[page].splitlines()) <= 220, page
        assert page == "README.md" or f"]({page})" in README


def test_the_readme_goes_from_what_was_found_to_the_citation():
    order = [
        "What was found", "Two commands", "A first run of your own, with an STE beside it",
        "In your own training loop", "Reproducing a table", "Adding a part", "Documentation",
        "Citation",
    ]  # fmt: skip
    assert re.findall(r"^## (.*)$", README, re.M) == order


def test_tags_are_explained_before_a_number_carries_one():
    explained, rest = README.split("## What was found")
    assert set(re.findall(r"\*\*(\[\w+\])\*\*", explained)) >= set(re.findall(r"\[\w{3}\]", rest))
    assert "public" in explained and "not read from the PDF" in explained


def diagnosis(name):
    """Return the rows of a recorded measurement along a run."""
    with open(ROOT / "results" / "figures" / f"diagnosis-{name}.csv") as file:
        return sorted(csv.DictReader(file), key=lambda row: float(row["progress"]))


def quality(step, estimator):
    """Return the row of an estimator at a snapshot of the run on MNIST."""
    return [row for row in diagnosis("mnist-ste") if row["estimator"] == estimator][step]


@pytest.mark.parametrize("network", ["resnet18", "deit-tiny", "llama-9m"])
def test_deep_networks_do_not_resolve_what_is_estimated(network):
    rows = diagnosis(network)
    assert {row["progress"] for row in rows} == {"0.0", "1.0"}
    assert all(float(row["smoothed_square_low"]) < 0 for row in rows)
    assert not any(float(row["cosine_low"]) > 0 for row in rows)


def test_numbers_in_the_prose_are_those_of_the_records():
    text = " ".join(PAGES["docs/method.md"].split())
    start, quarter, half, three = (quality(step, "ste") for step in range(4))
    cosines = f"{float(start['cosine']):.2f} at the start to {float(quarter['cosine']):.2f} after"
    assert f"The STE's cosine falls from {cosines} a quarter of the training" in text
    for row in (half, three):
        assert float(row["cosine_low"]) < 0 < float(row["cosine_high"])
    weights = 784 * 10 + 10 * 10
    assert f"{weights:,}" in PAGES["docs/method.md"]
    assert f"ρ = {0.001 * weights / 0.999:.0f} for the MLP" in PAGES["docs/method.md"]


def test_the_means_of_deep_networks_are_those_of_the_readme():
    """Both tables have the same rows; that of docs/results.md has full precision too."""
    means = re.compile(r"(\d\d\.\d\d) ± [\d.]+ \(5\)")
    told = [means.findall(line) for line in README.splitlines() if means.search(line)]
    _, table = PAGES["docs/results.md"].split("| | 1−h′ |")
    rows = [line for line in table.split("\n\n")[0].splitlines() if re.search(r"\d\.\d\d, ", line)]
    found = [re.findall(r"\d\d\.\d\d", " ".join(row.split("|")[3:])) for row in rows]
    assert sorted(found) == sorted(told)
    held = {
        f"{float(line['mean']):.2f}": float(f"{float(line['held_back']):.2f}")
        for path in (ROOT / "results" / "tables").glob("mini-*.csv")
        for line in csv.DictReader(path.read_text().splitlines())
        if line["column"] == "STE" and line["mean"]
    }
    shares = [float(row.split("|")[2]) for row in rows]
    assert shares == [held[ste] for ste, *_ in found]


def test_the_loss_differences_at_the_end_are_those_of_the_records():
    ends, longest = {}, []
    for path in (ROOT / "results" / "records").glob("mini-*/*.json"):
        (record,) = read_runs(path)
        if record["column"] == "FOGZO, 3 times the steps":
            longest.append(record["history"]["c_over_g"][-1])
        if record["column"] == "FOGZO" and record["seed"] < 5:
            small = "mini-resnet18", "mini-finetune"
            group = record["table"] if record["table"] in small else record["row"] == "round"
            ends.setdefault(group, []).append(record["history"]["c_over_g"][-1])
    low, high = ({group: f"{of(x):.1f}" for group, x in ends.items()} for of in (min, max))
    text = " ".join(PAGES["docs/results.md"].split())
    scratch, trained = "mini-resnet18", "mini-finetune"
    assert low[trained] == high[trained] and float(high[True]) < 1
    assert (
        f"ends at {low[False]} to {high[False]} where the STE holds its gradient back "
        f"({max(longest):.1f} in three times the steps) and below 1 with round, "
        f"but on ResNet-18 at {low[scratch]} to {high[scratch]}, with round too, "
        f"and at {low[trained]} on the trained one."
    ) in text


def bench(name):
    path = ROOT / "results" / "records" / "bench" / f"{name}.json"
    return json.loads(path.read_text())


def test_speeds_in_the_prose_are_those_of_the_records():
    text = " ".join(PAGES["docs/hardware.md"].split())
    slower = {
        k: v["quest_over_suite"] for k, v in bench("peers-h200")["peers"]["llama_30m"].items()
    }
    assert (
        f"took {slower['none']:.2f} times the suite's without a quantizer, "
        f"{slower['lsq-w2a2']:.2f} with LSQ and {slower['quest-w2a2']:.2f} with QuEST, both at 2"
    ) in text
    (start,) = bench("start-quest-h200")["starts"].values()
    assert f"{start['seconds_cold']:.0f} and {start['seconds_kept']:.0f} s ([start-quest" in text
    now, before = (
        bench(name)["networks"]["llama_30m"]["round-w2"]["floor"]["two_forwards"]["measured_over"]
        for name in ("language-head-h200", "language-regions-h200")
    )
    assert f"two probes take {now:.2f} times their floor" in text
    assert f"where they took {before:.2f} ([language-regions-h200]" in text
    forwards = [
        case["two_forwards_ms"]["median"] / case["ste_ms"]["median"]
        for path in (ROOT / "results" / "records" / "bench").glob("language-*.json")
        for network in json.loads(path.read_text())["networks"].values()
        for name, case in network.items()
        if name.endswith("-w2")  # inputs in full precision
    ]
    assert f"passes alone are {min(forwards):.2f} to {max(forwards):.2f} of its STE step" in text


def test_what_the_profiles_show_is_said_of_them():
    text = " ".join(PAGES["docs/hardware.md"].split())
    measured = bench("language-profile-h200")["networks"]["llama_30m"]
    head = 2 * 32768 * 50304 * 640  # FLOP of the head's product, forward
    step, floor = measured["none"]["ste_kernels"], measured["none"]["floor"]
    assert f"{floor['ste']['measured_over']:.2f} times on llama_30m without" in text
    first, second, third = (head / k["ms"] * 1000 / floor["flop_per_s"] for k in step[:3])
    assert f"run at {first:.2f}, {second:.2f} and {third:.2f} of the card's rate" in text
    products = sum(k["ms"] for k in step if re.search("nvjet|sdpa", k["kernel"]))
    assert f"record take {products:.1f} ms of {measured['none']['ste_ms']['median']:.1f}" in text
    assert f"the floor of all is {floor['ste']['ms']:.1f}" in text
    before = bench("language-rows-before-h200")["networks"]["llama_30m"]
    now, then = (
        (m["none"]["ste_ms"]["median"], m["none"]["peak_memory_mb"]) for m in (measured, before)
    )
    assert f"took {now[0]:.1f} ms and {now[1]:,.0f} MiB" in text
    assert f"had taken {then[0]:.1f} ms and {then[1]:,.0f} MiB" in text
    ratios = (m["round-w2"]["fogzo_over_ste"] for m in (measured, before))
    assert "takes {:.2f} STE steps and not {:.2f}.".format(*ratios) in text
    probes = measured["round-w2"]["two_forwards_kernels"]
    rates = 2 * head / probes[0]["ms"] / 1e9, measured["round-w2"]["floor"]["flop_per_s"] / 1e12
    blocks = sum(k["ms"] for k in probes if "nvjet" in k["kernel"])
    assert (
        f"{measured['round-w2']['two_forwards_ms']['median']:.1f} ms it has {probes[0]['ms']:.1f}, "
        f"at {rates[0]:.0f} TFLOP/s, where the card's rate is {rates[1]:.0f}, and the products "
        f"of the blocks have {blocks:.1f}"
    ) in text
    measured = bench("vision-profile-resnet50-h200")["networks"]["resnet50"]
    quest, none = (measured[name]["ste_ms"]["median"] for name in ("quest-w2a2", "none"))
    forward, backward = measured["quest-w2a2"]["ste_kernels"][:2]
    assert f"{quest / none:.2f} on the H200. There a step takes {quest - none:.1f} ms more" in text
    assert f"{forward['ms']:.1f} in the forward and {backward['ms']:.1f} in the backward" in text
    assert f"QuEST's inputs ({measured['quest-w2a2']['fogzo_over_ste']:.2f} on ResNet-50)" in text


def test_the_factor_between_estimators_is_that_of_their_passes():
    probes, all_passes = 2 * 7960 / (2 * 10), (2 * 7960 + 3) / (2 * 10 + 3)
    assert f"{probes:.0f} times fewer" in PAGES["docs/results.md"]
    assert f"({all_passes:.0f} times" in PAGES["docs/results.md"]


class ParsedError(BaseException):
    """The words of a command are what its parser knows."""


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command, mine, monkeypatch):
    """Each command of the pages is given to the program that it names, which stops before work."""
    words = shlex.split(command)
    if words[0] == "make":
        done = subprocess.run(
            ["make", "-n", "-o", "install", *words[1:]], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert re.search(rf"^{words[1]}:.*## ", (ROOT / "Makefile").read_text(), re.M)
    elif words[0] == "torchrun":
        understood_by_hydra(words[words.index("fogzo_repro") + 1 :])
    elif words[:3] == ["python", "-m", "fogzo_repro"]:
        if words[3:4] == ["--config-dir"]:
            monkeypatch.setenv("FOGZO_PARTS", str(mine if words[4] == "mine" else ROOT / words[4]))
            del words[3:5]
        understood_by_hydra(words[3:])
    elif words[0] == "python":
        module = words[2] if words[1] == "-m" else words[1].removesuffix(".py").replace("/", ".")
        understood_by_argparse(module, words[3 if words[1] == "-m" else 2 :], monkeypatch)
    else:
        assert command in ("source .venv/bin/activate", "pip install '.[suite,slurm]'")


def understood_by_hydra(words):
    overrides = [word for word in words if not word.startswith("-") and "launcher" not in word]
    cells = named_cells(overrides)
    for each in [words_for(cell, overrides) for cell in cells] or [overrides]:
        parsed = OverridesParser.create().parse_overrides(each)
        jobs = BasicSweeper.split_arguments(parsed, None)[0]
        for job in (jobs[0], jobs[-1]):
            compose_run(*job)


def understood_by_argparse(module, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", [module, *words])
    parse = argparse.ArgumentParser.parse_known_args

    def parse_only(self, *arguments, **named):
        _, rest = parse(self, *arguments, **named)
        assert all(re.match(r"[\w.]+=", word) for word in rest)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", parse_only)
    with pytest.raises(ParsedError):
        importlib.import_module(module).main()


def test_the_run_that_is_made_again_is_that_of_its_record(monkeypatch):
    (command,) = (line for line in COMMANDS if "experiment=rivals/" in line)
    (comparison,) = (line for line in COMMANDS if "compare results/records/" in line)
    folder, *words = shlex.split(command)[4:]
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / folder))
    (cell,) = named_cells(words)
    made = json.loads(json.dumps(asdict(compose_run(*words_for(cell, words)))))
    record, again = shlex.split(comparison)[3:]
    (run,) = read_runs(ROOT / record)
    assert again == f"runs/{run['run_id']}"
    assert made["seed"] == run["seed"]
    for key in ("model", "dataset", "quantizer", "estimator", "recipe"):
        assert made[key] | run["config"][key] == made[key]  # some settings are younger


@pytest.mark.slow
def test_the_first_run_has_an_ste_beside_it(tmp_path):
    (command,) = (line for line in COMMANDS if "digits_mlp estimator=ste,fogzo" in line)
    done = python(*shlex.split(command)[1:], "recipe.max_steps=3", f"output_root={tmp_path}")
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/record.json")]
    assert sorted(r["config"]["estimator"]["name"] for r in records) == ["fogzo"] * 3 + ["ste"] * 3
    assert "python -m fogzo_repro.summary runs" in COMMANDS
    text = summary.table(summary.group(summary.find_runs([tmp_path])))
    assert [line.split()[0] for line in text.splitlines()[2:5]] == ["estimator", "fogzo", "ste"]


@pytest.mark.slow
@pytest.mark.parametrize("held_out", [0, 100])
def test_a_dataset_in_memory_is_one_file_and_one_yaml(mine, tmp_path, held_out):
    words = ("dataset=stripes", f"dataset.held_out={held_out}", "recipe=digits_mlp")
    record, folder = train(mine, tmp_path, *words)
    assert record["resolved"]["data"] == "stripes 1"
    assert record["resolved"]["parts"] == {"dataset": sha256(mine / "dataset" / "stripes.py")}
    assert set(record["metrics"]["last"]) == {"train", "val" if held_out else "test"}
    assert record["metrics"]["last"]["train"]["top1"] > 90
    assert load_run(folder)(torch.zeros(2, 1, 28, 28)).shape == (2, 2)
