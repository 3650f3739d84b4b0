"""The paper's shallow network: 784-10-10 with ReLU and biases, 7,960 parameters (PAPER 2)."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Mlp(nn.Module):
    """Two linear layers with a ReLU between them; PyTorch's default initialisation."""

    def __init__(self, inputs: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images (B, 1, 28, 28) to logits (B, classes)."""
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def build(image_shape: tuple[int, int, int], classes: int, hidden: int) -> Mlp:
    """Build the perceptron for images of any shape."""
    return Mlp(math.prod(image_shape), hidden, classes)
