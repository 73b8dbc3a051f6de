"""Score raters against people on one dimension, with the human ceiling and uncertainty beside every figure.

Rows that cannot be read are never dropped in silence: every rater has its coverage, its agreement on what can be read,
and a worst case in which each unreadable verdict is the label farthest from the person's. The worst case goes item by
item: no verdict could have cost an item more, but kappa and alpha, which also ask what chance gives, may have a worse
one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.agreement import ALPHA_LEVELS, METRICS_BY_SCALE
from raters.annotator_test import DEFAULT_EPSILON, alternative_annotator_test
from raters.bootstrap import RESAMPLES, Resampled, Sums, agreement_sums, bootstrap, groups_or_items
from raters.corpora import Corpus
from raters.corpus_files import AnnotationTable, Dimension
from raters.gold import GoldMethod, gold_labels, gold_of_numbers
from raters.habits import confusion, length_correlation, position, shares
from raters.intervals import INTERVAL_METHOD, TEST_METHOD, holm
from raters.journal import without_nan
from raters.rater_draws import RaterDraws
from raters.records import ConfigError, DataError
from raters.reliability import alpha_sums, as_table, ceiling_sums, icc3_sums, labels_suffice
from raters.scales import AnyScale, IntervalScale, listed_labels
from raters.utilisation import self_agreement

_FINE = ("kendall_tau_b", "spearman_rho", "icc3_1", "icc3_k", "mse", "mae")
"""Figures of quantities: a mean of draws between two labels is not rounded for them."""

HOLM_OVER = (
    "{} of raters, each figure by itself, on this dimension alone; over several dimensions, give all their p to "
    "raters.intervals.holm"
)


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
        ConfigError: If the method leaves an item several labels.
        DataError: If none of them has a gold label.
    """
    if method == "per-annotator":
        raise ConfigError(
            "labels per-annotator: agreement needs one label for an item; give median, majority, mean or paper"
        )
    labels = gold_labels(corpus, dimension.name, method, items)
    if not len(labels):
        why = ", ".join(f"{count:,} {reason}" for reason, count in labels.dropped.items())
        raise DataError(
            f"corpus {corpus.name}: none of the {len(items):,} rated items has a label on {dimension.name}; rate items "
            f"that people labelled, or give another way to join their labels ({method}: {why})"
        )
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

    Differences are corrected by Holm over the pairs of raters, each figure by itself. Who scores several dimensions has
    more tests than one call knows of, and gives the p of all of them to `intervals.holm` (`holm_over` says so).

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
        ConfigError: If the method leaves an item several labels.
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
    figures = _Figures(people, (*raters, *floors), len(raters), scale, method)
    resampled = bootstrap(figures.sums, resamples, seed)
    records = [
        _rater_record(place, figures, people, corpus, resampled, epsilon) for place in range(len(figures.raters))
    ]
    names = METRICS_BY_SCALE[scale.type]
    pairs = len(raters) * (len(raters) - 1) // 2
    return {
        "corpus": corpus.name,
        "dimension": dimension.name,
        "scale": str(scale),
        "label_method": method,
        "items": len(people.items),
        "items_with_label": int(np.isfinite(people.gold).sum()),
        "dropped_items": dict(people.dropped),
        "annotators": len(np.unique(people.table.annotators)),
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
        "raters": records[: len(raters)],
        "floors": records[len(raters) :],
        "between_raters": _between(raters, resampled, scale),
        "differences": _differences(figures, resampled, names),
        "holm_over": HOLM_OVER.format("1 pair" if pairs == 1 else f"{pairs} pairs") if pairs else None,
    }


