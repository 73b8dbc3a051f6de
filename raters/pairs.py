"""Distinct (label, verdict) pairs of items: all that a figure of agreement needs to know of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from raters.records import DataError

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

MOST_TABLE_VALUES = 64
"""Up to so many distinct labels and verdicts figures may be counted in tables, and so many bins stand for more."""

_ROUNDING = 1e-12
"""A sum of squares below this share of its terms is 0: what rounding leaves of values that are all the same."""


@dataclass(frozen=True)
class Pairs:
    """The distinct (label, verdict) pairs of some items.

    Attributes:
        numbers: (values,) distinct numbers on the scale, ascending.
        values: (values,) each as a quantity: 5 for the middle label of 0, 5, 10, whose number is 1.
        labels: (pairs,) place of each pair's label in `numbers`.
        verdicts: (pairs,) place of each pair's verdict in `numbers`.
        counts: (pairs,) how many items have the pair.
    """

    numbers: Floats
    values: Floats
    labels: Codes
    verdicts: Codes
    counts: Floats

    @cached_property
    def _label_runs(self) -> tuple[Codes, Codes, Codes]:
        return runs_of(self.labels)

    @cached_property
    def _verdict_runs(self) -> tuple[Codes, Codes, Codes]:
        return runs_of(self.verdicts)

    def label_margins(self, weights: Floats) -> Floats:
        """Return (n, values) how often each label occurs."""
        return summed_by_code(weights, self._label_runs, len(self.numbers))

    def verdict_margins(self, weights: Floats) -> Floats:
        """Return (n, values) how often each verdict occurs."""
        return summed_by_code(weights, self._verdict_runs, len(self.numbers))

    @cached_property
    def _cells(self) -> tuple[int, int, tuple[Codes, Codes, Codes]]:
        """How many distinct labels and verdicts there are, and which pairs fall into a cell of their table."""
        rows, row_of = np.unique(self.labels, return_inverse=True)
        columns, column_of = np.unique(self.verdicts, return_inverse=True)
        return len(rows), len(columns), runs_of((row_of * len(columns) + column_of).astype(np.int64))

    def tables(self, weights: Floats) -> Floats:
        """Return (n, distinct labels, distinct verdicts) how often each label met each verdict."""
        rows, columns, runs = self._cells
        return summed_by_code(weights, runs, rows * columns).reshape(len(weights), rows, columns)

    def label_ranks(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return (n, distinct labels) how often each occurs, and (n, pairs) midranks less those of the middle."""
        return _centred_ranks(weights, self._label_runs)

    def verdict_ranks(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return the same of verdicts."""
        return _centred_ranks(weights, self._verdict_runs)

    @cached_property
    def signs(self) -> Floats:
        """(pairs, pairs) +1 where two pairs are in the same order on both sides, -1 in opposite order, 0 if tied."""
        by_label = np.sign(np.subtract.outer(self.labels, self.labels))
        signs: Floats = (by_label * np.sign(np.subtract.outer(self.verdicts, self.verdicts))).astype(np.float64)
        return signs

    @cached_property
    def binned(self) -> Pairs:
        """These pairs with labels and verdicts in at most 64 bins of about equally many items, pair by pair."""
        sides = [
            _quantile_bins(margins[0], codes)
            for margins, codes in (
                (self.label_margins(self.counts[None]), self.labels),
                (self.verdict_margins(self.counts[None]), self.verdicts),
            )
        ]
        numbers = np.arange(float(MOST_TABLE_VALUES))
        return Pairs(numbers, numbers, sides[0], sides[1], self.counts)

    @cached_property
    def exact_tau_b(self) -> float:
        """Kendall's tau-b of all items, in O(n log n)."""
        from scipy.stats import kendalltau

        times = self.counts.astype(np.int64)
        return float(kendalltau(np.repeat(self.labels, times), np.repeat(self.verdicts, times)).statistic)

    @cached_property
    def fit_tables(self) -> bool:
        """Whether labels and verdicts are few enough to be counted in tables."""
        most = max(len(self._label_runs[2]), len(self._verdict_runs[2]))
        return most <= MOST_TABLE_VALUES

    def subset(self, chosen: Codes) -> Pairs:
        """Return some of the pairs, with the same values."""
        return Pairs(self.numbers, self.values, self.labels[chosen], self.verdicts[chosen], self.counts[chosen])


def pairs_of(labels: Floats, verdicts: Floats, values: Sequence[float] | Floats | None = None) -> tuple[Pairs, Codes]:
    """Return the distinct pairs of some items, and which pair each item has.

    Args:
        labels: (items,) labels as the scale's numbers; nan if there is none.
        verdicts: (items,) verdicts likewise.
        values: (labels of the scale,) quantity of each listed label; None on an interval scale, or if a label's
            quantity is its number.

    Returns:
        The pairs, and (items,) the place of each item's pair; -1 where label or verdict is missing.

    Raises:
        DataError: If the lengths differ.
    """
    if len(labels) != len(verdicts):
        raise DataError(f"{len(labels)} labels beside {len(verdicts)} verdicts; give one of each for an item")
    labels, verdicts = np.asarray(labels, np.float64), np.asarray(verdicts, np.float64)
    complete = np.flatnonzero(np.isfinite(labels) & np.isfinite(verdicts))
    both = np.concatenate([labels[complete], verdicts[complete]])
    numbers, codes = np.unique(both, return_inverse=True)
    first, second = codes[: len(complete)].astype(np.int64), codes[len(complete) :].astype(np.int64)
    cells, places, counts = np.unique(first * len(numbers) + second, return_inverse=True, return_counts=True)
    pair_of_item = np.full(len(labels), -1, np.int64)
    pair_of_item[complete] = places
    quantities = numbers if values is None else np.asarray(values, np.float64)[numbers.astype(np.int64)]
    width = max(len(numbers), 1)
    return Pairs(numbers, quantities, cells // width, cells % width, counts.astype(np.float64)), pair_of_item


def runs_of(codes: Codes) -> tuple[Codes, Codes, Codes]:
    """Return an order that brings equal codes together, where each run starts, and its code."""
    order = np.argsort(codes, kind="stable").astype(np.int64)
    ordered = codes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(codes) else np.array([], np.int64)
    return order, starts, ordered[starts]


def summed_by_code(weights: Floats, runs: tuple[Codes, Codes, Codes], width: int) -> Floats:
    """Return (n, width) the weights of (n, pairs) summed over pairs of the same code."""
    margins = np.zeros((len(weights), width))
    if len(runs[1]):
        margins[:, runs[2]] = _summed_by_run(weights, runs)
    return margins


def _summed_by_run(weights: Floats, runs: tuple[Codes, Codes, Codes]) -> Floats:
    """Return (n, runs) the weights of (n, pairs) summed over each run of pairs with the same code."""
    order, starts, _ = runs
    ordered = np.take(weights, order, axis=1)
    return ordered if len(starts) == len(order) else np.add.reduceat(ordered, starts, axis=1)


def _centred_ranks(weights: Floats, runs: tuple[Codes, Codes, Codes]) -> tuple[Floats, Floats]:
    order, starts, _ = runs
    margins = _summed_by_run(weights, runs)
    run_of_pair = np.empty(len(order), np.int64)
    run_of_pair[order] = np.repeat(np.arange(len(starts)), np.diff(np.r_[starts, len(order)]))
    ranks = midranks(margins)
    ranks -= weights.sum(axis=1, keepdims=True) / 2
    return margins, np.take(ranks, run_of_pair, axis=1)


def _quantile_bins(margins: Floats, codes: Codes) -> Codes:
    middle = np.cumsum(margins) - margins / 2
    bins: Codes = np.minimum(middle / margins.sum() * MOST_TABLE_VALUES, MOST_TABLE_VALUES - 1).astype(np.int64)
    return bins[codes]


def midranks(margins: Floats) -> Floats:
    """Return (n, values) mean rank of each value, less a half."""
    return np.cumsum(margins, axis=1) - margins / 2


def squared_deviations(weights: Floats, values: Floats, items: Floats) -> Floats:
    """Return (n,) sum of squared deviations from the mean; 0 where rounding alone is left."""
    raw = weights @ values**2
    squares = raw - np.divide((weights @ values) ** 2, items, out=np.zeros_like(raw), where=items > 0)
    return np.where(squares <= _ROUNDING * raw, 0.0, squares)


def mean_of(weights: Floats, values: Floats) -> Floats:
    """Return (n,) weighted means; nan where nothing has weight."""
    return ratio(weights @ values, weights.sum(axis=1))


def ratio(above: Floats, below: Floats) -> Floats:
    """Return (n,) quotients; nan where the denominator is not above 0."""
    quotients = np.full(above.shape, np.nan)
    np.divide(above, below, out=quotients, where=below > 0)
    return quotients


def one_minus_ratio(observed: Floats, expected: Floats) -> Floats:
    """Return (n,) one minus quotients; nan where the denominator is not above 0."""
    return 1 - ratio(observed, expected)
