"""A run that is interrupted anywhere ends with the same bytes as one that is not."""

import os
import random
import shutil
import signal
import time

import pytest

from tests.forked import finish, start

STEPS = 40
ESTIMATORS = {
    "ste": ["estimator=ste"],
    "fogzo": ["estimator=fogzo", "estimator.noise=1e-4"],
    "fogzo-later-batched": ["estimator=fogzo", "estimator.n=3", "estimator.start_fraction=0.4"],
    "nspsa": ["estimator=nspsa", "estimator.n=2"],
}


def arguments(folder, *more):
    return [
        "dataset=digits", "recipe=digits_mlp", "hardware=cpu", f"recipe.max_steps={STEPS}",
        f"output_root={folder}", *more,
    ]  # fmt: skip


def run_folder(root):
    (folder,) = (p for p in root.iterdir() if p.is_dir())
    return folder


def final_bytes(root):
    folder = run_folder(root)
    names = ("metrics.jsonl", f"checkpoint-{STEPS:08d}.safetensors", f"checkpoint-{STEPS:08d}.json")
    return {name: (folder / name).read_bytes() for name in names}


def wait_for_step(root, pid, step, timeout=120):
    """Wait until a checkpoint of at least this step is on disk, or the child is gone."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        found = [int(p.stem.split("-")[1]) for p in root.glob("*/checkpoint-*.json")]
        if max(found, default=-1) >= step:
            return True
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    raise AssertionError(f"no checkpoint of step {step} in {timeout} s")


@pytest.mark.parametrize("overrides", ESTIMATORS.values(), ids=ESTIMATORS.keys())
def test_killed_run_ends_with_the_same_bytes(tmp_path, overrides):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert finish(start(arguments(whole, *overrides), tmp_path / "err")) == 0

    steps = sorted(random.Random(len(overrides[0])).sample(range(1, STEPS - 3), 3))
    for step in steps:
        pid = start(arguments(killed, *overrides, "checkpoint_minutes=0"), tmp_path / "err")
        if wait_for_step(killed, pid, step):
            os.kill(pid, signal.SIGKILL)
            assert finish(pid) == -signal.SIGKILL
    assert not (run_folder(killed) / "record.json").exists()
    assert finish(start(arguments(killed, *overrides), tmp_path / "err")) == 0
    assert "resumed after step" in (run_folder(killed) / "log.txt").read_text()
    assert final_bytes(killed) == final_bytes(whole)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run whose last two checkpoints are of steps 39 and 40."""
    root = tmp_path_factory.mktemp("finished")
    overrides = arguments(root, "checkpoint_minutes=0", "estimator.noise=1e-4")
    assert finish(start(overrides, root.parent / "err")) == 0
    return root


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "tensors truncated": (".safetensors", truncate),
    "tensors bit-flipped": (".safetensors", flip_a_bit),
    "tensors missing": (".safetensors", lambda path: path.unlink()),
    "json truncated": (".json", truncate),
    "json bit-flipped": (".json", flip_a_bit),
    "json empty": (".json", lambda path: path.write_bytes(b"")),
}


@pytest.mark.parametrize(("suffix", "damage"), DAMAGE.values(), ids=DAMAGE.keys())
def test_damaged_checkpoint_is_passed_over(tmp_path, finished, suffix, damage):
    expected = final_bytes(finished)
    root = tmp_path / "runs"
    shutil.copytree(finished, root)
    folder = run_folder(root)
    (folder / "record.json").unlink()
    damage(folder / f"checkpoint-{STEPS:08d}{suffix}")
    assert finish(start(arguments(root, "estimator.noise=1e-4"), tmp_path / "err")) == 0
    log = (folder / "log.txt").read_text()
    assert f"checkpoint-{STEPS:08d} is damaged" in log
    assert f"resumed after step {STEPS - 1}" in log
    assert final_bytes(root) == expected


def test_no_whole_checkpoint_is_an_error_with_the_remedy(tmp_path, finished):
    root = tmp_path / "runs"
    shutil.copytree(finished, root)
    folder = run_folder(root)
    (folder / "record.json").unlink()
    for path in folder.glob("checkpoint-*.safetensors"):
        truncate(path)
    assert finish(start(arguments(root, "estimator.noise=1e-4"), tmp_path / "err")) == 2
    assert "start again with force=true" in (tmp_path / "err").read_text()


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT], ids=str
)
def test_signal_saves_and_leaves_with_the_requeue_status(tmp_path, finished, number):
    root = tmp_path / "runs"
    overrides = ["estimator.noise=1e-4"]
    pid = start(arguments(root, *overrides, "checkpoint_minutes=0"), tmp_path / "err")
    assert wait_for_step(root, pid, 2)
    os.kill(pid, number)
    assert finish(pid) == 75
    assert "run the same command again to go on" in (tmp_path / "err").read_text()
    assert finish(start(arguments(root, *overrides), tmp_path / "err")) == 0
    assert final_bytes(root) == final_bytes(finished)


def test_two_processes_do_not_write_one_run(tmp_path):
    root = tmp_path / "runs"
    first = start(arguments(root, "checkpoint_minutes=0"), tmp_path / "err")
    assert wait_for_step(root, first, 1)
    os.kill(first, signal.SIGSTOP)
    assert finish(start(arguments(root), tmp_path / "second")) == 2
    os.kill(first, signal.SIGCONT)
    assert "is being written by another process" in (tmp_path / "second").read_text()
    assert finish(first) == 0


def test_interrupted_sweep_goes_on(tmp_path):
    root = tmp_path / "runs"
    sweep = ["-m", *arguments(root, "estimator=ste", "seed=0,1", "checkpoint_minutes=0")]
    pid = start(sweep, tmp_path / "err")
    assert wait_for_step(root, pid, 5)
    os.kill(pid, signal.SIGTERM)
    assert finish(pid) == 75
    assert not list(root.glob("*/record.json"))
    assert finish(start(sweep, tmp_path / "err")) == 0
    assert len(list(root.glob("*/record.json"))) == 2


def test_a_diverged_run_says_where_and_keeps_no_bad_checkpoint(tmp_path):
    root = tmp_path / "runs"
    overrides = ["estimator=ste", "recipe.optimizer=sgd", "recipe.lr=1e30", "quantizer=none"]
    assert finish(start(arguments(root, *overrides), tmp_path / "err")) == 3
    assert "diverged step" in (tmp_path / "err").read_text()
    assert not list(root.glob("*/checkpoint-*"))
    record = (run_folder(root) / "record.json").read_text()
    assert '"status": "diverged"' in record