class _Figures:
    """The sums of everything that is resampled, and which of them a figure comes from.

    Attributes:
        raters: Whose figures: those that are compared with each other, then others.
        compared: How many are compared.
        scale: What was rated on.
        quantities: Of each label of an ordinal scale; None on others.
        verdicts: For each rater (items,) the number of its label.
        sums: By name, all over the same groups.
    """

    def __init__(
        self, people: People, raters: Sequence[RaterDraws], compared: int, scale: AnyScale, method: GoldMethod
    ) -> None:
        """Make the sums."""
        self.raters, self.compared, self.scale = raters, compared, scale
        labels = listed_labels(scale)
        self.quantities = [scale.value(label) for label in labels] if scale.type == "ordinal" else None
        self.verdicts = [rater.verdicts(scale) for rater in raters]
        self.sums: dict[str, Sums] = {}
        self._people, self._values = people, [rater.values(scale) for rater in raters]
        self._gold_values = _quantities(people.gold, self.quantities)
        self._add_people(method)
        for place in range(len(raters)):
            self._add_rater(place)
        for one, other in combinations(range(compared), 2):
            self._add_pair(one, other)
        if compared > 1:
            self._add_between()

    def key(self, figure: str, place: int) -> str:
        """Return which sums a rater's figure comes from."""
        return f"{self._kind(figure, place)} {place}"

    def worst_key(self, figure: str, place: int) -> str:
        """Return which sums a rater's figure in the worst case comes from: its own if everything can be read."""
        if np.isfinite(self.verdicts[place]).all():
            return self.key(figure, place)
        return f"worst {'fine' if self._has_quantities(figure) else 'rater'} {place}"

    def both_key(self, figure: str, place: int, other: int) -> str:
        """Return the same of items that another rater can be read on too: its own if those are all it has."""
        if not (np.isfinite(self.verdicts[place]) & ~np.isfinite(self.verdicts[other])).any():
            return self.key(figure, place)
        return f"{self.key(figure, place)} beside {other}"

    def _kind(self, figure: str, place: int) -> str:
        return "fine" if self._has_quantities(figure) and self._fine(place) else "rater"

    def _has_quantities(self, figure: str) -> bool:
        return self.scale.type == "ordinal" and figure in _FINE

    def _fine(self, place: int) -> bool:
        """Return whether what a rater says may stand between two labels."""
        rater = self.raters[place]
        many = rater.aggregate != "majority" and rater.numbers.shape[1] > 1
        return self.scale.type == "ordinal" and (many or rater.quantities is not None)

    def _of_verdicts(self, numbers: NDArray[np.float64], against: NDArray[np.float64] | None = None) -> Sums:
        labels = self._people.gold if against is None else against
        return agreement_sums(labels, numbers, self._people.groups, self.scale.type, self.quantities)

    def _of_values(self, values: NDArray[np.float64]) -> Sums:
        return agreement_sums(self._gold_values, values, self._people.groups, "interval")

    def _add_people(self, method: GoldMethod) -> None:
        table, groups = self._people.table, self._people.groups
        pooled = not labels_suffice(table.annotators)
        aggregate = gold_of_numbers(method, self.scale)
        level = ALPHA_LEVELS[self.scale.type]
        self.sums["people"] = alpha_sums(table, groups, level, self.quantities)
        self.sums["ceiling"] = ceiling_sums(table, groups, self.scale.type, aggregate, self.quantities, pooled=pooled)

    def _add_rater(self, place: int) -> None:
        verdicts, values = self.verdicts[place], self._values[place]
        self.sums[f"rater {place}"] = self._of_verdicts(verdicts)
        if self._fine(place):
            self.sums[f"fine {place}"] = self._of_values(values)
        if (readable := np.isfinite(verdicts)).all():
            return
        ends = self._ends()
        worst = np.where(readable, verdicts, _farther(self._people.gold, *ends))
        self.sums[f"worst rater {place}"] = self._of_verdicts(worst)
        if self.scale.type == "ordinal":
            # Steps and quantities have different ends to be far from: 1 of 0, 1, 2, 10 is two steps below 10.
            lowest, highest = _quantities(np.array(ends), self.quantities).tolist()
            worst = np.where(readable, values, _farther(self._gold_values, lowest, highest))
            self.sums[f"worst fine {place}"] = self._of_values(worst)

    def _add_pair(self, one: int, other: int) -> None:
        self.sums[f"pair {one} {other}"] = self._of_verdicts(self.verdicts[other], self.verdicts[one])
        # A difference is of the items that both could be read on.
        both = np.isfinite(self.verdicts[one]) & np.isfinite(self.verdicts[other])
        for place, beside in ((one, other), (other, one)):
            if (np.isfinite(self.verdicts[place]) & ~both).any():
                masked = np.where(both, self.verdicts[place], np.nan)
                self.sums[f"rater {place} beside {beside}"] = self._of_verdicts(masked)
                if self._fine(place):
                    values = np.where(both, self._values[place], np.nan)
                    self.sums[f"fine {place} beside {beside}"] = self._of_values(values)

    def _add_between(self) -> None:
        groups, columns = self._people.groups, np.array(self.verdicts[: self.compared])
        self.sums["raters alpha"] = alpha_sums(
            as_table(columns), groups, ALPHA_LEVELS[self.scale.type], self.quantities
        )
        if self.scale.type in ("ordinal", "interval"):
            self.sums["raters icc"] = icc3_sums(_quantities(columns.T, self.quantities), groups)

    def _ends(self) -> tuple[float, float]:
        """Return the numbers of the two labels at the ends of the scale."""
        scale = self.scale
        return (scale.min, scale.max) if isinstance(scale, IntervalScale) else (0.0, len(scale.labels) - 1.0)


