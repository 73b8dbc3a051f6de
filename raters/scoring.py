"""Score raters against people on one dimension, with the human ceiling and uncertainty beside every figure.

Rows that cannot be read are never dropped in silence: every rater has its coverage, its agreement on what can be read,
and a worst case in which each unreadable verdict is the label farthest from the person's.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.agreement import METRICS_BY_SCALE, agreement
from raters.annotator_test import DEFAULT_EPSILON, alternative_annotator_test
from raters.bootstrap import RESAMPLES, Resampled, Sums, agreement_sums, bootstrap, groups_or_items
from raters.corpora import Corpus
from raters.corpus_files import AnnotationTable, Dimension
from raters.gold import GoldMethod, gold_labels, gold_of_numbers
from raters.intervals import INTERVAL_METHOD, TEST_METHOD, holm
from raters.rater_draws import RaterDraws
from raters.records import DataError
from raters.reliability import alpha_sums, as_table, ceiling_sums, icc3_sums, labels_suffice
from raters.scales import AnyScale, IntervalScale, PairwiseScale, listed_labels
from raters.utilisation import self_agreement

_FINE = ("kendall_tau_b", "spearman_rho", "icc3_1", "icc3_k", "mse", "mae")
"""Figures that a mean of draws between two labels is not rounded for."""


@dataclass(frozen=True)
class People:
    """What people said of the scored items.

    Attributes:
        items: (items,) corpus index of each.
        gold: (items,) gold label as the scale's number, nan if there is none.
        table: Their labels; its items are places in `items`.
        groups: (items,) what is resampled together.
        by_group: False if there were too few groups, so that items are resampled.
        dropped: Items without a gold label, by reason.
    """

    items: NDArray[np.int64]
    gold: NDArray[np.float64]
    table: AnnotationTable
    groups: NDArray[np.int64]
    by_group: bool
    dropped: Mapping[str, int]


def people_of(corpus: Corpus, dimension: Dimension, method: GoldMethod, items: NDArray[np.int64]) -> People:
    """Return people's labels of some items.

    Raises:
        DataError: If none of them has a gold label.
    """
    labels = gold_labels(corpus, dimension.name, method, items)
    if not len(labels):
        raise DataError(f"corpus {corpus.name}: none of the {len(items)} rated items has a label on {dimension.name}")
    place = np.full(len(corpus.item_ids), -1, np.int64)
    place[items] = np.arange(len(items))
    gold = np.full(len(items), np.nan)
    gold[place[labels.items]] = labels.numbers
    table = corpus.annotations(dimension.name)
    rows = place[table.items] >= 0
    kept = AnnotationTable(place[table.items[rows]], table.annotators[rows], table.numbers[rows])
    groups, by_group = groups_or_items(corpus.groups[items])
    return People(items, gold, kept, groups, by_group, labels.dropped)


def score(
    corpus: Corpus,
    dimension: Dimension,
    method: GoldMethod,
    raters: Sequence[RaterDraws],
    *,
    floors: Sequence[RaterDraws] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
    epsilon: float = DEFAULT_EPSILON,
) -> dict[str, Any]:
    """Return all figures of some raters on one dimension as plain values; nan is null, with a reason beside it.

    Args:
        corpus: Items and labels.
        dimension: What was rated.
        method: How several people's labels become one.
        raters: Their draws, all of the same items.
        floors: Simple raters that a rater should beat, of the same items; scored, and not compared with others.
        resamples: Of the bootstrap.
        seed: Of the resamples.
        epsilon: Advantage that the alternative annotator test grants to people.

    Raises:
        DataError: If raters rated different items, or no rated item has a label.
    """
    scale, first = dimension.scale, raters[0]
    for other in (*raters[1:], *floors):
        if not np.array_equal(first.items, other.items):
            only = np.setxor1d(first.items, other.items)
            item_id = corpus.item_ids[int(only[0])]
            raise DataError(
                f"{other.name} and {first.name} rated different items ({len(only)} are in one alone, such as "
                f"{item_id!r}); rate the same items with both"
            )
    people = people_of(corpus, dimension, method, first.items)
    quantities = [scale.value(label) for label in listed_labels(scale)] if scale.type == "ordinal" else None
    sums = _sums(people, (*raters, *floors), len(raters), scale, method, quantities)
    resampled = bootstrap(sums, resamples, seed)
    names = METRICS_BY_SCALE[scale.type]
    annotators = len(np.unique(people.table.annotators))
    return {
        "corpus": corpus.name,
        "dimension": dimension.name,
        "scale": str(scale),
        "label_method": method,
        "items": len(people.items),
        "items_with_label": int(np.isfinite(people.gold).sum()),
        "dropped_items": dict(people.dropped),
        "annotators": annotators,
        "resampled": "groups" if people.by_group else "items",
        "resampled_count": int(people.groups.max()) + 1,
        "resamples": resamples,
        "interval_method": INTERVAL_METHOD,
        "test_method": TEST_METHOD,
        "human": {
            "alpha": _interval(resampled, "people", "krippendorff_alpha"),
            "ceiling": {name: _interval(resampled, "ceiling", name) for name in names},
            "ceiling_pooled": not labels_suffice(people.table.annotators),
        },
        "raters": [
            _rater_record(place, rater, people, corpus, scale, resampled, quantities, epsilon)
            for place, rater in enumerate(raters)
        ],
        "floors": [
            _rater_record(len(raters) + place, floor, people, corpus, scale, resampled, quantities, epsilon)
            for place, floor in enumerate(floors)
        ],
        "between_raters": _between(raters, resampled, scale),
        "differences": _differences(raters, resampled, names),
    }


def _fine(rater: RaterDraws, scale: AnyScale) -> bool:
    many = rater.aggregate != "majority" and rater.numbers.shape[1] > 1
    return scale.type == "ordinal" and (many or rater.quantities is not None)


def _sums(
    people: People,
    raters: Sequence[RaterDraws],
    compared: int,
    scale: AnyScale,
    method: GoldMethod,
    quantities: list[float] | None,
) -> dict[str, Sums]:
    """Return the sums of everything that is resampled, by name, over the same groups; the first raters are compared."""
    groups, table = people.groups, people.table
    level = "nominal" if scale.type == "pairwise" else scale.type
    aggregate = gold_of_numbers(method, scale)
    pooled = not labels_suffice(table.annotators)
    sums = {
        "people": alpha_sums(table, groups, level, quantities),
        "ceiling": ceiling_sums(table, groups, scale.type, aggregate, quantities, pooled=pooled),
    }
    verdicts = [rater.verdicts(scale) for rater in raters]
    gold_values = _quantities(people.gold, quantities)
    for place, (rater, numbers) in enumerate(zip(raters, verdicts, strict=True)):
        sums[f"rater {place}"] = agreement_sums(people.gold, numbers, groups, scale.type, quantities)
        worst = np.where(np.isfinite(numbers), numbers, _farthest(people.gold, scale))
        sums[f"worst {place}"] = agreement_sums(people.gold, worst, groups, scale.type, quantities)
        if _fine(rater, scale):
            sums[f"fine {place}"] = agreement_sums(gold_values, rater.values(scale), groups, "interval")
    for one, other in combinations(range(compared), 2):
        sums[f"pair {one} {other}"] = agreement_sums(verdicts[one], verdicts[other], groups, scale.type, quantities)
        # A difference is of the items that both could be read on.
        both = np.isfinite(verdicts[one]) & np.isfinite(verdicts[other])
        for place in (one, other):
            numbers = np.where(both, verdicts[place], np.nan)
            sums[f"both {one} {other} {place}"] = agreement_sums(people.gold, numbers, groups, scale.type, quantities)
    if compared > 1:
        columns = np.array(verdicts[:compared])
        sums["raters alpha"] = alpha_sums(as_table(columns), groups, level, quantities)
        if scale.type in ("ordinal", "interval"):
            sums["raters icc"] = icc3_sums(_quantities(columns.T, quantities), groups)
    return sums


def _quantities(numbers: NDArray[np.float64], quantities: list[float] | None) -> NDArray[np.float64]:
    if quantities is None:
        return numbers
    places = np.nan_to_num(numbers).astype(np.int64)
    return np.where(np.isfinite(numbers), np.array(quantities)[places], np.nan)


def _farthest(gold: NDArray[np.float64], scale: AnyScale) -> NDArray[np.float64]:
    """Return (items,) the number of the label farthest from each gold label: what an unreadable verdict costs most."""
    ends = (float(scale.min), float(scale.max)) if isinstance(scale, IntervalScale) else (0.0, len(scale.labels) - 1.0)
    return np.where(np.abs(gold - ends[0]) >= np.abs(gold - ends[1]), ends[0], ends[1])


def _interval(resampled: Resampled, name: str, figure: str) -> dict[str, Any]:
    return _plain(dataclasses.asdict(resampled.interval(name, figure)))


def _plain(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with null for nan, as strict JSON wants it."""
    return {
        key: None if isinstance(value, float) and not np.isfinite(value) else value for key, value in record.items()
    }


