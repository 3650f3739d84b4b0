"""What the benches record beside their times, on tiny networks and on cases computed by hand."""

import argparse
import io
import json
import subprocess
import sys
import time
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.data.images import Batch
from fogzo_repro.sweeps.benched import flop_per_token
from fogzo_repro.training.network import build_network
from scripts.bench import loader, loop, mnist, peers, prepare, products, start, steps
from scripts.bench.clock import Clock
from scripts.bench.floor import Products, Rates, floors, products_of
from scripts.bench.networks import build, measure
from scripts.bench.record import begin, compare, head, tell_moved
from scripts.bench.steps import fractions, line

META = torch.device("meta")


def small_network():
    convolution = nn.Conv2d(3, 4, 3, padding=1, bias=False)
    model = nn.Sequential(convolution, nn.ReLU(), nn.Flatten(), nn.Linear(256, 5, bias=False))
    return model, torch.zeros(2, 3, 8, 8)


def run_of(optimizer="sgd", momentum=0.9, n=1, first_last="float"):
    return SimpleNamespace(
        recipe=SimpleNamespace(optimizer=optimizer, momentum=momentum),
        model=SimpleNamespace(first_last=["0"]),
        quantizer=SimpleNamespace(first_last=first_last),
        estimator=SimpleNamespace(n=n),
    )


def test_the_floor_of_a_convolution_and_a_linear_layer_by_hand():
    """2 images of 3 x 8 x 8; the convolution is bound by its FLOP, the layer by its bytes."""
    products = products_of(*small_network())
    convolution, linear = products
    assert (convolution.flop, convolution.bytes) == (2 * 512 * 27, 2 * (384 + 108 + 512))
    assert (linear.flop, linear.bytes) == (2 * 10 * 256, 2 * (512 + 1280))  # logits stay
    assert (len(convolution.backward), len(linear.backward)) == (1, 2)  # data have no gradient
    rates = Rates(1e4, 1e3)
    found = floors(products, 1388, run_of(), rates)
    forward = 2764.8 + 3584.0  # ms
    update = 4 * 1388 * 5  # p, g and a momentum read, two of them written; bytes at 1 byte / ms
    assert found["forward"]["ms"] == pytest.approx(forward)
    assert found["ste"]["ms"] == pytest.approx(forward + 2764.8 + 2 * 3584.0 + update)
    assert found["ste"]["flop"] == 2 * 27648 + 3 * 5120
    assert found["two_forwards"]["ms"] == pytest.approx(2 * 3584.0)  # they share the convolution
    assert found["fogzo"]["ms"] == pytest.approx(found["ste"]["ms"] + 2 * 3584.0)


@pytest.mark.parametrize(
    ("run", "numbers"),
    [(run_of("adamw", 0.0), 7), (run_of("sgd", 0.0), 3), (run_of(), 5)],
    ids=["adamw", "sgd", "momentum"],
)
def test_the_floor_of_an_update_is_the_numbers_that_an_optimizer_moves(run, numbers):
    rates = Rates(1e4, 1e3)
    some, none = (floors(products_of(*small_network()), n, run, rates)["ste"] for n in (1000, 0))
    assert some["bytes"] - none["bytes"] == 4 * 1000 * numbers


def test_probes_of_a_quantized_first_layer_do_not_share_it():
    found = floors(products_of(*small_network()), 0, run_of(first_last="quantized"), Rates(1, 1))
    assert found["two_forwards"]["flop"] == 2 * found["forward"]["flop"]
    assert "fogzo" not in floors(products_of(*small_network()), 0, run_of(n=0), Rates(1, 1))


def test_a_causal_attention_has_half_the_products():
    with Products() as products:
        q = torch.zeros(1, 2, 4, 8)
        F.scaled_dot_product_attention(q, q, q, is_causal=True)
        F.scaled_dot_product_attention(q, q, q)
    causal, full = products.found
    assert (causal.flop, causal.bytes) == (4 * 64 * 4 / 2, 2 * 4 * 64)
    assert (full.flop, full.backward[0]) == (2 * causal.flop, (2 * full.flop, 2 * full.bytes))


