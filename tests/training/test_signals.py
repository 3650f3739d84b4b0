"""A signal ends a run at any moment: at once, or with the one step or save that is under way.

Each test slows one moment down in a forked child, sends TERM in the midst of it and takes the time.
"""

import json
import os
import signal
import time

import pytest
import torch
from forked import ROOT, finish, free_port, new_python, start
from training.ranks_worker import join

pytestmark = pytest.mark.slow

SOON = 2.0  # seconds
LONG = 60.0
STEPS = 6
ENDED = -signal.SIGTERM


def arguments(root, *more):
    return [
        "dataset=digits", "recipe=digits_mlp", "hardware=cpu", f"recipe.max_steps={STEPS}",
        "eval_every_steps=3", f"output_root={root}", *more,
    ]  # fmt: skip


def pause(tmp_path, seconds):
    """Say that the moment has come, and stay in it."""
    (tmp_path / "reached").touch()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.01)


def wait_for(path, timeout=60):
    end = time.monotonic() + timeout
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def stopped(tmp_path, slow, number=signal.SIGTERM, more=()):
    """Start a run that `slow` slows down, send a signal in the midst; return status, seconds."""
    pid = start(arguments(tmp_path / "runs", *more), tmp_path / "err", before=slow)
    wait_for(tmp_path / "reached")
    sent = time.monotonic()
    os.kill(pid, number)
    return finish(pid), time.monotonic() - sent


def goes_on_to_the_bytes_of(tmp_path, whole, *more):
    """Run the rest; compare it with an uninterrupted run."""
    assert finish(start(arguments(tmp_path / "runs", *more), tmp_path / "err")) == 0
    names = ("metrics.jsonl", f"checkpoint-{STEPS:08d}.safetensors", f"checkpoint-{STEPS:08d}.json")
    for name in names:
        ours, theirs = (next(root.glob(f"*/{name}")) for root in (tmp_path / "runs", whole))
        assert ours.read_bytes() == theirs.read_bytes(), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of an uninterrupted run."""
    root = tmp_path_factory.mktemp("whole")
    assert finish(start(arguments(root, "checkpoint_minutes=0"), root / "err")) == 0
    return root


@pytest.mark.parametrize("moment", ["composing", "loading"])
def test_before_the_run_begins(tmp_path, moment):
    def slow():
        from fogzo_repro import __main__ as cli
        from fogzo_repro.training.classification import InMemoryImages

        what, name = {"composing": (cli, "parse_composed"), "loading": (InMemoryImages, "load")}[
            moment
        ]
        setattr(what, name, lambda *_: pause(tmp_path, LONG))

    status, seconds = stopped(tmp_path, slow)
    assert status == ENDED and seconds < SOON
    assert not list(tmp_path.glob("runs/*"))


def test_int_before_the_run_begins_is_one_line(tmp_path):
    def slow():
        from fogzo_repro import __main__ as cli

        cli.parse_composed = lambda *_: pause(tmp_path, LONG)

    status, seconds = stopped(tmp_path, slow, signal.SIGINT)
    assert status == 130 and seconds < SOON
    said = (tmp_path / "err").read_text()
    assert said == "interrupted: run the same command again to go on\n"


def slow_data(tmp_path, before_step):
    """Have the data of a step not come."""

    def slow():
        from fogzo_repro.data.images import ImageBatches

        usual = ImageBatches.epoch

        def epoch(self, generator, start=0):
            for index, batch in enumerate(usual(self, generator, start), start + 1):
                if index == before_step:
                    pause(tmp_path, LONG)
                yield batch

        ImageBatches.epoch = epoch

    return slow


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=str)
def test_waiting_for_the_first_batch(tmp_path, number):
    status, seconds = stopped(tmp_path, slow_data(tmp_path, 1), number)
    assert status == 75 and seconds < SOON
    assert f"{number.name}: nothing to save before step 1" in (tmp_path / "err").read_text()
    assert not list(tmp_path.glob("runs/*/checkpoint*"))


def test_under_nohup_a_terminal_that_is_closed_stops_nothing(tmp_path):
    def slow():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup starts it
        slow_step(tmp_path, "__call__")()

    assert stopped(tmp_path, slow, signal.SIGHUP)[0] == 0
    assert len(list(tmp_path.glob("runs/*/record.json"))) == 1


def test_waiting_for_a_later_batch(tmp_path, whole):
    status, seconds = stopped(tmp_path, slow_data(tmp_path, 5))
    assert status == 75 and seconds < SOON
    assert "SIGTERM: saved after step 4" in (tmp_path / "err").read_text()
    goes_on_to_the_bytes_of(tmp_path, whole)


def slow_step(tmp_path, name):
    """Have the second call of a method of the step take half a second."""

    def slow():
        from fogzo_repro.training.step import TrainStep

        usual, calls = getattr(TrainStep, name), []

        def slowly(self, *arguments):
            calls.append(1)
            if len(calls) == 2:
                pause(tmp_path, 0.5)
            return usual(self, *arguments)

        setattr(TrainStep, name, slowly)

    return slow


def test_in_a_step(tmp_path, whole):
    status, seconds = stopped(tmp_path, slow_step(tmp_path, "__call__"))
    assert status == 75 and seconds < 0.5 + SOON
    assert "SIGTERM: saved after step 2" in (tmp_path / "err").read_text()
    goes_on_to_the_bytes_of(tmp_path, whole)


def test_while_saving(tmp_path, whole):
    def slow():
        from fogzo_repro.training import loop

        usual = loop.save_checkpoint

        def slowly(folder, step, *rest):
            if step == 2:
                pause(tmp_path, 0.5)
            usual(folder, step, *rest)

        loop.save_checkpoint = slowly

    status, seconds = stopped(tmp_path, slow, more=["checkpoint_minutes=0"])
    assert status == 75 and seconds < 0.5 + SOON
    assert "SIGTERM: saved after step 2" in (tmp_path / "err").read_text()
    goes_on_to_the_bytes_of(tmp_path, whole)


def slow_evaluation(tmp_path, step):
    """Have the evaluation after a step go image by image, a tenth of a second each."""

    def slow():
        from fogzo_repro.training import classification
        from fogzo_repro.training.loop import Training

        usual, evaluated = Training._evaluate, classification.evaluated

        def slowly(batches, ranks):
            for batch in evaluated(range(0, 60), ranks):
                pause(tmp_path, 0.1)
                yield batch

        def evaluate(self, *rest):
            classification.evaluated = slowly if self.done == step else evaluated
            usual(self, *rest)

        Training._evaluate = evaluate

    return slow


@pytest.mark.parametrize("step", [3, STEPS], ids=["interim", "last"])
def test_in_an_evaluation_which_is_made_after_all(tmp_path, whole, step):
    status, seconds = stopped(tmp_path, slow_evaluation(tmp_path, step))
    assert status == 75 and seconds < SOON
    assert f"SIGTERM: saved after step {step}" in (tmp_path / "err").read_text()
    goes_on_to_the_bytes_of(tmp_path, whole)


def test_a_kill_after_an_evaluation_that_was_made_up_for(tmp_path, whole):
    """Its lines are of the checkpoint's own step; they are cut, and the evaluation made again."""
    assert stopped(tmp_path, slow_evaluation(tmp_path, 3))[0] == 75
    (tmp_path / "reached").unlink()
    pid = start(arguments(tmp_path / "runs"), tmp_path / "err", before=slow_data(tmp_path, 4))
    wait_for(tmp_path / "reached")
    os.kill(pid, signal.SIGKILL)
    assert finish(pid) == -signal.SIGKILL
    splits = [line for line in metrics(tmp_path) if "split" in line]
    assert [line["step"] for line in splits] == [3]
    goes_on_to_the_bytes_of(tmp_path, whole)


