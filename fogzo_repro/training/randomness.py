"""Random streams as pure functions of (seed, step, purpose).

A resumed run draws what the uninterrupted one would have, with nothing to replay. CPU and CUDA
generators give different numbers for the same seed, so the device kind is part of a run's identity.
"""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, step: int, purpose: str) -> int:
    """Return 63 bits that depend on all three arguments.

    >>> derive_seed(0, 1, "directions") != derive_seed(0, 1, "signs")
    True
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(
    seed: int, step: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a new generator at the beginning of the stream (seed, step, purpose)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, step, purpose))
