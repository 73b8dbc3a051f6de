"""Bootstrap intervals and tests from the figures of resamples, and Holm's correction.

The interval is BCa (Efron 1987, JASA 82(397)), its acceleration from the jackknife over groups, at normal quantiles
replaced by sqrt(G / (G - 1)) times those of Student's t with G - 1 degrees of freedom for G groups: the remedy for
bootstrap intervals being too narrow with few groups (Hesterberg 2015, The American Statistician 69(4), on expanded
percentile intervals). In simulations with 20 to 30 groups plain percentiles held the truth in 90 to 93 % of corpora,
these intervals in 93 to 95 % (tests/test_bootstrap.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raters.pairs import Floats

INTERVAL_METHOD = "BCa bootstrap over groups, quantiles widened for few groups (Efron 1987; Hesterberg 2015)"
TEST_METHOD = (
    "paired bootstrap over groups, two-sided: the share (b + 1) / (B + 1) of resamples at least as far from the "
    "difference as 0 is, widened for few groups"
)

_MOST_UNDEFINED = 0.05
_SAME = 1e-12


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with its interval.

    Attributes:
        value: The figure; nan if undefined.
        low: Lower end; nan if there is no interval.
        high: Upper end.
        reason: Why value or interval is nan; empty if neither is.
        undefined_resamples: Share of resamples in which the figure was undefined; they are left out.
    """

    value: float
    low: float
    high: float
    reason: str = ""
    undefined_resamples: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of one rater minus the same figure of another, on the same resamples.

    Attributes:
        value: First minus second.
        low: Lower end of its interval.
        high: Upper end.
        p: Two-sided p of no difference; below 1 - confidence where the interval leaves out 0.
        reason: Why there is no value or no test.
    """

    value: float
    low: float
    high: float
    p: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class BCa:
    """Bias-corrected and accelerated bootstrap of one figure.

    Attributes:
        draws: (resamples,) the figure of each resample, ascending.
        bias: Normal quantile of the share of resamples below the figure of the data.
        acceleration: A sixth of the skewness of the groups' influence on the figure, over the root of their number.
        num_groups: How many groups were drawn from.
    """

    draws: Floats
    bias: float
    acceleration: float
    num_groups: int

    def ends(self, confidence: float) -> tuple[float, float]:
        """Return the ends of the interval."""
        from scipy.special import ndtr, stdtrit

        widening = np.sqrt(self.num_groups / (self.num_groups - 1))
        half = widening * stdtrit(self.num_groups - 1, (1 + confidence) / 2)
        found = []
        for z in (-half, half):
            shifted = self.bias + z
            slack = 1 - self.acceleration * shifted
            # Beyond its pole the transformation would turn round.
            share = float(ndtr(self.bias + shifted / slack)) if slack > 0 else float(z > 0)
            found.append(float(np.quantile(self.draws, share, method="weibull")))
        return found[0], found[1]


def bca_of(value: float, draws: Floats, without_one: Floats, multiplicity: Floats, num_groups: int) -> BCa | str:
    """Return what the interval of a figure comes from, or why there can be none.

    Args:
        value: The figure of the data.
        draws: (resamples,) of each resample, nan where undefined.
        without_one: (blocks,) of the data without one group.
        multiplicity: (blocks,) how many groups each stands for.
        num_groups: How many groups were drawn from.
    """
    defined = _usable(value, draws, num_groups)
    if isinstance(defined, str):
        return defined
    from scipy.special import ndtri

    near = np.abs(defined - value) <= _SAME * max(1.0, abs(value))
    below = ((defined < value) & ~near).sum() + near.sum() / 2
    bias = float(ndtri((below + 1 / 2) / (len(defined) + 1)))
    return BCa(np.sort(defined), bias, _acceleration(without_one, multiplicity), num_groups)


def _usable(value: float, draws: Floats, num_groups: int) -> Floats | str:
    """Return the resamples in which a figure is defined, or why there can be no interval."""
    if num_groups < 2:
        return "fewer than two groups to draw from"
    defined = draws[np.isfinite(draws)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(draws) or not len(defined):
        return f"undefined in {1 - len(defined) / max(len(draws), 1):.0%} of resamples"
    if np.ptp(defined) <= _SAME * max(1.0, abs(value)):
        return "the same in all resamples"
    return defined


def _acceleration(without_one: Floats, multiplicity: Floats) -> float:
    usable = np.isfinite(without_one)
    times, values = multiplicity[usable], without_one[usable]
    if not len(values):
        return 0.0
    below_mean = (times @ values) / times.sum() - values
    squares = float(times @ below_mean**2)
    return float(times @ below_mean**3) / (6 * squares**1.5) if squares > 0 else 0.0


def difference_of(value: float, draws: Floats, num_groups: int, confidence: float) -> Difference:
    """Return a difference with a symmetric interval and the two-sided p of there being none.

    The p counts the resamples whose distance from the difference is at least that of 0, and the data as one more:
    (b + 1) / (B + 1); then its normal quantile is taken for one of Student's t, as for intervals. The interval is the
    difference plus and minus the quantile of those distances that makes it leave out 0 just where p is small.
    In simulations of raters that do not differ, with 20 to 60 groups, tests that invert BCa or percentile intervals
    rejected 6 to 8 % at the 5 % level, this one 4 to 6 % (tests/test_bootstrap.py).

    Args:
        value: The difference of the data.
        draws: (resamples,) of each resample, nan where undefined.
        num_groups: How many groups were drawn from.
        confidence: How often the interval is to hold the truth.

    Source:
        Hall 1988, JRSS B 50(1), symmetric intervals; Efron and Tibshirani 1993, section 16.4, the null distribution by
        translation; Davison and Hinkley 1997, section 4.2, the 1 that is added; Hesterberg 2015 for the widening.
    """
    if abs(value) <= _SAME and np.all(np.abs(draws[np.isfinite(draws)]) <= _SAME):
        return Difference(0.0, 0.0, 0.0, 1.0)
    defined = _usable(value, draws, num_groups)
    if isinstance(defined, str):
        return Difference(value, np.nan, np.nan, np.nan, defined)
    from scipy.special import ndtr, ndtri, stdtr, stdtrit

    widening = np.sqrt(num_groups / (num_groups - 1))
    distances = np.abs(defined - value)
    beyond = int((distances >= abs(value) - _SAME).sum())
    p = 2 * float(stdtr(num_groups - 1, ndtri((beyond + 1) / (len(defined) + 1) / 2) / widening))
    outside = 2 * float(ndtr(-widening * stdtrit(num_groups - 1, (1 + confidence) / 2)))
    half = float(np.quantile(distances, 1 - outside, method="weibull"))
    return Difference(value, value - half, value + half, p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for how many tests were made; nan stays nan and is no test.

    Source:
        Holm 1979, Scandinavian Journal of Statistics 6(2): the i-th smallest of m times m - i + 1, never below the one
        before it, at most 1.
    """
    given = np.asarray(p_values, np.float64)
    tested = np.flatnonzero(np.isfinite(given))
    order = tested[np.argsort(given[tested], kind="stable")]
    adjusted = np.full(len(given), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * np.arange(len(order), 0, -1)), 1)
    return [float(p) for p in adjusted]
