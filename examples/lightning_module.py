"""FOGZO in Lightning: a small MLP with weights of 1 bit on the digits of scikit-learn.

    python -m examples.lightning_module [--epochs 20] [--seeds 3]

Prints the losses of the STE and of FOGZO on the same seeds. Takes half a minute on a CPU.
"""

import argparse
import logging

import pytorch_lightning as lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn, utils
from torch.nn.utils import parametrize

from fogzo_repro.adapters import quantized_weights
from fogzo_repro.estimators import FogzoStep, smoothing_law


class Sign(nn.Module):
    """The sign of a weight times a scale, with the hardtanh STE: derivative 0 outside the scale."""

    def __init__(self, weight):
        super().__init__()
        self.scale = nn.Buffer(weight.detach().abs().mean())

    def forward(self, weight):
        units = (weight / self.scale).clamp(-1, 1)
        return self.scale * (units + (weight.sign() - units).detach())


class Digits(lightning.LightningModule):
    def __init__(self, estimator, seed):
        super().__init__()
        self.estimator, self.seed = estimator, seed
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10))
        for layer in (self.model[0], self.model[3]):
            parametrize.register_parametrization(layer, "weight", Sign(layer.weight))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.003)

    def on_fit_start(self):
        weights = quantized_weights(self, law=smoothing_law("sign", "hardtanh"))
        self.fogzo = FogzoStep(self, self.optimizers(), weights, seed=self.seed)

    def loss_fn(self, x, y):
        return F.cross_entropy(self.model(x), y)

    def training_step(self, batch, index):
        fogzo = self.estimator == "fogzo"
        return self.fogzo.loss(self.loss_fn, *batch) if fogzo else self.loss_fn(*batch)

    def on_before_optimizer_step(self, optimizer):  # Lightning clips afterwards
        if self.estimator == "fogzo":
            self.fogzo.estimate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    x, y = (torch.tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    images = utils.data.TensorDataset(x[:1400], y[:1400])
    for seed, estimator in ((s, e) for s in range(given.seeds) for e in ("ste", "fogzo")):
        torch.manual_seed(seed)
        module = Digits(estimator, seed)
        trainer = lightning.Trainer(
            max_epochs=given.epochs, accelerator="cpu", gradient_clip_val=1.0, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(module, utils.data.DataLoader(images, 100, shuffle=True))
        module.eval()
        train, test = (module.loss_fn(x[p], y[p]).item() for p in (slice(1400), slice(1400, None)))
        print(f"seed {seed} {estimator:5}  train loss {train:.4f}  test {test:.4f}")
