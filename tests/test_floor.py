"""The floor: what text statistics alone achieve, fitted on other items than those it is scored on."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau
from sklearn.linear_model import Ridge

from raters.corpora import Corpus
from raters.floor import PENALTY, RULE_READER_DRAWS, floors
from raters.gold import gold_labels
from raters.observations import MIDDLE
from raters.questions import fit_to_corpus
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_5, small_corpus

TRAINING, ITEMS = np.arange(60), np.arange(60, 90)


def corpus_by_length(folder: Path, scale: dict[str, Any], labels: list[Any]) -> Corpus:
    """Return 90 items whose label is the fifth of the range that their length is in, and nothing else."""
    chance = random.Random(0)
    lengths = [chance.randrange(1, 101) for _ in range(90)]
    inputs = {f"i{number:02}": {"text": " ".join(["word"] * length) + "."} for number, length in enumerate(lengths)}
    given = {
        name: {"ann": labels[(length - 1) * len(labels) // 100]} for name, length in zip(inputs, lengths, strict=True)
    }
    inputs = {name: {"text": f"{fields['text']} {name}"} for name, fields in inputs.items()}
    return small_corpus(folder, given, scale, inputs=inputs)


@pytest.mark.parametrize(("scale", "labels"), [(ORDINAL_5, [1, 2, 3, 4, 5]), (INTERVAL, [0, 25, 50, 75, 100])])
def test_ridge_finds_length_and_is_that_of_scikit_learn(
    tmp_path: Path, scale: dict[str, Any], labels: list[Any]
) -> None:
    corpus = corpus_by_length(tmp_path, scale, labels)
    dimension = corpus.dimension(None)
    _, ridge = floors(corpus, dimension, "median", ITEMS, TRAINING)
    gold = gold_labels(corpus, dimension.name, "median", ITEMS).numbers
    assert kendalltau(ridge.values(dimension.scale), gold).statistic > 0.8
    observations = fit_to_corpus(corpus, dimension.scale, TRAINING)

    def levels(items: Any) -> Any:
        return np.array([[*observations.levels(corpus.item(int(i)).inputs).values()] for i in items]) - MIDDLE

    known = gold_labels(corpus, dimension.name, "median", TRAINING)
    targets = [dimension.scale.value(dimension.scale.label(number)) for number in known.numbers]
    mean = np.mean(targets)
    model = Ridge(alpha=PENALTY, fit_intercept=False).fit(levels(TRAINING), np.array(targets) - mean)
    expected = mean + model.predict(levels(ITEMS))
    if scale is INTERVAL:
        expected = np.clip(expected, 0, 100)
    assert ridge.values(dimension.scale) == pytest.approx(expected)


def test_on_a_scale_without_order_the_likeliest_label_is_said(tmp_path: Path) -> None:
    corpus = corpus_by_length(tmp_path, NOMINAL, ["not_present", "present"])
    dimension = corpus.dimension(None)
    reader, ridge = floors(corpus, dimension, "majority", ITEMS, TRAINING)
    gold = gold_labels(corpus, dimension.name, "majority", ITEMS).numbers
    assert (ridge.verdicts(dimension.scale) == gold).mean() > 0.8
    assert reader.numbers.shape == (30, RULE_READER_DRAWS)
    # The rule reader knows nothing: half of two labels, within three standard errors of 30 items.
    assert abs((reader.verdicts(dimension.scale) == gold).mean() - 0.5) < 3 * (0.25 / 30) ** 0.5


def test_items_of_a_scored_group_are_not_fitted_on(tmp_path: Path) -> None:
    """All of the training items are scored themselves, so nothing is left to fit on: no floor rather than a cheat."""
    corpus = corpus_by_length(tmp_path, ORDINAL_5, [1, 2, 3, 4, 5])
    assert floors(corpus, corpus.dimension(None), "median", TRAINING, TRAINING) == []
