"""How well the student writes, field by field: what it wrote, against what its own prompt and lines lead to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from data.student.tasks import Exercise
from raters.models.embedded import RUNGS, STRENGTHS
from raters.observations import LEVELS, MIDDLE

_START = re.compile(rf"- start (maybe )?({'|'.join(RUNGS)})\.")
_STEP = re.compile(
    rf"- (\w+) is ({'|'.join(LEVELS)}) (\w+) (helps|hurts) (maybe )?({'|'.join(STRENGTHS)}) ([+-]\d+) "
    rf"({'|'.join(RUNGS)})\."
)
_TOTAL = re.compile(rf"- total ({'|'.join(RUNGS)}) (.+)\.")
_RATING = re.compile(r"<rating>(.*)</rating>")
FIELDS = ("format", "observation", "level", "tally", "verdict", "guideline")


@dataclass
class Tally:
    """How often each field was right.

    Attributes:
        right: Field -> times it was.
        asked: Field -> times it could be.
    """

    right: Counter[str]
    asked: Counter[str]

    def note(self, field: str, is_right: bool) -> None:
        """Count one case."""
        self.asked[field] += 1
        self.right[field] += is_right

    def shares(self) -> dict[str, float]:
        """Return the share right of every field that was asked."""
        return {field: self.right[field] / self.asked[field] for field in FIELDS if self.asked[field]}


def measure(written: Iterable[tuple[Exercise, str, str]]) -> dict[str, float]:
    """Return the share right of every field.

    Args:
        written: (exercise, reasoning, answer) of each draw, of exercises in which reasoning comes first.
    """
    tally = Tally(Counter(), Counter())
    for exercise, reasoning, answer in written:
        _measure(exercise, reasoning, answer, tally)
    return tally.shares()


def _measure(exercise: Exercise, reasoning: str, answer: str, tally: Tally) -> None:
    """Count the fields of one draw; behind a line that cannot be read nothing more can be said."""
    first, *steps, last = reasoning.split("\n") if reasoning.count("\n") else (reasoning, "")
    start, total = _START.fullmatch(first), _TOTAL.fullmatch(last)
    read = [_STEP.fullmatch(line) for line in steps]
    rating = _RATING.fullmatch(answer.strip())
    tally.note("format", all((start, total, rating, *read)))
    if start is None or total is None or rating is None:
        return
    rung, applied = RUNGS.index(start[2]), []
    for step in read:
        if step is None:
            return
        name, level, again, direction, maybe, strength, change, reached = step.groups()
        tally.note("observation", name in exercise.levels and again == name)
        tally.note("level", name in exercise.levels and LEVELS[exercise.levels[name]] == level)
        weight = (STRENGTHS.index(strength) + 1) * (1 if direction == "helps" else -1)
        expected = weight * (LEVELS.index(level) - MIDDLE)
        rung = min(max(rung + expected, 0), len(RUNGS) - 1)
        tally.note("tally", int(change) == expected and reached == RUNGS[rung])
        rung = RUNGS.index(reached)
        if maybe is None:
            applied.append(f"{name} {direction} {strength}")
    tally.note("tally", total[1] == RUNGS[rung])
    tally.note("verdict", total[2] == rating[1] == exercise.labels[RUNGS.index(total[1])])
    stated = [rule for rule in exercise.rules if not rule.startswith(("start at", "rest ignored"))]
    begun = [rule.removeprefix("start at ") for rule in exercise.rules if rule.startswith("start at")]
    follows = applied == [rule for rule in stated if rule.split()[0] in exercise.levels]
    begins = (start[1] is None and begun == [start[2]]) or (start[1] is not None and not begun)
    guesses = any(step is not None and step[5] for step in read)
    unstated = set(exercise.levels) - {rule.split()[0] for rule in stated}
    may_guess = bool(unstated) and "rest ignored" not in exercise.rules
    tally.note("guideline", follows and begins and guesses == may_guess)
