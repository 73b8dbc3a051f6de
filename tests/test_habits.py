"""How a rater uses its scale, by hand and beside scipy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import confusion_matrix

from raters.habits import confusion, length_correlation, position, shares
from tests.scored_corpora import ITEMS, NAN, corpus_of, random_numbers, rater
from tests.small_corpora import DIMENSION, INTERVAL, NOMINAL, ORDINAL_5, PAIRWISE, dimension_of, small_corpus

WIDE = {"type": "interval", "min": 2_000_000, "max": 2_000_001}
TINY = {"type": "interval", "min": -1e-9, "max": 1e-9}
PAIR = dimension_of(PAIRWISE).scale


def test_shares_of_listed_labels_by_hand() -> None:
    found = shares(np.array([0.0, 4.0, NAN, 4.0, 1.0]), dimension_of(ORDINAL_5).scale)
    assert found == {"1": 0.25, "2": 0.25, "3": 0.0, "4": 0.0, "5": 0.5}


@pytest.mark.parametrize("scale", [INTERVAL, WIDE, TINY])
def test_shares_of_an_interval_scale_are_of_fifths(scale: dict[str, Any]) -> None:
    """Ends that six digits cannot tell apart have names of their own too."""
    low, high = scale["min"], scale["max"]
    numbers = low + (high - low) * np.array([0.0, 0.1, 0.3, 0.9, 1.0, 1.0])
    found = shares(numbers, dimension_of(scale).scale)
    assert list(found.values()) == pytest.approx([2 / 6, 1 / 6, 0, 0, 3 / 6])
    edges = [float(edge) for name in found for edge in name.split("..")]
    assert edges[::2] == pytest.approx([low + (high - low) * place / 5 for place in range(5)], rel=1e-12)
    assert edges[1::2] == pytest.approx([low + (high - low) * place / 5 for place in range(1, 6)], rel=1e-12)


def test_a_mean_that_leaves_the_scale_by_rounding_is_counted() -> None:
    scale = dimension_of({"type": "interval", "min": 0, "max": 0.1}).scale
    assert list(shares(np.array([np.mean([0.1] * 3)]), scale).values()) == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("scale", [ORDINAL_5, NOMINAL, INTERVAL])
def test_shares_of_nothing_are_undefined(scale: dict[str, Any]) -> None:
    assert set(shares(np.array([NAN, NAN]), dimension_of(scale).scale).values()) == {None}


@pytest.mark.parametrize("scale", [ORDINAL_5, NOMINAL, PAIRWISE])
def test_confusion_is_that_of_sklearn_and_what_could_not_be_read_stands_beside(scale: dict[str, Any]) -> None:
    width = len(scale["labels"])
    gold, verdicts = random_numbers(0, width)[:, 0], random_numbers(1, width)[:, 0]
    gold[:5], verdicts[3:15] = NAN, NAN
    found = confusion(gold, verdicts, dimension_of(scale).scale)
    known = np.isfinite(gold) & np.isfinite(verdicts)
    assert found["labels"] == [str(label) for label in scale["labels"]]
    assert found["counts"] == confusion_matrix(gold[known], verdicts[known], labels=range(width)).tolist()
    lost = gold[np.isfinite(gold) & ~np.isfinite(verdicts)]
    assert found["unreadable"] == [int((lost == place).sum()) for place in range(width)]
    assert sum(map(sum, found["counts"])) + sum(found["unreadable"]) == np.isfinite(gold).sum()


def test_confusion_of_an_interval_scale_is_of_fifths() -> None:
    gold, verdicts = np.array([0.0, 19.9, 20.0, 100.0, 50.0, NAN]), np.array([100.0, 20.0, 20.0, 100.0, NAN, 3.0])
    found = confusion(gold, verdicts, dimension_of(INTERVAL).scale)
    assert found["labels"] == ["0..20", "20..40", "40..60", "60..80", "80..100"]
    assert found["counts"] == [[0, 1, 0, 0, 1], [0, 1, 0, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]
    assert found["unreadable"] == [0, 0, 1, 0, 0]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_rater_that_prefers_length_is_found_out(tmp_path: Path, sign: int) -> None:
    names = [f"i{number}" for number in range(25)]
    inputs = {name: {"text": "word " * (1 + number), "note": "short"} for number, name in enumerate(names)}
    corpus = small_corpus(tmp_path, {name: {"ann": 1 + (7 * n) % 5} for n, name in enumerate(names)}, inputs=inputs)
    verdicts = (np.arange(25)[::sign] // 5).astype(float)
    found = length_correlation(np.arange(25), verdicts, corpus, corpus.dimension(None).scale)
    assert found is not None
    assert found["spearman_rho"] == pytest.approx(spearmanr(np.arange(25), verdicts).statistic)
    assert np.sign(found["spearman_rho"]) == sign


def test_length_in_a_pair_is_that_of_the_first_less_the_second(tmp_path: Path) -> None:
    """A rater that says A for the longer left text."""
    corpus = corpus_of(tmp_path, PAIRWISE, ["A", "B", "tie"])
    lengths = [len(corpus.item(i).inputs["left"].split()) - 2 for i in range(ITEMS)]
    verdicts = np.array([0.0 if more > 0 else 1.0 if more < 0 else 2.0 for more in lengths])
    found = length_correlation(np.arange(ITEMS), verdicts, corpus, PAIR)
    assert found is not None
    assert found["spearman_rho"] == pytest.approx(spearmanr(lengths, np.sign(lengths)).statistic)


def test_no_correlation_with_length_says_why(tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, {f"i{n}": {"ann": 1 + n % 5} for n in range(6)})  # texts of five words each
    scale = corpus.dimension(DIMENSION).scale
    found = length_correlation(np.arange(6), np.arange(6.0) % 5, corpus, scale)
    assert found == {"spearman_rho": None, "reason": "lengths are constant"}
    assert length_correlation(np.arange(6), np.zeros(6), corpus, dimension_of(NOMINAL).scale) is None


def test_position_of_pairs() -> None:
    """One rater takes the text shown first, one takes the left text in either order."""
    swapped = np.tile([False, True], (ITEMS, 1))
    first_shown, left = np.tile([0.0, 1.0], (ITEMS, 1)), np.zeros((ITEMS, 2))
    one, other = (position(rater("r", said, "majority", swapped), PAIR) for said in (first_shown, left))
    assert one == {
        "chose_first_shown": 1.0,
        "decisions": 2 * ITEMS,
        "consistent": 0.0,
        "items_in_both_orders": ITEMS,
    }
    assert other is not None
    assert (other["chose_first_shown"], other["consistent"]) == (0.5, 1.0)


def test_ties_and_the_unreadable_are_no_decisions() -> None:
    numbers = np.tile([2.0, 2.0], (ITEMS, 1))
    numbers[:3] = [[NAN, 1.0], [0.0, NAN], [0.0, 1.0]]
    swapped = np.tile([False, True], (ITEMS, 1))
    assert position(rater("r", numbers, "majority", swapped), PAIR) == {
        "chose_first_shown": 1.0,
        "decisions": 4,
        "consistent": pytest.approx(57 / 58),
        "items_in_both_orders": 58,
    }


def test_there_is_no_position_if_one_order_alone_was_shown_or_there_is_no_pair() -> None:
    assert position(rater("r", random_numbers(1, 3), "majority"), PAIR) is None
    swapped = np.ones((ITEMS, 1), bool)
    assert position(rater("r", random_numbers(1, 3), "majority", swapped), dimension_of(ORDINAL_5).scale) is None
