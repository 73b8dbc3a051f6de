"""Agreement among several people or several raters, and how well people do at what a rater does: the human ceiling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from raters.agreement import METRICS_BY_SCALE, Figure, Level, ScaleType, alpha_of_pairs, figures_of
from raters.bootstrap import Sums
from raters.corpus_files import AnnotationTable
from raters.pairs import Codes, Floats, pairs_of, ratio
from raters.records import DataError

Aggregate = Callable[[Floats], float | None]
"""From the numbers of an item's labels to its gold number; None if there is none (no majority)."""

LEAST_LABELS = 20
"""From so many labels on a person has figures of their own."""

_MOST_PAIRED_VALUES = 64
_ROUNDING = 1e-12


def krippendorff_alpha(ratings: Floats, level: Level, values: Sequence[float] | Floats | None = None) -> Figure:
    """Return Krippendorff's alpha of several coders.

    Args:
        ratings: (coders, units) numbers on the scale, nan where a coder gave none.
        level: Level of measurement; `ratio` needs values above 0.
        values: Quantity of each number 0, 1, ...; None if it is the number.

    Source:
        Krippendorff 2011, Computing Krippendorff's Alpha-Reliability.
    """
    units = np.arange(ratings.shape[1], dtype=np.int64)
    return alpha_sums(as_table(ratings), units, level, values).points()["krippendorff_alpha"]


def as_table(ratings: Floats) -> AnnotationTable:
    """Return what several raters or people said of items as a table, a row for each number.

    Args:
        ratings: (raters, items) numbers on the scale, nan where there is none.
    """
    raters, items = np.nonzero(np.isfinite(ratings))
    return AnnotationTable(items.astype(np.int64), raters.astype(np.int64), ratings[raters, items])


def alpha_sums(
    table: AnnotationTable, groups: Codes, level: Level, values: Sequence[float] | Floats | None = None
) -> Sums:
    """Return the sums for Krippendorff's alpha among people (figure `krippendorff_alpha`).

    Args:
        table: Labels; of other items than those with a group they must be left out.
        groups: (items,) group of each item, counted from 0.
        level: Level of measurement.
        values: Quantity of each listed label; None if it is its number.
    """
    order = np.argsort(table.items, kind="stable")
    items, numbers = table.items[order], table.numbers[order]
    labels_of_item = np.bincount(items, minlength=len(groups))
    num_groups = int(groups.max(initial=-1)) + 1
    if level == "interval" and values is None and len(np.unique(numbers)) > _MOST_PAIRED_VALUES:
        return _interval_alpha_sums(items, numbers, labels_of_item, groups, num_groups)
    first, second, of_item = [], [], []
    for shift in range(1, int(labels_of_item.max(initial=0))):
        together = np.flatnonzero(items[shift:] == items[:-shift])
        first.append(np.minimum(numbers[together], numbers[together + shift]))
        second.append(np.maximum(numbers[together], numbers[together + shift]))
        of_item.append(items[together])
    none = [np.array([])]
    pairs, cells = pairs_of(np.concatenate(first or none), np.concatenate(second or none), values)
    unit = np.concatenate(of_item).astype(np.int64) if of_item else np.array([], np.int64)
    counts = 1.0 / (labels_of_item[unit] - 1)

    def figures(weights: Floats) -> dict[str, Floats]:
        if not len(pairs.counts):
            return {"krippendorff_alpha": np.full(len(weights), np.nan)}
        return {"krippendorff_alpha": alpha_of_pairs(weights, pairs, level)}

    return Sums(groups[unit], cells, counts, num_groups, len(pairs.counts), figures, _why_no_alpha)


def _why_no_alpha(name: str, totals: Floats) -> str:
    return "all labels are the same" if totals.any() else "no item has two labels"