@pytest.mark.slow
def test_a_llamas_products_are_those_that_the_forecast_counts():
    small = "model.context=64", "model.vocabulary=4096"
    config = compose_run("model=llama_30m", "quantizer=none", "estimator=ste", *small)
    with META:
        network = build_network(config, {}, META)
        found = products_of(network.model, torch.zeros(2, 64, dtype=torch.int64))
    flop = floors(found, 0, run_of(), Rates(1, 1))["ste"]["flop"]
    assert flop == pytest.approx(2 * 64 * flop_per_token(config.model), rel=1e-3)


THEN = {
    "ste_ms": {"median": 10.0, "min": 1.0, "max": 90.0, "n": 50},
    "fogzo_over_ste": 1.5,
    "memory_mb": {"ste": {"allocated": 100.0}},
    "seconds_cold": 60.0,
    "compile_seconds": 10.0,
    "loss": 7.0,
}


def changed(**figures):
    return json.loads(json.dumps(THEN)) | figures


def test_what_moved_by_more_than_three_percent_is_told_in_either_direction():
    now = changed(
        ste_ms={"median": 10.4, "min": 3.0, "max": 3.0, "n": 50},
        fogzo_over_ste=1.52,
        memory_mb={"ste": {"allocated": 96.0}, "fogzo": {"allocated": 1.0}},
        seconds_cold=66.0,
        compile_seconds=99.0,
        loss=1.0,
    )
    assert list(compare(THEN, now)) == [
        "ste_ms 10 -> 10.4 (+4.0%)",
        "memory_mb ste allocated 100 -> 96 (-4.0%)",
        "seconds_cold 60 -> 66 (+10.0%)",
    ]
    assert list(compare(THEN, changed())) == []


def test_a_bench_is_compared_with_the_record_of_its_card_and_of_its_own_file_first(capsys):
    def record(card, **figures):
        networks = {"a": {"none": changed(**figures)}}
        return {"bench": "vision", "hardware": card, "networks": networks}

    committed = {
        "a.json": record("another card", fogzo_over_ste=3.0),
        "b.json": record("card", fogzo_over_ste=2.0),
        "c.json": record("card"),
        "d.json": record("card") | {"bench": "language"},
    }
    where = "networks", "a", "none"
    tell_moved(record("card"), committed, where)
    tell_moved(record("card"), committed, where, "c.json")
    tell_moved(record("new card"), committed, where)
    tell_moved(record("card"), {"d.json": committed["d.json"]}, where)
    assert capsys.readouterr().out.splitlines() == [
        "vision a none: fogzo_over_ste 2 -> 1.5 (-25.0%), b.json",
        "vision a none: nothing moved by more than 3% since c.json",
        "vision a none: no committed record of new card to compare with",
        "vision a none: no committed record of card to compare with",
    ]


@pytest.mark.parametrize(
    ("bench", "where", "said"),
    [
        ("products", ("layers",), "products layers"),
        ("products", ("head",), "products head"),
        ("prepare", ("prepare",), "prepare"),
        ("loader", ("recipes", "resnet18"), "loader resnet18"),
    ],
)
def test_what_has_not_moved_is_named(bench, where, said, capsys):
    tell_moved({"bench": bench, "hardware": "card"}, {}, where)
    assert capsys.readouterr().out.startswith(f"{said}: no committed record")


def test_a_damaged_committed_record_ends_no_bench_in_a_traceback(tmp_path, monkeypatch, capsys):
    old = {"bench": "vision", "hardware": "card"}
    networks = {"a": {"none": 3, "lsq": changed(ste_ms={"median": "fast"})}}
    new = old | {"networks": {"a": {"none": THEN, "lsq": THEN}}}
    for quantizer in ("none", "lsq"):
        tell_moved(new, {"b.json": old | {"networks": networks}}, ("networks", "a", quantizer))
    assert "a none: no committed record" in capsys.readouterr().out
    monkeypatch.setattr("scripts.bench.record.COMMITTED", tmp_path)
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(UserError, match=r"b\.json is not the record of a bench"):
        begin(on_gpu=False)


