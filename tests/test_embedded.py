"""The rule reader: what it is told it applies to the letter, what it guesses it marks, whatever the seed."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from raters.models.embedded import RUNGS, EmbeddedModel, Rule, Step, read_steps, render_ladder, rule_lines
from raters.models.protocol import Completion, SamplingSettings
from raters.observations import LEVELS, fit_observations
from raters.prompts import load_prompt
from raters.questions import Question
from raters.records import Item, ModelError
from raters.scales import SCALE_ADAPTER, IntervalScale, OrdinalScale
from raters.traces import strip_ratings
from tests.small_corpora import INTERVAL, NOMINAL, ORDINAL_3, ORDINAL_5, PAIRWISE, dimension_of

SAMPLED = SamplingSettings(temperature=1.0)
GREEDY = SamplingSettings(temperature=0.0)
RUNG = "(zero|one|two|three|four|five|six|seven|eight|nine)"
LEVEL = "(lowest|low|middle|high|highest)"
START_LINE = re.compile(rf"- start (maybe )?{RUNG}\.")
STEP_LINE = re.compile(rf"- (\w+) is {LEVEL} \1 (helps|hurts) (maybe )?(once|twice|thrice) ([+-][0-9]+) {RUNG}\.")
TOTAL_LINE = re.compile(rf"- total {RUNG} (.+)\.")
NAMES = ("length", "commas", "digits", "questions", "overlap", "richness")


def ladder_of(scale: Mapping[str, Any]) -> str:
    return render_ladder(SCALE_ADAPTER.validate_python(dict(scale)))


def prompt_of(
    rules: Sequence[str], levels: Mapping[str, str], scale: Mapping[str, Any] = ORDINAL_5, known: object = None
) -> str:
    """Write a prompt by hand, in the grammar that the module's head shows."""
    observed = " ".join(f"{name} is {level}." for name, level in levels.items())
    lines = ["Guideline:", *(f"- {rule}." for rule in rules), f"Scale: {ladder_of(scale)}", f"Text: {observed}"]
    return "\n".join([*lines, *([] if known is None else [f"Known rating: {known}."]), "Think, then rate."])


def draw(prompt: str, seeds: Sequence[int] = (0,), settings: SamplingSettings = SAMPLED) -> list[Completion]:
    return asyncio.run(EmbeddedModel().complete([{"role": "user", "content": prompt}], seeds, settings))


def rated(label: object) -> str:
    return f"<rating>{label}</rating>"


STATED = ["start at four", "length helps twice", "commas hurts", "rest ignored"]
OBSERVED = {"length": "high", "commas": "highest", "digits": "low"}
# From four, length one level above the middle, twice: +2; commas two levels above it, once against: -2.
TRACE = """\
- start four.
- length is high length helps twice +2 six.
- commas is highest commas hurts once -2 four.
- total four 3."""


@pytest.mark.parametrize("settings", [SAMPLED, GREEDY])
def test_stated_rules_are_applied_to_the_letter(settings: SamplingSettings) -> None:
    (completion,) = draw(prompt_of(STATED, OBSERVED), settings=settings)
    assert completion.reasoning == TRACE
    assert completion.text == rated(3)
    assert completion.finish_reason == "stop"
    assert completion.completion_tokens == len(TRACE.split()) + 1
    assert completion.prompt_tokens == len(prompt_of(STATED, OBSERVED).split())


def test_the_ends_of_the_ladder_hold() -> None:
    """From eight, +6 ends at nine; from there -2 is seven, not twelve, which is the 4 of five labels."""
    rules = ["start at eight", "length helps thrice", "commas hurts twice", "rest ignored"]
    (completion,) = draw(prompt_of(rules, {"length": "highest", "commas": "high"}))
    assert completion.reasoning.splitlines()[1:] == [
        "- length is highest length helps thrice +6 nine.",
        "- commas is high commas hurts twice -2 seven.",
        "- total seven 4.",
    ]


def test_without_a_stated_start_temperature_zero_begins_at_five_and_guesses_nothing() -> None:
    """Digits are low, one below the middle, and helping: -1, so four, which is 3 of five labels."""
    prompt = prompt_of(["digits helps"], OBSERVED)
    first, second = draw(prompt, (1, 2), GREEDY)
    assert first == second
    assert first.reasoning.splitlines() == [
        "- start maybe five.",
        "- digits is low digits helps once -1 four.",
        "- total four 3.",
    ]


