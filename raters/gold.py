"""Gold labels: from what several people said about an item to the label its draws are held against."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.corpus_files import AnnotationTable
from raters.dawid_skene import dawid_skene
from raters.records import ConfigError, Label
from raters.scales import AnyScale, IntervalScale, NominalScale, OrdinalScale, PairwiseScale

AggregateMethod = Literal["mean", "median", "majority"]
GoldMethod = Literal["median", "majority", "mean", "paper", "per-annotator"]
ImportGold = Literal[GoldMethod, "dawid-skene"]
"""Those for a whole dimension at once: what `dawid-skene` says of an item depends on all others."""

AGGREGATED = -1
"""Stands in `LabelTable.annotators` for a label that nobody gave alone."""

MAX_PAPER_DEVIATION = 1.0
"""Items above this human standard deviation are dropped by `paper` (Zhang et al. 2026, section on data)."""

_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class LabelTable:
    """The labels to match, a row each, in the order of the corpus.

    Attributes:
        items: (rows,) index of the item in the corpus.
        annotators: (rows,) index of the annotator, AGGREGATED where the label is.
        numbers: (rows,) label as the scale's number.
        human_agreement: (rows,) share of the item's annotators who gave this very label.
        dropped: Items without a gold label, by reason.
    """

    items: NDArray[np.int64]
    annotators: NDArray[np.int64]
    numbers: NDArray[np.float64]
    human_agreement: NDArray[np.float64]
    dropped: Mapping[str, int]

    def __len__(self) -> int:
        """Return the number of labels."""
        return len(self.items)


def aggregate_draws(numbers: NDArray[np.float64], method: AggregateMethod, scale: AnyScale) -> float | None:
    """Return several verdicts of one rater on one item as one quantity; None if none is readable.

    The quantity is the scale's value (see `scales.value`), or without an order the label's number.

    `mean` and `median` are not rounded to the scale; of equally frequent verdicts `majority` takes the one drawn
    first.

    Args:
        numbers: (draws,) verdicts as the scale's numbers, nan where unreadable, in the order drawn.
        method: How.
        scale: What the numbers mean.

    Raises:
        ConfigError: If the scale lacks the order that the method needs.
    """
    if method != "majority" and isinstance(scale, NominalScale | PairwiseScale):
        raise ConfigError(f"aggregate {method}: scale {scale} has no order; use majority")
    readable = numbers[np.isfinite(numbers)]
    if not len(readable):
        return None
    if method == "majority":
        found, first, counts = np.unique(readable, return_index=True, return_counts=True)
        best = counts == counts.max()
        number = float(found[best][np.argmin(first[best])])
        return number if isinstance(scale, NominalScale | PairwiseScale) else scale.value(scale.label(number))
    values = _values(readable, scale)
    return float(values.mean() if method == "mean" else np.median(values))


def gold_of_numbers(method: GoldMethod, scale: AnyScale) -> Callable[[NDArray[np.float64]], float | None]:
    """Return how several labels of one item, as the scale's numbers, become one; None where they make none.

    People's labels that stay their own (`per-annotator`) are held against the scale's default.
    """
    aggregate = _AGGREGATES[default_method(scale) if method == "per-annotator" else method]
    return lambda numbers: aggregate(numbers, scale)[0]


def nearest_label(value: float, scale: AnyScale) -> Label:
    """Return the label nearest to a quantity, the higher one of two as near."""
    if isinstance(scale, IntervalScale):
        return float(min(max(value, scale.min), scale.max))  # a mean may leave the scale by rounding
    if isinstance(scale, NominalScale | PairwiseScale):
        return scale.label(value)
    values = _values(np.arange(float(len(scale.labels))), scale)
    distances = np.abs(values - value)
    return scale.labels[int(np.flatnonzero(distances <= distances.min() + _ROUNDING)[-1])]


def default_method(scale: AnyScale) -> GoldMethod:
    """Return the method for a scale if none is asked for."""
    if isinstance(scale, OrdinalScale):
        return "median"
    return "mean" if isinstance(scale, IntervalScale) else "majority"


def gold_labels(
    corpus: Corpus, dimension: str, method: ImportGold, chosen: NDArray[np.int64] | None = None
) -> LabelTable:
    """Return the labels of a dimension under a method.

    `median`: the middle label; between two middle ones the label nearest to halfway, of two as near the one nearer
    to the mean of all, else the lower.
    `majority`: the most frequent label; an item where two are equally frequent has none.
    `mean`: the mean, rounded to the nearest label, half up.
    `paper`: items whose population standard deviation is above 1.0 are dropped, then the median.
    `per-annotator`: every annotation is a label of its own.
    `dawid-skene`: the most probable label when people err in ways of their own, which are learnt from all labels of
    the dimension (see `dawid_skene`); needs crowd-kit.

    Args:
        corpus: Where the annotations are.
        dimension: Which of them.
        method: How several labels become one. One label (a supplied aggregate) is used as it is.
        chosen: Indices of the items wanted; all if None.

    Raises:
        ConfigError: If the method needs an order that the scale lacks, or a list of labels, or what is not installed.
    """
    scale, table = corpus.dimensions[dimension].scale, corpus.annotations(dimension)
    if method in ("median", "mean", "paper") and isinstance(scale, NominalScale | PairwiseScale):
        raise ConfigError(
            f"--labels {method}: scale {scale} of {dimension} has no order; use majority or per-annotator"
        )
    if chosen is not None:
        keep = np.isin(table.items, chosen)
        table = AnnotationTable(table.items[keep], table.annotators[keep], table.numbers[keep])
    order = np.argsort(table.items, kind="stable")
    items, numbers = table.items[order], table.numbers[order]
    starts = np.flatnonzero(np.r_[True, items[1:] != items[:-1]]) if len(items) else np.array([], np.int64)
    wanted = len(corpus.item_ids) if chosen is None else len(chosen)
    dropped = {"no annotation": wanted - len(starts)}
    if method == "per-annotator":
        agreement = np.empty(len(items))
        for span in _spans(starts, len(items)):
            agreement[span] = (numbers[span][:, None] == numbers[span][None, :]).mean(axis=1)
        return LabelTable(items, table.annotators[order], numbers, agreement, _nonzero(dropped))
    if method == "dawid-skene":
        if isinstance(scale, IntervalScale):
            raise ConfigError(f"dawid-skene: scale {scale} of {dimension} lists no labels; use mean or median")
        estimates = iter(dawid_skene(items, table.annotators[order], numbers))

        def in_turn(numbers: NDArray[np.float64], scale: AnyScale) -> _Aggregated:
            return float(next(estimates)), ""

        aggregate: Callable[[NDArray[np.float64], AnyScale], _Aggregated] = in_turn
    else:
        aggregate = _AGGREGATES[method]
    gold, shares, kept = array("d"), array("d"), array("q")  # a list of a million floats takes four times as much
    for span in _spans(starts, len(items)):
        number, reason = aggregate(numbers[span], scale)
        if number is None:
            dropped[reason] = dropped.get(reason, 0) + 1
            continue
        kept.append(int(items[span.start]))
        gold.append(number)
        shares.append(float((numbers[span] == number).mean()))
    return LabelTable(
        np.array(kept, np.int64),
        np.full(len(kept), AGGREGATED, np.int64),
        np.array(gold, np.float64),
        np.array(shares, np.float64),
        _nonzero(dropped),
    )


def _spans(starts: NDArray[np.int64], stop: int) -> Iterator[slice]:
    for place, start in enumerate(starts):
        yield slice(int(start), int(starts[place + 1]) if place + 1 < len(starts) else stop)


def _nonzero(dropped: Mapping[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in dropped.items() if count}


_Aggregated = tuple[float | None, str]


def _values(numbers: NDArray[np.float64], scale: AnyScale) -> NDArray[np.float64]:
    return np.array([scale.value(scale.label(number)) for number in numbers])


def _median(numbers: NDArray[np.float64], scale: AnyScale) -> _Aggregated:
    ordered = np.sort(numbers)
    low, high = float(ordered[(len(ordered) - 1) // 2]), float(ordered[len(ordered) // 2])
    if low == high:
        return low, ""
    if isinstance(scale, IntervalScale):
        return (low + high) / 2, ""
    between = _values(np.arange(low, high + 1), scale)
    from_middle = np.abs(between - (between[0] + between[-1]) / 2)
    nearest = np.flatnonzero(from_middle <= from_middle.min() + _ROUNDING)
    from_mean = np.abs(between[nearest] - _values(numbers, scale).mean())
    return low + float(nearest[np.flatnonzero(from_mean <= from_mean.min() + _ROUNDING)[0]]), ""


def _majority(numbers: NDArray[np.float64], scale: AnyScale) -> _Aggregated:
    found, counts = np.unique(numbers, return_counts=True)
    best = found[counts == counts.max()]
    return (float(best[0]), "") if len(best) == 1 else (None, "no majority")


def _mean(numbers: NDArray[np.float64], scale: AnyScale) -> _Aggregated:
    mean = float(_values(numbers, scale).mean())
    if isinstance(scale, IntervalScale):
        return mean, ""
    return scale.number(nearest_label(mean, scale)), ""


def _paper(numbers: NDArray[np.float64], scale: AnyScale) -> _Aggregated:
    if float(_values(numbers, scale).std()) > MAX_PAPER_DEVIATION:
        return None, f"human standard deviation above {MAX_PAPER_DEVIATION}"
    return _median(numbers, scale)


_AGGREGATES: Mapping[str, Callable[[NDArray[np.float64], AnyScale], _Aggregated]] = {
    "median": _median,
    "majority": _majority,
    "mean": _mean,
    "paper": _paper,
}
