"""The command line: every bad input ends with one line that names the remedy, and status 2."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fogzo_repro import __main__ as cli
from tests.conftest import DATA_DIR, ROOT
from tests.forked import finish, start

TINY = ["dataset=digits", "recipe=digits_mlp", "recipe.max_steps=3", "hardware=cpu"]


def run_cli(monkeypatch, capsys, *arguments):
    """Call the entry point in this process; return status, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["fogzo_repro/__main__.py", *arguments])
    try:
        status = cli.main()
    except SystemExit as error:
        status = error.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


BAD = {
    "no mini yet": (["model=resnet18", "scale=mini"], "Could not find 'scale/mini'"),
    "misspelt key": (["estimator.betamin=0.9"], "did you mean estimator.beta_min?"),
    "misspelt group": (["estimatr=ste"], "did you mean estimator?"),
    "another dataset's": (["dataset.allow_partial=true"], "not a setting of dataset=mnist"),
    "unknown option": (["estimator=magic"], "fogzo"),
    "no direction": (["estimator=nspsa", "estimator.n=0"], "estimator.n=0 must be at least 1"),
    "beta too large": (["estimator.beta_min=1.5"], "estimator.beta_min=1.5 is outside [0, 1]"),
    "beta and noise": (["estimator.beta_min=0.9", "estimator.noise=0.1"], "not both"),
    "negative lr": (["recipe.lr=-1"], "recipe.lr=-1.0 must be above 0"),
    "lr not a number": (["recipe.lr=fast"], "recipe.lr: Value 'fast'"),
    "lr not finite": (["recipe.lr=nan"], "recipe.lr=nan must be above 0"),
    "bits out of range": (["quantizer.weight_bits=9"], "quantizer.weight_bits=9 is outside 2..8"),
    "one bit of round": (["quantizer.weight_bits=1"], "use quantizer=sign"),
    "no quantized weight": (["quantizer=none"], "quantizer=round or estimator=ste"),
    "one value of a sweep": (["-m", "estimator.beta_min=0.9,1.5"], "estimator.beta_min=1.5"),
    "syntax": (["estimator=[ste"], "estimator=[ste"),
    "no evaluations": (["eval_every_steps=0"], "eval_every_steps=0 must be at least 1"),
    "evaluations not a number": (["eval_every_steps=often"], "=often is not of type int"),
    "seed": (["seed=-1"], "seed=-1 is outside"),
}


