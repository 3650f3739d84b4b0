import pytest
import torch
from scipy import stats

from fogzo_repro.reporting.jackknife import jackknife


def test_jackknife_of_a_mean_is_students_interval():
    x = torch.randn(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = jackknife([[v] for v in x.tolist()], lambda row: row[0])
    half = stats.t.ppf(0.975, 8) * x.std().item() / 3
    assert found.value == pytest.approx(x.mean().item())
    assert found.high - found.value == pytest.approx(half)


def test_jackknife_of_a_ratio_covers_at_its_level():
    """95% of 400 intervals of 8 samples each; 90 to 99% is about 4 standard errors."""
    g = torch.Generator().manual_seed(0)
    samples = torch.randn(400, 8, 2, generator=g, dtype=torch.float64) * 0.2
    samples += torch.tensor([3.0, 2.0])
    covered = 0
    for rows in samples:
        found = jackknife(rows.tolist(), lambda row: row[0] / row[1])
        covered += found.low <= 1.5 <= found.high
    assert 0.90 < covered / 400 < 0.99
