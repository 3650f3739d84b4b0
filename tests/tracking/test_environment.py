"""The command in a record is one that can be typed."""

import pytest
from conftest import ROOT

from fogzo_repro.tracking.environment import command_line

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
    monkeypatch.setattr("sys.argv", [str(ROOT / name), "seed=1", "output_root=my runs"])
    assert command_line() == f"{launcher} {STARTED[name]} seed=1 'output_root=my runs'"