def rungs_of(ladder: str) -> list[str]:
    found = re.findall(rf"{RUNG} (\S+)\.(?: |$)", ladder)
    assert [word for word, _ in found] == list(RUNGS)
    return [label for _, label in found]


def test_ladders_have_as_many_rungs_at_both_ends() -> None:
    assert rungs_of(ladder_of({"type": "ordinal", "labels": [0, 1]})) == list("0000011111")
    assert rungs_of(ladder_of(ORDINAL_3)) == list("1112222333")
    assert rungs_of(ladder_of(ORDINAL_5)) == list("1122334455")
    assert rungs_of(ladder_of(PAIRWISE)) == ["B"] * 3 + ["tie"] * 4 + ["A"] * 3
    assert rungs_of(ladder_of({**PAIRWISE, "labels": ["A", "B"]})) == list("BBBBBAAAAA")
    assert rungs_of(ladder_of(NOMINAL)) == ["not_present"] * 5 + ["present"] * 5


def test_the_ladder_of_an_interval_goes_from_least_to_most_in_equal_steps() -> None:
    assert [float(label) for label in rungs_of(ladder_of({"type": "interval", "min": 1, "max": 10}))] == list(
        range(1, 11)
    )
    scale = IntervalScale(min=0, max=100)
    values = [scale.parse(label) for label in rungs_of(ladder_of(INTERVAL))]
    assert values == pytest.approx([100 * rung / 9 for rung in range(10)], abs=1e-6)


@pytest.mark.parametrize(
    ("scale", "verdict"),
    [
        (PAIRWISE, "A"),
        ({**PAIRWISE, "labels": ["A", "B"]}, "A"),
        (NOMINAL, "present"),
        ({"type": "ordinal", "labels": ["very poor", "so so.", "very good"]}, "very good"),
        ({"type": "ordinal", "labels": [0.5, 1.5, 2.5]}, 2.5),
        (INTERVAL, 88.888889),  # rung eight of 0..100
    ],
)
def test_the_quality_is_on_top_of_every_scale(scale: Mapping[str, Any], verdict: object) -> None:
    """Length helps twice, from six and high: rung eight."""
    prompt = prompt_of(["start at six", "length helps twice", "rest ignored"], {"length": "high"}, scale)
    (completion,) = draw(prompt)
    assert completion.text == rated(verdict)
    assert SCALE_ADAPTER.validate_python(dict(scale)).read_verdict(completion.text) == verdict


def test_the_projects_prompt_is_the_one_written_by_hand() -> None:
    inputs = {"text": "Long, long, and longer still."}
    observations = fit_observations([{"text": "Short."}, inputs, {"text": "Also, short."}])
    guideline = "# How good?\n\nLonger is better.\n\n" + "\n".join(f"- {rule}." for rule in STATED)
    question = Question(dimension_of(ORDINAL_5, guideline), load_prompt("embedded/rate"), observations)
    levels = {name: LEVELS[level] for name, level in observations.levels(inputs).items()}
    (message,) = question.about(Item("x", inputs, {}))()
    assert message["content"] == prompt_of(STATED, levels)


def test_the_same_seed_makes_the_same_draw_whatever_is_drawn_beside_it() -> None:
    prompt = prompt_of(["length helps"], OBSERVED)
    together = draw(prompt, range(40))
    assert together == draw(prompt, range(40))
    assert together[::-1] == draw(prompt, range(39, -1, -1))
    assert together == [draw(prompt, (seed,))[0] for seed in range(40)]
    assert len({completion.reasoning for completion in together}) > 20