def _key(name: str, place: int, rater: RaterDraws, scale: AnyScale) -> str:
    """Return which sums a figure of a rater comes from."""
    return f"fine {place}" if name in _FINE and _fine(rater, scale) else f"rater {place}"


def _rater_record(
    place: int,
    rater: RaterDraws,
    people: People,
    corpus: Corpus,
    scale: AnyScale,
    resampled: Resampled,
    quantities: list[float] | None,
    epsilon: float,
) -> dict[str, Any]:
    """Return the figures of one rater against people."""
    names = METRICS_BY_SCALE[scale.type]
    verdicts = rater.verdicts(scale)
    readable = np.isfinite(verdicts)
    test = alternative_annotator_test(people.table, verdicts, scale.type, quantities, epsilon)
    alternative = _plain(dataclasses.asdict(test))
    alternative["annotators_tested"] = len(alternative.pop("annotators"))
    return {
        "rater": rater.name,
        "aggregate": rater.aggregate,
        "draws_per_item": int(rater.drawn.max()),
        "coverage": float(readable.mean()),
        "unreadable_items": int((~readable).sum()),
        "unreadable_draws": int(rater.drawn.sum() - np.isfinite(rater.numbers).sum()),
        "agreement": {name: _interval(resampled, _key(name, place, rater, scale), name) for name in names},
        "worst_case": {name: _interval(resampled, f"worst {place}", name) for name in names},
        "alternative_annotator_test": alternative,
        "self_agreement": self_agreement(rater.numbers)[0],
        "verdict_shares": _shares(verdicts, scale),
        "label_shares": _shares(people.gold, scale),
        "length_correlation": _length_correlation(rater.items, verdicts, corpus, scale),
        "position": _position(rater, scale),
    }


