"""Scales: which labels are valid, what a verdict says, when it agrees."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from raters.models.protocol import split_reasoning
from raters.records import Label
from raters.scales import (
    SCALE_ADAPTER,
    IntervalScale,
    NominalScale,
    OrdinalScale,
    PairwiseScale,
    listed_labels,
    rating_start,
    rating_text,
)

FIVE = OrdinalScale(labels=(1, 2, 3, 4, 5))
WORDS = OrdinalScale(labels=("low", "fairly high", "high"))
GAPS = OrdinalScale(labels=(1, 2, 5))
HALVES = OrdinalScale(labels=(0.5, 1, 1.5))
PRESENT = NominalScale(labels=("present", "not_present"))
PAIR = PairwiseScale(labels=("A", "B", "tie"), fields=("left", "right"))
NO_TIE = PairwiseScale(labels=("first", "second"), fields=("left", "right"))
TEN = IntervalScale(min=0, max=10)
SIGNED = IntervalScale(min=-1.5, max=1.5)


@pytest.mark.parametrize(
    ("scale", "value", "label"),
    [
        (FIVE, 3, 3),
        (FIVE, 3.0, 3),
        (HALVES, 1.5, 1.5),
        (HALVES, 1.0, 1),
        (WORDS, "fairly high", "fairly high"),
        (PRESENT, "not_present", "not_present"),
        (PAIR, "tie", "tie"),
        (TEN, 4, 4.0),
        (SIGNED, -1.5, -1.5),
    ],
)
def test_canonical_form_is_the_scales_own(scale: Any, value: object, label: Label) -> None:
    found = scale.canonical(value)
    assert found == label
    assert type(found) is type(label)


@pytest.mark.parametrize(
    ("scale", "value"),
    [
        (FIVE, 6),
        (FIVE, 3.5),
        (FIVE, "3"),
        (FIVE, True),
        (FIVE, None),
        (FIVE, [3]),
        (WORDS, "medium"),
        (WORDS, 1),
        (PRESENT, "absent"),
        (TEN, 10.01),
        (TEN, -1),
        (TEN, "5"),
        (TEN, True),
        (TEN, float("nan")),
    ],
)
def test_canonical_refuses_what_is_off_the_scale_and_names_value_and_scale(scale: Any, value: object) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is checked in parts below
        scale.canonical(value)
    assert repr(value) in str(caught.value)
    assert str(scale) in str(caught.value)


def test_a_number_written_as_text_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"label '3' \(text, not a number\) is not on scale 1\.\.5"):
        FIVE.canonical("3")


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("4", 4),
        ("  4\n", 4),
        ("**4**", 4),
        ("`4`", 4),
        ('"4"', 4),
        ("'4'", 4),
        ("4.", 4),
        ("4.0", 4),
        ("+4", 4),
        ("**4.0**", 4),
        ("4.5", None),
        ("6", None),
        ("-4", None),
        ("4/5", None),
        ("4 out of 5", None),
        ("3 4", None),
        ("3-4", None),
        ("four", None),
        ("rating 4", None),
        ("LABEL", None),
        ("", None),
        # Half a point is not five points: a point at the front is part of the number.
        (".5", None),
        (".4", None),
    ],
)
def test_parse_reads_an_ordinal_number_and_guesses_nothing(text: str, label: Label | None) -> None:
    assert FIVE.parse(text) == label


@pytest.mark.parametrize(
    ("scale", "text", "label"),
    [
        (WORDS, "High", "high"),
        (WORDS, "Fairly   HIGH", "fairly high"),
        (WORDS, "*fairly high.*", "fairly high"),
        (WORDS, "high, I think", None),
        (WORDS, "not high", None),
        (WORDS, "2", None),
        (PRESENT, "NOT_PRESENT", "not_present"),
        (PRESENT, "not present", None),
        (PAIR, "a", "A"),
        (PAIR, "Tie.", "tie"),
        (PAIR, "A and B", None),
        (HALVES, "1.50", 1.5),
        (HALVES, ".5", 0.5),
        (HALVES, "1.0", 1),
        (TEN, "7", 7.0),
        (TEN, "7.25", 7.25),
        (TEN, "**7.**", 7.0),
        (TEN, ".5", 0.5),
        (TEN, "10.5", None),
        (TEN, "-1", None),
        (TEN, "70%", None),
        (TEN, "7/10", None),
        (TEN, "7,5", None),
        (TEN, "nan", None),
        (SIGNED, "-0.5", -0.5),
        (SIGNED, "-.5", -0.5),
        (SIGNED, "+1.5", 1.5),
    ],
)
def test_parse_on_the_other_scales(scale: Any, text: str, label: Label | None) -> None:
    assert scale.parse(text) == label


def test_text_labels_that_look_like_numbers_stay_text() -> None:
    scale = NominalScale(labels=("1", "2"))
    assert scale.parse("1") == "1"
    assert scale.canonical("1") == "1"
    with pytest.raises(ValueError, match="not on scale"):
        scale.canonical(1)


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("<rating>4</rating>", 4),
        ("I weigh both.\n\n<RATING> 4 </Rating>\n", 4),
        ("<rating>\n**4**\n</rating>", 4),
        ("First <rating>2</rating>, but no: <rating>4</rating>", 4),
        ("<rating>2</rating> or rather <rating>nearly four</rating>", None),
        ("<rating>2</rating> or rather <rating></rating>", None),
        ("It ends between <rating> tags, as asked: <rating>4</rating>", 4),
        ("<rating>4", None),
        ("4</rating>", None),
        ("<rating>I would say 4</rating>", None),
        ("<rating>9</rating>", None),
        ("Rating: 4", None),
        ("4", None),
        ("", None),
    ],
)
def test_a_verdict_is_what_the_last_tag_holds(answer: str, verdict: int | None) -> None:
    assert FIVE.read_verdict(answer) == verdict


@pytest.mark.parametrize(
    ("raw", "verdict"),
    [
        ("<think>say <rating>2</rating></think>\n<rating>4</rating>", 4),
        ("say <rating>2</rating></think>\n<rating>4</rating>", 4),
        ("<think>say <rating>2</rating></think>\nI cannot tell.", None),
        ("<think>say <rating>2</rating>", None),
        ("<think>one</think>wait <think>say <rating>2</rating>", None),
        ("<rating>4</rating> <think>or <rating>2</rating>", 4),
        ("<think>one <rating>1</rating></think><think>two <rating>2</rating></think><rating>4</rating>", 4),
    ],
)
def test_a_verdict_is_never_read_from_reasoning(raw: str, verdict: int | None) -> None:
    reasoning, answer = split_reasoning(raw)
    assert FIVE.read_verdict(answer) == verdict
    assert "<think>" not in answer
    assert "</think>" not in answer
    assert "<rating>4" not in reasoning


def test_reasoning_that_came_in_a_field_of_its_own_is_no_answer() -> None:
    reasoning, answer = split_reasoning("<rating>4</rating>", "say <rating>2</rating>")
    assert reasoning == "say <rating>2</rating>"
    assert FIVE.read_verdict(answer) == 4


def test_swapped_exchanges_the_first_two_labels_and_nothing_else() -> None:
    assert [PAIR.swapped(label) for label in ("A", "B", "tie")] == ["B", "A", "tie"]
    assert [NO_TIE.swapped(label) for label in ("first", "second")] == ["second", "first"]
    assert FIVE.swapped(2) == 2
    assert PRESENT.swapped("present") == "present"
    assert TEN.swapped(2.5) == 2.5


@pytest.mark.parametrize(
    ("scale", "verdict", "label", "distance"),
    [
        (FIVE, 2, 5, 3),
        (GAPS, 1, 5, 2),  # steps on the scale, not the difference of the numbers
        (WORDS, "low", "high", 2),
        (WORDS, "high", "high", 0),
        (PRESENT, "present", "not_present", 1),
        (PAIR, "A", "tie", 1),
        (PAIR, "A", "B", 1),
        (PAIR, "B", "B", 0),
        (TEN, 2.5, 9.0, 6.5),
    ],
)
def test_distance(scale: Any, verdict: Label, label: Label, distance: float) -> None:
    assert scale.distance(verdict, label) == distance
    assert scale.distance(label, verdict) == distance


def test_agreement_is_exact_or_within_the_tolerance() -> None:
    assert FIVE.agrees(3, 3)
    assert not FIVE.agrees(3, 4)
    assert FIVE.agrees(3, 4, tolerance=1)
    assert not FIVE.agrees(3, 5, tolerance=1)
    assert GAPS.agrees(2, 5, tolerance=1)
    assert PRESENT.agrees("present", "present")
    assert not PRESENT.agrees("present", "not_present")
    assert not FIVE.agrees(None, 3, tolerance=9)
    assert not FIVE.agrees(3, None, tolerance=9)


def test_decimal_text_does_not_break_agreement_at_the_very_tolerance() -> None:
    assert 0.4 - 0.3 > 0.1  # binary fractions
    assert TEN.agrees(0.4, 0.3, tolerance=0.1)
    assert not TEN.agrees(0.41, 0.3, tolerance=0.1)


def test_what_a_tolerance_counts() -> None:
    assert (FIVE.tolerance_unit, TEN.tolerance_unit) == ("steps", "units of the scale")
    assert PRESENT.tolerance_unit is None
    assert PAIR.tolerance_unit is None


@pytest.mark.parametrize("scale", [FIVE, WORDS, GAPS, HALVES, PRESENT, PAIR])
def test_numbers_of_listed_labels_are_their_places(scale: Any) -> None:
    assert [scale.number(label) for label in scale.labels] == list(range(len(scale.labels)))
    assert [scale.label(float(place)) for place in range(len(scale.labels))] == list(scale.labels)
    assert listed_labels(scale) == scale.labels


def test_numbers_of_an_interval_scale_are_its_values() -> None:
    assert (TEN.number(2.5), TEN.label(2.5)) == (2.5, 2.5)
    assert not listed_labels(TEN)


def test_values_are_the_numbers_people_gave_or_places() -> None:
    assert GAPS.value(5) == 5.0
    assert WORDS.value("high") == 2.0
    assert TEN.value(2.5) == 2.5


def test_names_and_descriptions_say_the_labels() -> None:
    assert str(FIVE) == "1..5"
    assert str(GAPS) == "1/2/5"
    assert str(PAIR) == "A/B/tie"
    assert str(IntervalScale(min=0, max=100)) == "0..100"
    assert FIVE.describe().startswith("1, 2, 3, 4, 5")
    assert PRESENT.describe() == "present, not_present"
    described = PAIR.describe()
    assert all(part in described for part in ("A (for left)", "B (for right)", "tie"))
    assert "0" in TEN.describe()
    assert "10" in TEN.describe()


@pytest.mark.parametrize("word", ["yes", "no", "true", "off"])
def test_yaml_booleans_are_refused_with_the_mend(word: str) -> None:
    settings = yaml.safe_load(f"{{type: nominal, labels: [{word}, maybe]}}")
    with pytest.raises(ValidationError, match="YAML boolean; put quotes around"):
        SCALE_ADAPTER.validate_python(settings)
    quoted = yaml.safe_load(f"{{type: nominal, labels: ['{word}', maybe]}}")
    assert SCALE_ADAPTER.validate_python(quoted).parse(word.upper()) == word


@pytest.mark.parametrize(
    ("kind", "labels"),
    [
        ("nominal", ["Yes", "yes"]),
        ("nominal", ["very good", "Very  good"]),
        ("nominal", [1, "1"]),
        ("ordinal", [1, 2, 2]),
        ("ordinal", [1, 1.0, 2]),  # one number: a verdict could never tell which of the two
        ("nominal", [2.0, 2]),
    ],
)
def test_labels_that_cannot_be_told_apart_are_refused(kind: str, labels: list[Any]) -> None:
    with pytest.raises(ValidationError, match="stands twice"):
        SCALE_ADAPTER.validate_python({"type": kind, "labels": labels})


@pytest.mark.parametrize(
    "settings",
    [
        {"type": "ordinal", "labels": [1]},
        {"type": "ordinal", "labels": [1, 3, 2]},
        {"type": "ordinal", "labels": [1, "two"]},
        {"type": "ordinal", "labels": [1, float("nan"), 2]},
        {"type": "ordinal", "labels": [1, 2, float("inf")]},
        {"type": "nominal", "labels": ["a", " "]},
        {"type": "nominal", "labels": ["a", "<b>"]},
        {"type": "nominal", "labels": ["a", "b\nc"]},
        {"type": "nominal", "labels": ["a", None]},
        {"type": "nominal", "labels": ["a", "b"], "order": "up"},
        {"type": "pairwise", "labels": ["A", "B"]},
        {"type": "pairwise", "labels": ["A", "B"], "fields": ["left", "left"]},
        {"type": "pairwise", "labels": ["A", "B", "tie", "none"], "fields": ["left", "right"]},
        {"type": "interval", "min": 1, "max": 1},
        {"type": "interval", "min": 0, "max": float("inf")},
        {"type": "interval", "min": "0", "max": 1},
        {"type": "ratio", "min": 0, "max": 1},
        {"labels": [1, 2]},
    ],
)
def test_scales_that_cannot_be_used_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SCALE_ADAPTER.validate_python(settings)


@pytest.mark.parametrize("scale", [FIVE, WORDS, PRESENT, PAIR, TEN])
def test_a_scale_survives_its_settings(scale: Any) -> None:
    again = SCALE_ADAPTER.validate_python(scale.model_dump(mode="json"))
    assert again == scale
    assert type(again) is type(scale)


@pytest.mark.parametrize(
    ("answer", "behind", "stated"),
    [
        ("<rating>3</rating>", "3</rating>", "3"),
        ("<rating>1</rating>, no: <RATING> 3 </RATING>.", " 3 </RATING>.", "3"),
        ("<rating>3</rating> is my <rating>", "3</rating> is my <rating>", "3"),
        ("<rating><rating>3</rating>", "3</rating>", "3"),
        ("<rating>1 <rating>3", "3", None),  # cut off
        ("<rating>", "", None),
        ("3</rating>", None, None),
        ("", None, None),
    ],
)
def test_where_a_rating_begins(answer: str, behind: str | None, stated: str | None) -> None:
    start = rating_start(answer)
    assert (None if start is None else answer[start:]) == behind
    assert rating_text(answer) == stated