def test_every_line_of_a_trace_follows_the_grammar_and_adds_up() -> None:
    levels = {name: LEVELS[place % 5] for place, name in enumerate(NAMES)}
    prompt = prompt_of(["commas hurts thrice", "digits helps"], levels)
    guesses = []
    for completion in draw(prompt, range(300)):
        first, *steps, last = completion.reasoning.splitlines()
        start, total = START_LINE.fullmatch(first), TOTAL_LINE.fullmatch(last)
        assert start is not None
        assert total is not None
        assert start[1] == "maybe "
        rung, guessed = RUNGS.index(start[2]), []
        assert 2 <= rung <= 7
        for line in steps:
            step = STEP_LINE.fullmatch(line)
            assert step is not None, line
            name, level, direction, maybe, strength, change, score = step.groups()
            assert level == levels[name]
            steps_from_middle = ("lowest", "low", "middle", "high", "highest").index(level) - 2
            weight = {"once": 1, "twice": 2, "thrice": 3}[strength] * (1 if direction == "helps" else -1)
            assert int(change) == weight * steps_from_middle
            rung = min(9, max(0, rung + int(change)))
            assert score == RUNGS[rung]
            if maybe:
                guessed.append(name)
        assert total[1] == RUNGS[rung]
        assert total[2] == "1122334455"[rung]
        assert completion.text == rated(total[2])
        assert steps[0].startswith("- commas is low commas hurts thrice ")
        assert steps[1].startswith("- digits is middle digits helps once +0 ")
        assert len(set(guessed)) == len(guessed) == len(steps) - 2
        assert not {"commas", "digits"} & set(guessed)
        guesses.append(tuple(guessed))
    assert {len(guessed) for guessed in guesses} == {1, 2, 3}
    assert {name for guessed in guesses for name in guessed} == {"length", "questions", "overlap", "richness"}


def test_guesses_go_both_ways_about_as_often() -> None:
    """Of at least 1,000 fair coins the share of heads is within .05 of a half, three deviations away."""
    prompt = prompt_of([], dict.fromkeys(NAMES, "high"))
    steps = [step for completion in draw(prompt, range(800)) for step in read_steps(completion.reasoning)]
    assert len(steps) >= 1_000
    assert sum(step.rule.sign > 0 for step in steps) / len(steps) == pytest.approx(0.5, abs=0.05)
    assert {step.rule.strength for step in steps} == {1, 2}
    assert all(step.rule.guessed for step in steps)


def tally(rules: Sequence[tuple[str, str, str]], start: int, levels: Mapping[str, str]) -> int:
    """Work a list of rules out independently."""
    place = {"lowest": -2, "low": -1, "middle": 0, "high": 1, "highest": 2}
    times = {"": 1, " once": 1, " twice": 2, " thrice": 3}
    score = start
    for name, direction, strength in rules:
        score += (1 if direction == "helps" else -1) * times[strength] * place[levels[name]]
        score = 0 if score < 0 else 9 if score > 9 else score
    return score


@pytest.mark.parametrize(
    ("scale", "labels"),
    [
        (ORDINAL_5, "1 1 2 2 3 3 4 4 5 5".split()),
        (ORDINAL_3, "1 1 1 2 2 2 2 3 3 3".split()),
        (PAIRWISE, "B B B tie tie tie tie A A A".split()),
        (NOMINAL, ["not_present"] * 5 + ["present"] * 5),
    ],
)
def test_stated_rules_are_never_misread(scale: Mapping[str, Any], labels: Sequence[str]) -> None:
    chance = random.Random(11)
    for seed in range(300):
        levels = {name: chance.choice(LEVELS) for name in NAMES}
        rules = [
            (name, chance.choice(("helps", "hurts")), chance.choice(("", " once", " twice", " thrice")))
            for name in chance.sample(NAMES, chance.randint(0, len(NAMES)))
        ]
        start = chance.randrange(10)
        lines = [f"{name} {direction}{strength}" for name, direction, strength in rules]
        lines.insert(chance.randint(0, len(lines)), f"start at {RUNGS[start]}")
        lines.insert(chance.randint(0, len(lines)), "rest ignored")
        (completion,) = draw(prompt_of(lines, levels, scale), (seed,))
        assert completion.text == rated(labels[tally(rules, start, levels)]), lines


def test_known_ratings_are_reached() -> None:
    for label in (1, 2, 3, 4, 5):
        for completion in draw(prompt_of([], OBSERVED, known=label), range(10)):
            assert completion.text == rated(label)
    prompt = prompt_of(["length helps"], OBSERVED, PAIRWISE, known="tie")
    assert {completion.text for completion in draw(prompt, range(10))} == {rated("tie")}


def test_a_known_rating_does_not_bend_stated_rules() -> None:
    (completion,) = draw(prompt_of(STATED, OBSERVED, known=5))
    assert completion.reasoning == TRACE
    assert completion.text == rated(3)


