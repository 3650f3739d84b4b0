"""Every seed and every random stream of a run, as pure functions of what they are for.

A seed is 63 bits of a hash of its parts, (seed, step, purpose) for a stream of the training and
(epoch's seed, image, copy) for an augmented image. A resumed run therefore draws what the
uninterrupted one would have, with nothing to replay. CPU and CUDA generators give different numbers
for the same seed, so the device kind is part of a run's identity.
"""

from __future__ import annotations

import hashlib

import torch


def hash64(content: bytes) -> int:
    """Return 64 bits that depend on every byte of the content, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def derive_seed(*parts: int | str) -> int:
    """Return 63 bits that depend on all parts and on their order.

    >>> derive_seed(0, 1, "directions") != derive_seed(0, 1, "signs")
    True
    """
    return hash64("/".join(map(str, parts)).encode()) >> 1


def generator_for(
    seed: int, step: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a new generator at the beginning of the stream (seed, step, purpose)."""
    return torch.Generator(device).manual_seed(derive_seed(seed, step, purpose))


def split_stream(generator: torch.Generator) -> torch.Generator:
    """Return a new stream that follows from the generator's state; the state is left as it is."""
    seed = hash64(bytes(generator.get_state().tolist())) >> 1
    return torch.Generator(generator.device).manual_seed(seed)
