"""How good people's labels of a corpus are, before a model sees any of it.

Who agrees with the others, who always gives the same label, which items stand there twice with different labels, which
have one label alone, and what each rule for gold labels would leave.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from raters.agreement import ALPHA_LEVELS, agreement
from raters.corpora import Corpus
from raters.corpus_files import AnnotationTable, Dimension
from raters.gold import GoldMethod, default_method, gold_labels, gold_of_numbers
from raters.habits import shares
from raters.records import ConfigError
from raters.reliability import against_others, alpha_sums
from raters.scales import AnyScale, listed_labels

LEAST_TO_VARY = 5
"""From so many labels on it tells something that they are all the same."""

_MOST_DUPLICATES = 20
"""Groups of duplicates that are listed."""


def label_quality(corpus: Corpus) -> dict[str, Any]:
    """Return what can be said of a corpus's labels, as a record for summary.json and the page.

    Keys: `corpus`, `items`, `annotators`, `duplicates` (items that share their texts with another one), and
    `dimensions`, each with `alpha`, `labels`, `histogram`, `annotators`, `duplicates` and `gold`.
    """
    copies = _copies(corpus)
    return {
        "corpus": corpus.name,
        "items": len(corpus.item_ids),
        "annotators": len(corpus.annotator_ids),
        "groups": int(corpus.groups.max()) + 1,
        "group_by": corpus.group_by,
        "duplicates": sum(map(len, copies)),
        "dimensions": [_dimension(corpus, dimension, copies) for dimension in corpus.dimensions.values()],
    }


def _dimension(corpus: Corpus, dimension: Dimension, copies: Sequence[NDArray[np.int64]]) -> dict[str, Any]:
    table, scale = corpus.annotations(dimension.name), dimension.scale
    per_item = np.bincount(table.items, minlength=len(corpus.item_ids))
    quantities = [scale.value(label) for label in listed_labels(scale)] or None
    sums = alpha_sums(table, np.arange(len(corpus.item_ids)), ALPHA_LEVELS[scale.type], quantities)
    alpha = sums.points()["krippendorff_alpha"]
    return {
        "dimension": dimension.name,
        "scale": str(scale),
        "scale_type": scale.type,
        "labels": len(table.items),
        "items_labelled": int((per_item > 0).sum()),
        "items_by_annotators": {str(n): int(count) for n, count in enumerate(np.bincount(per_item)) if n and count},
        "items_with_one_annotator": int((per_item == 1).sum()),
        "alpha": {"value": alpha.value if np.isfinite(alpha.value) else None, "reason": alpha.reason},
        "histogram": shares(table.numbers, scale),
        "annotators": _annotators(corpus, table, scale, quantities),
        "duplicates": _duplicates(corpus, table, scale, copies),
        "gold": _gold(corpus, dimension),
    }


def _annotators(
    corpus: Corpus, table: AnnotationTable, scale: AnyScale, quantities: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Return a record for each person who labelled, those with most labels first."""
    others = against_others(table, gold_of_numbers(default_method(scale), scale))
    figure = "kendall_tau_b" if scale.type in ("ordinal", "interval") else "cohen_kappa"
    order = np.argsort(table.annotators, kind="stable")
    people, starts, counts = np.unique(table.annotators[order], return_index=True, return_counts=True)
    found = []
    for person, start, count in sorted(zip(people, starts, counts, strict=True), key=lambda one: (-one[2], one[0])):
        rows = order[start : start + count]
        numbers = table.numbers[rows]
        compared = agreement(others[rows], numbers, scale.type, quantities)
        distinct, times = np.unique(numbers, return_counts=True)
        with_others = int(np.isfinite(others[rows]).sum())
        found.append(
            {
                "annotator": corpus.annotator_ids[int(person)],
                "labels": int(count),
                "compared": with_others,
                "figure": figure,
                "agreement": _known(compared[figure].value),
                "exact": _known(compared["exact_agreement"].value),
                "most_frequent": str(scale.label(float(distinct[np.argmax(times)]))),
                "most_frequent_share": float(times.max() / count),
                "never_varies": len(distinct) == 1 and int(count) >= LEAST_TO_VARY,
            }
        )
    return found


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _copies(corpus: Corpus) -> list[NDArray[np.int64]]:
    """Return the items that have the same texts, a group each."""
    order = np.argsort(corpus.content, kind="stable")
    bounds = np.flatnonzero(np.r_[True, np.diff(corpus.content[order]) != 0])
    return [np.sort(group) for group in np.split(order, bounds[1:]) if len(group) > 1]


def _duplicates(
    corpus: Corpus, table: AnnotationTable, scale: AnyScale, copies: Sequence[NDArray[np.int64]]
) -> dict[str, Any]:
    """Return how many groups of items with the same texts have different gold labels, and the first of them."""
    aggregate = gold_of_numbers(default_method(scale), scale)
    wanted = np.concatenate([*copies, np.array([], np.int64)])
    labelled = np.flatnonzero(np.isin(table.items, wanted))
    by_item: dict[int, list[float]] = {}
    for item, number in zip(table.items[labelled].tolist(), table.numbers[labelled].tolist(), strict=True):
        by_item.setdefault(item, []).append(number)
    gold = {item: aggregate(np.sort(np.array(numbers))) for item, numbers in by_item.items()}
    differing = [
        group
        for group in ([item for item in group.tolist() if gold.get(item) is not None] for group in copies)
        if len({gold[item] for item in group}) > 1
    ]
    listed = [
        {
            "text": next(iter(corpus.item(group[0]).inputs.values())),
            "items": [
                {"item": corpus.item_ids[item], "labels": [str(scale.label(n)) for n in sorted(by_item[item])]}
                for item in group
            ],
        }
        for group in differing[:_MOST_DUPLICATES]
    ]
    return {"groups": len(copies), "with_different_labels": len(differing), "listed": listed}


def _gold(corpus: Corpus, dimension: Dimension) -> list[dict[str, Any]]:
    """Return what each rule for gold labels would leave, as far as the scale has what it needs."""
    found = []
    for method in get_args(GoldMethod):
        if method == "per-annotator":
            continue
        try:
            gold = gold_labels(corpus, dimension.name, method)
        except ConfigError:
            continue
        usual = method == default_method(dimension.scale)
        found.append({"method": method, "labels": len(gold), "dropped": dict(gold.dropped), "default": usual})
    return found
