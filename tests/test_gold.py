"""Gold labels, worked out by hand."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raters.gold import AGGREGATED, GoldMethod, LabelTable, default_method, gold_labels
from raters.records import ConfigError
from raters.scales import SCALE_ADAPTER
from tests.small_corpora import DIMENSION, INTERVAL, NOMINAL, ORDINAL_5, PAIRWISE, small_corpus

WORDS = {"type": "ordinal", "labels": ["low", "middling", "high"]}
GAPS = {"type": "ordinal", "labels": [1, 2, 5]}
TENTHS = {"type": "ordinal", "labels": [0.1, 0.2, 0.3]}


def gold_of(folder: Path, scale: Mapping[str, Any], method: GoldMethod, votes: Sequence[Any]) -> tuple[Any, Any]:
    """Return (gold label, human agreement) of one item, or (None, why it was dropped)."""
    given = {f"annotator{place}": vote for place, vote in enumerate(votes)}
    inputs = {"item": {"left": "One text.", "right": "Another text."}}
    corpus = small_corpus(folder, {"item": given}, scale, inputs=inputs)
    table = gold_labels(corpus, DIMENSION, method)
    if not len(table):
        (reason,) = table.dropped
        assert table.dropped[reason] == 1
        return None, reason
    assert table.annotators.tolist() == [AGGREGATED]
    return corpus.dimension(None).scale.label(float(table.numbers[0])), float(table.human_agreement[0])


@pytest.mark.parametrize(
    ("scale", "votes", "label", "agreement"),
    [
        (ORDINAL_5, [4], 4, 1),
        (ORDINAL_5, [5, 2, 4], 4, 1 / 3),
        (ORDINAL_5, [1, 5, 1], 1, 2 / 3),
        (ORDINAL_5, [2, 2], 2, 1),
        (ORDINAL_5, [5, 3, 3, 1], 3, 1 / 2),
        (ORDINAL_5, [2, 3], 2, 1 / 2),  # middle and mean 2.5: the lower
        (ORDINAL_5, [3, 2, 3, 1], 2, 1 / 4),  # between 2 and 3, mean 2.25
        (ORDINAL_5, [2, 5, 2, 3], 3, 1 / 4),  # between 2 and 3, mean 3
        (ORDINAL_5, [1, 3], 2, 0),  # the median is on the scale, though nobody gave it
        (ORDINAL_5, [1, 1, 5, 5], 3, 0),
        (GAPS, [2, 5], 2, 1 / 2),  # 3.5 is not on the scale, mean 3.5: the lower
        (GAPS, [1, 2, 5, 5], 2, 1 / 4),  # middle 3.5, mean 3.25
        (WORDS, ["high", "low"], "middling", 0),
        (WORDS, ["high", "middling"], "middling", 1 / 2),
        (WORDS, ["high", "high", "low"], "high", 2 / 3),
        (INTERVAL, [10, 20], 15.0, 0),
        (INTERVAL, [10, 90, 20], 20.0, 1 / 3),
    ],
)
def test_median(tmp_path: Path, scale: Mapping[str, Any], votes: list[Any], label: Any, agreement: float) -> None:
    assert gold_of(tmp_path, scale, "median", votes) == (label, pytest.approx(agreement))


def test_the_median_of_far_labels_lies_between_them(tmp_path: Path) -> None:
    """One person said 1, one said 4: 2.5 is between, so 2 or 3 is gold, as 2 is for 1 and 3."""
    label, _ = gold_of(tmp_path, ORDINAL_5, "median", [1, 4])
    assert label in (2, 3)


@pytest.mark.parametrize(
    ("scale", "votes", "expected"),
    [
        (NOMINAL, ["present", "present", "not_present"], ("present", pytest.approx(2 / 3))),
        (NOMINAL, ["not_present"], ("not_present", 1)),
        (NOMINAL, ["present", "not_present"], (None, "no majority")),
        (PAIRWISE, ["A", "B", "tie"], (None, "no majority")),
        (PAIRWISE, ["A", "B", "tie", "B"], ("B", 1 / 2)),
        (ORDINAL_5, [1, 1, 5, 4], (1, 1 / 2)),
        (ORDINAL_5, [1, 1, 5, 5], (None, "no majority")),
        (INTERVAL, [3.5, 3.5, 80], (3.5, pytest.approx(2 / 3))),
    ],
)
def test_majority_drops_ties(tmp_path: Path, scale: Mapping[str, Any], votes: list[Any], expected: Any) -> None:
    assert gold_of(tmp_path, scale, "majority", votes) == expected


@pytest.mark.parametrize(
    ("scale", "votes", "label"),
    [
        (ORDINAL_5, [1, 2], 2),  # 1.5, half up
        (ORDINAL_5, [4, 5], 5),  # 4.5
        (ORDINAL_5, [1, 1, 2], 1),  # 1.33
        (ORDINAL_5, [1, 2, 2], 2),  # 1.67
        (ORDINAL_5, [1, 5, 5, 5], 4),
        (GAPS, [2, 5], 5),  # 3.5 is as far from 2 as from 5
        (GAPS, [1, 2, 5], 2),  # 2.67
        (WORDS, ["low", "middling"], "middling"),  # places 0 and 1
        (TENTHS, [0.1, 0.2], 0.2),  # half up in spite of binary fractions
        (TENTHS, [0.2, 0.3], 0.3),
        (INTERVAL, [10, 20, 60], 30.0),
    ],
)
def test_mean_is_rounded_half_up(tmp_path: Path, scale: Mapping[str, Any], votes: list[Any], label: Any) -> None:
    assert gold_of(tmp_path, scale, "mean", votes)[0] == pytest.approx(label)


@pytest.mark.parametrize("votes", [[1, 3], [1, 4], [3, 3, 3], [1, 2, 4], [2, 3, 3, 5], [1, 1, 4], [5], [1, 3, 3, 1]])
def test_the_paper_rule_drops_items_by_their_population_deviation(tmp_path: Path, votes: list[int]) -> None:
    label, reason = gold_of(tmp_path, ORDINAL_5, "paper", votes)
    if statistics.pstdev(votes) > 1.0:
        assert (label, reason) == (None, "human standard deviation above 1.0")
    else:
        assert label == gold_of(tmp_path / "again", ORDINAL_5, "median", votes)[0]


def test_a_deviation_of_exactly_one_is_kept(tmp_path: Path) -> None:
    """Of 1 and 3 the population deviation is 1, the sample deviation 1.41."""
    assert gold_of(tmp_path, ORDINAL_5, "paper", [1, 3])[0] == 2


def several(folder: Path, method: GoldMethod, chosen: list[int] | None = None) -> LabelTable:
    labels = {
        "a": {"ann": 1, "bob": 1, "cyd": 2},
        "b": {},
        "c": {"cyd": 5, "ann": 3},
        "d": {"bob": 4},
    }
    corpus = small_corpus(folder, labels, ORDINAL_5)
    return gold_labels(corpus, DIMENSION, method, None if chosen is None else np.array(chosen, np.int64))


def test_per_annotator_keeps_every_label_with_the_share_of_people_who_gave_it(tmp_path: Path) -> None:
    table = several(tmp_path, "per-annotator")
    # Annotators in the order in which they first appear: ann 0, bob 1, cyd 2. Numbers are places: label - 1.
    assert table.items.tolist() == [0, 0, 0, 2, 2, 3]
    assert table.annotators.tolist() == [0, 1, 2, 2, 0, 1]
    assert table.numbers.tolist() == [0, 0, 1, 4, 2, 3]
    assert table.human_agreement.tolist() == pytest.approx([2 / 3, 2 / 3, 1 / 3, 1 / 2, 1 / 2, 1])
    assert table.dropped == {"no annotation": 1}


def test_rows_stand_in_the_order_of_the_corpus_and_dropped_items_are_counted(tmp_path: Path) -> None:
    table = several(tmp_path, "majority")
    assert table.items.tolist() == [0, 3]
    assert table.numbers.tolist() == [0, 3]
    assert table.dropped == {"no annotation": 1, "no majority": 1}


def test_only_chosen_items_are_labelled_and_counted(tmp_path: Path) -> None:
    table = several(tmp_path, "median", [0, 1])
    assert table.items.tolist() == [0]
    assert table.dropped == {"no annotation": 1}
    assert several(tmp_path, "median", [2, 3]).dropped == {}
    assert len(several(tmp_path, "per-annotator", [1])) == 0


@pytest.mark.parametrize("method", ["median", "mean", "paper"])
@pytest.mark.parametrize("scale", [NOMINAL, PAIRWISE])
def test_methods_that_need_an_order_are_refused_without_one(
    tmp_path: Path, scale: Mapping[str, Any], method: GoldMethod
) -> None:
    inputs = {"item": {"left": "x", "right": "y"}}
    corpus = small_corpus(tmp_path, {"item": {"ann": scale["labels"][0]}}, scale, inputs=inputs)
    with pytest.raises(ConfigError, match=f"--labels {method}: .* has no order; use majority or per-annotator"):
        gold_labels(corpus, DIMENSION, method)


@pytest.mark.parametrize(
    ("scale", "method"), [(ORDINAL_5, "median"), (NOMINAL, "majority"), (PAIRWISE, "majority"), (INTERVAL, "mean")]
)
def test_every_scale_has_a_default_that_it_allows(scale: Mapping[str, Any], method: GoldMethod) -> None:
    assert default_method(SCALE_ADAPTER.validate_python(dict(scale))) == method
