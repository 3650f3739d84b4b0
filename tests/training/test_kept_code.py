"""Compiled code is kept for the next run of its shape, and used only where it belongs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config

from fogzo_repro.training.kept_code import KeptCode, kept_folder
from tests.conftest import compiles
from tests.forked import ROOT, compiling, why_not_compiled

CARD = "NVIDIA H200"
SHAPE = {"model": "llama", "batch": 64}


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """What torch has compiled by name, given out and taken back as it does."""
    known: dict[str, bytes] = {}
    monkeypatch.setenv("TRITON_CACHE_DIR", "triton's own")  # no test leaves another behind

    def save() -> tuple[bytes, SimpleNamespace] | None:
        content = b"\n".join(k.encode() + b"=" + v for k, v in known.items())
        return (content, SimpleNamespace(artifacts={"inductor": list(known)})) if known else None

    def load(content: bytes) -> SimpleNamespace:
        found = dict(line.split(b"=", 1) for line in content.split(b"\n"))
        known.update({k.decode(): v for k, v in found.items()})
        return SimpleNamespace(artifacts={"inductor": list(known)})

    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", save)
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", load)
    yield known


def kept(folder: Path, compiled: dict[str, bytes]) -> Path:
    """A file as a run leaves it."""
    compiled["block"] = b"code"
    code = KeptCode(folder, CARD, SHAPE)
    assert code.load() == []
    (said,) = code.save()
    assert code.path is not None and said == f"compiled code kept in {code.path}"
    compiled.clear()
    return code.path


def test_the_next_run_of_the_shape_gets_it_and_writes_only_what_is_new(
    tmp_path: Path, compiled: dict[str, bytes]
) -> None:
    path = kept(tmp_path, compiled)
    written = path.stat().st_mtime_ns
    code = KeptCode(tmp_path, CARD, dict(reversed(SHAPE.items())))
    assert code.load() == [f"compiled code from {path}"]
    assert compiled == {"block": b"code"}
    assert code.save() == [] and path.stat().st_mtime_ns == written
    compiled["probe"] = b"more"
    path.with_name("0123.77.tmp").write_bytes(b"of a run that was killed")
    assert code.save() == [f"compiled code kept in {path}"]
    compiled.clear()
    KeptCode(tmp_path, CARD, SHAPE).load()
    assert set(compiled) == {"block", "probe"}
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_other_shapes_cards_and_versions_have_files_of_their_own(
    tmp_path: Path, compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept(tmp_path, compiled)
    assert KeptCode(tmp_path, CARD, {**SHAPE, "batch": 32}).load() == []
    assert KeptCode(tmp_path, "NVIDIA H100 80GB HBM3", SHAPE).load() == []
    monkeypatch.setattr(torch, "__version__", "9.9.9+cu999")
    assert KeptCode(tmp_path, CARD, SHAPE).load() == []
    assert not compiled


def test_kernels_in_triton_are_kept_beside_it(
    tmp_path: Path, compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    code = KeptCode(tmp_path / "kept", CARD, SHAPE)
    code.load()
    assert os.environ["TRITON_CACHE_DIR"] == "triton's own"  # the user has named it
    monkeypatch.delenv("TRITON_CACHE_DIR")
    (tmp_path / "file").touch()
    for nowhere in (None, tmp_path / "file"):
        KeptCode(nowhere, CARD, SHAPE).load()
        assert "TRITON_CACHE_DIR" not in os.environ
    code.load()
    assert code.path is not None
    assert Path(os.environ["TRITON_CACHE_DIR"]) == code.path.parent / "triton"
    assert code.path.parent.joinpath("triton").is_dir()


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "cut in the first line": lambda content: content[:20],
    "a bit flipped": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "something else": lambda content: b"[1, 2]\n" + content,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_not_used_and_replaced(
    tmp_path: Path, compiled: dict[str, bytes], damage: Callable[[bytes], bytes]
) -> None:
    path = kept(tmp_path, compiled)
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    code = KeptCode(tmp_path, CARD, SHAPE)
    assert code.load() == [f"warning: the compiled code in {path} is not used: it is damaged"]
    assert not compiled
    compiled["block"] = b"code"
    code.save()
    assert path.read_bytes() == whole


def test_a_file_of_another_card_that_was_copied_here_is_not_used(
    tmp_path: Path, compiled: dict[str, bytes]
) -> None:
    path = kept(tmp_path, compiled)
    other = KeptCode(tmp_path, "NVIDIA A100", SHAPE)
    assert other.path is not None
    other.path.parent.mkdir()
    shutil.copy(path, other.path)
    (line,) = other.load()
    assert line.endswith(f"is not used: it is of torch {torch.__version__} on {CARD}")
    assert not compiled


def test_a_file_that_cannot_be_read_or_written_costs_a_line_and_not_the_run(
    tmp_path: Path, compiled: dict[str, bytes]
) -> None:
    path = kept(tmp_path, compiled)
    path.unlink()
    path.mkdir()
    code = KeptCode(tmp_path, CARD, SHAPE)
    (line,) = code.load()
    assert "is not used: it cannot be read" in line
    compiled["block"] = b"code"
    (line,) = code.save()
    assert line.startswith("warning: compiled code is not kept: cannot write")
    (tmp_path / "file").touch()
    (line,) = KeptCode(tmp_path / "file", CARD, SHAPE).load()  # where a folder should be
    assert "cannot be read" in line
    (line,) = KeptCode(tmp_path / "file", CARD, SHAPE).save()
    assert f"FOGZO_COMPILED={tmp_path / 'file'} is not writable" in line


def test_an_empty_variable_keeps_nothing(
    tmp_path: Path, compiled: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOGZO_COMPILED", "")
    compiled["block"] = b"code"
    nowhere = KeptCode(kept_folder(), CARD, SHAPE)
    assert nowhere.load() == nowhere.save() == []
    monkeypatch.setenv("FOGZO_COMPILED", str(tmp_path))
    assert kept_folder() == tmp_path
    monkeypatch.delenv("FOGZO_COMPILED")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kept_folder() == tmp_path / ".cache" / "fogzo_repro"


BROKEN = """#!/bin/sh
case "$*" in *--version*) echo g++ 13.2.0; exit;; esac
echo "g++: fatal error: no part of it compiles" >&2
exit 1
"""
SCRIPT = """
import os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
os.environ["FOGZO_COMPILED"] = "kept"
os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.argv[2]  # as on another machine
import torch._inductor.config
from torch._dynamo.utils import counters

