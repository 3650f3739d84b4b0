"""The scale that enters epsilon: what every quantizer promises to the estimators (PAPER 4)."""

import pytest
import torch

from fogzo_repro.estimators import smoothing_law
from fogzo_repro.quantization.lsq import LsqWeight
from fogzo_repro.quantization.quest import Quest
from fogzo_repro.quantization.sign import Sign
from fogzo_repro.quantization.surrogates import sign_hardtanh
from fogzo_repro.quantization.uniform import Round

WEIGHT = torch.randn(6, 4096, generator=torch.Generator().manual_seed(0)) * torch.logspace(
    -1, 1, 6
).unsqueeze(1)

ROUND_TYPE = [
    *(
        pytest.param(
            lambda w, b=b, h=h: Round(w, b, half_integer=h), b, id=f"round-{b}bit-half{h:d}"
        )
        for b in (2, 3, 8)
        for h in (False, True)
    ),
    *(
        pytest.param(lambda w, b=b, h=h, c=c: LsqWeight(w, b, h, c), b, id=f"lsq-{b}bit-{h:d}{c:d}")
        for b in (2, 3, 8)
        for h in (False, True)
        for c in (False, True)
    ),
    *(
        pytest.param(lambda w, b=b, v=v: Quest(4096, b, v), b, id=f"quest-{b}bit-{v}")
        for b in range(2, 9)
        for v in ("full", "none")
    ),
]
SIGN_TYPE = [
    pytest.param(lambda w: Sign(w, sign_hardtanh.build()), id="sign-hardtanh"),
    pytest.param(lambda w: LsqWeight(w, 1), id="lsq-1bit"),
    pytest.param(lambda w: LsqWeight(w, 1, per_channel=True), id="lsq-1bit-per-channel"),
    pytest.param(lambda w: Quest(4096, 1), id="quest-1bit"),
]


def smoothed(quantizer, units: torch.Tensor, unit: float) -> torch.Tensor:
    """E[levels(x + epsilon_bar u)] over the midpoints of 4,000 equal parts of the law of u."""
    law = smoothing_law(*quantizer.smoothing)
    t = (2 * torch.arange(4000, dtype=torch.float64) + 1) / 4000 - 1
    noise = unit * law.epsilon_bar * law.from_symmetric(t)
    return quantizer.levels(units.unsqueeze(-1) + noise).mean(-1)


@pytest.mark.parametrize(("build", "bits"), ROUND_TYPE)
def test_noise_of_the_smoothing_law_makes_rounding_the_identity(build, bits):
    quantizer = build(WEIGHT)
    far = 2.0**bits
    low, high = quantizer.levels(torch.tensor([-far, far])).tolist()
    assert high - low == 2**bits - 1
    units = torch.linspace(low, high, 301, dtype=torch.float64)
    torch.testing.assert_close(smoothed(quantizer, units, 1.0), units, rtol=0, atol=1e-3)


@pytest.mark.parametrize("build", SIGN_TYPE)
def test_noise_of_the_smoothing_law_makes_one_bit_a_hardtanh(build):
    quantizer = build(WEIGHT)
    outer = quantizer.levels(torch.tensor([9.0])).item()  # half the distance of the levels
    units = torch.linspace(-3, 3, 301, dtype=torch.float64)
    expected = units.clamp(-outer, outer)
    torch.testing.assert_close(smoothed(quantizer, units, outer), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("build", "bits"), ROUND_TYPE)
def test_scale_is_the_distance_of_neighbouring_levels(build, bits):
    quantizer = build(WEIGHT)
    rotate = getattr(quantizer, "rotate", lambda x: x)
    values = rotate(quantizer(WEIGHT).detach())
    scale = quantizer.perturbation_scale(WEIGHT).detach().expand(6, 1)
    neighbours = 0
    for row in range(6):  # a step over the whole tensor leaves a narrow row with one level
        steps = values[row].sort().values.diff()
        steps = steps[steps > 0.1 * scale[row]]
        if len(steps):
            assert steps.min().item() == pytest.approx(scale[row].item(), rel=1e-3)
            neighbours += 1
    assert neighbours >= 3


@pytest.mark.parametrize("build", SIGN_TYPE)
def test_scale_of_one_bit_is_half_the_distance_of_its_levels(build):
    quantizer = build(WEIGHT)
    rotate = getattr(quantizer, "rotate", lambda x: x)
    values = rotate(quantizer(WEIGHT).detach())
    scale = quantizer.perturbation_scale(WEIGHT).detach().expand(6, 1)
    distance = values.amax(1, keepdim=True) - values.amin(1, keepdim=True)
    torch.testing.assert_close(distance / 2, scale, rtol=1e-3, atol=0)
