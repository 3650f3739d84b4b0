"""A terminal that is closed or full does not stop the work."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from fogzo_repro.terminal import at_least_one, command_parser, one_line_errors, text_or_path
from tests.conftest import ROOT

TELLING = """
import os, sys
from fogzo_repro.terminal import UserError, outlive_terminal
outlive_terminal("stdout", "stderr")
for _ in range(10000):
    print("a line of some length, so that every buffer is full before long")
    print("a line", file=sys.stderr)
UserError("mend it").tell()
file = open(sys.argv[1], "w")
assert file.fileno() > 2
if sys.argv[2] == "closed":
    os.write(1, b"from a library"), os.write(2, b"from a library")
file.write("work done")
"""
REDIRECTIONS = {
    "closed": ">&- 2>&-",
    "stderr full": "2>/dev/full >/dev/null",
    "stdout full": ">/dev/full 2>/dev/null",
    "both full": ">/dev/full 2>/dev/full",
}


@pytest.mark.parametrize("kind", REDIRECTIONS)
def test_work_ends_well_without_a_terminal(kind: str, tmp_path) -> None:
    out = tmp_path / "out"
    line = f'"$0" -c "$1" "$2" "$3" {REDIRECTIONS[kind]}'
    words = ["sh", "-c", line, sys.executable, TELLING, str(out), kind]
    assert subprocess.run(words, cwd=ROOT).returncode == 0
    assert out.read_text() == "work done"


def test_work_ends_well_after_the_reader_of_a_pipe_has_left(tmp_path) -> None:
    out = tmp_path / "out"
    words = [sys.executable, "-c", TELLING, str(out), "pipe"]
    pipe, null = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=null) as process:
        assert process.stdout is not None
        process.stdout.close()
    assert process.returncode == 0
    assert out.read_text() == "work done"


TOOL = """
import sys
from pathlib import Path
from fogzo_repro.terminal import one_line_errors
sys.exit(one_line_errors(lambda: print("a result\\n" * int(sys.argv[1])))())
"""


@pytest.mark.parametrize("lines", [1, 100_000], ids=["short", "long"])
def test_a_tools_result_that_cannot_be_written_is_an_error(lines: int) -> None:
    line = '"$0" -c "$1" "$2" > /dev/full'
    words = ["sh", "-c", line, sys.executable, TOOL, str(lines)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "error: cannot write to standard output: No space left on device\n"


@pytest.mark.parametrize("lines", [1, 100_000], ids=["short", "long"])
def test_a_reader_that_has_seen_enough_is_no_error(lines: int) -> None:
    words = [sys.executable, "-c", TOOL, str(lines)]
    pipe = subprocess.PIPE
    with subprocess.Popen(words, cwd=ROOT, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_a_character_that_the_terminal_does_not_know_is_replaced() -> None:
    words = [sys.executable, "-c", TOOL.replace("a result", "1 ± 2"), "1"]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1 ? 2\n\n", "")


def test_what_the_system_refuses_to_do_with_a_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @one_line_errors
    def command(path: Path) -> None:
        path.read_bytes()

    assert command(tmp_path) == 2
    said = f"cannot use {tmp_path}: Is a directory; see that you can, then run the same command"
    assert capsys.readouterr().err == f"error: {said} again\n"


@pytest.mark.parametrize("words", [["scripts.rank", "x"], ["fogzo_repro", "--help"]], ids=str)
def test_a_folder_that_was_removed_under_a_command_is_one_line(
    words: list[str], tmp_path: Path
) -> None:
    line = 'rmdir "$0" && "$@"'
    command = ["sh", "-c", line, str(tmp_path), sys.executable, "-m", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FOGZO_PARTS": "mine"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    said = "error: the folder that this is started in was removed; go to one that is there\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_int_ends_a_command_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    @one_line_errors
    def command() -> None:
        raise KeyboardInterrupt

    assert command() == 130
    assert capsys.readouterr().err == "interrupted: run the same command again to go on\n"


@pytest.mark.parametrize(
    "words", [["-m", "fogzo_repro"], ["-m", "fogzo_repro.evaluate"], ["scripts/status.py"]], ids=str
)
def test_int_ends_a_command_in_one_line_while_it_imports(words: list[str], tmp_path: Path) -> None:
    """A module may drop what is raised in it, as Python does in a callback."""
    for name in ("hydra", "torch", "omegaconf"):
        (tmp_path / f"{name}.py").write_text(
            "import os, signal\n"
            "try:\n    os.kill(os.getpid(), signal.SIGINT)\n"
            "except BaseException:\n    pass\n"
        )
    done = subprocess.run(
        [sys.executable, *words], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # else & ignores it
    )  # fmt: skip
    said = "interrupted: run the same command again to go on\n"
    assert (done.returncode, done.stderr) == (130, said)


def test_a_path_is_typed_with_a_tilde_and_never_empty(monkeypatch, capsys):
    monkeypatch.setenv("HOME", "/home/me")
    parser = command_parser("What it does.")
    parser.add_argument("--out", type=Path)
    assert parser.parse_args(["--out=~/x"]).out == Path("/home/me/x")
    parser.add_argument("--source", type=text_or_path)
    assert parser.parse_args(["--source=~/x"]).source == "/home/me/x"
    for text, said in (("", "is empty; a dot"), ("~nobody-here/x", "names a home folder that is")):
        with pytest.raises(SystemExit):
            parser.parse_args([f"--out={text}"])
        assert f"argument --out: {text!r} {said}" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            parser.parse_args([f"--source={text}"])
        assert f"argument --source: {text!r} {said}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        (float, "nan", "must be a finite number, at least 0"),
        (float, "inf", "must be a finite number, at least 0"),
        (float, "-1", "must be a finite number, at least 0"),
        (int, "-1", "must be at least 0"),
        (at_least_one, "0", "must be at least 1"),
    ],
    ids=["nan", "inf", "negative", "whole", "count"],
)
def test_a_number_that_limits_nothing_is_refused(kind, text, said, capsys):
    parser = command_parser("What it does.")
    parser.add_argument("--number", type=kind)
    assert parser.parse_args(["--number=2"]).number == 2
    with pytest.raises(SystemExit):
        parser.parse_args([f"--number={text}"])
    assert f"argument --number: {text!r} {said}\n" in capsys.readouterr().err
