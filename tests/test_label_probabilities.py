"""From log-probabilities of labels to ratings: by hand, and against draws without end."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from raters.gold import AggregateMethod, aggregate_draws
from raters.label_probabilities import (
    as_record,
    expected_value,
    from_record,
    joined_draws,
    label_texts,
    most_probable,
    probabilities_of,
    swapped_back,
)
from raters.scales import SCALE_ADAPTER
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_3, PAIRWISE

GAPS = {"type": "ordinal", "labels": [1, 2, 5]}
WORDS = {"type": "ordinal", "labels": ["low", "middling", "high"]}
HALVES = {"type": "ordinal", "labels": [0.5, 1.0]}


def on(scale: Mapping[str, Any]) -> Any:
    return SCALE_ADAPTER.validate_python(dict(scale))


def logs(**masses: float) -> dict[str, float]:
    return {label: math.log(mass) for label, mass in masses.items()}


def test_labels_are_asked_for_as_a_model_writes_them() -> None:
    assert label_texts(on(ORDINAL_3)) == ("1", "2", "3")
    assert label_texts(on(HALVES)) == ("0.5", "1.0")
    assert label_texts(on(PAIRWISE)) == ("A", "B", "tie")
    assert label_texts(on(INTERVAL)) == ()


def test_probabilities_are_those_among_the_labels() -> None:
    found = probabilities_of({"1": math.log(0.1), "2": math.log(0.3), "3": math.log(0.4)}, on(ORDINAL_3))
    assert found is not None
    assert found.tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8])


def test_a_label_that_was_not_reported_counts_as_never_written() -> None:
    found = probabilities_of({"3": math.log(0.6), "1": math.log(0.2)}, on(ORDINAL_3))
    assert found is not None
    assert found.tolist() == pytest.approx([0.25, 0.0, 0.75])


@pytest.mark.parametrize(
    ("logprobs", "usable"),
    [
        (None, False),
        ({}, False),
        ({"1": math.log(0.3), "2": math.log(0.19)}, False),  # 0.49: it was about to write something else
        ({"1": math.log(0.3), "2": math.log(0.21)}, True),
        ({"1": 0.0, "2": -9999.0}, True),  # vLLM's word for minus infinity
        ({"1": 0.0, "2": 0.0, "3": 0.0}, False),  # 3 in all: no probabilities
        ({"1": -math.inf}, False),
    ],
)
def test_labels_must_hold_half_of_the_probability_and_no_more_than_all(
    logprobs: dict[str, float] | None, usable: bool
) -> None:
    assert (probabilities_of(logprobs, on(ORDINAL_3)) is not None) == usable


@pytest.mark.parametrize(
    ("scale", "probabilities", "expected", "label"),
    [
        (ORDINAL_3, [0.25, 0.25, 0.5], 2.25, 3),
        (GAPS, [0.5, 0.0, 0.5], 3.0, 1),  # of equals the one named first
        (WORDS, [0.0, 0.5, 0.5], 1.5, "middling"),  # places 1 and 2
        (NOMINAL, [0.4, 0.6], None, "not_present"),
        (PAIRWISE, [0.2, 0.1, 0.7], None, "tie"),
    ],
)
def test_expected_value_and_most_probable_label(
    scale: Mapping[str, Any], probabilities: list[float], expected: float | None, label: Any
) -> None:
    assert expected_value(np.array(probabilities), on(scale)) == pytest.approx(expected)
    assert most_probable(np.array(probabilities), on(scale)) == label


def test_an_exchanged_pair_is_turned_back() -> None:
    assert swapped_back(np.array([0.7, 0.1, 0.2]), on(PAIRWISE)).tolist() == [0.1, 0.7, 0.2]
    two = {**PAIRWISE, "labels": ["left", "right"]}
    assert swapped_back(np.array([0.7, 0.3]), on(two)).tolist() == [0.3, 0.7]


NONE = [math.nan] * 3


@pytest.mark.parametrize(
    ("scale", "method", "verdicts", "probabilities", "value"),
    [
        (ORDINAL_3, "mean", [2], [[0.25, 0.25, 0.5]], 2.25),
        (ORDINAL_3, "mean", [2, 3], [[1, 0, 0], [0, 0.5, 0.5]], 1.75),  # of expected 1 and 2.5
        (ORDINAL_3, "mean", [2, None], [[0.25, 0.25, 0.5], NONE], 2.25),  # every readable draw has them
        (ORDINAL_3, "mean", [2, 3], [[0.25, 0.25, 0.5], NONE], 2.5),  # not every one: the verdicts
        (ORDINAL_3, "mean", [None], [NONE], None),
        (ORDINAL_3, "median", [1], [[0.3, 0.3, 0.4]], 2),
        (ORDINAL_3, "median", [1], [[0.5, 0.0, 0.5]], 2),  # halfway between 1 and 3
        (ORDINAL_3, "majority", [1], [[0.3, 0.3, 0.4]], 3),
        (WORDS, "majority", ["low"], [[0.3, 0.3, 0.4]], 2),
        (PAIRWISE, "majority", ["A", "A"], [[0.6, 0.4, 0], [0.1, 0.9, 0]], 1),  # .35 and .65
        (PAIRWISE, "majority", ["A", "A"], [[0.6, 0.4, 0], NONE], 0),
    ],
)
def test_draws_together(
    scale: Mapping[str, Any],
    method: AggregateMethod,
    verdicts: list[Any],
    probabilities: list[list[float]],
    value: float | None,
) -> None:
    numbers = np.array([math.nan if verdict is None else on(scale).number(verdict) for verdict in verdicts])
    assert joined_draws(numbers, np.array(probabilities, float), method, on(scale)) == pytest.approx(value)


@pytest.mark.parametrize("method", ["mean", "median", "majority"])
@pytest.mark.parametrize("scale", [ORDINAL_3, GAPS, WORDS], ids=["ordinal", "gaps", "words"])
def test_probabilities_say_what_very_many_draws_say(scale: Mapping[str, Any], method: AggregateMethod) -> None:
    chance, used = np.random.default_rng(3), on(scale)
    for _ in range(20):
        probabilities = chance.dirichlet([1, 1, 1])
        if min(np.abs(np.cumsum(probabilities)[:2] - 0.5).min(), np.diff(np.sort(probabilities))[-1]) < 0.02:
            continue  # draws may fall on either side
        many = chance.choice(3, size=10_000, p=probabilities).astype(float)
        told = joined_draws(many[:1], probabilities[None], method, used)
        assert told == pytest.approx(aggregate_draws(many, method, used), abs=0.05)


def test_an_interval_scale_has_no_labels_to_tell_probabilities_of() -> None:
    assert joined_draws(np.array([10.0, 20.0]), np.full((2, 0), np.nan), "mean", on(INTERVAL)) == 15


def test_records_are_read_back_and_others_refused() -> None:
    scale = on(ORDINAL_3)
    probabilities = np.array([0.1, 0.2, 0.7])
    assert from_record(as_record(probabilities, scale), scale).tolist() == probabilities.tolist()
    bad: list[object] = [
        {"1": 0.5, "2": 0.5},
        {"1": 0.5, "2": 0.5, "4": 0.0},
        {"1": 0.5, "2": 0.2, "3": 0.2},
        {"1": 1.5, "2": -0.5, "3": 0.0},
        {"1": True, "2": 0, "3": 0},
        {"1": "1", "2": 0, "3": 0},
        [0.1, 0.2, 0.7],
        0.5,
    ]
    for record in bad:
        with pytest.raises(ValueError, match="label_probabilities"):
            from_record(record, scale)
    with pytest.raises(ValueError, match="label_probabilities"):
        from_record({}, on(INTERVAL))
