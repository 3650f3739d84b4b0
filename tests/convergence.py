"""The oracle of the stochastic tests: a sample mean against a known truth."""

import torch
from scipy import stats
from torch import Tensor

FALSE_ALARM = 1e-6  # level of each comparison, all components together; seeds are fixed


def assert_mean_is(samples: Tensor, truth: Tensor, resolution: float) -> None:
    """Fail where the mean of independent samples differs from the truth.

    A t-test per component, two-sided, Bonferroni over the components.

    Args:
        samples: (M, d).
        truth: (d,).
        resolution: the largest standard error allowed, as a share of the truth's largest entry:
            without it a test of pure noise would pass.
    """
    m, d = samples.shape
    error = samples.std(0) / m**0.5
    assert error.max() <= resolution * truth.abs().max(), f"too noisy: {error.max():.3g}"
    bound = stats.t.isf(FALSE_ALARM / (2 * d), m - 1)
    t = (samples.mean(0) - truth) / error.clamp_min(torch.finfo(samples.dtype).eps)
    assert t.abs().max() < bound, f"|t| = {t.abs().max():.2f} over {bound:.2f} at {samples.mean(0)}"
