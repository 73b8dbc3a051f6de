"""`embedded`: a rule reader that takes a model's place, so that everything runs offline on real labels.

It is a program and no language model. It reads a prompt of three parts (rule lines of the guideline, the scale as
a ladder of ten rungs, observations of the item), always applies the rules it is told, guesses the rest, and
walks through them in writing::

    Guideline:                          - start maybe four.
    - length helps twice.               - length is high length helps twice +2 six.
    Scale: zero B. one B. ... nine A.   - total six tie.
    A against B: length is high. ...    <rating>tie</rating>
    Think, then rate.

A guessed rule is marked `maybe`. Which rules it guesses depends on the seed alone, never on the label, so that the
draws that agree with people tell which rules people go by. The ladder uses number words, never digits, so that a
rung cannot be taken for a label. Temperature 0 applies the stated rules only.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from raters.models.protocol import Completion, Message, SamplingSettings
from raters.observations import LEVELS, MIDDLE
from raters.records import Label, ModelError
from raters.scales import IntervalScale, NominalScale, OrdinalScale, PairwiseScale

RUNGS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
STRENGTHS = ("once", "twice", "thrice")
START = RUNGS.index("five")
_GUESSED_STARTS = range(2, 8)
_GUESSED_STRENGTHS = STRENGTHS[:2]
_MOST_GUESSES = 3
_MOST_RATIONALIZATIONS = 200

_RULE = re.compile(rf"^- (\w+) (helps|hurts)(?: ({'|'.join(STRENGTHS)}))?\.$")
_START_RULE = re.compile(rf"^- start at ({'|'.join(RUNGS)})\.$")
_REST_IGNORED = "- rest ignored."
_RUNG = re.compile(rf"({'|'.join(RUNGS)}) (.*?)\.(?=\s(?:{'|'.join(RUNGS)})\s|$)")
_OBSERVED = re.compile(rf"(\w+) is ({'|'.join(LEVELS)})\.")
_TRACE_START = re.compile(rf"^- start (?:maybe )?({'|'.join(RUNGS)})\.$")
_TRACE_STEP = re.compile(rf"^- (\w+) is \w+ \1 (helps|hurts) (maybe )?(\w+) ([+-]\d+) (?:{'|'.join(RUNGS)})\.$")


@dataclass(frozen=True, slots=True)
class Rule:
    """One observation that counts for or against a higher rating.

    Attributes:
        observation: Name of the statistic.
        sign: +1 if it helps, -1 if it hurts.
        strength: 1 to 3.
        guessed: True if no guideline states it.
    """

    observation: str
    sign: int
    strength: int
    guessed: bool = False

    def __str__(self) -> str:
        """Return the rule in the words of a guideline line."""
        word = "helps" if self.sign > 0 else "hurts"
        return f"{self.observation} {word} {'maybe ' if self.guessed else ''}{STRENGTHS[self.strength - 1]}"


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a trace: the rule applied, and the signed change it made."""

    rule: Rule
    change: int


def rule_lines(guideline: str) -> list[str]:
    """Return the lines of a guideline that the rule reader understands, without dash and full stop."""
    lines = (line.strip() for line in guideline.splitlines())
    return [line[2:-1] for line in lines if _RULE.match(line) or _START_RULE.match(line) or line == _REST_IGNORED]


def render_ladder(scale: OrdinalScale | NominalScale | PairwiseScale | IntervalScale) -> str:
    """Return a scale as ten rungs, `zero 1. one 1. two 2. ...`, from the least to the most of the quality.

    Ordinal labels stand in their order; of a pair the first text's label is on top, the tie in the middle; of a
    nominal scale the label named first is on top. An interval is cut into ten equally spaced values.
    """
    ordered: Sequence[Label]
    if isinstance(scale, IntervalScale):
        step = (scale.max - scale.min) / (len(RUNGS) - 1)
        ordered = [round(scale.min + step * rung, 6) for rung in range(len(RUNGS))]
    elif isinstance(scale, PairwiseScale):
        ordered = [scale.labels[1], *scale.labels[2:], scale.labels[0]]
    else:
        ordered = scale.labels if isinstance(scale, OrdinalScale) else scale.labels[::-1]
    # Each rung has the label at its middle, so that both ends of the scale have as many rungs.
    places = [int((rung + 0.5) * len(ordered) / len(RUNGS)) for rung in range(len(RUNGS))]
    return " ".join(f"{word} {ordered[place]}." for word, place in zip(RUNGS, places, strict=True))


