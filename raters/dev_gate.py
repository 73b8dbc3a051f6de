"""The gate on the dev split: a change is kept only if it raises agreement with people there.

One figure decides, the same wherever something is chosen by dev labels: Kendall's tau-b of what the draws say together
with the gold label, or Cohen's kappa where labels have no order. A pair of texts and two labels do have one: the mean
of draws for the first of them less those for the second says more than the most frequent label alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raters.agreement import cohen_kappa, kendall_tau_b
from raters.bootstrap import RESAMPLES, Sums, bootstrap, groups_or_items
from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.drawing import work_order
from raters.gold import GoldMethod, gold_labels
from raters.intervals import difference_of
from raters.pairs import Floats, pairs_of
from raters.rater_draws import RaterDraws
from raters.scales import AnyScale, IntervalScale, NominalScale, OrdinalScale

ChoiceFigure = Literal["kendall_tau_b", "cohen_kappa"]
CONFIDENCE = 0.95


def choice_figure(scale: AnyScale) -> ChoiceFigure:
    """Return the figure by which choices are made on a scale."""
    unordered = isinstance(scale, NominalScale) and len(scale.labels) > 2
    return "cohen_kappa" if unordered else "kendall_tau_b"


def quantities(numbers: NDArray[np.float64], scale: AnyScale) -> NDArray[np.float64]:
    """Return labels or verdicts as what the choice figure orders; nan stays nan.

    A listed label is its quantity, of a pair the first label is 1, the second -1 and a tie 0, of two labels the first
    is 1 and the second 0; of more labels without order it is its number.

    Args:
        numbers: Any shape, as the scale's numbers.
        scale: What they mean.
    """
    if isinstance(scale, IntervalScale):
        return numbers
    if isinstance(scale, OrdinalScale):
        of_label = np.array([scale.value(label) for label in scale.labels])
    elif isinstance(scale, NominalScale):
        of_label = np.array([1.0, 0.0]) if len(scale.labels) == 2 else np.arange(float(len(scale.labels)))
    else:
        of_label = np.array([1.0, -1.0, 0.0])
    found = np.full(numbers.shape, np.nan)
    known = np.isfinite(numbers)
    found[known] = of_label[numbers[known].astype(np.int64)]
    return found


def said(draws: RaterDraws, scale: AnyScale) -> NDArray[np.float64]:
    """Return (items,) what the draws of each item say together, for the choice figure; nan if nothing is readable."""
    if choice_figure(scale) == "cohen_kappa":
        return draws.verdicts(scale)
    if draws.quantities is not None:  # an expected value; on a scale without quantities the number of a label
        return draws.quantities if isinstance(scale, OrdinalScale) else quantities(draws.quantities, scale)
    placed = quantities(draws.numbers, scale)
    readable = np.isfinite(placed)
    counts = readable.sum(axis=1)
    means = np.full(len(counts), np.nan)
    np.divide(np.where(readable, placed, 0.0).sum(axis=1), counts, out=means, where=counts > 0)
    return means


@dataclass(frozen=True, slots=True)
class DevLabels:
    """What the gate holds raters against.

    Attributes:
        scale: The dimension's.
        gold: (items,) gold labels as quantities of the choice figure, none missing.
        groups: (items,) what is resampled together, counted from 0.
        by_group: False if there are too few groups, so that items are resampled.
    """

    scale: AnyScale
    gold: NDArray[np.float64]
    groups: NDArray[np.int64]
    by_group: bool

    def sums(self, draws: RaterDraws) -> Sums:
        """Return the sums of the choice figure of a rater.

        What cannot be read counts as the label farthest from the person's, so that no change is kept for making
        hard items unreadable. A rater that says one and the same of all items has agreement 0.
        """
        figure = choice_figure(self.scale)
        values = said(draws, self.scale)
        ends = (self.gold.min(), self.gold.max()) if len(self.gold) else (0.0, 0.0)
        far = np.where(np.abs(self.gold - ends[0]) >= np.abs(self.gold - ends[1]), ends[0], ends[1])
        pairs, cells = pairs_of(self.gold, np.where(np.isfinite(values), values, far))
        of = kendall_tau_b if figure == "kendall_tau_b" else cohen_kappa

        def figures(weights: Floats) -> dict[str, Floats]:
            return {figure: np.nan_to_num(of(weights, pairs))}

        ones = np.ones(len(cells))
        num_groups = int(self.groups.max(initial=-1)) + 1
        return Sums(self.groups, cells, ones, num_groups, len(pairs.counts), figures, lambda name, totals: "")


def labelled_items(
    corpus: Corpus, dimension: Dimension, method: GoldMethod, items: NDArray[np.int64], limit: int | None = None
) -> tuple[NDArray[np.int64], DevLabels]:
    """Return those of some items that have a gold label, by corpus index ascending, and their labels.

    Args:
        corpus: Where they are.
        dimension: What they are labelled on.
        method: How several people's labels become one.
        items: Corpus indices of the items.
        limit: Most of them; a fair sample.
    """
    gold = gold_labels(corpus, dimension.name, method, items)
    chosen = np.arange(len(gold))
    if limit is not None and limit < len(gold):
        chosen = np.sort(np.searchsorted(gold.items, work_order(corpus, dimension.name, gold.items, 0)[:limit]))
    kept = gold.items[chosen]
    groups, by_group = groups_or_items(corpus.groups[kept])
    return kept, DevLabels(dimension.scale, quantities(gold.numbers[chosen], dimension.scale), groups, by_group)


@dataclass(frozen=True, slots=True)
class Change:
    """What a change did to the agreement of one rater, or of several on average.

    Attributes:
        before: The choice figure before it.
        after: After it.
        low: Lower end of the 95 % interval of the difference; nan if there is none.
        high: Upper end.
        p: One-sided p of no rise; nan if it cannot be tested.
    """

    before: float
    after: float
    low: float
    high: float
    p: float

    @property
    def gain(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class Decision:
    """Whether a change is kept, and why.

    Attributes:
        kept: True if it is.
        reason: Why not, in a few words; empty if it is kept.
        mean: What it did to the raters on average.
        raters: What it did to each.
    """

    kept: bool
    reason: str
    mean: Change
    raters: tuple[Change, ...]


def decide(
    labels: DevLabels,
    before: Sequence[RaterDraws],
    after: Sequence[RaterDraws],
    level: float,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Decision:
    """Return whether a change raises agreement on the dev split.

    It is kept if the mean over raters of the choice figure rises by a paired bootstrap over groups at the level
    (one-sided), and falls at that level for none of them.

    Args:
        labels: What is held against.
        before: Draws of each rater without the change, on the items of `labels`.
        after: With the change, same raters, same items.
        level: Of the test, such as 0.05.
        resamples: Of the bootstrap.
        seed: Of the resamples.
    """
    figure, raters = choice_figure(labels.scale), range(len(before))
    sums = {f"before {place}": labels.sums(before[place]) for place in raters}
    sums |= {f"after {place}": labels.sums(after[place]) for place in raters}
    found = bootstrap(sums, resamples, seed)
    points = np.array([[found.points[f"{when} {place}", figure] for place in raters] for when in ("before", "after")])
    draws = np.array(
        [found.draws[f"after {place}", figure] - found.draws[f"before {place}", figure] for place in raters]
    )

    def change(rows: slice) -> Change:
        first, second = (float(each[rows].mean()) for each in points)
        drawn = draws[rows].mean(axis=0)
        difference = difference_of(second - first, drawn, found.num_groups, CONFIDENCE)
        p = difference.p / 2 if second > first else 1 - difference.p / 2
        return Change(first, second, difference.low, difference.high, p)

    mean = change(slice(None))
    each = tuple(change(slice(place, place + 1)) for place in raters)
    hurt = [place for place, one in enumerate(each) if one.gain < 0 and 1 - one.p <= level]
    if not mean.gain > 0:
        reason = f"agreement does not rise ({mean.before:.3f} to {mean.after:.3f})"
    elif not mean.p <= level:
        reason = f"the rise from {mean.before:.3f} to {mean.after:.3f} may be chance (p {mean.p:.3f})"
    elif hurt:
        one = each[hurt[0]]
        reason = f"{before[hurt[0]].name} falls from {one.before:.3f} to {one.after:.3f}"
    else:
        reason = ""
    return Decision(not reason, reason, mean, each)
