"""x itself, round averaged over uniform noise one step wide: the plain STE (PAPER 1)."""

from __future__ import annotations

from fogzo_repro.quantization.functional import IDENTITY, Surrogate


def build() -> Surrogate:
    """Return x -> x."""
    return IDENTITY
