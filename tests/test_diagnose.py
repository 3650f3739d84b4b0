import csv
import shutil
import sys

import pytest
import torch
from safetensors.torch import load, save
from short_runs import train

from fogzo_repro import diagnose
from fogzo_repro.config import UserError
from fogzo_repro.diagnose import Effort, main
from fogzo_repro.estimators import rho_from_noise
from fogzo_repro.reporting.diagnosis import Row, table
from fogzo_repro.reporting.statistics import Interval
from fogzo_repro.stored import open_run

SMALL = Effort(directions=400, batches=3, draws=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train(tmp_path_factory.mktemp("runs"), "snapshots=2")


def rows_of(folder, effort):
    run = open_run(folder)
    return diagnose.diagnose(run, None, torch.device("cpu"), vars(effort))


@pytest.mark.slow
def test_the_tool_writes_a_row_for_every_estimator_and_snapshot(folder, capsys, monkeypatch):
    settings = ["device=cpu", "directions=2400", "batches=3", "draws=100"]
    monkeypatch.setattr(sys, "argv", ["diagnose", str(folder), *settings])
    main()
    with open(folder / "diagnose.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(r["step"], r["estimator"], r["n"], r["noise"]) for r in rows}
    assert len(rows) == len(found) == 2 * (1 + 3 + 3 * 6)
    assert {r["step"] for r in rows} == {"0", "10"}  # the first snapshot is before any step
    for row in rows:
        for key in ("cosine", "norm_ratio", "bias_squared", "variance", "smoothed_square"):
            value, low, high = (float(row[key + end]) for end in ("", "_low", "_high"))
            assert low <= value <= high
        assert abs(float(row["cosine"])) < 1.5
    assert (folder / "diagnose.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "step 10 (100%)" in said
    assert "FOGZO β=1-1e-6" in said


@pytest.mark.slow
def test_batched_and_sequential_probes_give_the_same_diagnosis(tmp_path, monkeypatch):
    folder = train(tmp_path, "recipe.max_steps=2", "snapshots=1")
    batched = rows_of(folder, Effort(directions=8, batches=2, draws=100))
    monkeypatch.setattr("fogzo_repro.diagnose.batched_probes", lambda *_: None)
    sequential = rows_of(folder, Effort(directions=8, batches=2, draws=100))
    assert len(batched) == len(sequential)
    for a, b in zip(batched, sequential, strict=True):
        assert a.smoothed_square.value == pytest.approx(b.smoothed_square.value, rel=1e-3)
        variance = b.variance.value * b.smoothed_square.value
        assert a.variance.value * a.smoothed_square.value == pytest.approx(variance, rel=1e-3)


def test_every_probe_pair_is_told_as_soon_as_it_is_measured(folder):
    run, device = open_run(folder), torch.device("cpu")
    told = []
    for batched in (True, False):
        found = diagnose.Diagnosis(
            run, run.network(device), run.task(None, device), vars(Effort(200, 2, 100)), device
        )
        assert found.batched
        if not batched:
            found.batched = None
        counts = []
        found.snapshot(sorted(folder.glob("snapshot-*.safetensors"))[0], counts.append)
        assert sum(counts) == found.pairs
        told.append(counts)
    assert set(told[1]) == {0.5} and len(told[0]) > 8


def test_variance_over_n_and_bias_without_n(folder):
    rows = {(r.step, r.estimator, r.noise, r.n): r for r in rows_of(folder, SMALL)}
    for (step, name, noise, n), row in rows.items():
        if n:
            one = rows[step, name, noise, 1]
            assert row.variance.value * n == pytest.approx(one.variance.value)
            assert row.bias_squared == one.bias_squared
    assert rows[0, "ste", None, 0].variance.value == 0


@pytest.mark.slow
def test_nspsa_is_unbiased_within_its_interval_on_a_real_network(folder):
    """Within twice the 95% interval, 6.4 standard errors of Student's t(3): once in 130."""
    for row in rows_of(folder, Effort(directions=1600, batches=4, draws=200)):
        if row.estimator == "nspsa":
            value, low, high = row.bias_squared
            assert abs(value) < high - low


@pytest.mark.parametrize(
    ("effort", "message"),
    [
        ((100, 1, 100), "batches=1 must be at least 2"),
        ((3, 2, 100), "directions=3 must be at least 2 for each batch"),
        ((100, 2, 99), "draws=99 must be at least 100"),
    ],
    ids=["batches", "directions", "draws"],
)
def test_too_little_effort_is_refused(effort, message):
    with pytest.raises(UserError, match=message):
        Effort(*effort)


def test_more_batches_than_an_epoch_has_are_refused(folder):
    with pytest.raises(UserError, match="an epoch has 22"):
        rows_of(folder, Effort(directions=100, batches=23, draws=100))


def test_a_full_precision_run_has_nothing_to_diagnose(tmp_path):
    run = train(tmp_path, "recipe.max_steps=2", "snapshots=2", "quantizer=none", "estimator=ste")
    with pytest.raises(UserError, match="no quantized weights"):
        rows_of(run, SMALL)


def test_stochastic_depth_has_one_draw_of_masks_for_a_batch(tmp_path, monkeypatch):
    deit = ["model=deit_tiny", "scale=smoke", "model.depth=2", "model.drop_path=0.5"]
    folder = train(tmp_path, *deit, "recipe.global_batch_size=4", "recipe.max_steps=1",
                   "snapshots=1", "quantizer=round", "estimator=ste")  # fmt: skip
    monkeypatch.setattr(diagnose, "SIZES", (1,))
    monkeypatch.setattr(diagnose, "RHOS", (0.1,))
    seen = {}

    class Watched(diagnose.Passes):
        def _forward(self, batch, index):
            seen.setdefault(batch.labels.data_ptr(), []).append(self.masks.table.clone())
            return super()._forward(batch, index)

    monkeypatch.setattr(diagnose, "Passes", Watched)
    rows_of(folder, Effort(directions=4, batches=2, draws=2))
    assert [len(masks) for masks in seen.values()] == [1 + 2 * (2 + 2 + 2)] * 2
    first, second = seen.values()
    for masks in (first, second):
        assert all(torch.equal(mask, masks[0]) for mask in masks)
    assert not torch.equal(first[0], second[0])


def test_a_half_written_snapshot_is_named(folder, tmp_path):
    for name in ("config.yaml", "resolved.json"):
        shutil.copy(folder / name, tmp_path)
    (tmp_path / "snapshot-00000010.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"snapshot-00000010\.safetensors is no whole file"):
        rows_of(tmp_path, SMALL)


def test_a_snapshot_with_a_flipped_bit_is_named_and_one_without_a_checksum_is_read(
    folder, tmp_path
):
    for name in ("config.yaml", "resolved.json"):
        shutil.copy(folder / name, tmp_path)
    content = (folder / "snapshot-00000010.safetensors").read_bytes()
    snapshot = tmp_path / "snapshot-00000010.safetensors"
    snapshot.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match=r"snapshot-00000010\.safetensors was changed since it was"):
        rows_of(tmp_path, SMALL)
    snapshot.write_bytes(save(load(content)))  # as earlier versions wrote it
    assert rows_of(tmp_path, SMALL)


def test_a_folder_that_cannot_be_written_loses_no_result(folder, tmp_path, capsys, monkeypatch):
    """The table is printed before the files are written."""
    shutil.copytree(folder, tmp_path / "run")
    (tmp_path / "run" / "diagnose.csv").unlink(missing_ok=True)
    (tmp_path / "run" / "diagnose.csv").mkdir()
    settings = ["device=cpu", "directions=400", "batches=2", "draws=100"]
    monkeypatch.setattr(sys, "argv", ["diagnose", str(tmp_path / "run"), *settings])
    assert main() == 2
    said = capsys.readouterr()
    assert "diagnose.csv: Is a directory" in said.err and "step 10 (100%)" in said.out


@pytest.mark.slow
def test_other_networks_than_the_mlp_have_noises_by_rho(tmp_path):
    """Else the least of the paper's noises would drown the guide of a deep network."""
    words = ["model=resnet18", "scale=smoke", "model.width=2", "quantizer=sign", "snapshots=1"]
    run = open_run(train(tmp_path, *words, "recipe.max_steps=1"))
    device = torch.device("cpu")
    network, task = run.network(device), run.task(None, device)
    found = diagnose.Diagnosis(run, network, task, vars(Effort(200, 2, 100)), device)
    rhos = [rho_from_noise(noise, network.perturbed) for noise in found.noises]
    assert rhos == pytest.approx([100, 10, 1, 0.1, 0.01])
    assert found.pairs == 2 * (100 + 100 + 5 * 100)


def row(low: float, bias: Interval) -> Row:
    one = Interval(1.0, 0.9, 1.1)
    return Row(7, 0.5, "nspsa", 1, None, one, one, bias, one, Interval(1.0, low, 2 - low))


def test_an_unresolved_norm_is_said_with_the_remedy():
    resolved, unresolved = (table([row(low, Interval(0.5, 0.4, 0.6))]) for low in (0.5, -0.5))
    assert "give directions=" in unresolved
    assert "give directions=" not in resolved


def test_a_bias_that_cannot_be_told_from_zero_is_shown_as_a_bound():
    assert "<0.5" in table([row(0.5, Interval(0.01, -0.2, 0.25))])
    assert "0.50" in table([row(0.5, Interval(0.25, 0.24, 0.26))])
