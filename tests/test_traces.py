"""Traces: where the reasoning ends, what makes it doubtful, and that a shown label does not stay in it."""

from __future__ import annotations

import pytest

from raters.models.protocol import Completion, split_reasoning
from raters.records import Label
from raters.scales import AnyScale, IntervalScale, NominalScale, OrdinalScale, PairwiseScale
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


FIVE_STEPS = OrdinalScale(labels=(1, 2, 3, 4, 5))
PRESENT = NominalScale(labels=("present", "not_present"))
PAIR = PairwiseScale(labels=("A", "B", "tie"), fields=("left", "right"))


@pytest.mark.parametrize(
    ("text", "scale", "stripped"),
    [
        ("It rains. <rating>4</rating>", FIVE_STEPS, "It rains."),
        ("It rains. So my rating is 4. It pours.", FIVE_STEPS, "It rains. It pours."),
        ("I rate it **4**. It rains.", FIVE_STEPS, "It rains."),
        ("Score: 4\nIt rains.", FIVE_STEPS, "It rains."),
        ("It rains.\nThis deserves a 4!\nIt pours.", FIVE_STEPS, "It rains.\n\nIt pours."),
        ("It deserves 4/5. It rains.", FIVE_STEPS, "It rains."),
        ("Four stars. I would give it a four. It rains.", FIVE_STEPS, "It rains."),
        ("- start maybe two.\n- length is high length helps twice +2 four.\n- total four 3.", FIVE_STEPS,
         "- start maybe two.\n- length is high length helps twice +2 four."),
        ("It costs 14.50 or 44 euros, with 7 extras.", FIVE_STEPS, "It costs 14.50 or 44 euros, with 7 extras."),
        ("It takes 3 days. It rains.", FIVE_STEPS, "It rains."),  # a reason lost costs less than a label that leaks
        ("The label should be not present here. It rains.", PRESENT, "It rains."),
        ("Final: not_present", PRESENT, ""),
        ("He presented it. It rains.", PRESENT, "He presented it. It rains."),
        ("A gives figures. B gives none. So A wins. A is more convincing.", PAIR, "A gives figures. B gives none."),
        ("A reader learns a lot. The answer: A", PAIR, "A reader learns a lot."),
        ("My verdict must rest on a careful reading.", PAIR, "My verdict must rest on a careful reading."),
        ("I rate it 37.5. It rains.", IntervalScale(min=0, max=100), "It rains."),
        ("<rating>4</rating>", FIVE_STEPS, ""),
    ],
)  # fmt: skip
def test_sentences_that_name_a_label_go_and_the_reasons_stay(text: str, scale: AnyScale, stripped: str) -> None:
    assert strip_ratings(text, scale) == stripped


@pytest.mark.parametrize(
    "phrase",
    ["I would give this a 4.", "deserves a 4", "The answer is 4.", "I choose 4", "So: 4", "**4** is what I settle on"],
)
def test_no_phrase_leaves_the_label(phrase: str) -> None:
    assert "4" not in strip_ratings(f"It names a reason. {phrase} It rains", FIVE_STEPS)


@pytest.mark.parametrize("labels", [("one", "two", "three", "four", "five"), FIVE])
def test_the_total_of_the_rule_reader_never_keeps_the_label(labels: tuple[Label, ...]) -> None:
    """The word of the rung comes first; it may be a label's word itself."""
    for rung in ("four", "five", "six"):
        for label in labels:
            total = f"- length is high length helps once +1 six.\n- total {rung} {label}."
            assert "total" not in strip_ratings(total, OrdinalScale(labels=labels))


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