def _interval_alpha_sums(items: Codes, numbers: Floats, labels_of_item: Codes, groups: Codes, num_groups: int) -> Sums:
    """Return sums for the interval alpha of many distinct values: moments instead of pairs of values."""
    paired = labels_of_item[items] > 1
    items, numbers = items[paired], numbers[paired] - numbers.mean()
    size = labels_of_item.astype(np.float64)
    sums = np.bincount(items, numbers, minlength=len(groups))
    squares = np.bincount(items, numbers**2, minlength=len(groups))
    unit = np.flatnonzero(size > 1).astype(np.int64)
    within = (size[unit] * squares[unit] - sums[unit] ** 2) / (size[unit] - 1)
    cells = np.repeat(np.arange(4, dtype=np.int64), len(unit))
    counts = np.concatenate([size[unit], sums[unit], squares[unit], within])

    def figures(totals: Floats) -> dict[str, Floats]:
        count, total, squared, observed = totals.T
        expected = count * squared - total**2
        expected = np.where(expected <= _ROUNDING * count * squared, 0.0, expected)
        return {"krippendorff_alpha": 1 - ratio(observed * (count - 1), expected)}

    return Sums(np.tile(groups[unit], 4), cells, counts, num_groups, 4, figures, _why_no_alpha)


def icc3(ratings: Floats) -> tuple[Figure, Figure]:
    """Return ICC(3,1) and ICC(3,k): two-way mixed, consistency, of one rater and of the mean of all.

    Args:
        ratings: (items, raters) values; an item that a rater has not rated (nan) is left out.

    Source:
        Shrout and Fleiss 1979, Psychological Bulletin 86(2).
    """
    points = icc3_sums(ratings, np.arange(len(ratings), dtype=np.int64)).points()
    return points["icc3_1"], points["icc3_k"]


def icc3_sums(ratings: Floats, groups: Codes) -> Sums:
    """Return the sums for ICC(3,1) and ICC(3,k) of several raters (figures `icc3_1`, `icc3_k`).

    Args:
        ratings: (items, raters) values, nan where a rater gave none; such items are left out.
        groups: (items,) group of each item, counted from 0.

    Raises:
        DataError: With fewer than two raters.
    """
    raters = ratings.shape[1]
    if raters < 2:
        raise DataError(f"{raters} rater; agreement among raters needs two or more")
    complete = np.flatnonzero(np.isfinite(ratings).all(axis=1)).astype(np.int64)
    rated = ratings[complete] - (ratings[complete].mean() if len(complete) else 0.0)
    columns = np.column_stack([np.ones(len(rated)), rated.sum(axis=1) ** 2, (rated**2).sum(axis=1), rated])
    cells = np.tile(np.arange(columns.shape[1], dtype=np.int64), len(rated))

    def figures(totals: Floats) -> dict[str, Floats]:
        items, row_squares, squares, by_rater = totals[:, 0], totals[:, 1], totals[:, 2], totals[:, 3:]
        safe = np.maximum(items, 1)
        middle = by_rater.sum(axis=1) ** 2 / (safe * raters)
        between = row_squares / raters - middle
        left = squares - row_squares / raters - ((by_rater**2).sum(axis=1) / safe - middle)
        between, left = (np.where(part <= _ROUNDING * squares, 0.0, part) for part in (between, left))
        left = np.where(items > 1, left / (raters - 1), np.nan)
        return {
            "icc3_1": ratio(between - left, between + (raters - 1) * left),
            "icc3_k": ratio(between - left, between),
        }

    def why(name: str, totals: Floats) -> str:
        if totals[0, 0] < 2:
            return "fewer than two items that all have rated"
        one = "every rater gives all items one value" if name == "icc3_1" else ""
        return one or "the mean over raters is the same on all items"

    num_groups = int(groups.max(initial=-1)) + 1
    width = columns.shape[1]
    return Sums(np.repeat(groups[complete], width), cells, columns.ravel(), num_groups, width, figures, why)


