"""The machine and the software of a run, for its record."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "timm", "transformers", "datasets", "hydra-core", "omegaconf")
ROOT = Path(__file__).resolve().parents[2]


def command_line() -> str:
    """Return the command as a user would type it from the project's root."""
    path = Path(sys.argv[0]).resolve()
    shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else Path(path.name)
    what = [str(shown)]
    if shown.name == "__main__.py":
        what = ["-m", "fogzo_repro"]
    elif shown.parent == Path("scripts/bench"):  # modules, which Python finds from the root alone
        what = ["-m", f"scripts.bench.{shown.stem}"]
    return shlex.join([*_launcher(), *what, *sys.argv[1:]])


def _launcher() -> list[str]:
    """Return what starts Python; torchrun tells the processes it starts how many there are."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return ["python"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    return [
        "torchrun", *([] if nodes == "1" else [f"--nnodes={nodes}"]),
        f"--nproc-per-node={os.environ['LOCAL_WORLD_SIZE']}",
    ]  # fmt: skip


def git_state() -> dict[str, Any]:
    """Return the commit and whether the working tree differs from it.

    What stands under results/ does not count: no run reads it, and a table's own new records must
    not make the next runs dirty. FOGZO_COMMIT names the commit where the code was copied without
    its history.
    """
    if "FOGZO_COMMIT" in os.environ:
        return {"commit": os.environ["FOGZO_COMMIT"], "dirty": False}
    git = ["git", "-C", str(ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "--", ".", ":!results"], capture_output=True, text=True
        )
    except OSError:
        return {"commit": None, "dirty": None}
    if commit.returncode:
        return {"commit": None, "dirty": None}
    return {"commit": commit.stdout.strip(), "dirty": bool(status.stdout.strip())}


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
