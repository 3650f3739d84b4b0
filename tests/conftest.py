"""What the tests have in common: where real data lie, a tiny quantized network, one thread."""

import errno
import gc
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # here and in every process that a test starts
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # a fork would wait for the others
os.environ.setdefault("FOGZO_COMPILED", "")  # tests leave nothing behind in the user's home
# A process that has used a GPU cannot fork, as many tests do: files that name one are run again.
os.environ.update({} if "FOGZO_TEST_GPU" in os.environ else {"CUDA_VISIBLE_DEVICES": ""})

import pytest
import torch
import torch.nn.functional as F
from hydra.core.config_store import ConfigStore
from torch import Tensor, nn

from fogzo_repro.estimators import QuantizedWeight, smoothing_law
from fogzo_repro.quantization import quantize_layers
from fogzo_repro.quantization.functional import Surrogate
from fogzo_repro.quantization.sign import Sign
from fogzo_repro.quantization.surrogates import sign_approxsign, sign_hardtanh, sign_tanh
from fogzo_repro.quantization.uniform import Round

compiles = pytest.mark.usefixtures("cpp_compiler")  # torch.compile makes code for the CPU there

ROOT = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("FOGZO_DATA", ROOT.parent / "shared" / "data"))

SIGN_SURROGATES: dict[str, Surrogate] = {
    "hardtanh": sign_hardtanh.build(),
    "tanh": sign_tanh.build(),
    "approxsign": sign_approxsign.build(),
}
QUANTIZERS: dict[str, Callable[[Tensor], nn.Module]] = {
    "round2": partial(Round, bits=2),
    "round2_half": partial(Round, bits=2, half_integer=True),
    "round3": partial(Round, bits=3),
    "round8": partial(Round, bits=8),
    **{name: partial(Sign, surrogate=s) for name, s in SIGN_SURROGATES.items()},
}


# What tests write need not outlive a power cut: waiting for the disk took a fifth of their time.
FSYNC = os.fsync
os.fsync = lambda number: None
# Hydra copies its store with all cells whenever it composes; what it loads, it copies anyway.
ConfigStore.__deepcopy__ = lambda store, memo: store  # type: ignore[attr-defined]


def pytest_configure(config: pytest.Config) -> None:
    """Have xdist give out the files in the order below, not those with the fewest tests last."""
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that have slow tests: no process is left with a long one at the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if "FOGZO_TEST_GPU" in os.environ:
        items[:] = [item for item in items if "cuda" in item.path.read_text()]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, exitstatus: pytest.ExitCode
) -> None:
    """Say why nothing was run where no chosen file uses a GPU."""
    if "FOGZO_TEST_GPU" in os.environ and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        terminalreporter.write_line(
            "FOGZO_TEST_GPU leaves the files that name cuda, and none of the chosen does: unset it"
        )


def pytest_sessionstart() -> None:
    """Collect no garbage while all is imported: it stays, and looking through it takes long."""
    gc.disable()


def pytest_collection_finish() -> None:
    """Collect garbage from here on, but not among what was imported."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Let the interpreter end as ever: else Triton lists what it believes to have leaked."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_parts_of_others() -> Iterator[None]:
    """Forget the files of parts that a test has used: an error in a later one would name them."""
    yield
    for name in [name for name in sys.modules if name.startswith("fogzo_parts.")]:
        del sys.modules[name]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cpp_compiler() -> None:
    """What torch.compile needs to make code for the CPU; the test is skipped where it fails."""
    from tests.forked import why_not_compiled

    if why := why_not_compiled():
        pytest.skip(f"torch.compile cannot make code for the CPU here: {why}")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data; the test is skipped where it is missing."""
    if not DATA_DIR.is_dir():
        pytest.skip(f"no data at {DATA_DIR}; set FOGZO_DATA")
    return DATA_DIR


def quantize(model: nn.Module, quantizer: str = "round2") -> list[QuantizedWeight]:
    """Quantize all linear and convolution weights; return them as an estimator sees them."""
    layers: dict[str, Any] = quantize_layers(model, lambda name, w: QUANTIZERS[quantizer](w))
    return [quantized_weight(layer.weight, layer.weight_quantizer) for layer in layers.values()]


def quantized_weight(parameter: nn.Parameter, quantizer: Any) -> QuantizedWeight:
    return QuantizedWeight(
        parameter,
        quantizer.perturbation_scale,
        smoothing_law(*quantizer.smoothing),
        levels=lambda w: quantizer.levels(quantizer.units(w)),
    )


@dataclass
class TinyNetwork:
    """A quantized 6-5-3 perceptron in float64, a batch of 8, and its cross-entropy."""

    model: nn.Module
    weights: list[QuantizedWeight]
    x: Tensor
    y: Tensor

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def backward(self) -> list[Tensor]:
        """Put the STE gradient into `.grad`; return copies of it for the quantized weights."""
        self.model.zero_grad()
        self.loss().backward()
        return [gradient(w).clone() for w in self.weights]


def gradient(w: QuantizedWeight) -> Tensor:
    assert w.parameter.grad is not None
    return w.parameter.grad


@pytest.fixture
def make_tiny() -> Callable[..., TinyNetwork]:
    """Return a builder of `TinyNetwork` by quantizer and seed."""

    def make(quantizer: str = "round2", seed: int = 0) -> TinyNetwork:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
            x, y = torch.randn(8, 6, dtype=torch.float64), torch.randint(3, (8,))
        return TinyNetwork(model, quantize(model, quantizer), x, y)

    return make


@pytest.fixture
def tiny(make_tiny: Callable[..., TinyNetwork]) -> TinyNetwork:
    """A tiny network with 2-bit weights and its STE gradient in place."""
    network = make_tiny()
    network.backward()
    return network


def deny_folder(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have the system refuse to list folders of a name, which it does not refuse to root."""
    scandir = os.scandir

    def denied(path: str) -> Any:
        if str(path).endswith(name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
