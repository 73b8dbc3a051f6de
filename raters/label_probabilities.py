"""From the log-probabilities of labels to a rating: the expected value over labels, and what draws say together.

The expected value of a rater's verdict is what the mean of its draws estimates; with the probabilities at hand one
draw tells it (Liu et al. 2023, G-Eval, section 2). So every way of joining draws has its counterpart here, as if
there were draws without end: the mean, the median and the mode of a distribution.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from raters.gold import AggregateMethod, aggregate_draws
from raters.records import Label, shown
from raters.scales import AnyScale, NominalScale, OrdinalScale, PairwiseScale, listed_labels

LEAST_MASS = 0.5
"""Probability that the labels must hold together; below it the model was about to write something else."""
_MOST_MASS = 1.01
"""More than rounding makes of 1: such log-probabilities are none (some gateways send 0 for every token)."""
_ROUNDING = 1e-9

Probabilities = NDArray[np.float64]
"""(labels,) in the order of the scale, adding up to 1."""


def label_texts(scale: AnyScale) -> tuple[str, ...]:
    """Return the labels of a scale as a model writes them; none of an interval scale, which lists no values."""
    return tuple(str(label) for label in listed_labels(scale))


def probabilities_of(logprobs: Mapping[str, float] | None, scale: AnyScale) -> Probabilities | None:
    """Return the probability of each label among the labels; None if they hold too little of what the model expects.

    Args:
        logprobs: Natural logarithms by the label's text; labels that were not reported count as never written.
        scale: Their scale.
    """
    if not logprobs:
        return None
    masses = np.exp([logprobs.get(text, -np.inf) for text in label_texts(scale)])
    total = float(masses.sum())
    return masses / total if LEAST_MASS <= total <= _MOST_MASS else None


def swapped_back(probabilities: Probabilities, scale: AnyScale) -> Probabilities:
    """Return probabilities of a pair shown in exchanged order as those of the original one."""
    return probabilities[[int(scale.number(scale.swapped(label))) for label in listed_labels(scale)]]


def most_probable(probabilities: Probabilities, scale: AnyScale) -> Label:
    """Return the most probable label, the one named first of equals."""
    return scale.label(float(probabilities.argmax()))


def expected_value(probabilities: Probabilities, scale: AnyScale) -> float | None:
    """Return the expected value of the label as a quantity (`Scale.value`); None on a scale without order."""
    if not isinstance(scale, OrdinalScale):
        return None
    return float(probabilities @ _values(scale))


def mean_probabilities(numbers: NDArray[np.float64], probabilities: NDArray[np.float64]) -> Probabilities | None:
    """Return the mean over the readable draws of an item; None if not each of them has probabilities.

    Args:
        numbers: (draws,) verdicts as the scale's numbers, nan where unreadable.
        probabilities: (draws, labels), nan in the rows of draws without any.
    """
    readable = probabilities[np.isfinite(numbers)]
    return readable.mean(axis=0) if readable.size and np.isfinite(readable).all() else None


def joined_draws(
    numbers: NDArray[np.float64], probabilities: NDArray[np.float64], method: AggregateMethod, scale: AnyScale
) -> float | None:
    """Return what several draws of one rater on one item say together as one quantity; None if none is readable.

    If every readable draw has probabilities, their mean takes the place of the verdicts: `mean` is the expected value,
    `median` the median, and `majority` the most probable label of that distribution. Otherwise the verdicts alone
    count, as in `aggregate_draws`.

    Args:
        numbers: (draws,) verdicts as the scale's numbers, nan where unreadable, in the order drawn.
        probabilities: (draws, labels), nan in the rows of draws without any.
        method: How.
        scale: What the numbers mean.

    Raises:
        ConfigError: If the scale lacks the order that the method needs.
    """
    by_verdicts = aggregate_draws(numbers, method, scale)
    together = mean_probabilities(numbers, probabilities)
    if together is None:
        return by_verdicts
    if isinstance(scale, NominalScale | PairwiseScale):
        return scale.number(most_probable(together, scale))
    if method == "mean":
        return float(together @ _values(scale))
    if method == "majority":
        return scale.value(most_probable(together, scale))
    return _median(together, _values(scale))


def as_record(probabilities: Probabilities, scale: AnyScale) -> dict[str, float]:
    """Return probabilities as they stand in ratings.jsonl, by the label's text."""
    return dict(zip(label_texts(scale), map(float, probabilities), strict=True))


def from_record(record: object, scale: AnyScale) -> Probabilities:
    """Return the probabilities of a line of ratings.jsonl.

    Raises:
        ValueError: If they are not the probabilities of the scale's labels.
    """
    texts = label_texts(scale)
    if not isinstance(record, dict) or not texts or set(record) != set(texts):
        raise ValueError(f"label_probabilities {shown(record)} are not of the labels of {scale}")
    values = [record[text] for text in texts]
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in values) or abs(sum(values) - 1) > 1e-6:
        raise ValueError(f"label_probabilities {shown(record)} are no probabilities that add up to 1")
    return np.array(values, np.float64)


def _values(scale: AnyScale) -> NDArray[np.float64]:
    return np.array([scale.value(label) for label in listed_labels(scale)])


def _median(probabilities: Probabilities, values: NDArray[np.float64]) -> float:
    """Return the median of a distribution over ascending values, halfway where exactly half lies on each side."""
    below = np.cumsum(probabilities)
    low = int(np.argmax(below >= 0.5 - _ROUNDING))
    high = int(np.argmax(below > 0.5 + _ROUNDING))
    return float((values[low] + values[high]) / 2)