def read_steps(trace: str) -> Iterator[Step]:
    """Yield the steps of a trace that is written in the rule reader's words; other lines are passed over."""
    for line in trace.splitlines():
        if found := _TRACE_STEP.match(line.strip()):
            name, direction, guessed, strength, change = found.groups()
            if strength in STRENGTHS:
                sign = 1 if direction == "helps" else -1
                yield Step(Rule(name, sign, STRENGTHS.index(strength) + 1, bool(guessed)), int(change))


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a prompt says."""

    rules: tuple[Rule, ...]
    start: int | None
    rest_ignored: bool
    labels: tuple[str, ...]
    levels: dict[str, int]
    guessable: tuple[str, ...]
    known_rating: str | None
    reasoning: str | None
    tokens: int


@lru_cache(maxsize=4096)
def _read(prompt: str) -> _Reading:
    rules: list[Rule] = []
    start, rest_ignored, known, reasoning = None, False, None, None
    labels: tuple[str, ...] = ()
    levels: dict[str, int] = {}
    lines = iter(prompt.splitlines())
    for line in lines:
        if found := _RULE.match(line):
            name, direction, strength = found.groups()
            weight = STRENGTHS.index(strength or STRENGTHS[0]) + 1
            rules.append(Rule(name, 1 if direction == "helps" else -1, weight))
        elif found := _START_RULE.match(line):
            start = RUNGS.index(found[1])
        elif line == _REST_IGNORED:
            rest_ignored = True
        elif line.startswith("Scale: "):
            labels = tuple(label for _, label in _RUNG.findall(line))
        elif line.startswith("Known rating: "):
            known = line.removeprefix("Known rating: ").removesuffix(".")
            known = _nearest(known, labels)
        elif line == "Reasoning:":
            reasoning = "\n".join(lines)
        elif pairs := _OBSERVED.findall(line):
            levels = {name: LEVELS.index(level) for name, level in pairs}
    if len(labels) != len(RUNGS) or not (levels or reasoning is not None):
        raise ModelError(
            "embedded: the prompt lacks a line 'Scale: zero ... nine ...' or observations; "
            "the rule reader needs one of the prompts in embedded/"
        )
    stated = {rule.observation for rule in rules}
    guessable = tuple(name for name in levels if name not in stated)
    return _Reading(tuple(rules), start, rest_ignored, labels, levels, guessable, known, reasoning, len(prompt.split()))


def _nearest(rating: str, labels: Sequence[str]) -> str:
    """Return a rating as a rung has it: on an interval scale the nearest rung's value."""
    try:
        return rating if rating in labels else min(labels, key=lambda label: abs(float(label) - float(rating)))
    except ValueError:
        return rating


class EmbeddedModel:
    """The rule reader behind the model protocol. A token is a word here."""

    spec = "embedded"

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return one completion per seed.

        Raises:
            ModelError: If the last message is not a prompt that the rule reader can read.
        """
        return [answer(messages[-1]["content"], seed, settings) for seed in seeds]

    async def close(self) -> None:
        """Nothing is held."""


def answer(prompt: str, seed: int, settings: SamplingSettings) -> Completion:
    """Return one draw.

    Raises:
        ModelError: If the prompt is none that the rule reader can read.
    """
    reading = _read(prompt)
    if reading.reasoning is not None:
        trace, label = "", _recover(reading)
    else:
        chance = random.Random(seed) if settings.temperature > 0 else None
        trace, label = _think(reading, chance)
        if reading.known_rating is not None and chance is not None:
            for _ in range(_MOST_RATIONALIZATIONS):
                if label == reading.known_rating:
                    break
                trace, label = _think(reading, chance)
    rating = f"<rating>{label}</rating>" if label else "No rating can be told."
    words = trace.split()
    tokens = len(words) + len(rating.split())
    if tokens <= settings.max_tokens:
        return Completion(rating, trace, "stop", reading.tokens, tokens)
    return Completion("", " ".join(words[: settings.max_tokens]), "length", reading.tokens, settings.max_tokens)


def _think(reading: _Reading, chance: random.Random | None) -> tuple[str, str]:
    """Return (trace, label): the stated rules, and guesses unless `chance` is None or the rest is ignored."""
    rules = reading.rules
    start, maybe = (START, "maybe ") if reading.start is None else (reading.start, "")
    if chance is not None and reading.start is None:
        start = chance.choice(_GUESSED_STARTS)
    if chance is not None and not reading.rest_ignored and reading.guessable:
        count = min(chance.randint(1, _MOST_GUESSES), len(reading.guessable))
        rules += tuple(
            Rule(name, chance.choice((1, -1)), STRENGTHS.index(chance.choice(_GUESSED_STRENGTHS)) + 1, guessed=True)
            for name in chance.sample(reading.guessable, count)
        )
    rung = start
    lines = [f"- start {maybe}{RUNGS[start]}."]
    for rule in rules:
        if rule.observation not in reading.levels:
            continue  # a rule about something that this item does not have, such as a second text
        level = reading.levels[rule.observation]
        change = rule.sign * rule.strength * (level - MIDDLE)
        rung = min(max(rung + change, 0), len(RUNGS) - 1)
        lines.append(f"- {rule.observation} is {LEVELS[level]} {rule} {change:+d} {RUNGS[rung]}.")
    label = reading.labels[rung]
    lines.append(f"- total {RUNGS[rung]} {label}.")
    return "\n".join(lines), label


def _recover(reading: _Reading) -> str:
    """Return the label that a trace's own start and changes lead to; empty if it does not say."""
    lines = (reading.reasoning or "").splitlines()
    starts = [RUNGS.index(found[1]) for line in lines if (found := _TRACE_START.match(line.strip()))]
    if not starts:
        return ""
    rung = starts[0]
    for step in read_steps(reading.reasoning or ""):
        rung = min(max(rung + step.change, 0), len(RUNGS) - 1)
    return reading.labels[rung]
