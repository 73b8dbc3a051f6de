"""Traces: where the reasoning ends, what makes it doubtful, and that a shown label does not stay in it."""

from __future__ import annotations

import re

import pytest

from raters.models.protocol import Completion, split_reasoning
from raters.records import Label
from raters.traces import most_different, strip_ratings, trace_flags, trace_of, training_record

FIVE: tuple[Label, ...] = (1, 2, 3, 4, 5)


def completion(text: str, reasoning: str = "") -> Completion:
    return Completion(text, reasoning, "stop", None, None)


def test_the_trace_is_the_thinking_or_what_stands_before_the_rating() -> None:
    assert trace_of(completion("So: <rating>3</rating>", "It rains.")) == "It rains."
    assert trace_of(completion("It rains.\n\n<rating>3</rating>\n")) == "It rains."
    assert trace_of(completion("It <RATING>2</RATING>rains.\n<rating>\n3\n</rating>")) == "It rains."
    assert trace_of(completion("It rains. <rating>3")) == "It rains."
    assert trace_of(completion("<rating>3</rating>")) == ""
    assert trace_of(completion("")) == ""


@pytest.mark.parametrize(
    "text",
    [
        "The given label is 3, so I look for reasons.",
        "Since this correct rating must be explained, length matters.",
        "The gold label says otherwise but it is short.",
        "The label was given as three in the task.",
        "The annotator's rating seems generous to me here.",
        "The ground truth can only be three here.",
        "I was told the rating before I began.",
    ],
)
def test_a_trace_that_speaks_of_a_label_it_should_not_know_is_flagged(text: str) -> None:
    assert trace_flags(text) == ("mentions_known_label",)


@pytest.mark.parametrize(
    "text",
    [
        "The reply is correct and gives a reason.",
        "By the guideline, a rating of three fits, as the known facts are there.",
        "The label on the bottle is given in the picture.",
        "A human reader would want an example here.",
    ],
)
def test_ordinary_reasoning_is_not_flagged(text: str) -> None:
    assert trace_flags(text) == ()


def test_a_trace_without_reasoning_is_flagged() -> None:
    assert trace_flags("") == ("no_reasoning",)
    assert trace_flags("Rather good.") == ("no_reasoning",)
    assert trace_flags("It is good.") == ()
    assert trace_flags("Ground truth.") == ("mentions_known_label", "no_reasoning")


@pytest.mark.parametrize(
    ("text", "labels", "stripped"),
    [
        ("It rains. <rating>4</rating>", FIVE, "It rains."),
        ("It rains, so my rating is 4.", FIVE, "It rains, so my rating is ."),
        ("I rate it **4**. It rains.", FIVE, "I rate it . It rains."),
        ("Score: 4\nIt rains.", FIVE, "Score: \nIt rains."),
        ("It deserves 4/5 for 2 reasons.", FIVE, "It deserves  for 2 reasons."),
        ("It deserves 4 out of 5 for 2 reasons.", FIVE, "It deserves  for 2 reasons."),
        ("- total six 4.", FIVE, "- total six ."),
        ("It names 3 reasons in 2 lines.", FIVE, "It names 3 reasons in 2 lines."),
        ("It scores well. 3 reasons are named.", FIVE, "It scores well. 3 reasons are named."),
        ("- length is high length helps twice +2 six.", FIVE, "- length is high length helps twice +2 six."),
        ("The label should be not_present here.", ("present", "not_present"), "The label should be  here."),
        ("The fact is present in line 2.", ("present", "not_present"), "The fact is present in line 2."),
        ("My verdict: Very Good.", ("good", "very good"), "My verdict: ."),
        ("I rate it 37.5 for its 2 reasons.", (), "I rate it  for its 2 reasons."),
        ("<rating>4</rating>", FIVE, ""),
    ],
)
def test_the_rating_goes_and_the_reasons_stay(text: str, labels: tuple[Label, ...], stripped: str) -> None:
    assert strip_ratings(text, labels) == stripped


@pytest.mark.parametrize("labels", [("one", "two", "three", "four", "five"), FIVE])
def test_the_total_of_the_rule_reader_never_keeps_the_label(labels: tuple[Label, ...]) -> None:
    """The word of the rung comes first; it may be a label's word itself."""
    for rung in ("four", "five", "six"):
        for label in labels:
            total = strip_ratings(f"- start maybe six.\n- total {rung} {label}.", labels).splitlines()[-1]
            assert not re.search(rf"\b{label} *\.$", total), total


def test_a_training_record_is_the_candidate_and_a_conversation_that_reads_back() -> None:
    candidate = {"item_id": "a", "trace": "It rains.\nIt pours.", "verdict": "B", "swapped": True}
    prompt = [{"role": "user", "content": "Rate it."}]
    record = training_record(candidate, prompt, "A")  # type: ignore[arg-type]
    assert {name: record[name] for name in candidate} == candidate
    assert record["prompt"] == prompt
    (message,) = record["completion"]
    assert message["role"] == "assistant"
    assert split_reasoning(message["content"]) == ("It rains.\nIt pours.", "<rating>A</rating>")


def test_most_different_takes_the_first_and_then_the_farthest() -> None:
    # Jaccard distances to "a b c": of "a b d" 2/4, of "x y z" 1, of "a b c!" 0; then of "a b d" to "x y z" 1.
    traces = ["a b c", "a b c!", "a b d", "x y z"]
    assert most_different(traces, 1) == [0]
    assert most_different(traces, 2) == [0, 3]
    assert most_different(traces, 3) == [0, 2, 3]
    assert most_different(traces, 9) == [0, 1, 2, 3]
    assert most_different(["", "", "a"], 2) == [0, 2]
    assert most_different([], 2) == []


def test_of_equally_different_traces_the_earlier_is_taken() -> None:
    assert most_different(["a", "b", "c"], 2) == [0, 1]
