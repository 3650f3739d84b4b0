from fogzo_repro.reporting.diagnosis import Row, table
from fogzo_repro.reporting.statistics import Interval


def row(low: float, bias: Interval) -> Row:
    one = Interval(1.0, 0.9, 1.1)
    return Row(7, 0.5, "nspsa", 1, None, one, one, bias, one, Interval(1.0, low, 2 - low))


def test_an_unresolved_norm_is_said_with_the_remedy():
    resolved, unresolved = (table([row(low, Interval(0.5, 0.4, 0.6))]) for low in (0.5, -0.5))
    assert "give directions=" in unresolved
    assert "give directions=" not in resolved


def test_a_bias_that_cannot_be_told_from_zero_is_shown_as_a_bound():
    assert "<0.5" in table([row(0.5, Interval(0.01, -0.2, 0.25))])
    assert "0.50" in table([row(0.5, Interval(0.25, 0.24, 0.26))])