@pytest.mark.parametrize(
    ("now", "compared"),
    [({}, True), ({"batch": 64}, False), ({"decoded": 512}, False), ({"decoded": None}, True)],
    ids=["same", "batch", "another side", "no decoded tree"],
)
def test_a_loaders_bench_is_compared_with_one_of_the_same_batch_and_side(now, compared, capsys):
    old = {"bench": "loader", "hardware": "card", "batch": 256, "decoded": 256}
    old |= {"recipes": {"resnet18": {"images_per_s": 100.0}}}
    new = {**old, **now, "recipes": {"resnet18": {"images_per_s": 50.0}}}
    tell_moved(new, {"loader.json": old}, ("recipes", "resnet18"))
    assert ("images_per_s 100 -> 50" in capsys.readouterr().out) == compared


def test_a_record_names_its_contender_card_and_versions():
    found = head("vision", "somebody", "a card")
    assert {"command", "commit", "dirty"} <= set(found)
    assert (found["contender"], found["hardware"]) == ("somebody", "a card")
    assert found["versions"]["torch"] == torch.__version__.split("+")[0]


def test_probe_fractions_lie_between_0_and_1():
    assert fractions("0.25,0.125") == (0.25, 0.125)
    assert fractions("none") == ()
    for wrong in ("0", "1", "0.5,2", "x"):
        with pytest.raises(ValueError):
            fractions(wrong)


@pytest.mark.slow
def test_a_case_has_probes_on_parts_of_the_batch_and_a_floor(monkeypatch):
    arguments = argparse.Namespace(
        one="llama_30m round-w2",
        toy=True,
        steps=2,
        warm_up=1,
        probe_fractions=(0.5, 0.25),
        profile=0,
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    found = measure("language", arguments)
    for fraction in ("0.5", "0.25"):
        part = found["probe_fraction"][fraction]
        assert part["fogzo_over_ste"] == part["fogzo_ms"]["median"] / found["ste_ms"]["median"]
    floor = found["floor"]
    assert 0 < floor["ste"]["ms"] < floor["fogzo"]["ms"]
    assert floor["fogzo"]["measured_over"] == found["fogzo_ms"]["median"] / floor["fogzo"]["ms"]
    said = line("llama_30m", "round-w2", {"round-w2": found})
    assert "with probes on 0.25 of the batch" in said


@pytest.mark.slow
def test_the_object_and_the_suites_step_train_the_same_network(tmp_path, monkeypatch):
    out = tmp_path / "loop.json"
    given = ["loop", "--toy", "--steps=3", "--warm-up=1", f"--out={out}"]
    monkeypatch.setattr("sys.argv", given)
    assert loop.main() == 0
    found = json.loads(out.read_text())["loop"]["llama_30m"]["round-w2"]
    times = [found[f"{way}_ms"] for way in ("train_step", "fogzo_step")]
    assert [t["n"] for t in times] == [3, 3] and min(t["min"] for t in times) > 0
    assert found["fogzo_step_over_train_step"] == times[1]["median"] / times[0]["median"]


QUEST_STAND_IN = """
import torch
from torch import nn

class Llama(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.embed = nn.Embedding(config.vocab_size, config.n_embd)
        self.extra = nn.Parameter(torch.zeros(EXTRA - self.embed.weight.numel()))
        self.quantizer = config.w_quant
        if self.quantizer == "HadamardTrustQuantizer":
            import nothing_of_this_name

    def get_parameter_group_specs(self):
        return [{"params": ["extra"]}, {"params": ["embed.weight"], "weight_decay": 0.0}]

    def forward(self, idx, targets):
        x = self.embed(idx) + self.extra.sum()
        loss = nn.functional.cross_entropy((x @ self.embed.weight.T).mT, targets)
        return {"loss": loss * float("nan" if self.quantizer == "LSQQuantizer" else 1)}
"""


@pytest.fixture
def beside_quest(tmp_path, monkeypatch):
    """Return what measures some cases beside a stand-in with the suite's parameters, and more."""

    def run(cases, more=0):
        config = peers.configured("none", Namespace(toy=True))
        model = build_network(config, {}, torch.device("cpu")).model
        size = sum(p.numel() for p in model.parameters())
        models = tmp_path / "quest" / "src" / "models"
        models.mkdir(parents=True)
        (models / "llama.py").write_text(QUEST_STAND_IN.replace("EXTRA", str(size + more)))
        words = ["--toy", "--steps=3", "--turn=2", f"--cases={cases}", f"--out={tmp_path / 'out'}"]
        monkeypatch.setattr("sys.argv", ["peers", *words, f"--quest={tmp_path / 'quest'}"])
        return peers.main(), size

    return run


@pytest.mark.slow
def test_quests_code_and_the_suites_take_turns_and_a_case_that_fails_ends_no_other(
    tmp_path, beside_quest, capfd
):
    status, size = beside_quest("quest-w2a2,lsq-w2a2,none")
    assert status == 1
    record = json.loads((tmp_path / "out").read_text())
    assert [*record["files"]] == ["src/models/llama.py"]
    assert [*record["peers"]["llama_30m"]] == ["none"]
    found = record["peers"]["llama_30m"]["none"]
    assert found["suite_parameters"] == found["quest_parameters"] == size
    assert found["suite_ms"]["n"] == found["quest_ms"]["n"] == 3
    assert found["quest_over_suite"] == found["quest_ms"]["median"] / found["suite_ms"]["median"]
    assert capfd.readouterr().err.splitlines() == [
        "error: quest-w2a2: QuEST's code failed, ModuleNotFoundError: No module named "
        "'nothing_of_this_name'; install it",
        "error: lsq-w2a2: QuEST's code failed, ValueError: a loss was not finite: this was no "
        "training",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "more"), [("none", 1), ("lsq-w2a2", 1000)])
