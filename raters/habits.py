"""How a rater uses its scale: which labels, confused with which, and whether by the texts' length or order."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.agreement import agreement
from raters.corpora import Corpus
from raters.rater_draws import RaterDraws
from raters.scales import AnyScale, IntervalScale, PairwiseScale

_BINS = 5
"""Of an interval scale."""


def shares(numbers: NDArray[np.float64], scale: AnyScale) -> dict[str, float | None]:
    """Return the share of each label among readable numbers, of each fifth of an interval scale; None of nothing."""
    names, codes = _classes(numbers, scale)
    counts = np.bincount(codes[codes >= 0], minlength=len(names)).tolist()
    known = sum(counts)
    return {name: count / known if known else None for name, count in zip(names, counts, strict=True)}


def confusion(gold: NDArray[np.float64], verdicts: NDArray[np.float64], scale: AnyScale) -> dict[str, Any]:
    """Return how often each label met each verdict; on an interval scale in fifths.

    Args:
        gold: (items,) gold labels as the scale's numbers, nan where there is none.
        verdicts: (items,) verdicts likewise, nan if unreadable.
        scale: What the numbers mean.

    Returns:
        `labels`: names of rows and columns; `counts`: a row for each label, a column for each verdict; `unreadable`:
        for each label, of how many items the verdict could not be read.
    """
    names, labels = _classes(gold, scale)
    _, said = _classes(verdicts, scale)
    table = np.zeros((len(names), len(names) + 1), np.int64)
    labelled = labels >= 0
    np.add.at(table, (labels[labelled], said[labelled]), 1)  # -1 is the last column
    return {"labels": names, "counts": table[:, :-1].tolist(), "unreadable": table[:, -1].tolist()}


def _classes(numbers: NDArray[np.float64], scale: AnyScale) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of all labels (of five equal bins on an interval scale), and each number's; -1 for nan."""
    known = np.isfinite(numbers)
    codes = np.full(len(numbers), -1, np.int64)
    if isinstance(scale, IntervalScale):
        edges = np.linspace(scale.min, scale.max, _BINS + 1)
        codes[known] = np.searchsorted(edges[1:-1], numbers[known], side="right")
        return _bin_names(edges.tolist()), codes
    codes[known] = numbers[known].astype(np.int64)
    return [str(label) for label in scale.labels], codes


def _bin_names(edges: list[float]) -> list[str]:
    """Return a name for each bin, with as many digits as it takes to tell the edges apart."""
    for digits in range(6, 18):
        names = [f"{edge:.{digits}g}" for edge in edges]
        if len(set(names)) == len(names):
            break
    else:
        names = [f"{edge!r} (edge {place})" for place, edge in enumerate(edges)]
    return [f"{low}..{high}" for low, high in pairwise(names)]


def length_correlation(
    items: NDArray[np.int64], verdicts: NDArray[np.float64], corpus: Corpus, scale: AnyScale
) -> dict[str, Any] | None:
    """Return the rank correlation of verdicts with length in words (first less second text of a pair); None unordered.

    The text is the longest of an item; a pair's tie stands between its two labels.
    """
    if scale.type == "nominal":
        return None
    lengths = np.empty(len(items))
    for row, item in enumerate(items.tolist()):
        inputs = corpus.item(item).inputs
        words = {name: len(text.split()) for name, text in inputs.items()}
        pair = scale.fields if isinstance(scale, PairwiseScale) else None
        lengths[row] = words[pair[0]] - words[pair[1]] if pair else max(words.values())
    if isinstance(scale, PairwiseScale):
        verdicts = np.select([verdicts == 0, verdicts == 1, verdicts == 2], [1.0, -1.0, 0.0], np.nan)
    found = agreement(lengths, verdicts, "interval")["spearman_rho"]
    reason = found.reason.replace("labels", "lengths").replace("a label", "a length")
    return {"spearman_rho": found.value if np.isfinite(found.value) else None, "reason": reason}


def position(rater: RaterDraws, scale: AnyScale) -> dict[str, Any] | None:
    """Return how a rater takes the order of a pair; None if the scale is not pairwise, or one order alone was shown.

    `chose_first_shown`: share of decisions for the text shown first. `consistent`: share of the items drawn in both
    orders whose most frequent verdict is the same in both.
    """
    if not isinstance(scale, PairwiseScale) or not rater.swapped.any():
        return None
    numbers, swapped = rater.numbers, rater.swapped
    decided = (numbers == 0) | (numbers == 1)
    first = decided & ((numbers == 0) != swapped)
    same = both = 0
    for row, exchanged in zip(numbers, swapped, strict=True):
        by_order = [row[np.isfinite(row) & (exchanged == order)] for order in (False, True)]
        if all(len(found) for found in by_order):
            modes = [Counter(found.tolist()).most_common(1)[0][0] for found in by_order]
            both, same = both + 1, same + (modes[0] == modes[1])
    return {
        "chose_first_shown": float(first.sum()) / decided.sum() if decided.any() else None,
        "decisions": int(decided.sum()),
        "consistent": same / both if both else None,
        "items_in_both_orders": both,
    }