def against_others(table: AnnotationTable, aggregate: Aggregate) -> Floats:
    """Return what the other people who labelled an item say of it together, for each label.

    Args:
        table: Labels.
        aggregate: From the others' numbers, ascending, to one number. Called once for each distinct set of numbers.

    Returns:
        (rows,) gold number without the row's own label; nan where nobody else labelled the item or the others have no
        gold label.
    """
    distinct, codes = np.unique(table.numbers, return_inverse=True)
    order = np.lexsort((codes, table.items))
    items, codes = table.items[order], codes[order]
    starts = np.flatnonzero(np.r_[True, items[1:] != items[:-1]]) if len(items) else np.array([], np.int64)
    sizes = np.diff(np.r_[starts, len(items)])
    # A set of numbers is told by the sum of a random 64-bit word for each; the others' sum lacks the own word.
    words = np.random.default_rng(0).integers(1 << 63, size=len(distinct), dtype=np.uint64)
    sums = np.add.reduceat(words[codes], starts) if len(items) else words[:0]
    item_of_row = np.repeat(np.arange(len(starts)), sizes)
    _, examples, kinds = np.unique(sums[item_of_row] - words[codes], return_index=True, return_inverse=True)
    found = np.full(len(examples), np.nan)
    for kind, row in enumerate(examples):
        start = starts[item_of_row[row]]
        others = np.delete(codes[start : start + sizes[item_of_row[row]]], row - start)
        gold = aggregate(distinct[others]) if len(others) else None
        found[kind] = np.nan if gold is None else gold
    gold_of_row = np.empty(len(items))
    gold_of_row[order] = found[kinds]
    return gold_of_row


def labels_suffice(annotators: Codes) -> bool:
    """Return whether at least half of the labels come from people who gave 20 or more.

    Args:
        annotators: (rows,) annotator of each label.
    """
    given = np.bincount(annotators)
    return 2 * int(given[given >= LEAST_LABELS].sum()) >= len(annotators) > 0


def ceiling_sums(
    table: AnnotationTable,
    groups: Codes,
    scale_type: ScaleType,
    aggregate: Aggregate,
    values: Sequence[float] | Floats | None = None,
    *,
    pooled: bool,
) -> Sums:
    """Return the sums for the human ceiling: each annotator's labels against the gold label of the others.

    Args:
        table: Labels; of other items than those with a group they must be left out.
        groups: (items,) group of each item, counted from 0.
        scale_type: The scale's type.
        aggregate: How several labels become one.
        values: Quantity of each listed label; None if it is its number.
        pooled: False for the figure of each annotator, averaged with the weight of how many labels count; who has a
            figure undefined (gave one and the same label, or one label) is left out of its average. True for the
            figure of all labels in one table, as if one person had given them: where people gave too few labels each
            for a figure of their own (see `labels_suffice`).
    """
    pairs, pair_of_row = pairs_of(against_others(table, aggregate), table.numbers, values)
    rows = np.flatnonzero(pair_of_row >= 0)
    width = max(len(pairs.counts), 1)
    people = np.zeros(len(rows), np.int64) if pooled else table.annotators[rows]
    found, cells = np.unique(people * width + pair_of_row[rows], return_inverse=True)
    counts = np.bincount(cells, minlength=len(found)).astype(np.float64)
    starts = np.flatnonzero(np.diff(found // width, prepend=-1))
    persons = [
        (slice(start, stop), replace(pairs.subset(found[start:stop] % width), counts=counts[start:stop]))
        for start, stop in pairwise([*starts.tolist(), len(found)])
    ]
    names = METRICS_BY_SCALE[scale_type]

    def figures(totals: Floats) -> dict[str, Floats]:
        sums, weights = ({name: np.zeros(len(totals)) for name in names} for _ in range(2))
        for span, own in persons:
            labels = totals[:, span].sum(axis=1)
            for name, each in figures_of(totals[:, span], own, scale_type).items():
                defined = np.isfinite(each)
                sums[name] += np.where(defined, each, 0.0) * labels
                weights[name] += np.where(defined, labels, 0.0)
        return {name: ratio(sums[name], weights[name]) for name in names}

    def why(name: str, totals: Floats) -> str:
        return "undefined for every annotator" if totals.any() else "no item has a gold label beside another label"

    num_groups = int(groups.max(initial=-1)) + 1
    ones = np.ones(len(rows))
    return Sums(groups[table.items[rows]], cells.astype(np.int64), ones, num_groups, len(found), figures, why)