def test_a_network_of_another_size_is_not_measured(beside_quest, capfd, case, more):
    status, size = beside_quest(case, more)
    assert status == 2
    (said,) = capfd.readouterr().err.splitlines()
    assert f"{case}: the networks are not of one size" in said and f"{size + more:,}" in said


def test_an_interrupted_bench_beside_quest_says_so_in_one_line(tmp_path, monkeypatch, capsys):
    """Sides in the terminal's own group, still importing torch, ended in tracebacks."""
    started = {}

    class Interrupted(subprocess.Popen):
        def __init__(self, command, **options):
            if "scripts.bench.peers" in command:
                started.update(options)
                raise KeyboardInterrupt
            super().__init__(command, **options)

    (models := tmp_path / "src" / "models").mkdir(parents=True)
    (models / "llama.py").touch()
    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    words = ["--toy", f"--quest={tmp_path}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["peers", *words])
    assert peers.main() == 130 and started["start_new_session"]
    assert capsys.readouterr().err.count("\n") == 1


def test_a_folder_that_is_no_clone_of_quest_is_told(tmp_path, monkeypatch, capsys):
    words = ["--toy", f"--quest={tmp_path}", f"--out={tmp_path / 'out'}"]
    monkeypatch.setattr("sys.argv", ["peers", *words])
    assert peers.main() == 2
    assert f"{tmp_path} has no src/models/llama.py; give a clone of" in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
def test_the_peak_memory_of_each_captured_step_is_noted():
    given = "model=llama_9m", "model.context=64", "model.vocabulary=512", "hardware.compile=false"
    config = compose_run(
        *given, "estimator=fogzo", "estimator.noise=1e-4", "recipe.global_batch_size=8"
    )
    step, batches, machine = build(config, "language", False)
    clock = Clock(step, batches, machine, argparse.Namespace(steps=1, warm_up=0), True)
    clock.capture((False, True))
    clock.capture_forwards()
    weights = sum(p.nbytes for p in step.parameters) / 2**20
    found = clock.memory_mb
    assert set(found) == {"ste", "two_forwards", "fogzo"}
    assert found["fogzo"]["allocated"] >= found["ste"]["allocated"] > 4 * weights  # p, g, m and v
    assert all(each["reserved"] >= each["allocated"] for each in found.values())
    assert clock.peak_memory_mb() >= max(each["allocated"] for each in found.values())


def test_a_case_that_fails_beside_others_is_tried_again_alone(tmp_path, monkeypatch, capsys):
    """Cases that wait hold memory, of which a card may have too little for all of them."""
    tried = []

    class OnASmallCard:
        ready = True

        def __init__(self, group, case, folder, arguments):
            self.group, self.case = group, case
            self.network, self.quantizer = case.rsplit(" ", 1)

        def go(self):
            tried.append(self.quantizer)
            fits = self.quantizer == "none" or tried.count(self.quantizer) == 2
            return {"ste_ms": {"median": 1.0}} if fits and self.quantizer != "round-w2" else None

    cases = "resnet18 none,resnet18 round-w2,resnet50 lsq-w2a2"
    out = tmp_path / "vision.json"
    monkeypatch.setattr(steps, "Measuring", OnASmallCard)
    monkeypatch.setattr(steps, "line", lambda *_: "measured")
    monkeypatch.setattr(steps, "tell_moved", lambda *_: None)
    monkeypatch.setattr(
        sys, "argv", ["steps", "vision", "--toy", "--cases", cases, "--out", str(out)]
    )
    assert steps.main() == 1
    assert tried == ["lsq-w2a2", "none", "round-w2", "lsq-w2a2", "round-w2"]
    found = json.loads(out.read_text())["networks"]
    assert found == {"resnet18": {"none": {"ste_ms": {"median": 1.0}}},
                     "resnet50": {"lsq-w2a2": {"ste_ms": {"median": 1.0}}}}  # fmt: skip
    said = capsys.readouterr().out
    assert "resnet18 round-w2: failed, tried again at the end" in said
    assert said.rstrip().endswith("resnet18 round-w2: failed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["vision", "language", "--out", "one.json"], "put {group} into it"),
        (["vision", "--profile", "3", "--out", "one.json"], "leave out --profile or --toy"),
    ],
)
def test_what_a_bench_of_steps_would_lose_is_refused(monkeypatch, capsys, words, said):
    """Each group's file would take the place of the one before; a CPU has no kernels."""
    monkeypatch.setattr(sys, "argv", ["steps", "--toy", *words])
    with pytest.raises(SystemExit):
        steps.main()
    assert capsys.readouterr().err.endswith(f"{said}\n")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_bench_of_a_card_says_at_once_that_there_is_none(tmp_path, monkeypatch, capsys):
    words = ["steps", "vision", "--out", str(tmp_path / "{group}.json")]
    monkeypatch.setattr(sys, "argv", words)
    assert steps.main() == 2
    assert "error: no CUDA device is here; --toy checks" in capsys.readouterr().err