@pytest.mark.parametrize(("arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_setting_is_one_line_and_status_2(monkeypatch, capsys, arguments, said):
    status, out, err = run_cli(monkeypatch, capsys, *arguments)
    assert status == 2
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("error: ")
    assert said in err
    assert not out


def test_flags_of_hydra_are_not_overrides(monkeypatch, capsys):
    status, out, err = run_cli(monkeypatch, capsys, "seed=7", "--cfg", "job", "-p", "recipe")
    assert (status, err) == (0, "")
    assert "# @package recipe" in out


def run_error(monkeypatch, capsys, tmp_path, *arguments):
    status, _, err = run_cli(monkeypatch, capsys, f"output_root={tmp_path}/runs", *TINY, *arguments)
    assert status == 2, err
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def test_batch_larger_than_the_data_is_refused(monkeypatch, capsys, tmp_path):
    line = run_error(monkeypatch, capsys, tmp_path, "recipe.global_batch_size=2000")
    assert "recipe.global_batch_size=2000 exceeds the 1437 training images" in line.replace(
        "examples", "images"
    )


def test_a_job_of_a_cluster_passes_its_error_on(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "local")
    settings = [f"output_root={tmp_path}/runs", *TINY, "recipe.global_batch_size=2000"]
    status, _, err = run_cli(monkeypatch, capsys, *settings)
    assert status == 1, "Hydra's, which the launching command sees"
    assert "error: recipe.global_batch_size=2000 exceeds" in err


def test_the_last_line_of_a_run_keeps_last_and_best_apart():
    metrics = {
        "last": {"val": {"step": 9, "top1": 70.0, "top5": 90.0}, "train": {"step": 9, "loss": 2.5}},
        "best": {"val": {"step": 6, "split": "val", "top1": 71.25, "top5": 91.0}},
    }
    record = {
        "run_id": "r",
        "status": "finished",
        "metrics": metrics,
        "wall_seconds": 1,
        "notes": "",
    }
    assert cli.summary(record) == (
        "r: finished  val top1 70.0000  val top5 90.0000  train loss 2.5000  "
        "best val: top1 71.2500 top5 91.0000 at step 6  1.0 s"
    )


def test_one_of_several_processes_says_what_is_wrong(monkeypatch, capsys):
    for rank, lines in (("0", 1), ("1", 0)):
        monkeypatch.setenv("RANK", rank)
        status, _, err = run_cli(monkeypatch, capsys, "recipe.lr=-1")
        assert status == 2 and err.count("error: ") == lines


def test_missing_device_is_refused(monkeypatch, capsys, tmp_path):
    line = run_error(monkeypatch, capsys, tmp_path, "hardware.device=cuda:99")
    assert "hardware.device=cuda:99" in line


def test_missing_mnist_names_both_remedies(monkeypatch, capsys, tmp_path):
    from torchvision.datasets import MNIST

    def offline(*args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(MNIST, "__init__", offline)
    line = run_error(monkeypatch, capsys, tmp_path, "dataset=mnist", f"data_dir={tmp_path}/none")
    assert "dataset=digits" in line
    assert "data_dir=" in line


def test_corrupt_mnist_names_the_file(monkeypatch, capsys, tmp_path, data_dir):
    folder = tmp_path / "data" / "MNIST" / "raw"
    shutil.copytree(data_dir / "MNIST" / "raw", folder)
    path = folder / "t10k-labels-idx1-ubyte.gz"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    line = run_error(monkeypatch, capsys, tmp_path, "dataset=mnist", f"data_dir={tmp_path}/data")
    assert str(path) in line
    assert "expected ec29112dd5afa0611ce80d1b7f02629c" in line


def test_unwritable_output_root_is_refused(monkeypatch, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    line = run_error(monkeypatch, capsys, tmp_path, f"output_root={tmp_path}/file/runs")
    assert "output_root=" in line
    assert "is not writable" in line


def test_folder_of_another_configuration_is_refused_with_the_differing_keys(
    monkeypatch, capsys, tmp_path
):
    run_cli(monkeypatch, capsys, f"output_root={tmp_path}/runs", *TINY)
    (folder,) = (p for p in (tmp_path / "runs").iterdir() if p.is_dir())
    (folder / "record.json").unlink()
    resolved = folder / "resolved.json"
    resolved.write_text(resolved.read_text().replace('"seed": 0', '"seed": 7'))
    assert "it differs in seed" in run_error(monkeypatch, capsys, tmp_path)


def test_full_disk_keeps_the_previous_checkpoint(tmp_path):
    """A child that may not write more than 40 kB a file, as on a full disk."""
    arguments = [*TINY, f"output_root={tmp_path}", "checkpoint_minutes=0"]
    assert finish(start(arguments, tmp_path / "err")) == 0
    (folder,) = (p for p in tmp_path.iterdir() if p.is_dir())
    for name in ("record.json", "checkpoint-00000003.json", "checkpoint-00000003.safetensors"):
        (folder / name).unlink()
    whole = folder / "checkpoint-00000002.safetensors"
    content = whole.read_bytes()

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))

    assert finish(start(arguments, tmp_path / "full", before=limit)) == 2
    errors = [e for e in (tmp_path / "full").read_text().splitlines() if e.startswith("error: ")]
    assert len(errors) == 1
    assert "run the same command again" in errors[0]
    assert whole.read_bytes() == content
    assert not list(folder.glob("*.tmp"))


def test_finished_run_is_skipped_and_force_runs_it_again(monkeypatch, capsys, tmp_path):
    arguments = [f"output_root={tmp_path}", *TINY]
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0
    status, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert status == 0
    assert "skipped (force=true runs it again)" in out
    status, out, _ = run_cli(monkeypatch, capsys, *arguments, "force=true")
    assert status == 0
    assert "skipped" not in out


def test_dry_run_prints_what_a_run_takes_and_starts_nothing(monkeypatch, capsys, tmp_path):
    arguments = [f"output_root={tmp_path}/runs", "dry_run=true", *TINY, "dataset=digits"]
    status, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert status == 0
    for said in ("7,960", "7,940", "2 probes", "7.948", "MiB", "beta_min: 0.999"):
        assert said in out
    assert not (tmp_path / "runs").exists()


def test_sweep_runs_each_value_and_skips_them_the_second_time(monkeypatch, capsys, tmp_path):
    arguments = ["-m", f"output_root={tmp_path}", *TINY, "estimator.beta_min=0.9,1", "seed=0,1"]
    assert run_cli(monkeypatch, capsys, *arguments)[0] == 0
    assert len(list(tmp_path.glob("*/record.json"))) == 4
    _, out, _ = run_cli(monkeypatch, capsys, *arguments)
    assert out.count("skipped") == 4


def test_beta_and_noise_name_the_same_run(monkeypatch, capsys, tmp_path):
    for setting in ("estimator.beta_min=0.999", "estimator.noise=1e-3"):
        run_cli(monkeypatch, capsys, f"output_root={tmp_path}", *TINY, setting)
    assert len(list(tmp_path.glob("*/record.json"))) == 1


def test_mnist_runs_from_the_command_line(tmp_path):
    if not (DATA_DIR / "MNIST").is_dir():
        pytest.skip(f"no MNIST at {DATA_DIR}; set FOGZO_DATA")
    command = [
        sys.executable, "-m", "fogzo_repro", f"output_root={tmp_path}", f"data_dir={DATA_DIR}",
        "recipe.max_steps=2", "hardware=cpu",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train loss" in done.stdout
    assert Path(tmp_path, done.stdout.split(":")[0], "record.json").is_file()
