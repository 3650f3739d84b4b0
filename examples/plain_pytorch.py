"""FOGZO in a plain PyTorch loop: a small CNN with 2-bit weights on the digits of scikit-learn.

    python -m examples.plain_pytorch [--epochs 30] [--seeds 3]

Prints the losses of the STE and of FOGZO on the same seeds. Takes a minute on a CPU; needs torch
and scikit-learn. What is FOGZO's stands behind `if estimator == "fogzo"`.
"""

import argparse

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.utils import parametrize

from fogzo_repro.adapters import quantized_weights
from fogzo_repro.estimators import FogzoStep


class Round(nn.Module):
    """Weights of 2 bits, -2 .. 1 times a scale, with the identity STE."""

    def __init__(self, weight):
        super().__init__()
        self.scale = nn.Buffer(weight.detach().std())

    def forward(self, weight):
        value = self.scale * (weight / self.scale).round().clamp(-2, 1)
        return weight + (value - weight).detach()


def network():
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(128, 10),
    )  # fmt: skip
    for layer in (model[4], model[10]):
        parametrize.register_parametrization(layer, "weight", Round(layer.weight))
    return model


def train(estimator, seed, epochs, x, y):
    torch.manual_seed(seed)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.003)
    if estimator == "fogzo":
        fogzo = FogzoStep(model, optimizer, quantized_weights(model), seed=seed)

    def loss_fn(x, y):
        return F.cross_entropy(model(x), y)

    for _ in range(epochs):
        for rows in torch.randperm(1400).split(100):
            if estimator == "fogzo":
                fogzo.loss(loss_fn, x[rows], y[rows]).backward()
                fogzo.step()
            else:
                loss_fn(x[rows], y[rows]).backward()
                optimizer.step()
                optimizer.zero_grad()
    model.eval()
    with torch.no_grad():
        return loss_fn(x[:1400], y[:1400]).item(), loss_fn(x[1400:], y[1400:]).item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    y = torch.tensor(digits.target)
    for seed in range(given.seeds):
        for estimator in ("ste", "fogzo"):
            train_loss, test_loss = train(estimator, seed, given.epochs, x, y)
            print(f"seed {seed} {estimator:5}  train loss {train_loss:.4f}  test {test_loss:.4f}")
