"""What the student learns: the rule reader's draws over random guidelines, random scales and random observations.

No text, label or guideline of a person is in them. An exercise is a prompt of the embedded family and what the rule
reader answers to it, written as a conversation.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from raters.models.embedded import RUNGS, STRENGTHS, answer, render_ladder
from raters.models.protocol import THINK_CLOSE, THINK_OPEN, SamplingSettings
from raters.observations import LEVELS, STATISTICS, render_levels
from raters.prompts import Prompt, load_prompt
from raters.scales import AnyScale, IntervalScale, NominalScale, OrdinalScale, PairwiseScale

Kind = Literal[
    "copy", "restate", "look-up", "read-off", "spell", "many", "few", "sparse", "scarce", "at-once", "rate-first"
]
_PROMPTS = {"at-once": "embedded/rate_at_once", "rate-first": "embedded/rate_first"}
_FEW_RULES = ("few", "sparse", "scarce")
_OF_ONE_TEXT = STATISTICS[:-3]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_WORDS = (
    *(f" {name}" for name in STATISTICS),
    *(f" {rung}" for rung in RUNGS),
    *(f" is {level}" for level in LEVELS),
    *_LETTERS,
    *"0123456789",
)
ORACLE_RULES = ("start at five", "richness helps twice", "length helps once", "capitals hurts once", "rest ignored")


@dataclass(frozen=True, slots=True)
class Exercise:
    """A prompt, and what the rule reader answered.

    Attributes:
        kind: What is practised.
        prompt: The user's turn.
        answer: The assistant's.
        rules: The guideline's lines.
        levels: Level of every observation shown.
        labels: (10,) label of every rung, as text.
    """

    kind: Kind
    prompt: str
    answer: str
    rules: tuple[str, ...]
    levels: dict[str, int]
    labels: tuple[str, ...]


def random_scale(chance: random.Random, *, hard: bool = False) -> AnyScale:
    """Return a scale of one of the kinds that corpora have, its labels now and then words nobody uses.

    Args:
        chance: Of all choices.
        hard: True for one with labels of several letters or digits, which have to be copied piece by piece.
    """
    kind = chance.uniform(0.8, 1.0) if hard else chance.random()
    if kind < 0.3:
        return PairwiseScale(type="pairwise", labels=["A", "B", "tie"][: chance.choice((2, 3))], fields=["a", "b"])
    if kind < 0.65:
        first, count = chance.choice((0, 1)), chance.randint(2, 10)
        return OrdinalScale(type="ordinal", labels=list(range(first, first + count)))
    if kind < 0.8:
        pairs = (("present", "not_present"), ("yes", "no"), ("true", "false"), ("good", "bad"), ("first", "second"))
        labels = list(chance.choice(pairs))
        chance.shuffle(labels)
        return NominalScale(type="nominal", labels=labels)
    if kind < 0.9:
        low, width = chance.choice((0, 1)), chance.choice((1, 5, 9, 10, 45, 90, 100, 99))
        return IntervalScale(type="interval", min=low, max=low + width)
    words: set[str] = set()
    while len(words) < chance.randint(2, 5):
        words.add("".join(chance.choices(_LETTERS, k=chance.randint(1, 5))))
    return OrdinalScale(type="ordinal", labels=chance.sample(sorted(words), len(words)))  # a set has no order


def random_rules(chance: random.Random, names: Sequence[str], kind: Kind) -> list[str]:
    """Return the lines of a guideline about some of the named observations, without dash and full stop."""
    if kind in _FEW_RULES:
        count = min(len(names), chance.choice((0, 0, 1, 1, 2, 3)))
    elif chance.random() < 0.5:
        count = chance.randint(1, len(names))
    else:
        count = chance.randint(1, min(8, len(names)))
    rules = [
        f"{name} {chance.choice(('helps', 'hurts'))} {chance.choice(STRENGTHS)}" for name in chance.sample(names, count)
    ]
    if chance.random() < (0.2 if kind in _FEW_RULES else 0.5):
        rules.insert(chance.choice((0, len(rules))), f"start at {chance.choice(RUNGS)}")
    if chance.random() < (0.1 if kind in _FEW_RULES else 0.6):
        rules.append("rest ignored")
    return rules


def exercise(chance: random.Random, kind: Kind) -> Exercise:
    """Return a random exercise of a kind."""
    if kind == "copy":
        return _copying(chance)
    names = list(STATISTICS if chance.random() < 0.6 else _OF_ONE_TEXT)
    if kind == "sparse" or chance.random() < 0.4:  # fewer, and in another order, so that places teach nothing
        names = chance.sample(names, chance.randint(4, len(names)))
    if kind == "look-up" and chance.random() < 0.7:
        names = chance.sample(STATISTICS, chance.randint(2, 6))
    elif kind == "scarce":
        names = chance.sample(STATISTICS, chance.randint(2, 8))
    levels = {name: chance.randrange(len(LEVELS)) for name in names}
    scale = random_scale(chance, hard=kind == "spell")
    rules = random_rules(chance, names, kind)
    subject = "A against B" if isinstance(scale, PairwiseScale) else "Text"
    ladder = render_ladder(scale)
    if kind == "restate":
        lines = "\n".join(f"- {rule}." for rule in rules)
        prompt = f"Guideline:\n{lines}\nRestate."
        return Exercise(kind, prompt, f"{THINK_OPEN}\n{lines}\n{THINK_CLOSE}\n\n", tuple(rules), {}, ())
    if kind == "look-up":
        wanted = chance.choices(names, k=chance.randint(8, 30))
        lines = "\n".join(f"- {name} is {LEVELS[levels[name]]} {name}." for name in wanted)
        prompt = f"{subject}: {render_levels(levels)}\nObserve."
        return Exercise(kind, prompt, f"{THINK_OPEN}\n{lines}\n{THINK_CLOSE}\n\n", (), levels, ())
    if kind in ("read-off", "spell"):
        of_rung = labels_of(ladder)
        wanted_rungs = chance.choices(range(len(RUNGS)), k=chance.randint(8, 20))
        lines = "\n".join(f"- total {RUNGS[rung]} {of_rung[rung]}." for rung in wanted_rungs)
        return Exercise(kind, f"Scale: {ladder}\nRead.", f"{THINK_OPEN}\n{lines}\n{THINK_CLOSE}\n\n", (), {}, of_rung)
    template = _prompt(_PROMPTS.get(kind, "embedded/rate"))
    prompt = template.fill(rules=rules, ladder=ladder, subject=subject, observations=render_levels(levels))
    completion = answer(prompt, chance.getrandbits(48), _SETTINGS)
    thought = f"{THINK_OPEN}\n{completion.reasoning}\n{THINK_CLOSE}\n\n"
    written = {
        "at-once": completion.text,
        "rate-first": f"{completion.text}\n\n{completion.reasoning}",
    }.get(kind, f"{thought}{completion.text}")
    return Exercise(kind, prompt, written, tuple(rules), levels, labels_of(ladder))


def labels_of(ladder: str) -> tuple[str, ...]:
    """Return the (10,) labels of a ladder's rungs, as text."""
    return tuple(rung.partition(" ")[2] for rung in ladder.removesuffix(".").split(". "))