def metrics(tmp_path):
    path = next(tmp_path.glob("runs/*/metrics.jsonl"))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("moment", ["data", "evaluation"])
def test_two_processes_leave_together_where_one_is_asked(tmp_path, moment):
    """The other one is at the step that needs both: it must not be left alone there."""
    slow = {"data": slow_data(tmp_path, 5), "evaluation": slow_evaluation(tmp_path, 3)}[moment]
    port, begun = free_port(), arguments(tmp_path / "runs")
    first = start(begun, tmp_path / "err", before=lambda: (join(0, port), slow()))
    second = start(begun, tmp_path / "err", before=lambda: join(1, port))
    wait_for(tmp_path / "reached")
    sent = time.monotonic()
    os.kill(first, signal.SIGTERM)
    assert [finish(first), finish(second)] == [75, 75], (tmp_path / "err").read_text()
    assert time.monotonic() - sent < SOON


def test_a_deep_network_is_evaluated_on_a_cpu_in_small_passes(monkeypatch):
    """So that a signal is heard before all images of a split have gone through it."""
    from fogzo_repro.data import Batch, Images
    from fogzo_repro.training.classification import evaluate_classifier

    sizes = []

    class Deep(torch.nn.Linear):
        def forward(self, x):
            sizes.append(len(x))
            return super().forward(x.flatten(1))[:, :10]

    data = Batch(torch.zeros(150, 1, 28, 28, dtype=torch.uint8), torch.zeros(150, dtype=torch.long))
    images = Images(data, data, mean=0.5, std=0.5, classes=10)
    evaluate_classifier(Deep(784, 10), images, data)
    evaluate_classifier(Deep(784, 1300), images, data)
    assert sizes == [150, 64, 64, 22]


def test_nothing_is_said_at_the_end_of_a_process_that_was_asked_to_leave(tmp_path):
    """Triton counts what is left of it."""
    pytest.importorskip("triton")
    text = "import triton; from fogzo_repro.training.preemption import hurry; hurry()"
    done = new_python("-c", text, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
