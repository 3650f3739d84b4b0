"""A run that is interrupted anywhere ends with the same bytes as one that is not."""

import errno
import fcntl
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
from short_runs import train

from fogzo_repro import files
from fogzo_repro.composition import compose_run
from fogzo_repro.config import UserError
from fogzo_repro.plan import make_plan
from fogzo_repro.run import _check_stored_config, _empty
from fogzo_repro.training.checkpoint import load_checkpoint, save_checkpoint
from tests.forked import finish, start

STEPS = 40
LIMIT = 3000  # bytes: more than the settings, less than the metrics
ESTIMATORS = {
    "ste": ["estimator=ste"],
    "fogzo": ["estimator=fogzo", "estimator.noise=1e-4"],
    "fogzo-later-batched": ["estimator=fogzo", "estimator.n=3", "estimator.start_fraction=0.4"],
    "nspsa": ["estimator=nspsa", "estimator.n=2"],
    "averaged": ["estimator=ste_averaged", "estimator.noise=1e-4"],
}


def arguments(folder, *more):
    return [
        "dataset=digits", "recipe=digits_mlp", "hardware=cpu", f"recipe.max_steps={STEPS}",
        f"output_root={folder}", *more,
    ]  # fmt: skip


def run_folder(root):
    (folder,) = (p for p in root.iterdir() if p.is_dir())
    return folder


def read_record(folder):
    return json.loads((folder / "record.json").read_bytes())


def final_bytes(root):
    folder = run_folder(root)
    names = ("metrics.jsonl", f"checkpoint-{STEPS:08d}.safetensors", f"checkpoint-{STEPS:08d}.json")
    return {name: (folder / name).read_bytes() for name in names}


def steps_of_checkpoints(root):
    return [int(path.stem.split("-")[1]) for path in root.glob("*/checkpoint-*.json")]


