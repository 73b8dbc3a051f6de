"""Agreement of verdicts with labels: every figure from counts of (label, verdict) pairs.

A figure needs to know of the items only how often each pair of label and verdict occurs. So all functions here take
*weights* (n, pairs): a row for each set of items, n = 1 for the data themselves and n = 2,000 for their resamples.
That is what makes intervals cheap (see `bootstrap`). Several people or several raters at once: see `reliability`.

A figure that is undefined (0/0) is nan, and `why_undefined` says why; it is never 0 in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raters.pairs import (
    Floats,
    Pairs,
    mean_of,
    midranks,
    one_minus_ratio,
    pairs_of,
    ratio,
    squared_deviations,
)

Level = Literal["nominal", "ordinal", "interval", "ratio"]
ScaleType = Literal["ordinal", "nominal", "interval", "pairwise"]

METRICS_BY_SCALE: Mapping[str, tuple[str, ...]] = {
    "ordinal": (
        "kendall_tau_b",
        "spearman_rho",
        "icc3_1",
        "icc3_k",
        "mse",
        "mae",
        "exact_agreement",
        "within_one_step",
        "cohen_kappa",
        "quadratic_kappa",
        "krippendorff_alpha",
    ),
    "interval": (
        "kendall_tau_b",
        "spearman_rho",
        "icc3_1",
        "icc3_k",
        "mse",
        "mae",
        "exact_agreement",
        "krippendorff_alpha",
    ),
    "nominal": ("exact_agreement", "cohen_kappa", "krippendorff_alpha"),
    "pairwise": ("exact_agreement", "cohen_kappa", "krippendorff_alpha"),
}
"""The figures that make sense on a scale; steps and kappas need a list of labels, the others an order."""

ALPHA_LEVELS: Mapping[str, Level] = {
    "ordinal": "ordinal",
    "interval": "interval",
    "nominal": "nominal",
    "pairwise": "nominal",
}
"""The level of measurement that Krippendorff's alpha takes a scale for."""

LOWER_IS_BETTER = frozenset({"mse", "mae"})

_MEANS = frozenset({"mse", "mae", "exact_agreement", "within_one_step"})
_MOST_COMPARED_PAIRS = 3000
"""Up to so many distinct pairs tau-b compares each with each; the matrix of signs then takes 72 MB."""
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure, or why there is none.

    Attributes:
        value: The figure; nan if it is undefined.
        reason: Why it is undefined; empty if it is not.
    """

    value: float
    reason: str = ""


def kendall_tau_b(weights: Floats, pairs: Pairs) -> Floats:
    """Return rank agreement corrected for ties.

    Exact up to 64 distinct values (cumulated tables, O(items + values squared)) or 3,000 distinct pairs; beyond
    both, the change from the exact figure of all items is taken from 64 bins.

    Args:
        weights: (n, pairs) how often each pair occurs.
        pairs: What the pairs are.

    Returns:
        (n,) tau-b in [-1, 1]; nan where labels or verdicts are constant.

    Source:
        Kendall 1945, Biometrika 33(3); ties as in scipy.stats.kendalltau.
    """
    if pairs.fit_tables:
        tables = pairs.tables(weights)
        ahead = _concordant_minus_discordant(tables)
        labels, verdicts = tables.sum(axis=2), tables.sum(axis=1)
    elif len(pairs.counts) <= _MOST_COMPARED_PAIRS:
        ahead = ((weights @ pairs.signs) * weights).sum(axis=1) / 2
        labels, verdicts = pairs.label_margins(weights), pairs.verdict_margins(weights)
    else:
        lost = pairs.exact_tau_b - kendall_tau_b(pairs.counts[None], pairs.binned)
        return kendall_tau_b(weights, pairs.binned) + lost
    items = weights.sum(axis=1)
    untied = [(items**2 - (margins**2).sum(axis=1)) / 2 for margins in (labels, verdicts)]
    return ratio(ahead, np.sqrt(untied[0]) * np.sqrt(untied[1]))


def _concordant_minus_discordant(tables: Floats) -> Floats:
    """Return (n,) how many pairs of items both sides order alike, less those they order oppositely.

    Args:
        tables: (n, labels, verdicts) how often each label met each verdict, both in their order.
    """
    above = np.cumsum(tables, axis=1)[:, :-1]
    up_to = np.cumsum(above, axis=2)
    later = tables[:, 1:]
    smaller_less_greater = up_to + up_to - above - up_to[:, :, -1:]
    ahead: Floats = np.einsum("nij,nij->n", later, smaller_less_greater)
    return ahead


def spearman_rho(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) the correlation of midranks, in [-1, 1]; nan where labels or verdicts are constant.

    Source:
        Spearman 1904, Am. J. Psychology 15(1); ties as in scipy.stats.spearmanr.
    """
    (labels, label_ranks), (verdicts, verdict_ranks) = pairs.label_ranks(weights), pairs.verdict_ranks(weights)
    constant = ((labels > 0).sum(axis=1) < 2) | ((verdicts > 0).sum(axis=1) < 2)
    together = np.einsum("np,np,np->n", weights, label_ranks, verdict_ranks)
    spread = [np.sqrt(np.einsum("np,np,np->n", weights, ranks, ranks)) for ranks in (label_ranks, verdict_ranks)]
    return np.where(constant, np.nan, ratio(together, spread[0] * spread[1]))


