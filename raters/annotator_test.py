"""The alternative annotator test: may a rater stand in for one of the people?

Calderon, Reichart and Dror 2025, "The Alternative Annotator Test for LLM-as-a-Judge" (ACL, arXiv 2501.10970). Each
annotator in turn is left out. On every item of theirs we ask who is nearer to the remaining people, the rater or the
annotator left out; a tie counts for both. With W the two indicators, the differences W_annotator - W_rater are tested
against epsilon, the advantage that a person may have before their cost outweighs it. The rater wins against those
annotators whose null hypothesis falls, after Benjamini and Yekutieli's correction; it passes if it wins against half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from raters.agreement import ScaleType
from raters.corpus_files import AnnotationTable
from raters.pairs import Codes, Floats
from raters.records import DataError

EPSILONS = {"expert": 0.2, "skilled": 0.15, "crowd": 0.1}
"""What the paper recommends for each kind of annotator."""
DEFAULT_EPSILON = EPSILONS["skilled"]
LEAST_ITEMS = 30
"""Fewer items than this are too few for the t-test (paper, section on the number of instances)."""
FALSE_DISCOVERY_RATE = 0.05
PASSING_WINNING_RATE = 0.5

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class AnnotatorComparison:
    """The rater against one annotator left out.

    Attributes:
        annotator: Index of the annotator.
        items: Items that count: the rater, the annotator and at least one other person labelled them.
        rater_advantage: Share of them where the rater is at least as near to the others as the annotator.
        annotator_advantage: Share of them where the annotator is at least as near as the rater.
        p: One-sided p of the annotator's advantage exceeding the rater's by epsilon or more.
        adjusted_p: The same after Benjamini and Yekutieli's correction.
        won: Whether that is at most the false discovery rate.
        test: `t` or `wilcoxon`.
    """

    annotator: int
    items: int
    rater_advantage: float
    annotator_advantage: float
    p: float
    adjusted_p: float
    won: bool
    test: str


@dataclass(frozen=True, slots=True)
class AnnotatorTest:
    """The alternative annotator test of one rater on one dimension.

    Attributes:
        winning_rate: Share of annotators the rater wins against (omega); nan if none can be tested.
        advantage: Mean over annotators of the rater's advantage (rho), the figure to compare raters by.
        passed: Whether the winning rate is at least 0.5.
        epsilon: The advantage granted to people.
        score: `accuracy` or `-RMSE`: what nearness to the remaining people is.
        annotators: Those tested.
        left_out: How many had too few items.
        reason: Why there is no winning rate.
    """

    winning_rate: float
    advantage: float
    passed: bool
    epsilon: float
    score: str
    annotators: tuple[AnnotatorComparison, ...]
    left_out: int
    reason: str = ""


def alternative_annotator_test(
    table: AnnotationTable,
    verdicts: Floats,
    scale_type: ScaleType,
    values: Sequence[float] | Floats | None = None,
    epsilon: float = DEFAULT_EPSILON,
    least_items: int = LEAST_ITEMS,
) -> AnnotatorTest:
    """Return whether a rater aligns with people at least as well as they do with each other.

    Args:
        table: People's labels.
        verdicts: (items,) verdicts as the scale's numbers, nan if unreadable; these items count for nobody.
        scale_type: Decides the score: accuracy on nominal and pairwise scales, else -RMSE.
        values: Quantity of each listed label; None if it is its number.
        epsilon: See `EPSILONS`.
        least_items: Annotators with fewer items are left out. Those with fewer than 30 are tested by Wilcoxon's
            signed ranks instead of t, as the paper advises.

    Raises:
        DataError: If epsilon is not in [0, 1].
    """
    if not 0 <= epsilon <= 1:
        raise DataError(f"epsilon {epsilon} is not in 0..1; the paper has 0.2 for experts, 0.15, 0.1 for crowd workers")
    by_accuracy = scale_type in ("nominal", "pairwise")
    score = "accuracy" if by_accuracy else "-RMSE"
    given = np.bincount(table.items, minlength=len(verdicts))
    rows = np.flatnonzero((given[table.items] > 1) & np.isfinite(verdicts[table.items]))
    items, numbers, annotators = table.items[rows], table.numbers[rows], table.annotators[rows]
    if by_accuracy:
        gap = _matches(items, numbers, numbers) - _matches(items, numbers, verdicts[items])
    else:
        quantity = _quantities(numbers, values)
        gap = _errors(items, quantity, _quantities(verdicts[items], values)) - _errors(items, quantity, quantity)
    # A gap above 0 is in the annotator's favour.
    rater_wins, annotator_wins = gap <= _ROUNDING, gap >= -_ROUNDING
    everyone = np.unique(table.annotators)
    found: list[AnnotatorComparison] = []
    order = np.argsort(annotators, kind="stable")
    starts = np.searchsorted(annotators[order], everyone)
    stops = np.searchsorted(annotators[order], everyone, side="right")
    for annotator, start, stop in zip(everyone, starts, stops, strict=True):
        if stop - start < max(least_items, 2):
            continue
        own = order[start:stop]
        p, test = _p_of_advantage(annotator_wins[own].astype(float) - rater_wins[own], epsilon)
        shares = float(rater_wins[own].mean()), float(annotator_wins[own].mean())
        found.append(AnnotatorComparison(int(annotator), len(own), *shares, p, np.nan, False, test))
    left_out = len(everyone) - len(found)
    if not found:
        reason = f"no annotator has {max(least_items, 2)} items that others labelled too and the rater rated"
        return AnnotatorTest(np.nan, np.nan, False, epsilon, score, (), left_out, reason)
    from scipy.stats import false_discovery_control

    adjusted = false_discovery_control([each.p for each in found], method="by")
    tested = tuple(
        replace(each, adjusted_p=float(p), won=bool(p <= FALSE_DISCOVERY_RATE))
        for each, p in zip(found, adjusted, strict=True)
    )
    winning_rate = float(np.mean([each.won for each in tested]))
    advantage = float(np.mean([each.rater_advantage for each in tested]))
    passed = winning_rate >= PASSING_WINNING_RATE
    return AnnotatorTest(winning_rate, advantage, passed, epsilon, score, tested, left_out)


def _quantities(numbers: Floats, values: Sequence[float] | Floats | None) -> Floats:
    return numbers if values is None else np.asarray(values, np.float64)[numbers.astype(np.int64)]


def _matches(items: Codes, numbers: Floats, candidates: Floats) -> Floats:
    """Return (rows,) how many of the other labels of a row's item are the candidate's; they decide the accuracy."""
    _, codes = np.unique(np.concatenate([numbers, candidates]), return_inverse=True)
    keys = items * (codes.max(initial=0) + 1)
    of_labels, of_candidates = keys + codes[: len(numbers)], keys + codes[len(numbers) :]
    known, counts = np.unique(of_labels, return_counts=True)
    if not len(known):
        return np.array([])
    places = np.minimum(np.searchsorted(known, of_candidates), len(known) - 1)
    same = np.where(known[places] == of_candidates, counts[places], 0)
    others: Floats = (same - (of_labels == of_candidates)).astype(np.float64)
    return others


def _errors(items: Codes, numbers: Floats, candidates: Floats) -> Floats:
    """Return (rows,) mean squared distance of a candidate to the other labels of the item; its root orders alike."""
    size = np.bincount(items).astype(np.float64)
    middle = np.divide(np.bincount(items, numbers), size, out=np.zeros_like(size), where=size > 0)
    # Around the item's mean little is lost to rounding.
    labels, candidates = numbers - middle[items], candidates - middle[items]
    sums, squares = np.bincount(items, labels), np.bincount(items, labels**2)
    others = size[items] - 1
    total: Floats = squares[items] - labels**2 - 2 * candidates * (sums[items] - labels) + others * candidates**2
    return total / others


def _p_of_advantage(differences: Floats, epsilon: float) -> tuple[float, str]:
    """Return the one-sided p that the mean difference is at least epsilon, and which test gave it."""
    from scipy.stats import ttest_1samp, wilcoxon

    few = len(differences) < LEAST_ITEMS
    if np.ptp(differences) == 0 and not few:
        return float(differences[0] >= epsilon), "t"
    if few:
        return float(wilcoxon(differences - epsilon, alternative="less").pvalue), "wilcoxon"
    return float(ttest_1samp(differences, epsilon, alternative="less").pvalue), "t"