def _quantities(numbers: NDArray[np.float64], quantities: list[float] | None) -> NDArray[np.float64]:
    if quantities is None:
        return numbers
    places = np.nan_to_num(numbers).astype(np.int64)
    return np.where(np.isfinite(numbers), np.array(quantities)[places], np.nan)


def _farther(gold: NDArray[np.float64], low: float, high: float) -> NDArray[np.float64]:
    """Return (items,) the end of the scale that is farther from each gold label: what an unreadable verdict costs most.

    Without an order it is another label, and to an item every other label is as bad.
    """
    return np.where(np.abs(gold - low) >= np.abs(gold - high), low, high)


def _interval(resampled: Resampled, name: str, figure: str) -> dict[str, Any]:
    return without_nan(dataclasses.asdict(resampled.interval(name, figure)))


def _rater_record(
    place: int, figures: _Figures, people: People, corpus: Corpus, resampled: Resampled, epsilon: float
) -> dict[str, Any]:
    """Return the figures of one rater against people."""
    scale, rater, verdicts = figures.scale, figures.raters[place], figures.verdicts[place]
    names = METRICS_BY_SCALE[scale.type]
    readable = np.isfinite(verdicts)
    test = alternative_annotator_test(people.table, verdicts, scale.type, figures.quantities, epsilon)
    alternative = without_nan(dataclasses.asdict(test))
    alternative["annotators_tested"] = len(alternative.pop("annotators"))
    return {
        "rater": rater.name,
        "aggregate": rater.aggregate,
        "draws_per_item": int(rater.drawn.max()),
        "items_by_probabilities": rater.by_probabilities,
        "coverage": float(readable.mean()),
        "unreadable_items": int((~readable).sum()),
        "unreadable_draws": int(rater.drawn.sum() - np.isfinite(rater.numbers).sum()),
        "agreement": {name: _interval(resampled, figures.key(name, place), name) for name in names},
        "worst_case": {name: _interval(resampled, figures.worst_key(name, place), name) for name in names},
        "alternative_annotator_test": alternative,
        "self_agreement": self_agreement(rater.numbers)[0],
        "verdict_shares": shares(verdicts, scale),
        "label_shares": shares(people.gold, scale),
        "confusion": confusion(people.gold, verdicts, scale),
        "length_correlation": length_correlation(rater.items, verdicts, corpus, scale),
        "position": position(rater, scale),
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


def _differences(figures: _Figures, resampled: Resampled, names: Sequence[str]) -> list[dict[str, Any]]:
    """Return each pair of raters' paired differences, with p corrected by Holm over the pairs for each figure."""
    found = []
    for name in names:
        rows = []
        for one, other in combinations(range(figures.compared), 2):
            called = figures.raters[one].name, figures.raters[other].name
            first, second = figures.both_key(name, one, other), figures.both_key(name, other, one)
            difference = without_nan(dataclasses.asdict(resampled.difference(first, second, name, called=called)))
            rows.append({"figure": name, "raters": list(called), **difference})
        corrected = holm([np.nan if row["p"] is None else row["p"] for row in rows])
        found += [{**row, **without_nan({"p_holm": p})} for row, p in zip(rows, corrected, strict=True)]
    return found