def wait_for_step(root, pid, step, timeout=120):
    """Wait until a checkpoint of at least this step is on disk, or the child is gone."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if max(steps_of_checkpoints(root), default=-1) >= step:
            return True
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    raise AssertionError(f"no checkpoint of step {step} in {timeout} s")


@pytest.mark.slow
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


@pytest.mark.parametrize("text", ["null", "[]", "3", "[" * 200_000 + "]" * 200_000], ids="abcd")
def test_json_that_is_no_checkpoint_is_passed_over(tmp_path, text):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {}, {"seen": step})
    (tmp_path / "checkpoint-00000002.json").write_text(text)
    found = load_checkpoint(tmp_path)
    assert found is not None
    step, _, state, said = found
    assert (step, state) == (1, {"seen": 1}) and "checkpoint-00000002 is damaged" in said[0]


def test_nobody_is_told_to_start_again_where_checkpoints_only_cannot_be_read(tmp_path, monkeypatch):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {}, {"seen": step})
    read, denied = Path.read_bytes, {"checkpoint-00000002.safetensors"}

    def guarded(path):
        if path.name in denied:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", guarded)
    assert load_checkpoint(tmp_path)[0] == 1
    denied.add("checkpoint-00000001.json")
    with pytest.raises(UserError, match=r"cannot read .*2\.safetensors: Permission") as e:
        load_checkpoint(tmp_path)
    assert "force" not in str(e.value)


@pytest.mark.parametrize("text", ["null", "[]", "3", "{", "[" * 200_000], ids="abcde")
def test_settings_that_are_no_object_are_written_anew(tmp_path, text):
    plan = make_plan(compose_run(*arguments(tmp_path)))
    plan.folder.mkdir()
    (plan.folder / "resolved.json").write_text(text)
    _check_stored_config(plan)
    assert json.loads((plan.folder / "resolved.json").read_text()) == plan.result


def lines_lost(count):
    """What a power cut does to a file whose end had not reached the disk."""

    def damage(path):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-count]))

    return damage


def zeros_at_the_end(path):
    content = path.read_bytes()
    path.write_bytes(content[:-40] + bytes(40))


LOST = {
    "an evaluation": ("metrics.jsonl", lines_lost(1)),
    "the last step": ("metrics.jsonl", lines_lost(3)),
    "zeros": ("metrics.jsonl", zeros_at_the_end),
    **{kind: (f"checkpoint-{STEPS:08d}{suffix}", how) for kind, (suffix, how) in DAMAGE.items()},
}


def copied(finished, root):
    """Copy a run that is over, and leave it as if it were not."""
    shutil.copytree(finished, root)
    folder = run_folder(root)
    (folder / "record.json").unlink()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("name", "damage"), LOST.values(), ids=LOST)
def test_a_checkpoint_that_is_damaged_or_lacks_its_metrics_is_passed_over(
    tmp_path, finished, name, damage
):
    expected, root = final_bytes(finished), tmp_path / "runs"
    folder = copied(finished, root)
    damage(folder / name)
    assert finish(start(arguments(root, "estimator.noise=1e-4"), tmp_path / "err")) == 0
    log, why = (folder / "log.txt").read_text(), "(metrics.jsonl" if "metrics" in name else "("
    assert f"checkpoint-{STEPS:08d} is damaged {why}" in log
    assert f"resumed after step {STEPS - 1}" in log
    assert final_bytes(root) == expected


def interrupted_run(root):
    """Leave a run of ten steps as if it had ended after its checkpoint of step 9."""
    folder = train(root, "checkpoint_minutes=0")
    (folder / "record.json").unlink()
    for path in folder.glob("checkpoint-00000010.*"):
        path.unlink()
    return folder


@pytest.mark.parametrize(
    "damage",
    [lambda p: p.unlink(), lines_lost(9), lambda p: p.write_bytes(bytes(p.stat().st_size))],
    ids=["missing", "lines", "zeros"],
)
def test_times_that_are_lost_are_noted_and_hold_no_run_back(tmp_path, damage):
    expected = train(tmp_path / "whole")
    folder = interrupted_run(tmp_path / "runs")
    damage(folder / "timing.jsonl")
    train(tmp_path / "runs")
    assert "resumed after step 9" in (folder / "log.txt").read_text()
    assert "timing.jsonl has lost the times of the steps" in read_record(folder)["notes"]
    name = "checkpoint-00000010.safetensors"
    assert (folder / name).read_bytes() == (expected / name).read_bytes()
    (folder / "record.json").unlink()  # a later process says so too
    train(tmp_path / "runs")
    assert "has lost the times of the steps" in read_record(folder)["notes"]


def another_digit(path):
    """What is still a line of JSON, with the step and all else that a line has."""
    path.write_bytes(path.read_bytes().replace(b'"loss": 2', b'"loss": 1', 1))


def a_line_twice(path):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines]))


OTHER_METRICS = {
    "all lost": (lambda path: path.write_bytes(b""), "ends after step 0"),
    "nine lines lost": (lines_lost(9), "ends after step"),
    "another digit": (another_digit, "is not as it was written up to step"),
    "a line twice": (a_line_twice, "is not as it was written up to step"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("damage", "said"), OTHER_METRICS.values(), ids=OTHER_METRICS)
def test_metrics_that_go_with_no_checkpoint_are_an_error_that_says_so(
    tmp_path, finished, damage, said
):
    name, root = "metrics.jsonl", tmp_path / "runs"
    before = (copied(finished, root) / name).read_bytes()
    damage(run_folder(root) / name)
    assert (run_folder(root) / name).read_bytes() != before
    assert finish(start(arguments(root, "estimator.noise=1e-4"), tmp_path / "err")) == 2
    (line,) = (tmp_path / "err").read_text().splitlines()
    assert f"({name} {said}" in line
    assert line.endswith("start again with force=true")


def test_the_metrics_are_on_the_disk_before_the_checkpoint_that_needs_them(tmp_path, monkeypatch):
    order = []
    monkeypatch.setattr(files, "sync", lambda path: order.append(path.name))
    monkeypatch.setattr(
        "fogzo_repro.training.loop.save_checkpoint", lambda *_: order.append("checkpoint")
    )
    train(tmp_path)
    assert order == ["metrics.jsonl", "timing.jsonl", "checkpoint"]


def test_a_full_disk_ends_the_run_in_one_line_and_the_same_command_goes_on(tmp_path, finished):
    """A limit on the size of files stands for a disk that is full."""
    root = tmp_path / "runs"
    overrides = arguments(root, "estimator.noise=1e-4")

    def fill_the_disk():
        resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, LIMIT))

    assert finish(start(overrides, tmp_path / "err", fill_the_disk)) == 2
    (line,) = [x for x in (tmp_path / "err").read_text().splitlines() if x.startswith("error")]
    assert "metrics.jsonl: File too large; allow larger files" in line
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert finish(start(overrides, tmp_path / "err")) == 0
    assert final_bytes(root) == final_bytes(finished)


UNREAD = {  # what is read, and for the how many-th time; the last is read at the end of the run
    "folder": ("os.scandir", None, 1),
    "checkpoints": ("os.scandir", None, 2),
    "metrics": ("open", "metrics.jsonl", 3),
    "times": ("open", "timing.jsonl", 1),
    "metrics at the end": ("open", "metrics.jsonl", 5),
}


@pytest.mark.parametrize(("event", "name", "turn"), UNREAD.values(), ids=UNREAD)
def test_what_a_disk_does_not_give_is_one_line_and_the_same_command_goes_on(
    tmp_path, finished, event, name, turn
):
    root, overrides = tmp_path / "runs", arguments(tmp_path / "runs", "estimator.noise=1e-4")
    folder = copied(finished, root)
    left = [turn]

    place = folder / name if name else folder

    def failing(what, details):
        if what != event or str(details[0]) != str(place) or details[1:2] == ("a",):
            return
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO), details[0])

    status = finish(start(overrides, tmp_path / "err", lambda: sys.addaudithook(failing)))
    said = (tmp_path / "err").read_text()
    assert status == 2 and "Traceback" not in said
    (line,) = [x for x in said.splitlines() if x.startswith("error")]
    assert f"cannot read {place}: Input/output error; see that" in line
    assert finish(start(overrides, tmp_path / "err")) == 0
    assert final_bytes(root) == final_bytes(finished)


def test_a_file_system_without_locks_is_said_and_the_run_goes_on(tmp_path):
    def without_locks():
        def flock(file, operation):
            raise OSError(errno.ENOSYS, "Function not implemented")

        fcntl.flock = flock

    assert finish(start(arguments(tmp_path / "runs"), tmp_path / "err", without_locks)) == 0
    assert "has no locks" in (run_folder(tmp_path / "runs") / "log.txt").read_text()


def test_no_whole_checkpoint_is_an_error_with_the_remedy(tmp_path, finished):
    root = tmp_path / "runs"
    shutil.copytree(finished, root)
    folder = run_folder(root)
    (folder / "record.json").unlink()
    for path in folder.glob("checkpoint-*.safetensors"):
        truncate(path)
    assert finish(start(arguments(root, "estimator.noise=1e-4"), tmp_path / "err")) == 2
    assert "start again with force=true" in (tmp_path / "err").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT, signal.SIGHUP],
    ids=str,
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


@pytest.mark.slow
def test_a_forced_run_that_is_stopped_says_that_force_would_begin_anew(tmp_path, finished):
    root = tmp_path / "runs"
    shutil.copytree(finished, root)
    overrides = arguments(root, "estimator.noise=1e-4", "checkpoint_minutes=0")
    before = run_folder(root).stat().st_ino
    pid = start([*overrides, "force=true"], tmp_path / "err")
    deadline = time.monotonic() + 60
    while not 2 <= min(steps_of_checkpoints(root), default=0) < STEPS - 1:
        assert time.monotonic() < deadline
    os.kill(pid, signal.SIGTERM)
    assert finish(pid) == 75
    said = (tmp_path / "err").read_text()
    assert "run the same command again without force=true, which would begin anew, to" in said
    assert finish(start(overrides, tmp_path / "err")) == 0
    assert final_bytes(root) == final_bytes(finished) and run_folder(root).stat().st_ino == before


@pytest.mark.slow
def test_a_forced_job_that_slurm_requeues_goes_on_and_one_that_is_given_again_begins_anew(
    tmp_path, finished
):
    root, log = tmp_path / "runs", tmp_path / "err"
    shutil.copytree(finished, root)
    overrides = arguments(root, "estimator.noise=1e-4", "checkpoint_minutes=0", "force=true")

    def forced(job, restarts=None):
        slurm = {"SLURM_JOB_ID": job} | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
        log.write_text("")
        return start(overrides, log, lambda: os.environ.update(slurm))

    pid = forced("7")
    deadline = time.monotonic() + 60
    while not 2 <= min(steps_of_checkpoints(root), default=0) < STEPS - 1:
        assert time.monotonic() < deadline
    os.kill(pid, signal.SIGTERM)
    assert finish(pid) == 75
    assert finish(forced("7", "1")) == 0
    said = "force=true begins nothing anew here: this job of Slurm did, before it was requeued"
    assert said in log.read_text() and "resumed after step" in log.read_text()
    assert final_bytes(root) == final_bytes(finished)
    assert finish(forced("7", "2")) == 0
    assert f"finished before, {said}" in log.read_text()
    for job in (["7"], ["8", "1"]):  # by hand in the same allocation; by another job
        assert finish(forced(*job)) == 0
        assert said not in log.read_text() and "resumed" not in log.read_text()


def test_a_kill_while_a_folder_is_emptied_leaves_no_finished_run(tmp_path, finished, monkeypatch):
    """It would be skipped for ever, without the checkpoint that all tools need."""
    root = tmp_path / "runs"
    shutil.copytree(finished, root)
    unlink, gone = Path.unlink, []

    def killed(path, *rest):
        if gone:
            raise KeyboardInterrupt
        gone.append(path.name)
        unlink(path, *rest)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        _empty(run_folder(root))
    assert gone == ["record.json"]


@pytest.mark.slow
def test_two_processes_do_not_write_one_run(tmp_path):
    root = tmp_path / "runs"
    first = start(arguments(root, "checkpoint_minutes=0"), tmp_path / "err")
    assert wait_for_step(root, first, 1)
    os.kill(first, signal.SIGSTOP)
    assert finish(start(arguments(root), tmp_path / "second")) == 2
    os.kill(first, signal.SIGCONT)
    assert "is being written by another process" in (tmp_path / "second").read_text()
    assert finish(first) == 0


@pytest.mark.slow
@pytest.mark.parametrize("again", [True, False], ids=["run_again", "left_so"])
def test_a_run_whose_folder_was_removed_ends_and_leaves_a_later_one_alone(
    tmp_path, finished, again
):
    """Its lock is gone with the folder, so that a second process may begin there."""
    root, overrides = tmp_path / "runs", ["estimator.noise=1e-4"]
    first = start(arguments(root, *overrides, "checkpoint_minutes=0"), tmp_path / "err")
    assert wait_for_step(root, first, 1)
    os.kill(first, signal.SIGSTOP)
    shutil.rmtree(run_folder(root))
    if again:
        assert finish(start(arguments(root, *overrides), tmp_path / "second")) == 0
    os.kill(first, signal.SIGCONT)
    assert finish(first) == 2
    (line,) = [x for x in (tmp_path / "err").read_text().splitlines() if x.startswith("error")]
    assert line.endswith(", then run the same command again")
    if again:
        assert "something else writes it" in line
        assert final_bytes(root) == final_bytes(finished)
    else:
        assert "put back its folder, which was removed or moved" in line


def test_a_checkpoint_that_appears_while_old_ones_go_is_left_alone(tmp_path, monkeypatch):
    """Of a process that was stopped in here, while its folder was removed and another began."""
    later = [tmp_path / f"checkpoint-00000040.{kind}" for kind in ("safetensors", "json")]
    usual = Path.glob

    def glob(folder, pattern):
        found = [*usual(folder, pattern)]
        for path in later:
            path.write_bytes(b"")
        return iter(found)

    for step in (1, 2):
        save_checkpoint(tmp_path, step, {}, {})
    monkeypatch.setattr(Path, "glob", glob)
    save_checkpoint(tmp_path, 3, {}, {})
    assert all(path.exists() for path in later)
    assert not (tmp_path / "checkpoint-00000001.json").exists()


@pytest.mark.slow
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


def test_tensors_that_a_kill_has_left_alone_go_with_the_next_checkpoint(tmp_path):
    """It came between the two files of a checkpoint, as one was written or removed."""
    for step in (1, 4):
        (tmp_path / f"checkpoint-{step:08d}.safetensors").touch()
    for step in (2, 3, 5):
        save_checkpoint(tmp_path, step, {}, {})
    names = [f"checkpoint-{step:08d}.{kind}" for step in (3, 5) for kind in ("json", "safetensors")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
