"""wandb is a mirror: offline without a key, and whatever it does, the run goes on."""

import json
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import wandb

from fogzo_repro.config.run import WandbConfig
from fogzo_repro.tracking import wandb as mirror_module
from fogzo_repro.tracking.wandb import WandbMirror
from tests.forked import finish, start

TINY = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=4", "hardware=cpu"]
RECORD = {
    "status": "finished", "steps": 4, "wall_seconds": 1.5, "gpu_hours": 0.0, "peak_memory_mb": 2.0,
    "perturbed_weights": 7,
    "metrics": {
        "last": {"test": {"step": 4, "loss": 0.5}},
        "best": {"test": {"step": 2, "split": "test", "loss": 0.4}},
    },
}  # fmt: skip


@pytest.mark.slow
def test_offline_run_is_mirrored_without_key_or_network(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    arguments = [*TINY, f"output_root={tmp_path}", "tracker=wandb", "cell.table=cells"]
    assert finish(start(arguments, tmp_path / "err")) == 0, (tmp_path / "err").read_text()
    (run,) = tmp_path.glob("*/wandb/offline-run-*/*.wandb")
    (state,) = tmp_path.glob("*/wandb.json")
    assert run.name == f"run-{json.loads(state.read_text())['id']}.wandb"
    written = run.read_bytes()
    assert b"train/loss" in written and b"last/test/top1" in written
    assert b"wandb" not in (tmp_path / "err").read_bytes()


class Service:
    """A wandb that keeps what it is given, and fails or hangs from a chosen call on."""

    def __init__(self, fails: str = "", hangs: str = "") -> None:
        self.fails, self.hangs = fails, hangs
        self.arguments: dict = {}
        self.logged: list[tuple[int | None, dict]] = []
        self.summary: dict = {}
        self.exit_code: int | None = None

    def _called(self, call: str) -> None:
        if call == self.fails:
            raise ConnectionError("")  # no message either
        if call == self.hangs:
            threading.Event().wait()

    def init(self, **arguments):
        self._called("init")
        self.arguments = arguments
        return self

    def log(self, values, step=None):
        self._called("log")
        self.logged.append((step, values))

    def finish(self, exit_code):
        self._called("finish")
        self.exit_code = exit_code

    def Settings(self, **arguments):
        return None

    def Table(self, columns, data):
        return [dict(zip(columns, line, strict=True)) for line in data]


@pytest.fixture
def service(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", made := Service())
    return made


def mirror(folder: Path, table: str = "table1", group: str | None = None) -> WandbMirror:
    config = SimpleNamespace(name="wandb", project="p", group=group)
    settings = {"cell": {"table": table, "row": "r", "column": "c"}, "seed": 3}
    return WandbMirror(config, "the-run", folder, settings)


def lines(first: int, last: int) -> list[dict]:
    return [{"step": step, "loss": 1 / step} for step in range(first, last + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("at", ["init", "log", "finish"], ids=str)
def test_failing_service_never_stops_a_run(tmp_path, monkeypatch, at):
    runs = {}
    for tracker in ("none", "wandb"):
        monkeypatch.setitem(sys.modules, "wandb", Service(at) if tracker == "wandb" else wandb)
        root = tmp_path / tracker
        arguments = [*TINY, f"output_root={root}", f"tracker={tracker}"]
        assert finish(start(arguments, tmp_path / "err")) == 0
        (metrics,) = root.glob("*/metrics.jsonl")
        runs[tracker] = metrics.read_bytes()
    assert (tmp_path / "err").read_text().count("wandb failed") == 1
    assert runs["wandb"] == runs["none"]


@pytest.mark.parametrize("at", ["init", "log", "finish"], ids=str)
def test_hanging_service_costs_a_run_no_more_than_the_bound(tmp_path, monkeypatch, capsys, at):
    monkeypatch.setitem(sys.modules, "wandb", Service(hangs=at))
    monkeypatch.setattr(mirror_module, "FINISH_SECONDS", 0.2)
    started = time.monotonic()
    hanging = mirror(tmp_path)
    for step in range(1, 3000):  # three times what the queue holds
        hanging.append(lines(step, step))
    assert time.monotonic() - started < 2
    hanging.finish(RECORD)
    assert time.monotonic() - started < 4
    assert capsys.readouterr().err.count("without it") == 1


@pytest.mark.parametrize(
    ("table", "given", "group"),
    [("table1", None, "table1"), ("table1", "mine", "mine"), ("none", None, None)],
    ids=["the table", "the user's own", "no table"],
)
def test_cells_of_a_sweep_are_grouped_by_their_table(tmp_path, service, table, given, group):
    mirror(tmp_path, table, given).finish(None)
    assert service.arguments["group"] == group
    assert service.arguments["name"] == "the-run"


@pytest.mark.parametrize(
    ("key", "given", "mode"),
    [
        (None, None, "offline"), ("key", None, "online"), ("key", "offline", "offline"),
        ("key", "disabled", "disabled"), (None, "online", "online"), ("key", "", "online"),
    ],
    ids=["no key", "key", "offline with a key", "disabled", "logged in by a file", "empty"],
)  # fmt: skip
def test_the_mode_is_the_users(tmp_path, monkeypatch, service, key, given, mode):
    for name, value in (("WANDB_API_KEY", key), ("WANDB_MODE", given)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    mirror(tmp_path).finish(None)
    assert service.arguments["mode"] == mode


@pytest.mark.slow
def test_the_project_group_and_folder_of_the_environment_are_taken(tmp_path, monkeypatch, service):
    from fogzo_repro.composition import compose_run

    for name in ("PROJECT", "RUN_GROUP", "DIR"):
        monkeypatch.setenv(f"WANDB_{name}", f"my-{name}")
    assert compose_run("tracker=wandb").tracker == WandbConfig(
        "wandb", "my-PROJECT", "my-RUN_GROUP"
    )
    assert compose_run("tracker=wandb", "tracker.project=typed").tracker.project == "typed"
    mirror(tmp_path).finish(None)
    assert service.arguments["dir"] == "my-DIR"
    for name in ("PROJECT", "RUN_GROUP"):
        monkeypatch.delenv(f"WANDB_{name}")
    assert compose_run("tracker=wandb").tracker == WandbConfig("wandb", "fogzo_repro", None)


def test_a_service_that_is_not_reached_is_mirrored_offline(tmp_path, monkeypatch, capsys, service):
    monkeypatch.setenv("WANDB_API_KEY", "key")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    begin = service.init

    def init(**arguments):
        if arguments["mode"] == "online":
            raise ConnectionError("no route to host")
        return begin(**arguments)

    service.init = init
    offline = mirror(tmp_path)
    offline.append(lines(1, 2))
    offline.finish(None)
    assert [step for step, _ in service.logged] == [1, 2]
    assert "wandb is not reached (no route to host); mirrored offline" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_that_is_asked_to_leave_waits_for_no_service(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", Service(hangs="finish"))
    hanging = mirror(tmp_path)
    started = time.monotonic()
    hanging.finish(None)
    assert time.monotonic() - started < 2


def test_resumed_run_goes_on_in_the_same_wandb_run_and_sends_nothing_twice(tmp_path, service):
    first = mirror(tmp_path)
    first.append(lines(1, 6))
    first.finish(None)
    known = service.arguments["id"]
    second = mirror(tmp_path)  # resumed from a checkpoint after step 4
    second.append(lines(1, 4))
    second.append(lines(5, 9))
    second.finish(None)
    assert service.arguments["id"] == known
    assert [step for step, _ in service.logged] == [1, 2, 3, 4, 5, 6, 7, 8, 9]


def test_lines_that_a_kill_kept_from_the_mirror_are_sent_on_resume(tmp_path, service):
    first = mirror(tmp_path)
    first.append(lines(1, 2))
    first.finish(None)
    second = mirror(tmp_path)
    second.append(lines(1, 4))  # metrics.jsonl as it was left
    second.finish(None)
    assert [step for step, _ in service.logged] == [1, 2, 3, 4]


def test_run_that_was_forced_anew_has_another_id(tmp_path, service):
    mirror(tmp_path).finish(None)
    first = service.arguments["id"]
    mirror(tmp_path).finish(None)  # nothing was sent, as in a folder that force=true emptied
    assert service.arguments["id"] != first


def test_final_metrics_go_to_summary_and_table(tmp_path, service):
    ended = mirror(tmp_path)
    ended.finish(RECORD)
    assert service.summary["status"] == "finished"
    assert service.summary["last/test/loss"] == 0.5
    assert service.summary["best/test/loss"] == 0.4
    assert {"which": "best", "split": "test", "metric": "loss", "value": 0.4} in service.logged[-1][
        1
    ]["final"]


@pytest.mark.parametrize(
    ("record", "code"),
    [(RECORD, 0), ({**RECORD, "status": "diverged"}, 1), (None, 0)],
    ids=["finished", "diverged", "stopped"],
)
def test_diverged_run_is_marked_as_failed(tmp_path, service, record, code):
    mirror(tmp_path).finish(record)
    assert service.exit_code == code
