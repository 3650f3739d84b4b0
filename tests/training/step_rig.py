"""A training step with everything around it: a network with BatchNorm and dropout, a batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from conftest import quantize
from torch import Tensor, nn

from fogzo_repro.estimators.averaged import averaged_gradient
from fogzo_repro.estimators.fogzo import Fogzo
from fogzo_repro.estimators.protocol import Estimator
from fogzo_repro.estimators.spsa import Nspsa
from fogzo_repro.estimators.ste import Ste
from fogzo_repro.training.row import ROW
from fogzo_repro.training.step import TrainStep

CPU = torch.device("cpu")
Loss = Callable[[nn.Module, Any], Tensor]


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


class Net(nn.Module):
    """BatchNorm and dropout: everything that a probe could disturb or see differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop: nn.Module = nn.Dropout(0.5)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(F.relu(self.norm(self.first(x)))))


def cross_entropy(model: nn.Module, batch: Pair) -> Tensor:
    return F.cross_entropy(model(batch.x).float(), batch.y)


def fogzo(noise: float = 0.1, n: int = 1) -> Fogzo:
    return Fogzo(n, noise, "constant", CPU)


def averaged(noise: float = 0.1, n: int = 1) -> Fogzo:
    return Fogzo(n, noise, "constant", CPU, averaged_gradient)


ESTIMATORS: dict[str, Callable[[], Estimator]] = {
    "ste": Ste,
    "nspsa": lambda: Nspsa(1),
    "fogzo": fogzo,
    "averaged": averaged,
}
PROBED = pytest.mark.parametrize("name", ["nspsa", "fogzo", "averaged"])
EACH = pytest.mark.parametrize("name", ESTIMATORS)


class Rig:
    """A step with everything around it, the same for the same seed."""

    def __init__(
        self,
        estimator: Estimator,
        loss: Loss = cross_entropy,
        sgd: bool = True,
        drop: nn.Module | None = None,
        **options: Any,
    ) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model = Net()
            if drop is not None:
                self.model.drop = drop
            self.batch = Pair(torch.randn(16, 6), torch.randint(3, (16,)))
        self.weights = quantize(self.model)
        kind: Any = torch.optim.SGD if sgd else torch.optim.AdamW
        optimizer = kind(self.model.parameters(), lr=0.1, fused=True)
        gradients = getattr(estimator, "algorithm", None) is averaged_gradient
        self.step = TrainStep(
            self.model.train(), loss, optimizer, estimator, self.weights, seed=3,
            pairs=getattr(estimator, "n", 0), probe_gradients=gradients, **options,
        )  # fmt: skip

    def take(self, t: int = 0, lr: float = 0.1) -> dict[str, float]:
        row = self.step(self.batch, self.step.begin(t, 100, lr))
        return dict(zip(ROW, row.tolist(), strict=True))

    def state(self) -> dict[str, Tensor]:
        return {k: v.clone() for k, v in self.model.state_dict().items()}

    def parameters(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.model.parameters()]

    def gradients(self) -> dict[str, Tensor]:
        named = self.model.named_parameters()
        return {name: p.grad.clone() for name, p in named if p.grad is not None}


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return all(map(torch.equal, a, b))