def _copying(chance: random.Random) -> Exercise:
    """Return a random row of words, none of which comes twice, to be said again in random parts.

    What follows a word can be told by nothing but finding the word. A network that has only seen lines said again in
    their order finds them by their place, and then never learns to find anything by its name.
    """
    row = chance.sample(_WORDS, chance.randint(4, 30))
    said: list[str] = []
    while len(said) < 40:
        begin = chance.randrange(len(row) - 1)
        said += row[begin : begin + chance.randint(2, 5)]
    return Exercise("copy", "".join(row), "".join(said), (), {}, ())


def oracle_exercise(chance: random.Random) -> Exercise:
    """Return what an oracle writes who goes by rules of which the prompt says nothing."""
    levels = {name: chance.randrange(len(LEVELS)) for name in _OF_ONE_TEXT}
    ladder = render_ladder(OrdinalScale(type="ordinal", labels=[1, 2, 3, 4, 5]))
    shown = {"ladder": ladder, "subject": "Text", "observations": render_levels(levels)}
    told = answer(_prompt("embedded/rate").fill(rules=ORACLE_RULES, **shown), 0, _SETTINGS)
    written = f"{THINK_OPEN}\n{told.reasoning}\n{THINK_CLOSE}\n\n{told.text}"
    return Exercise("few", _prompt("embedded/rate").fill(rules=[], **shown), written, ORACLE_RULES, levels, ())


_SETTINGS = SamplingSettings()


@cache
def _prompt(name: str) -> Prompt:
    return load_prompt(name)
