"""What a new process does, in a forked child: without importing torch anew."""

import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest
import sklearn.datasets  # noqa: F401  children inherit what is imported here
import torch._dynamo

import fogzo_repro.run  # noqa: F401
from fogzo_repro import __main__ as cli

ROOT = Path(__file__).resolve().parents[1]
OURS = ("fogzo_repro", "scripts", "tests")  # imported anew by `launch`


def check_forkable() -> None:
    """Skip the test where there is a GPU: who has looked for it may not ask for it in a child.

    torch's optimizers ask for it, on the CPU too.
    """
    if torch.cuda.is_available():
        pytest.skip("a process that sees a GPU cannot fork; run without FOGZO_TEST_GPU")


def fork(do: Callable[[], int | None]) -> int:
    """Fork a child that calls `do` and ends with the status it returns; return its pid.

    Whatever is raised in the child ends it, so that it never goes on with the parent's tests.
    """
    check_forkable()
    pid = os.fork()
    if pid:
        return pid
    status = 70  # anything that escapes below
    try:
        # The first such call makes a new pool of threads; several threads must not race for it.
        torch.set_num_threads(torch.get_num_threads())
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # and so does nohup with this one
        status = do() or 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def start(arguments: list[str], stderr: Path, before: Callable[[], None] | None = None) -> int:
    """Fork a child that runs `python -m fogzo_repro` with these arguments; return its pid."""

    def run() -> int:
        with open(stderr, "a") as file:
            os.dup2(file.fileno(), 2)
        sys.stderr = os.fdopen(2, "w", buffering=1)
        sys.stdout = sys.stderr
        sys.argv = ["fogzo_repro/__main__.py", *arguments]
        if before:
            before()
        return cli.main()

    return fork(run)


def free_port() -> int:
    """Return a port for the ranks of a run to meet at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def torchrun(*words: str) -> list[str]:
    """Return the command that starts a script, or `-m MODULE`, as two processes."""
    two = ["--nproc-per-node=2", f"--master-port={free_port()}"]
    return [sys.executable, "-m", "torch.distributed.run", *two, *words]


def torchrun_forked(arguments: Sequence[str | Path], cwd: Path, out: Path, err: Path) -> int:
    """Fork what torchrun starts, its agent, which forks the two processes; return its pid."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    place = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0", "run_id": str(free_port())}
    two = LaunchConfig(1, 1, nproc_per_node=2, start_method="fork", max_restarts=0, **place)
    words = [str(a) for a in arguments]

    def agent() -> None:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        elastic_launch(two, _become)(words, cwd, out, err, None)

    return fork(agent)


def finish(pid: int, seconds: float = 120) -> int:
    """Wait for a child; return its exit status, or minus the signal that ended it.

    A child that takes longer than `seconds` is killed and fails the test.
    """
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise TimeoutError(f"a child process had not ended after {seconds:.0f} s")
        time.sleep(0.002)


def python(
    *arguments: str | Path,
    cwd: Path = ROOT,
    before: Callable[[], None] | None = None,
    seconds: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Do what `python ARGUMENTS` does in `cwd`, a script or `-m MODULE`, and wait for it."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        status = finish(launch(arguments, cwd, out, err, before), seconds)
        return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())


def compiling(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Do what `python` does for a script that compiles, as if nothing had been compiled here."""
    import torch._inductor.compile_fx  # noqa: F401  the child inherits it

    return python(*arguments, cwd=cwd, before=_uncompiled, seconds=300)


TRIED = """
import os, sys
os.environ["TORCHINDUCTOR_CACHE_DIR"] = sys.argv[1]  # nothing that was built before
import torch._inductor.config

torch._inductor.config.cpp.vec_isa_ok = True  # trying it is slow, once a machine
torch.compile(lambda x: (x.exp() + 1).sum())(torch.ones(100))
"""


def why_not_compiled() -> str:
    """Have torch.compile make code for the CPU; return what its compiler says, nothing if it can.

    Tried and not looked up: there are compilers without headers, and without their own parts.
    """
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "script.py")
        script.write_text(TRIED)
        done = compiling(script, folder, cwd=Path(folder))
    said = [line.strip() for line in done.stderr.splitlines() if "rror:" in line]
    return "" if done.returncode == 0 else said[-1] if said else f"status {done.returncode}"


def _uncompiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def new_python(*arguments: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Do what `python` says without forking: for what needs a GPU, or an interpreter's end."""
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


def launch(
    arguments: Sequence[str | Path],
    cwd: Path,
    out: Path,
    err: Path,
    before: Callable[[], None] | None = None,
) -> int:
    """Fork a child that does what `python ARGUMENTS` does; return its pid.

    The project is imported anew, and only from where a new interpreter would find it.
    """
    return fork(partial(_become, [str(a) for a in arguments], cwd, out, err, before))


def _become(
    arguments: list[str], cwd: Path, out: Path, err: Path, before: Callable[[], None] | None
) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        with open(path, "a") as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
    os.chdir(cwd)
    for name in [n for n in sys.modules if n.split(".")[0] in OURS]:
        del sys.modules[name]
    if before:
        before()
    found = [p for p in sys.path if "site-packages" in p or not Path(p).is_relative_to(ROOT)]
    if arguments[0] == "-m":
        sys.path, sys.argv = [str(cwd), *found], arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.path, sys.argv = [str(Path(arguments[0]).parent), *found], arguments
        runpy.run_path(arguments[0], run_name="__main__")


def by_triton(script: str, on_gpu: bool) -> str:
    """Run a script with kernels, its argument this folder; return what it prints.

    On a GPU as they are, in a new process; else in a forked child by Triton's interpreter, which
    is chosen before Triton is read.
    """
    triton = pytest.importorskip("triton")
    if not on_gpu and tuple(map(int, triton.__version__.split(".")[:2])) < (3, 7):
        pytest.skip("Triton before 3.7 interprets no loops with NumPy 2.4")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "script.py")
        file.write_text(script)
        if on_gpu:
            done = new_python(file, ROOT, cwd=ROOT)
        else:
            done = python(file, ROOT, before=_interpreted, seconds=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _interpreted() -> None:
    """Have Triton read anew, but for its library in C++, which cannot be."""
    os.environ["TRITON_INTERPRET"] = "1"
    for name in [n for n in sys.modules if n.split(".")[0] == "triton" and "._C" not in n]:
        del sys.modules[name]
