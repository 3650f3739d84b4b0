"""The three gradient estimators of the paper, as a library that needs torch alone.

After `loss.backward()` the latent weights hold the STE gradient. An estimator replaces it:

    weights = [QuantizedWeight(layer.weight, scale=alpha, law=smoothing_law("round", "identity"))]
    fogzo(weights, loss_fn, beta=0.999, n=1, generator=generator)
    optimizer.step()

`loss_fn()` returns the loss at the current parameters, on the same batch and with the same masks.
"""

from fogzo_repro.estimators.checks import check_weights
from fogzo_repro.estimators.directions import draw, mixed, random_signs, unmixed
from fogzo_repro.estimators.fogzo import fogzo
from fogzo_repro.estimators.loop import FogzoStep
from fogzo_repro.estimators.probes import (
    AveragedProbes,
    CountedProbes,
    RandomSign,
    SequentialProbes,
)
from fogzo_repro.estimators.protocol import Estimate, Point, QuantizedWeight
from fogzo_repro.estimators.replay import FrozenBuffers, RandomState, RecordedLoss
from fogzo_repro.estimators.schedule import noise_at, noise_from_rho, rho_from_noise
from fogzo_repro.estimators.smoothing import SmoothingLaw, smoothing_law
from fogzo_repro.estimators.spsa import Total, nspsa

__all__ = [
    "AveragedProbes",
    "CountedProbes",
    "Estimate",
    "FogzoStep",
    "FrozenBuffers",
    "Point",
    "QuantizedWeight",
    "RandomSign",
    "RandomState",
    "RecordedLoss",
    "SequentialProbes",
    "SmoothingLaw",
    "Total",
    "check_weights",
    "draw",
    "fogzo",
    "mixed",
    "noise_at",
    "noise_from_rho",
    "nspsa",
    "random_signs",
    "rho_from_noise",
    "smoothing_law",
    "unmixed",
]
