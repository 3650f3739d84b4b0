"""tanh(x), sign averaged over logistic noise (PAPER 1, "Smoothing law")."""

from __future__ import annotations

import torch

from fogzo_repro.quantization.functional import Surrogate


def build() -> Surrogate:
    """Return tanh."""
    return Surrogate(torch.tanh, law=("sign", "tanh"))
