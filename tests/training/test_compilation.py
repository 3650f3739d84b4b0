"""Blocks that are alike are compiled once: counted by graphs, on LLaMA and DeiT."""

import errno
import json

import pytest
import torch

from fogzo_repro.training.compilation import compile_failure, start_compilers
from tests.forked import ROOT, compiling, new_python

SCRIPT = """
import json, sys

sys.path.insert(0, sys.argv[1])
import torch
from torch._dynamo.utils import counters

import tests.traced
from fogzo_repro.composition import compose_run
from scripts.bench.networks import build

COMMON = ["scale=smoke", "hardware=cpu", "recipe.global_batch_size=4"]
FOGZO = ["estimator=fogzo", "estimator.noise=0.01"]
MODELS = {
    "language": [
        "model=llama_30m", "model.layers=2", "model.width=128", "model.heads=2", "model.hidden=256",
        "model.context=16", "model.vocabulary=48",
    ],
    "vision": ["model=deit_tiny", "model.depth=6", "model.drop_path=0.5", "dataset=imagenet1k"],
}


def steps(group, words, compiled):
    '''Take four steps, probed or not; return their rows, and the last gradients.'''
    given = [*MODELS[group], *COMMON, *FOGZO, *words, f"hardware.compile={compiled}"]
    step, batches, _ = build(compose_run(*given), group, True)
    rows = []
    for t in range(4):
        step.begin(t, 4, 1e-3)
        with torch.compiler.set_stance("fail_on_recompile" if compiled and t > 1 else "default"):
            rows.append(step(batches[t], probing=t % 2 == 1).tolist())
    return rows, [p.grad.clone() for p in step.parameters]


for group, words in json.loads(sys.argv[2]):
    rows, gradients = steps(group, words, False)
    counters.clear()
    found, theirs = steps(group, words, True)
    assert found == rows, (found, rows)
    assert all(map(torch.equal, theirs, gradients))
    assert not counters["graph_break"], counters["graph_break"]
    print(counters["stats"]["unique_graphs"], flush=True)
"""
W2A2 = ["quantizer.weight_bits=2", "quantizer.activation_bits=2"]
CASES = {
    "llama lsq": ("language", ["quantizer=lsq", *W2A2]),
    "llama quest": ("language", ["quantizer=quest", *W2A2]),
    "deit sign": ("vision", ["quantizer=sign", "quantizer.surrogate=tanh"]),
}
PASSES = 2 * 3  # with and without a backward pass: what is in front, all blocks, what is behind
# mix_, displace_, cross_ and replace_; alphas for computed scales; rotated where
# there is a rotation, of the guide and of directions, which have an axis more.
ESTIMATOR = {"sign": 4, "lsq": 5, "quest": 7}


@pytest.mark.slow
def test_all_blocks_share_one_graph_and_no_later_step_compiles(tmp_path):
    """Nothing is left to run eagerly: no graph break, no graph too many, equal to the bit.

    By dynamo alone, which decides all this; the code that is made of the graphs is compared in
    test_language and test_fused.
    """
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = compiling(script, ROOT, json.dumps(list(CASES.values())), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = dict(zip(CASES, map(int, done.stdout.split()), strict=True))
    assert found == {case: PASSES + ESTIMATOR[case.split()[1]] for case in CASES}


CAPTURED = """
import sys

sys.path.insert(0, sys.argv[1])
import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.training.graph import CapturedStep
from scripts.bench.networks import build

torch.use_deterministic_algorithms(True)


def steps(words, captured):
    common = "scale=smoke", "hardware=auto", "recipe.global_batch_size=8", "hardware.compile=true"
    config = compose_run(*words, *common)
    step, batches, _ = build(config, sys.argv[2], True)
    take = CapturedStep(step, 8) if captured else step
    rows = []
    for t in range(12):  # half of them by the estimator
        rows.append(take(batches[t % 4], step.begin(t, 12, 1e-3)).tolist())
    return rows, [p.detach().clone() for p in step.parameters]


rows, weights = steps(sys.argv[3:], False)
found, theirs = steps(sys.argv[3:], True)
assert found == rows, (found, rows)
assert all(map(torch.equal, theirs, weights))
"""
LATER = ["estimator=fogzo", "estimator.noise=1e-4", "estimator.start_fraction=0.5"]
ON_GPU = {
    "llama": ["language", "model=llama_9m", "model.context=64", "model.vocabulary=512"],
    "deit": ["vision", "model=deit_tiny", "model.drop_path=0.5", "dataset=imagenet1k"],
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
@pytest.mark.parametrize("words", ON_GPU.values(), ids=ON_GPU)
def test_captured_compiled_steps_equal_launched_ones_bit_for_bit(tmp_path, monkeypatch, words):
    monkeypatch.setenv(
        "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
    )  # what cuBLAS needs to be deterministic
    script = tmp_path / "script.py"
    script.write_text(CAPTURED)
    done = new_python(script, ROOT, *words, *LATER, "quantizer=lsq", *W2A2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_compilers_processes_are_started_where_torch_can(monkeypatch: pytest.MonkeyPatch):
    from torch._inductor.async_compile import AsyncCompile

    started = []
    monkeypatch.setattr(AsyncCompile, "use_process_pool", lambda: started.append(1))
    start_compilers()
    assert started
    monkeypatch.delattr(AsyncCompile, "use_process_pool")  # it is no public name
    start_compilers()


def test_a_compiler_without_room_for_its_files_says_where_they_are():
    from torch._inductor.exc import InductorError

    full = OSError(errno.ENOSPC, "No space left on device")
    said = str(compile_failure(InductorError(full, None)))
    assert "No space left on device" in said
    assert "TORCHINDUCTOR_CACHE_DIR" in said and "FOGZO_COMPILED" in said
    assert compile_failure(full) is None
