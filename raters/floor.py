"""The floor: what surface statistics of the texts alone achieve. A rater that does not beat it reads no better.

Two simple raters, both without a language model: the embedded rule reader with the guideline as it stands, and a ridge
regression of people's labels on the rule reader's observations, fitted on other items than those that are scored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.corpus_files import Dimension
from raters.drawing import DrawPool, Source
from raters.gold import GoldMethod, gold_labels, nearest_label
from raters.ledger import UNREADABLE
from raters.models.embedded import EmbeddedModel
from raters.observations import MIDDLE, Observations
from raters.prompts import load_prompt
from raters.questions import Question, fit_to_corpus
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec, default_aggregate
from raters.rating_runs import ask_once
from raters.scales import IntervalScale, NominalScale, PairwiseScale
from raters.waiting import waited_for

RULE_READER_DRAWS = 8
PENALTY = 1.0
"""Of the squared weights, beside the mean squared error times the number of items, levels being -2 to 2."""
_LEAST_TRAINING_ITEMS = 20


def floors(
    corpus: Corpus, dimension: Dimension, method: GoldMethod, items: NDArray[np.int64], training: NDArray[np.int64]
) -> list[RaterDraws]:
    """Return the rule reader's and the ridge's verdicts on some items; none if there is too little to fit on.

    Args:
        corpus: Texts and labels.
        dimension: What is rated.
        method: How several people's labels become one.
        items: Corpus indices of the items to rate, ascending.
        training: Corpus indices to fit on; those in a group of a rated item are left out.
    """
    training = training[~np.isin(corpus.groups[training], corpus.groups[items])]
    labels = gold_labels(corpus, dimension.name, method, training)
    if len(labels) < _LEAST_TRAINING_ITEMS:
        return []
    observations = fit_to_corpus(corpus, dimension.scale, training)
    return [
        waited_for(_rule_reader(corpus, dimension, observations, items)),
        _ridge(corpus, dimension, observations, items, labels.items, labels.numbers),
    ]


async def _rule_reader(
    corpus: Corpus, dimension: Dimension, observations: Observations, items: NDArray[np.int64]
) -> RaterDraws:
    scale, model = dimension.scale, EmbeddedModel()
    question = Question(dimension, load_prompt("embedded/rate"), observations)
    spec = RaterSpec(model.spec, question, aggregate=default_aggregate(scale))
    pool, source = DrawPool(spec.settings, 1, set()), Source(model, question)
    numbers = np.full((len(items), RULE_READER_DRAWS), UNREADABLE)
    swapped = np.zeros(numbers.shape, bool)
    for row, item in enumerate(items.tolist()):
        for draw in range(RULE_READER_DRAWS):
            made = await ask_once(pool, source, spec, corpus.item(item), draw)
            swapped[row, draw] = made.swapped
            if made.verdict is not None:
                numbers[row, draw] = scale.number(made.verdict)
    drawn = np.full(len(items), RULE_READER_DRAWS)
    return RaterDraws("floor: rule reader", items, numbers, drawn, swapped, spec.aggregate)


def _ridge(
    corpus: Corpus,
    dimension: Dimension,
    observations: Observations,
    items: NDArray[np.int64],
    fitted_items: NDArray[np.int64],
    fitted_numbers: NDArray[np.float64],
) -> RaterDraws:
    """Return ridge predictions: of the label as a quantity, or, without an order, of each label's indicator."""
    scale = dimension.scale
    known, wanted = (_levels(corpus, observations, rows) for rows in (fitted_items, items))
    unordered = isinstance(scale, NominalScale | PairwiseScale)
    if unordered:
        targets = (fitted_numbers[:, None] == np.arange(len(scale.labels))).astype(float)  # type: ignore[union-attr]
    else:
        targets = np.array([[scale.value(scale.label(number))] for number in fitted_numbers.tolist()])
    mean = targets.mean(axis=0)
    gram = known.T @ known + PENALTY * np.eye(known.shape[1])
    predicted = mean + wanted @ np.linalg.solve(gram, known.T @ (targets - mean))
    if unordered:
        numbers, quantities = predicted.argmax(axis=1).astype(float), None
    else:
        quantities = predicted[:, 0]
        numbers = np.array([scale.number(nearest_label(value, scale)) for value in quantities.tolist()])
        quantities = numbers if isinstance(scale, IntervalScale) else quantities
    shape = (len(items), 1)
    one = np.ones(len(items), np.int64)
    no_swap = np.zeros(shape, bool)
    return RaterDraws("floor: ridge", items, numbers[:, None], one, no_swap, "majority", quantities)


def _levels(corpus: Corpus, observations: Observations, items: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (items, statistics) levels from -2 to 2."""
    levels = [[*observations.levels(corpus.item(item).inputs).values()] for item in items.tolist()]
    return np.array(levels, float) - MIDDLE