BENCHES = {
    "mnist": (mnist, ["hardware=cpu"]),
    "steps": (steps, ["vision", "--toy"]),
    "loop": (loop, ["--toy"]),
    "peers": (peers, ["--toy", "--quest", "."]),
    "products": (products, ["--toy"]),
    "start": (start, ["--toy"]),
    "loader": (loader, ["--data-dir", "."]),
    "prepare": (prepare, ["--source", ".", "--tokenizer", "."]),
}


@pytest.mark.parametrize(("bench", "words"), BENCHES.values(), ids=BENCHES)
@pytest.mark.parametrize("out", [".", "file/record.json"], ids=["folder", "in a file"])
def test_a_record_that_cannot_be_written_is_told_before_anything_is_measured(
    tmp_path, monkeypatch, capsys, bench, words, out
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["bench", *words, "--out", str(tmp_path / out)])
    assert bench.main() == 2
    said = capsys.readouterr()
    assert said.err.startswith(f"error: --out {tmp_path}") and said.err.count("\n") == 1
    assert not said.out


def test_a_text_that_cannot_be_prepared_is_no_traceback(tmp_path, monkeypatch, capfd):
    words = ["--source", str(tmp_path), "--tokenizer", str(tmp_path), "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["prepare", *words, "--out", str(tmp_path / "out.json")])
    assert prepare.main() == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"error: --source {tmp_path} holds no *.json.gz")
    (tmp_path / "c4-train.00000-of-00001.json.gz").touch()
    assert prepare.main() == 2
    lines = capfd.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["error:", "error:"]
    assert lines[1].endswith("scripts/prepare_c4.py failed, see above")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_what_a_loaders_bench_lacks_is_told_before_anything_is_measured(
    tmp_path, monkeypatch, capsys
):
    for split in ("train", "val"):
        (images := tmp_path / "imagenet" / split / "n00000001").mkdir(parents=True)
        (images / "1.JPEG").touch()
    monkeypatch.setattr(loader, "rate", None)
    words = ["loader", "--data-dir", str(tmp_path), "--out", str(tmp_path / "loader.json")]
    for more, said in ((["--train"], "no CUDA device"), (["--decoded", "77"], "decoded-77")):
        monkeypatch.setattr(sys, "argv", [*words, *more])
        assert loader.main() == 2
        assert said in capsys.readouterr().err


