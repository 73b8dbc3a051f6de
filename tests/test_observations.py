"""Observations: statistics and bins worked out by hand, and pairs that mirror each other."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from raters.observations import LEVELS, STATISTICS, Observations, fit_observations, render_levels, sampled
from raters.records import DataError

NEVER = 1e300
HELD_AGAINST = ("overlap", "coverage", "bigram_overlap")


def assert_statistics(inputs: Mapping[str, str], expected: Mapping[str, float], second: str | None = None) -> None:
    """Check values through their levels: between cuts just below and just above, a value is on level 1."""
    cuts = {name: (value - 1e-9, value + 1e-9, NEVER, NEVER) for name, value in expected.items()}
    levels = Observations(("text",), second, cuts).levels(inputs)
    assert levels == dict.fromkeys(expected, 1)


def test_statistics_of_a_short_text() -> None:
    text = "I think we should go. You know 3 cats, because cats are nice!"
    # i think we should go you know 3 cats because cats are nice: 13 words of 1 5 2 6 2 3 4 1 4 7 4 3 4 letters,
    # 12 of them different; 61 characters.
    assert len(text) == 61
    expected = {
        "length": 13,
        "sentences": 2,
        "sentence_length": 6.5,
        "word_length": 46 / 13,
        "richness": 12 / 13**0.5,
        "repetition": 0,  # cats because, because cats: no pair of neighbours comes twice
        "long_words": 1 / 13,  # because
        "first_person": 2 / 13,  # i, we
        "second_person": 1 / 13,  # you
        "capitals": 2 / 61,  # I, Y
        "exclamations": 1 / 13,
        "questions": 0,
        "digits": 1 / 61,
        "connectives": 1 / 13,  # because
        "commas": 1 / 13,
        "closed_end": 1,
        "capital_start": 1,
    }
    assert_statistics({"text": text}, expected)
    # Held against "should go home": 2 of its 3 words and 1 of its 2 pairs of neighbours are here (recall, as in
    # ROUGE), and 2 of the 12 words here are there (coverage, as in Grusky et al. 2018).
    overlaps = {"overlap": 2 / 3, "coverage": 2 / 12, "bigram_overlap": 1 / 2}
    assert_statistics({"text": text, "question": "Should go home?"}, expected | overlaps, "question")


def test_statistics_of_repetition_and_an_open_end() -> None:
    # we've got we've got we've got: apostrophes stay inside words; 5 neighbours, 2 different.
    expected = {
        "length": 6,
        "sentences": 1,
        "sentence_length": 6,
        "word_length": (3 * 5 + 3 * 3) / 6,
        "richness": 2 / 6**0.5,
        "repetition": 3 / 6,
        "long_words": 0,
        "first_person": 3 / 6,
        "second_person": 0,
        "capitals": 0,
        "exclamations": 0,
        "questions": 2 / 6,
        "digits": 0,
        "connectives": 0,
        "commas": 1 / 6,
        "closed_end": 0,
        "capital_start": 0,
    }
    assert_statistics({"text": "we've got?? we've got, we've got -"}, expected)


def test_statistics_of_an_empty_text_are_zero_but_for_its_one_sentence() -> None:
    expected = dict.fromkeys(STATISTICS, 0.0) | {"sentences": 1.0}
    assert_statistics({"text": "", "question": ""}, expected, "question")


def lengths(*counts: int) -> list[dict[str, str]]:
    return [{"text": "word " * count} for count in counts]


def test_cuts_are_the_least_values_whose_middle_rank_reaches_a_fifth_and_on() -> None:
    """Of 1 1 1 2 3 the middle ranks are 1.5/5 = .3, 3.5/5 = .7 and 4.5/5 = .9: cuts at 1, 2, 2, 3."""
    fit = fit_observations(lengths(1, 2, 1, 3, 1))
    assert fit.cuts["length"] == (1.0, 2.0, 2.0, 3.0)
    levels = [fit.levels({"text": "word " * count})["length"] for count in range(5)]
    assert levels == [0, 1, 3, 4, 4]


def test_five_equally_frequent_values_have_a_level_each() -> None:
    """Of 3 5 6 8 9 twice each the middle ranks are .1 .3 .5 .7 .9."""
    fit = fit_observations(lengths(3, 5, 6, 8, 9, 9, 8, 6, 5, 3))
    assert [fit.levels(item)["length"] for item in lengths(3, 5, 6, 8, 9)] == [0, 1, 2, 3, 4]
    assert [fit.levels(item)["length"] for item in lengths(4, 7, 100)] == [0, 2, 4]


def test_a_value_that_all_items_share_is_the_middle() -> None:
    """Its middle rank is .5: the cuts at .2 and .4 are the value, those at .6 and .8 are never reached."""
    fit = fit_observations(lengths(4, 4, 4))
    assert LEVELS[fit.levels(lengths(4)[0])["length"]] == "middle"
    assert LEVELS[fit.levels(lengths(400)[0])["length"]] == "middle"
    assert LEVELS[fit.levels(lengths(3)[0])["length"]] == "lowest"


def test_cuts_of_a_pair_are_symmetric() -> None:
    """Of the differences 1 2 3 and their negatives the middle ranks are 1 3 5 7 9 11 twelfths.

    So 7/12 = .58 leaves 1 in the middle, 9/12 = .75 lifts 2 to high and 11/12 = .92 lifts 3 to highest.
    """

    def pair(left: int, right: int) -> dict[str, str]:
        return {"left": "word " * left, "right": "word " * right}

    fit = fit_observations([pair(2, 1), pair(4, 2), pair(6, 3)], ("left", "right"))
    found = [fit.levels(pair(5 + difference, 5))["length"] for difference in (-4, -3, -2, -1, 0, 1, 2, 3, 4)]
    assert found == [0, 0, 1, 2, 2, 2, 3, 4, 4]


WORDS = "the a Because, you I! 3 however WE're chain? done. long-winded extraordinarily yet".split()


def random_text(chooser: np.random.Generator) -> str:
    return " ".join(chooser.choice(WORDS, size=int(chooser.integers(0, 15))))


@pytest.mark.parametrize("with_topic", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_exchanging_the_texts_of_a_pair_turns_every_level_around(seed: int, with_topic: bool) -> None:
    chooser = np.random.default_rng(seed)
    pairs = [{"left": random_text(chooser), "right": random_text(chooser)} for _ in range(100)]
    if with_topic:
        pairs = [{"topic": random_text(chooser), **pair} for pair in pairs]
    fit = fit_observations(pairs[: 5 + 30 * seed], ("left", "right"))
    assert (fit.second is not None) == with_topic
    seen = set()
    for pair in pairs:
        levels = fit.levels(pair)
        exchanged = fit.levels({**pair, "left": pair["right"], "right": pair["left"]})
        assert exchanged == {name: 4 - level for name, level in levels.items()}
        assert render_levels(levels, swapped=True) == render_levels(exchanged)
        seen |= set(levels.values())
    assert seen == {0, 1, 2, 3, 4}


def test_two_equal_texts_are_in_the_middle_of_everything() -> None:
    chooser = np.random.default_rng(0)
    pairs = [{"left": random_text(chooser), "right": random_text(chooser)} for _ in range(30)]
    fit = fit_observations(pairs, ("left", "right"))
    assert set(fit.levels({"left": "The chain.", "right": "The chain."}).values()) == {2}


def test_levels_in_words() -> None:
    levels = {"length": 4, "commas": 0, "digits": 2}
    assert render_levels(levels) == "length is highest. commas is lowest. digits is middle."
    assert render_levels(levels, swapped=True) == "length is lowest. commas is highest. digits is middle."


def test_the_longest_field_is_described_and_the_next_is_held_against_it() -> None:
    inputs = [
        {"title": "One two.", "body": "A long text of many words.", "topic": "A few words here."},
        {"title": "One.", "body": "Short.", "topic": "Some words."},
    ]
    fit = fit_observations(inputs)
    assert (fit.fields, fit.second, fit.is_pairwise) == (("body",), "topic", False)
    assert set(fit.cuts) == set(STATISTICS)
    pair = fit_observations(inputs, ("title", "topic"))
    assert (pair.fields, pair.second, pair.is_pairwise) == (("title", "topic"), "body", True)


def test_one_field_alone_is_held_against_nothing() -> None:
    fit = fit_observations(lengths(1, 2))
    assert fit.second is None
    assert set(fit.cuts) == set(STATISTICS) - set(HELD_AGAINST)
    assert fit_observations([{"left": "a", "right": "b"}], ("left", "right")).second is None


def test_a_missing_field_counts_as_an_empty_text() -> None:
    inputs = [{"text": "The chain is loose.", "topic": "Chains."}, {"text": "Why?", "topic": "Nothing."}]
    fit = fit_observations(inputs)
    assert fit.levels({"text": "The chain."}) == fit.levels({"text": "The chain.", "topic": ""})
    assert fit.levels({}) == fit.levels({"text": "", "topic": ""})


@pytest.mark.parametrize("pair", [None, ("text", "topic")])
def test_a_fit_survives_its_record(pair: tuple[str, str] | None) -> None:
    chooser = np.random.default_rng(3)
    inputs = [{"text": random_text(chooser), "topic": random_text(chooser), "more": "x"} for _ in range(20)]
    fit = fit_observations(inputs, pair)
    line = json.dumps(fit.as_record(), allow_nan=False)
    again = Observations.from_record(json.loads(line))
    assert again == fit
    assert [again.levels(item) for item in inputs] == [fit.levels(item) for item in inputs]


@pytest.mark.parametrize(
    "change",
    [
        {"cuts": None},
        {"cuts": {}},
        {"cuts": {"length": [1, 2, 3, 4]}},
        {"cuts": dict.fromkeys(STATISTICS, (1, 2, 3))},
        {"cuts": dict.fromkeys(STATISTICS, (1, 2, 3, "many"))},
        {"cuts": dict.fromkeys((*STATISTICS, "smell"), (1, 2, 3, 4))},
        {"fields": []},
        {"fields": ["a", "b", "c"]},
        {"fields": "ab"},
        {"second": None},  # then there must be no overlaps either
    ],
)
def test_a_record_that_is_no_fit_is_refused(change: dict[str, Any]) -> None:
    record = fit_observations([{"text": "Some words.", "topic": "One."}]).as_record()
    assert Observations.from_record(record)
    with pytest.raises(DataError, match="fit them again"):
        Observations.from_record(record | change)


@pytest.mark.parametrize("name", ["fields", "second", "cuts"])
def test_a_record_that_lacks_a_part_is_refused(name: str) -> None:
    record = fit_observations(lengths(1, 2)).as_record()
    del record[name]
    with pytest.raises(DataError, match=f"{name}.*fit them again"):
        Observations.from_record(record)


def test_a_sample_is_evenly_spaced_from_the_first_to_the_last() -> None:
    assert list(sampled(3)) == [0, 1, 2]
    assert list(sampled(5, most=5)) == [0, 1, 2, 3, 4]
    assert list(sampled(9, most=3)) == [0, 4, 8]
    many = list(sampled(12_345))
    assert len(set(many)) == 2_000
    assert (many[0], many[-1]) == (0, 12_344)