def _icc3_squares(weights: Floats, pairs: Pairs) -> tuple[Floats, Floats]:
    """Return (n,) sums of squares between items and of what is left, for a label and a verdict of each item."""
    values = pairs.values - (pairs.values.mean() if len(pairs.values) else 0.0)
    sums, gaps = values[pairs.labels] + values[pairs.verdicts], values[pairs.labels] - values[pairs.verdicts]
    items = weights.sum(axis=1)
    return squared_deviations(weights, sums, items) / 2, squared_deviations(weights, gaps, items) / 2


def icc3_1(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) ICC(3,1) of label and verdict: two-way mixed, consistency, a single rating; in [-1, 1].

    nan where all labels are one and all verdicts are one, or with fewer than two items. Labels that are constant
    beside verdicts that are not give 0 by definition.

    Source:
        Shrout and Fleiss 1979, Psychological Bulletin 86(2), (BMS - EMS) / (BMS + (k - 1) EMS) with k = 2.
    """
    between, left = _icc3_squares(weights, pairs)
    return ratio(between - left, between + left)


def icc3_k(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) ICC(3,k) of label and verdict: two-way mixed, consistency, the mean of both; at most 1.

    nan as for `icc3_1`, and where the mean of label and verdict is the same on all items.

    Source:
        Shrout and Fleiss 1979, (BMS - EMS) / BMS.
    """
    between, left = _icc3_squares(weights, pairs)
    return ratio(between - left, between)


def mse(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) mean squared difference of verdict and label, in squared units of the scale's values."""
    return mean_of(weights, (pairs.values[pairs.verdicts] - pairs.values[pairs.labels]) ** 2)


def mae(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) mean absolute difference of verdict and label, in units of the scale's values."""
    return mean_of(weights, np.abs(pairs.values[pairs.verdicts] - pairs.values[pairs.labels]))


def exact_agreement(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) share of items whose verdict is the label."""
    return mean_of(weights, (pairs.labels == pairs.verdicts).astype(np.float64))


def within_one_step(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) share of items whose verdict is the label or next to it on the scale."""
    steps = np.abs(pairs.numbers[pairs.verdicts] - pairs.numbers[pairs.labels])
    return mean_of(weights, (steps <= 1 + _ROUNDING).astype(np.float64))