def test_the_record_has_each_layer_the_head_and_how_far_sums_are_exact(tmp_path, monkeypatch):
    path = tmp_path / "products.json"
    monkeypatch.setattr("sys.argv", ["products", "--toy", "--out", str(path)])
    monkeypatch.setattr(products, "LAYERS", {"small": (2048, [(64, 32), (32, 64)])})
    assert products.main() == 0
    record = json.loads(path.read_text())
    assert list(record["layers"]) == ["small 64 to 32", "small 32 to 64"]
    for found in record["layers"].values():
        assert all(value > 0 for value in found.values())
    assert record["exact_to"]["4 bits"] == {"by_row": 5120, "one": 5120}  # in float32
    assert all(value > 0 for value in record["head"].values())


@pytest.mark.parametrize("images", [1, 100, 1000])
def test_the_rate_is_that_of_workers_whose_batches_come_in_rounds(monkeypatch, images):
    """Four workers that take 2 s for a batch of 10 give 20 images a second, after a slow start."""
    now = [0.0]

    class InRounds:
        def __init__(self, photographs, workers, device):
            self.workers = workers

        def load(self, batches):
            for k, batch in enumerate(batches):
                if k % self.workers == 0:
                    now[0] += 2.0 if k else 60.0
                yield Batch(torch.zeros(len(batch), 1), torch.zeros(len(batch)))

    monkeypatch.setattr(loader, "PhotographLoader", InRounds)
    monkeypatch.setattr(loader.time, "perf_counter", lambda: now[0])
    files = SimpleNamespace(files=SimpleNamespace(labels=range(7)))
    arguments = Namespace(images=images, batch=10, workers=4)
    found = loader.rate(files, torch.device("cpu"), True, arguments)
    assert found["images_per_s"] == 20 and found["images"] >= max(images, 200)


def test_the_rate_of_a_run_is_that_of_whole_epochs_but_the_first(tmp_path):
    steps, seconds = 3 * loader.EPOCHS, []
    for step in range(1, steps + 1):
        seconds.append(100.0 if step <= 3 else seconds[-1] + (2.0 if step % 3 == 1 else 1.0))
    lines = [{"step": k + 1, "seconds": s} for k, s in enumerate(seconds)]
    lines.append({"step": steps, "seconds": 1e6, "pause": "evaluation"})
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"steps": steps, "images_seen": 30 * loader.EPOCHS}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert loader.rate_of_run(tmp_path) == pytest.approx(30 / 4)


def test_what_was_measured_is_kept_when_a_bench_is_ended(tmp_path, monkeypatch):
    def trained(arguments):
        yield "resnet18", {"files": {"images_per_s": 2.0}}
        raise KeyboardInterrupt

    monkeypatch.setattr(loader, "measure", lambda model, _: {"images_per_s": 1.0, "ways": {}})
    monkeypatch.setattr(loader, "trained", trained)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    out = tmp_path / "loader.json"
    monkeypatch.setattr("sys.argv", ["loader", "--data-dir", ".", "--train", "--out", str(out)])
    assert loader.main() == 130
    record = json.loads(out.read_text())
    assert list(record["recipes"]) == [*loader.RECIPES] and list(record["trained"]) == ["resnet18"]


@pytest.mark.slow
def test_a_start_is_timed_up_to_its_steps_cold_and_from_kept_code(monkeypatch, tmp_path, capfd):
    out = tmp_path / "start.json"
    monkeypatch.setattr(sys, "argv", ["start", "--toy", "--out", str(out)])
    begun = time.perf_counter()
    assert start.main() == 0
    took = time.perf_counter() - begun
    (found,) = json.loads(out.read_text())["starts"].values()
    assert 1 < found["seconds_kept"] + found["seconds_cold"] < took
    assert "mlp round-w2: cold" in capfd.readouterr().out


def test_a_start_that_fails_is_one_line(monkeypatch, tmp_path, capfd):
    monkeypatch.setitem(start.TOY, "mlp round-w2", ("model=none",))
    monkeypatch.setattr(sys, "argv", ["start", "--toy", "--out", str(tmp_path / "start.json")])
    assert start.main() == 2
    assert "error: -m fogzo_repro model=none failed, see above" in capfd.readouterr().err
