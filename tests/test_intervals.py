"""BCa intervals, symmetric tests and Holm's correction, against scipy and by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from raters.intervals import bca_of, difference_of, holm


def test_bca_is_that_of_scipy_where_groups_are_many() -> None:
    """With 2,000 groups the widening is nil; scipy's BCa sees the same resamples."""
    data = np.random.default_rng(0).exponential(size=2000)
    expected = scipy.stats.bootstrap(
        (data,), np.mean, n_resamples=20_000, method="BCa", rng=np.random.default_rng(1), vectorized=True
    )
    without_one = (data.sum() - data) / (len(data) - 1)
    found = bca_of(float(data.mean()), expected.bootstrap_distribution, without_one, np.ones(2000), 2000)
    assert not isinstance(found, str)
    interval = expected.confidence_interval
    assert found.ends(0.95) == pytest.approx((interval.low, interval.high), abs=0.02 * (interval.high - interval.low))


def test_few_groups_widen_the_interval_as_student_does() -> None:
    """Of a normal bootstrap distribution the interval is the mean plus and minus t standard errors."""
    groups, error = 20, 3.0
    draws = scipy.stats.norm.ppf((np.arange(20_001) + 0.5) / 20_001) * error * np.sqrt((groups - 1) / groups)
    found = bca_of(0.0, draws, np.array([-1.0, 1.0]), np.array([10.0, 10.0]), groups)
    assert not isinstance(found, str)
    half = scipy.stats.t.ppf(0.975, groups - 1) * error
    assert found.ends(0.95) == pytest.approx((-half, half), rel=0.01)
    difference = difference_of(4.0, draws + 4.0, groups, 0.95)
    assert (difference.low, difference.high) == pytest.approx((4 - half, 4 + half), rel=0.01)
    assert difference.p == pytest.approx(2 * scipy.stats.t.cdf(-4.0 / error, groups - 1), rel=0.02)


@pytest.mark.parametrize("value", [0.3, 1.0, 1.9, 2.05, 2.2, 3.0, 9.0])
@pytest.mark.parametrize("groups", [20, 1000])
def test_p_is_small_just_where_the_interval_leaves_out_no_difference(value: float, groups: int) -> None:
    draws = value + np.random.default_rng(0).normal(size=1999)
    for confidence in (0.8, 0.95):
        found = difference_of(value, draws, groups, confidence)
        assert (found.p <= 1 - confidence) == (found.low >= 0)


def test_p_counts_the_data_as_a_resample() -> None:
    draws = np.array([5.0, 6.0, 7.0, 6.0, 6.5, 5.5, 6.0, 6.0, 6.0])
    assert difference_of(6.0, draws, 10**6, 0.95).p == pytest.approx(1 / 10, rel=1e-4)
    assert difference_of(1.0, draws - 5, 10**6, 0.95).p == pytest.approx(3 / 10, rel=1e-4)


def test_identical_raters_do_not_differ() -> None:
    found = difference_of(0.0, np.r_[np.zeros(100), np.nan], 30, 0.95)
    assert (found.value, found.low, found.high, found.p, found.reason) == (0, 0, 0, 1, "")


@pytest.mark.parametrize(
    ("draws", "groups", "reason"),
    [
        (np.arange(100.0), 1, "fewer than two groups to draw from"),
        (np.full(100, 2.0), 30, "the same in all resamples"),
        (np.r_[np.arange(90.0), np.full(10, np.nan)], 30, "undefined in 10% of resamples"),
        (np.full(100, np.nan), 30, "undefined in 100% of resamples"),
        (np.array([]), 30, "undefined in 100% of resamples"),
    ],
)
def test_no_interval_has_a_reason(draws: np.ndarray, groups: int, reason: str) -> None:  # type: ignore[type-arg]
    assert bca_of(2.0, draws, np.zeros(3), np.ones(3), groups) == reason
    found = difference_of(2.0, draws, groups, 0.95)
    assert found.reason == reason
    assert np.isnan([found.low, found.high, found.p]).all()


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, float("nan"), 0.02]) == pytest.approx([0.5, float("nan"), 0.04], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
