"""The loader's bench counts whole rounds of its workers' batches."""

import json
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

from fogzo_repro.data import photographs
from fogzo_repro.data.images import Batch
from scripts.bench import loader


@pytest.mark.parametrize("images", [1, 100, 1000])
def test_the_rate_is_that_of_workers_whose_batches_come_in_rounds(monkeypatch, images):
    """Four workers that take 2 s for a batch of 10 give 20 images a second, after a slow start."""
    now = [0.0]

    class InRounds:
        def __init__(self, photographs, workers, device):
            self.workers = workers

        def load(self, batches):
            for k, batch in enumerate(batches):
                if k % self.workers == 0:
                    now[0] += 2.0 if k else 60.0
                yield Batch(torch.zeros(len(batch), 1), torch.zeros(len(batch)))

    monkeypatch.setattr(photographs, "PhotographLoader", InRounds)
    monkeypatch.setattr(loader.time, "perf_counter", lambda: now[0])
    files = SimpleNamespace(files=SimpleNamespace(labels=range(7)))
    arguments = Namespace(images=images, batch=10, workers=4)
    found = loader.rate(files, torch.device("cpu"), True, arguments)
    assert found["images_per_s"] == 20 and found["images"] >= max(images, 200)


def test_the_rate_of_a_run_is_that_of_whole_epochs_but_the_first(tmp_path):
    steps, seconds = 3 * loader.EPOCHS, []
    for step in range(1, steps + 1):
        seconds.append(100.0 if step <= 3 else seconds[-1] + (2.0 if step % 3 == 1 else 1.0))
    lines = [{"step": k + 1, "seconds": s} for k, s in enumerate(seconds)]
    lines.append({"step": steps, "seconds": 1e6, "pause": "evaluation"})
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    record = {"steps": steps, "images_seen": 30 * loader.EPOCHS}
    (tmp_path / "record.json").write_text(json.dumps(record))
    assert loader.rate_of_run(tmp_path) == pytest.approx(30 / 4)


def test_what_was_measured_is_kept_when_a_bench_is_ended(tmp_path, monkeypatch):
    def trained(arguments):
        yield "resnet18", {"files": {"images_per_s": 2.0}}
        raise KeyboardInterrupt

    monkeypatch.setattr(loader, "measure", lambda model, _: {"images_per_s": 1.0, "ways": {}})
    monkeypatch.setattr(loader, "trained", trained)
    out = tmp_path / "loader.json"
    monkeypatch.setattr("sys.argv", ["loader", "--data-dir", ".", "--train", "--out", str(out)])
    with pytest.raises(KeyboardInterrupt):
        loader.main()
    record = json.loads(out.read_text())
    assert list(record["recipes"]) == [*loader.RECIPES] and list(record["trained"]) == ["resnet18"]
