"""Which commit a record names: this project's, or a given one that is said to be given, or none."""

import os
import subprocess

import pytest
from conftest import ROOT
from tracking.test_records import single

from fogzo_repro.tracking import environment
from fogzo_repro.tracking.environment import command_line, git_state, why_refused
from fogzo_repro.tracking.records import make_good, write_record


def git(folder, *words):
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    plain = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *words], check=True, capture_output=True, text=True,
        env=plain,
    )  # fmt: skip
    return done.stdout.strip()


def repository(folder):
    """Make a repository with one committed file."""
    folder.mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "code.py").write_text("1\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "one")
    return folder


@pytest.fixture
def project(monkeypatch, tmp_path):
    """A repository that is taken for the project's."""
    for name in ("FOGZO_COMMIT", *environment.ELSEWHERE):
        monkeypatch.delenv(name, raising=False)
    folder = repository(tmp_path / "outer" / "project")
    monkeypatch.setattr(environment, "TOP", folder)
    return folder


def test_a_clean_commit_is_named_and_results_do_not_count(project):
    (project / "results").mkdir()
    (project / "results" / "new.json").write_text("{}")
    assert git_state() == {"commit": git(project, "rev-parse", "HEAD"), "dirty": False}
    assert why_refused(git_state()) is None


@pytest.mark.parametrize("own", ["none", "empty"])
def test_a_copy_inside_another_repository_does_not_take_that_ones_commit(project, own):
    subprocess.run(["rm", "-rf", str(project / ".git")], check=True)
    if own == "empty":
        (project / ".git").mkdir()
    git(project.parent, "init", "-q")
    git(project.parent, "add", ".")
    git(project.parent, "commit", "-qm", "outer")
    assert git_state() == {"commit": None, "dirty": None}
    said = why_refused(git_state())
    assert ("is no git repository" if own == "none" else "git: not a git repository") in said


def test_variables_that_point_git_elsewhere_are_not_followed(project, monkeypatch, tmp_path):
    other = repository(tmp_path / "other")
    (other / "code.py").write_text("2\n")
    git(other, "commit", "-qam", "two")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "index"))
    assert git_state() == {"commit": git(project, "rev-parse", "HEAD"), "dirty": False}


def test_gits_own_reason_is_told(project, monkeypatch):
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert git_state() == {"commit": None, "dirty": None}
    assert "detected dubious ownership" in why_refused(git_state())


def test_without_git_it_is_said(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert "git: No such file or directory" in why_refused(git_state())


def test_a_given_commit_is_for_a_copy_without_history_and_said_to_be_given(project, monkeypatch):
    monkeypatch.setenv("FOGZO_COMMIT", "f" * 40)
    assert git_state()["commit"] == git(project, "rev-parse", "HEAD")
    subprocess.run(["rm", "-rf", str(project / ".git")], check=True)
    assert git_state() == {"commit": "f" * 40, "dirty": False, "commit_given": True}
    monkeypatch.setenv("FOGZO_COMMIT", "main")
    assert git_state() == {"commit": None, "dirty": None}
    assert "FOGZO_COMMIT=main is no commit of 40 hexadecimal digits" in why_refused(git_state())


@pytest.mark.parametrize("committed", ["these", "others"])
def test_a_record_is_good_once_the_very_files_are_committed(project, tmp_path, committed):
    (project / "code.py").write_text("2\n")
    (project / "more.py").write_text("new\n")
    state, path = git_state(), tmp_path / "record.json"
    assert state["dirty"] and "commit these very files" in why_refused(state)
    write_record(path, single(0, **state))
    assert make_good(path)["dirty"] is True
    if committed == "others":
        (project / "more.py").write_text("newer\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "two")
    record = make_good(path)
    good = committed == "these"
    assert record["dirty"] is not good and ("tree" in record) is not good
    assert (record["commit"] == git(project, "rev-parse", "HEAD")) is good
    assert make_good(path) == record


LAUNCHERS = {
    "python": {},
    "torchrun --nproc-per-node=4": {"LOCAL_WORLD_SIZE": "4", "GROUP_WORLD_SIZE": "1"},
    "torchrun --nnodes=2 --nproc-per-node=8": {"LOCAL_WORLD_SIZE": "8", "GROUP_WORLD_SIZE": "2"},
}
STARTED = {
    "fogzo_repro/__main__.py": "-m fogzo_repro",
    "scripts/bench/cards.py": "-m scripts.bench.cards",
    "scripts/run_cells.py": "scripts/run_cells.py",
}


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("name", STARTED)
def test_command_is_what_was_typed(monkeypatch, launcher, name):
    for variable in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)
    for variable, value in LAUNCHERS[launcher].items():
        monkeypatch.setenv(variable, value)
    words = ["seed=1", "output_root=my runs", "data_dir=/home/me/data", "--out", "/tmp/a/b.json"]
    monkeypatch.setattr("sys.argv", [str(ROOT / name), *words])
    told = "seed=1 'output_root=my runs' data_dir=data --out b.json"
    assert command_line() == f"{launcher} {STARTED[name]} {told}"
