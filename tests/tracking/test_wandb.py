"""wandb is a mirror: offline without a key, and whatever it does, the run goes on."""

import sys

import pytest
import wandb

from tests.forked import finish, start

TINY = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=4", "hardware=cpu"]


def test_offline_run_is_mirrored_without_key_or_network(tmp_path, monkeypatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    arguments = [*TINY, f"output_root={tmp_path}", "tracker=wandb", "tracker.group=cells"]
    assert finish(start(arguments, tmp_path / "err")) == 0, (tmp_path / "err").read_text()
    (run,) = tmp_path.glob("*/wandb/offline-run-*/*.wandb")
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    assert run.name == f"run-{folder.name}.wandb"
    assert run.stat().st_size > 500


class Failing:
    """A wandb whose service is down, from a chosen call on."""

    def __init__(self, at):
        self.at = at

    def _fail(self, call):
        if call == self.at:
            raise ConnectionError("")  # no message either

    def init(self, **arguments):
        self._fail("init")
        return self

    def log(self, values, step):
        self._fail("log")

    def finish(self, **arguments):
        self._fail("finish")

    def Settings(self, **arguments):
        return None


@pytest.mark.parametrize("at", ["init", "log", "finish"], ids=str)
def test_failing_service_never_stops_a_run(tmp_path, monkeypatch, at):
    runs = {}
    for tracker in ("none", "wandb"):
        monkeypatch.setitem(sys.modules, "wandb", Failing(at) if tracker == "wandb" else wandb)
        root = tmp_path / tracker
        arguments = [*TINY, f"output_root={root}", f"tracker={tracker}"]
        assert finish(start(arguments, tmp_path / "err")) == 0
        (metrics,) = root.glob("*/metrics.jsonl")
        runs[tracker] = metrics.read_bytes()
    assert "the run goes on" in (tmp_path / "err").read_text() or at == "finish"
    assert runs["wandb"] == runs["none"]
