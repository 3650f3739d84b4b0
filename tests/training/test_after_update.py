"""An estimator's correction behind the optimizer's update."""

import pytest
import torch
from torch import Tensor

from fogzo_repro.estimators.ste import Ste
from tests.training.step_rig import Rig, cross_entropy, same


class Pull(Ste):
    """Takes the share lr / 2 from the quantized weights at even steps; notes what it is given."""

    def __init__(self) -> None:
        self.given: list[float] = []

    def begin_step(self, step, total_steps):
        return step % 2 == 0

    def after_update(self, weights, lr):
        assert not torch.is_grad_enabled()
        self.given.append(float(lr))
        for w in weights:
            w.parameter.sub_(lr / 2 * w.parameter)


@pytest.mark.parametrize("sgd", [True, False], ids=["SGD", "AdamW"])
def test_the_correction_comes_behind_the_update_and_is_not_scaled(sgd: bool) -> None:
    pulled, plain = Rig(Pull(), sgd=sgd), Rig(Ste(), sgd=sgd)
    for rig in (pulled, plain):
        rig.take(0, lr=0.25)
    quantized = {id(w.parameter) for w in pulled.weights}
    for p, q in zip(pulled.model.parameters(), plain.model.parameters(), strict=True):
        expected = q - 0.125 * q if id(p) in quantized else q
        assert torch.allclose(p, expected, rtol=1e-6, atol=0)


def test_it_is_called_at_its_steps_alone() -> None:
    rig = Rig(Pull())
    for t in range(4):
        rig.take(t, lr=0.1 * (t + 1))
    assert rig.step.estimator.given == pytest.approx([0.1, 0.3])


def test_where_the_update_is_skipped_nothing_is_corrected() -> None:
    def diverged(model, batch) -> Tensor:
        return cross_entropy(model, batch) * torch.nan

    rig = Rig(Pull(), loss=diverged)
    before = rig.parameters()
    assert rig.take(0)["failed"] == 1
    assert same(rig.parameters(), before) and rig.step.estimator.given == [0.0]
