"""The machine and the software of a run, for its record."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from fogzo_repro.project import INSTALLED, TOP

PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "hydra-core", "omegaconf")
GIVEN = "FOGZO_COMMIT"  # names the commit of a copy that has no history of its own
COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
ELSEWHERE = {  # variables by which git takes another place for the repository
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_NAMESPACE", "GIT_PREFIX",
}  # fmt: skip
COUNTED = (".", ":!results")  # no run reads results/, and new records must not make runs dirty


def provenance(code: dict[str, Any], hardware: str) -> dict[str, Any]:
    """Return what a record says of its command, its code (`git_state`), its packages and card."""
    return {"command": command_line(), **code, "versions": versions(), "hardware": hardware}


def command_line() -> str:
    """Return the command as a user would type it from the project's folder.

    Of what lies elsewhere the last name is told alone: a record is published.
    """
    path = Path(sys.argv[0]).resolve()
    shown = path.relative_to(TOP) if path.is_relative_to(TOP) else Path(path.name)
    what = [str(shown)]
    if shown.name == "__main__.py":
        what = ["-m", "fogzo_repro"]
    elif shown.parent == Path("scripts/bench"):  # modules, which Python finds from the root alone
        what = ["-m", f"scripts.bench.{shown.stem}"]
    elif INSTALLED and shown.parent == Path("scripts"):
        what = ["-m", f"fogzo_repro.scripts.{shown.stem}"]
    return shlex.join([*_launcher(), *what, *map(_without_folders, sys.argv[1:])])


def _without_folders(word: str) -> str:
    """Return a word of a command, an absolute path in it by its last name.

    >>> _without_folders("data_dir=/home/me/data"), _without_folders("/tmp/out/start.json")
    ('data_dir=data', 'start.json')
    """
    key, equals, value = word.rpartition("=")
    path = Path(value)
    return f"{key}{equals}{path.name}" if path.is_absolute() and path.name else word


def _launcher() -> list[str]:
    """Return what starts Python; torchrun tells the processes it starts how many there are."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return ["python"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    return [
        "torchrun", *([] if nodes == "1" else [f"--nnodes={nodes}"]),
        f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}",
    ]  # fmt: skip


class NoCommit(Exception):
    """It is not known which commit this code is of; why, in a few words."""


def git_state() -> dict[str, Any]:
    """Return what a record says of the code.

    Returns:
        `commit`, `dirty`: whether the working tree differs from it, and where it does `tree`, by
        which a later commit of the very same files is recognised; `commit_given` where the commit
        was given by FOGZO_COMMIT for a copy without a history. None where nothing is known.
    """
    try:
        commit = _git("rev-parse", "HEAD").strip()
        if _git("status", "--porcelain", "--", *COUNTED).strip():
            return {"commit": commit, "dirty": True, "tree": tree_digest()}
        return {"commit": commit, "dirty": False}
    except NoCommit:
        if COMMIT.fullmatch(os.environ.get(GIVEN, "")):
            return {"commit": os.environ[GIVEN], "dirty": False, "commit_given": True}
        return {"commit": None, "dirty": None}


def why_refused(state: dict[str, Any]) -> str | None:
    """Return why tables will refuse a record of this `git_state`, with the remedy, or None."""
    if state["dirty"] is False:
        return None
    if state["dirty"]:
        return (
            "the working tree is not a clean commit, so that tables will refuse this record; "
            "commit these very files and give the same command again, which makes it good"
        )
    try:
        _git("rev-parse", "HEAD")
        why = "git has answered just now"
    except NoCommit as error:
        why = str(error)
    given = os.environ.get(GIVEN)
    bad = f"; {GIVEN}={given} is no commit of 40 hexadecimal digits" if given is not None else ""
    return (
        f"the commit of this code is not known ({why}{bad}), so that tables will refuse this "
        f"record; mend that, or for a copy give its commit as {GIVEN}"
    )


def tree_digest() -> str | None:
    """Return a digest of the project's files, committed or not; None where git does not list them.

    Ignored files and those under results/ do not count.
    """
    try:
        listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", *COUNTED)
    except NoCommit:
        return None
    digest = hashlib.sha256()
    for name in sorted({*listed.split("\0")} - {""}):
        path = TOP / name
        try:
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
        except OSError:  # deleted, or a repository of its own
            continue
        runs = os.access(path, os.X_OK) and not path.is_symlink()
        digest.update(f"{name}\0{runs}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return digest.hexdigest()


def _git(*words: str) -> str:
    """Ask git about this project's own repository, and no other.

    Raises:
        NoCommit: where there is none, or git does not answer; with git's reason.
    """
    if not (TOP / ".git").exists():
        raise NoCommit(f"{TOP} is no git repository")
    # A hook or a job may have pointed git at another repository; above TOP there is none of ours.
    environment = {k: v for k, v in os.environ.items() if k not in ELSEWHERE}
    environment |= {"GIT_CEILING_DIRECTORIES": str(TOP.parent), "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", "-C", str(TOP), *words], capture_output=True, text=True,
            errors="surrogateescape", env=environment,
        )  # fmt: skip
    except OSError as error:
        raise NoCommit(f"git: {error.strerror}") from None
    if done.returncode:
        said = next(iter(done.stderr.strip().splitlines()), f"status {done.returncode}")
        raise NoCommit(f"git: {said.removeprefix('fatal: ')}")
    return done.stdout


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