torch._inductor.config.cpp.vec_isa_ok = True  # trying it is slow, once a machine

from tests.short_runs import train

train(Path(sys.argv[2]), "hardware.compile=true", "estimator=ste", f"seed={sys.argv[3]}")
print(counters["inductor"]["fxgraph_cache_miss"], counters["inductor"]["fxgraph_cache_hit"])
"""


@pytest.mark.slow
def test_a_compiler_that_cannot_build_is_found_by_trying(tmp_path: Path) -> None:
    broken = tmp_path / "g++"
    broken.write_text(BROKEN)
    broken.chmod(0o755)
    with torch._inductor.config.patch({"cpp.cxx": (str(broken),)}):
        assert why_not_compiled() == "g++: fatal error: no part of it compiles"


NO_FOLDER = """
import hashlib, json, os, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
os.environ |= {"TORCHINDUCTOR_CACHE_DIR": sys.argv[0], "TRITON_CACHE_DIR": ""}  # a file
from fogzo_repro.training.kept_code import KeptCode

code = KeptCode(Path("kept"), "CPU", {})
code.path.parent.mkdir(parents=True)
head = {**code.made_for, "sha256": hashlib.sha256(b"code").hexdigest()}
code.path.write_bytes(json.dumps(head).encode() + b"\\ncode")
try:
    code.load()
except OSError as error:
    print(error.filename)
"""


@pytest.mark.slow
def test_where_torch_cannot_make_its_cache_folder_that_is_the_error(tmp_path: Path) -> None:
    """In a new process: torch does so when its compiler is first imported."""
    (script := tmp_path / "script.py").write_text(NO_FOLDER)
    command = [sys.executable, str(script), str(ROOT)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(script), done.stderr


@compiles
@pytest.mark.slow
def test_a_run_on_another_machine_compiles_nothing_that_was_kept(tmp_path: Path) -> None:
    """By torch's own count, in two processes that compile: nothing short of it shows this."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    counts = []
    for machine, seed in (("first", "0"), ("second", "1")):
        done = compiling(script, ROOT, machine, seed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        counts.append([int(word) for word in done.stdout.split()])
    (_,) = (path for path in (tmp_path / "kept").glob("torch-*/*") if path.is_file())
    (missed, _), (missed_again, found) = counts
    assert missed > 0 and missed_again == 0 and found > 0