def _shares(numbers: NDArray[np.float64], scale: AnyScale) -> dict[str, float]:
    """Return the share of each label among readable numbers; of each fifth of an interval scale."""
    known = numbers[np.isfinite(numbers)]
    if isinstance(scale, IntervalScale):
        edges = np.linspace(scale.min, scale.max, 6)
        counts = np.histogram(known, edges)[0]
        names = [f"{low:g}..{high:g}" for low, high in pairwise(edges)]
    else:
        names = [str(label) for label in scale.labels]
        counts = np.bincount(known.astype(np.int64), minlength=len(names))
    return {name: float(count) / max(len(known), 1) for name, count in zip(names, counts, strict=True)}


def _length_correlation(
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
    return _plain({"spearman_rho": found.value, "reason": found.reason})


def _position(rater: RaterDraws, scale: AnyScale) -> dict[str, Any] | None:
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


def _between(raters: Sequence[RaterDraws], resampled: Resampled, scale: AnyScale) -> dict[str, Any] | None:
    """Return how raters agree with each other; None for one alone."""
    if len(raters) < 2:
        return None
    pair_figures = [
        name for name in ("cohen_kappa", "quadratic_kappa", "kendall_tau_b") if name in METRICS_BY_SCALE[scale.type]
    ]
    icc = {
        name: _interval(resampled, "raters icc", name)
        for name in ("icc3_1", "icc3_k")
        if ("raters icc", name) in resampled.points
    }
    pairs = [
        {
            "raters": [raters[one].name, raters[other].name],
            **{name: _interval(resampled, f"pair {one} {other}", name) for name in pair_figures},
        }
        for one, other in combinations(range(len(raters)), 2)
    ]
    return {"krippendorff_alpha": _interval(resampled, "raters alpha", "krippendorff_alpha"), **icc, "pairs": pairs}


def _differences(raters: Sequence[RaterDraws], resampled: Resampled, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return each pair of raters' paired differences, with p corrected by Holm over the pairs for each figure."""
    found = []
    for name in names:
        rows = []
        for one, other in combinations(range(len(raters)), 2):
            first, second = (f"both {one} {other} {place}" for place in (one, other))
            difference = _plain(dataclasses.asdict(resampled.difference(first, second, name)))
            rows.append({"figure": name, "raters": [raters[one].name, raters[other].name], **difference})
        tested = [row for row in rows if row["p"] is not None]
        for row, corrected in zip(tested, holm([row["p"] for row in tested]), strict=True):
            row["p_holm"] = corrected
        found += rows
    return found