def test_at_temperature_zero_a_known_rating_changes_nothing() -> None:
    """Stated is digits alone, so four and a 3 as above; a search for the 1 would need chance."""
    (completion,) = draw(prompt_of(["digits helps"], OBSERVED, known=1), settings=GREEDY)
    assert completion.text == rated(3)


def recover(reasoning: str, scale: Mapping[str, Any] = ORDINAL_5) -> str:
    question = Question(dimension_of(scale, "- length hurts thrice."), load_prompt("embedded/recover"), None, "recover")
    messages = question.about_reasoning(reasoning)
    (completion,) = asyncio.run(EmbeddedModel().complete(messages, (0,), SAMPLED))
    return completion.text


@pytest.mark.parametrize(
    "scale", [ORDINAL_5, PAIRWISE, NOMINAL, {"type": "ordinal", "labels": ["poor", "fair", "very good"]}]
)
def test_the_label_is_found_again_from_a_trace_that_no_longer_says_it(scale: Mapping[str, Any]) -> None:
    read = SCALE_ADAPTER.validate_python(dict(scale))
    found = set()
    for completion in draw(prompt_of([], OBSERVED, scale), range(60)):
        trace = strip_ratings(completion.reasoning, read)
        assert "total" in completion.reasoning
        assert "total" not in trace  # the line that ends in the label
        assert recover(trace, scale) == completion.text
        found.add(completion.text)
    assert len(found) == len(read.labels)  # type: ignore[union-attr]


def test_changes_are_read_not_worked_out_again() -> None:
    """From two, +4 and -1 is five, the 3 of five labels, whatever the guideline says of length."""
    steps = "- length is high length helps maybe twice +4 six.\n- a is low a hurts once -1 five."
    trace = f"- start two.\nSome words.\n{steps}"
    assert recover(trace) == rated(3)


@pytest.mark.parametrize("reasoning", ["It is a good text, so five.", "- length is high length helps twice +2 seven."])
def test_nothing_is_recovered_from_reasoning_in_other_words(reasoning: str) -> None:
    assert OrdinalScale(labels=(1, 2, 3, 4, 5)).read_verdict(recover(reasoning)) is None


def test_steps_of_a_trace() -> None:
    trace = "- start maybe five.\n- length is high length helps maybe twice +2 seven.\nand\n" + TRACE
    assert list(read_steps(trace)) == [
        Step(Rule("length", 1, 2, guessed=True), 2),
        Step(Rule("length", 1, 2), 2),
        Step(Rule("commas", -1, 1), -2),
    ]
    assert str(Rule("commas", -1, 3, guessed=True)) == "commas hurts maybe thrice"


def test_only_lines_in_the_grammar_are_rules() -> None:
    guideline = """\
    # Heading
    - length helps twice.
      - commas hurts.
    - start at nine.
    - rest ignored.
    - Length helps a lot.
    - length helps
    - length helps ten times.
    - start at ten.
    length helps twice.
    """
    assert rule_lines(guideline) == ["length helps twice", "commas hurts", "start at nine", "rest ignored"]


def test_a_draw_that_is_too_long_is_cut_before_its_answer() -> None:
    prompt, words = prompt_of(STATED, OBSERVED), TRACE.split()
    (cut,) = draw(prompt, settings=SamplingSettings(max_tokens=3))
    assert (cut.text, cut.reasoning, cut.finish_reason, cut.completion_tokens) == ("", "- start four.", "length", 3)
    (just_too_long,) = draw(prompt, settings=SamplingSettings(max_tokens=len(words)))
    assert (just_too_long.text, just_too_long.finish_reason) == ("", "length")
    assert just_too_long.reasoning.split() == words
    (just_right,) = draw(prompt, settings=SamplingSettings(max_tokens=len(words) + 1))
    assert (just_right.text, just_right.finish_reason) == (rated(3), "stop")


@pytest.mark.parametrize(
    "prompt",
    [
        "How good is this text?",
        "Scale: zero 1. one 2.\nText: length is high.",
        prompt_of(STATED, {}),
        prompt_of(STATED, OBSERVED).replace("Scale: ", "Ladder: "),
    ],
)
def test_a_prompt_it_cannot_read_is_refused(prompt: str) -> None:
    with pytest.raises(ModelError, match=r"embedded: the prompt lacks .*; the rule reader needs one of the prompts"):
        draw(prompt)