def cohen_kappa(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) agreement beyond chance, at most 1; nan where both sides give one and the same label throughout.

    Source:
        Cohen 1960, Educational and Psychological Measurement 20(1).
    """
    items = weights.sum(axis=1)
    differ = weights @ (pairs.labels != pairs.verdicts).astype(np.float64)
    by_chance = items**2 - (pairs.label_margins(weights) * pairs.verdict_margins(weights)).sum(axis=1)
    return one_minus_ratio(differ * items, by_chance)


def quadratic_kappa(weights: Floats, pairs: Pairs) -> Floats:
    """Return (n,) kappa that counts a disagreement by its squared steps, at most 1; nan as for `cohen_kappa`.

    Source:
        Cohen 1968, Psychological Bulletin 70(4); weights as in sklearn.metrics.cohen_kappa_score, where all labels
        of the scale are listed.
    """
    labels, verdicts = pairs.numbers[pairs.labels], pairs.numbers[pairs.verdicts]
    items = weights.sum(axis=1)
    by_chance = items * (weights @ (labels**2 + verdicts**2)) - 2 * (weights @ labels) * (weights @ verdicts)
    return one_minus_ratio(items * (weights @ (labels - verdicts) ** 2), by_chance)


def alpha_of_pairs(weights: Floats, pairs: Pairs, level: Level) -> Floats:
    """Return (n,) Krippendorff's alpha of label and verdict as two coders, at most 1; nan where all are the same.

    Source:
        Krippendorff 2011, Computing Krippendorff's Alpha-Reliability. The ordinal difference between two labels is
        that of their midranks, so the ordinal alpha is the interval one of midranks.
    """
    if level == "interval":
        values = pairs.values - pairs.values.mean()
        labels, verdicts = values[pairs.labels], values[pairs.verdicts]
        total = 2 * weights.sum(axis=1)
        observed, size = weights @ (labels - verdicts) ** 2, total * (weights @ (labels**2 + verdicts**2))
        expected = size - (weights @ (labels + verdicts)) ** 2
        expected = np.where(expected <= _ROUNDING * size, 0.0, expected)
        return one_minus_ratio(observed * (total - 1), expected)
    margins = pairs.label_margins(weights) + pairs.verdict_margins(weights)
    total = margins.sum(axis=1)
    if level == "nominal":
        differ = weights @ (pairs.labels != pairs.verdicts).astype(np.float64)
        return one_minus_ratio(2 * differ * (total - 1), total**2 - (margins**2).sum(axis=1))
    if level == "ratio":
        above, below = np.subtract.outer(pairs.values, pairs.values), np.add.outer(pairs.values, pairs.values)
        squared = np.divide(above, below, out=np.zeros_like(above), where=below != 0) ** 2
        observed = weights @ squared[pairs.labels, pairs.verdicts]
        return one_minus_ratio(2 * observed * (total - 1), np.einsum("nc,cd,nd->n", margins, squared, margins))
    values = midranks(margins)
    gaps = values[:, pairs.labels] - values[:, pairs.verdicts]
    size = total * (margins * values**2).sum(axis=1)
    expected = size - (margins * values).sum(axis=1) ** 2
    expected = np.where(expected <= _ROUNDING * size, 0.0, expected)
    return one_minus_ratio((weights * gaps**2).sum(axis=1) * (total - 1), expected)


_FIGURES: Mapping[str, Callable[[Floats, Pairs], Floats]] = {
    "kendall_tau_b": kendall_tau_b,
    "spearman_rho": spearman_rho,
    "icc3_1": icc3_1,
    "icc3_k": icc3_k,
    "mse": mse,
    "mae": mae,
    "exact_agreement": exact_agreement,
    "within_one_step": within_one_step,
    "cohen_kappa": cohen_kappa,
    "quadratic_kappa": quadratic_kappa,
}


def figures_of(weights: Floats, pairs: Pairs, scale_type: ScaleType) -> dict[str, Floats]:
    """Return every figure that makes sense on a scale.

    Args:
        weights: (n, pairs) how often each pair occurs.
        pairs: What the pairs are.
        scale_type: The scale's type.

    Returns:
        (n,) figures by name; nan where undefined.
    """
    few = weights.sum(axis=1) < 2
    found: dict[str, Floats] = {}
    for name in METRICS_BY_SCALE[scale_type]:
        if not len(pairs.counts):
            found[name] = np.full(len(weights), np.nan)
            continue
        if name == "krippendorff_alpha":
            values = alpha_of_pairs(weights, pairs, ALPHA_LEVELS[scale_type])
        else:
            values = _FIGURES[name](weights, pairs)
        found[name] = values if name in _MEANS else np.where(few, np.nan, values)
    return found


def why_undefined(name: str, weights: Floats, pairs: Pairs) -> str:
    """Return why a figure of one set of items is undefined, in words for a table.

    Args:
        name: The figure.
        weights: (1, pairs) how often each pair occurs.
        pairs: What the pairs are.
    """
    items = weights.sum()
    if items < 1:
        return "no item has both a label and a verdict"
    if items < 2 and name not in _MEANS:
        return "fewer than two items"
    constant = [
        side
        for side, margins in (("labels", pairs.label_margins(weights)), ("verdicts", pairs.verdict_margins(weights)))
        if (margins > 0).sum() < 2
    ]
    if constant:
        return f"{' and '.join(constant)} are constant"
    return "the mean of label and verdict is the same on all items"


def agreement(
    labels: Floats, verdicts: Floats, scale_type: ScaleType, values: Sequence[float] | Floats | None = None
) -> dict[str, Figure]:
    """Return how far verdicts agree with labels, by every figure that makes sense on the scale.

    Args:
        labels: (items,) labels as the scale's numbers; an item with nan on either side is left out.
        verdicts: (items,) verdicts likewise.
        scale_type: The scale's type.
        values: Quantity of each listed label, as in `pairs_of`.

    Raises:
        DataError: If the lengths differ.
    """
    pairs, _ = pairs_of(labels, verdicts, values)
    weights = pairs.counts[None]
    return {
        name: Figure(float(found[0]), "" if np.isfinite(found[0]) else why_undefined(name, weights, pairs))
        for name, found in figures_of(weights, pairs, scale_type).items()
    }
