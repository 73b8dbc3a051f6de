"""Text fields -> observation lines, the controlled English that the embedded rater and the student read.

An observation is a plain surface statistic of an item's text in one of five levels: `length is high.` The
bins are fitted on training items by rank, so that the most common value lies in the middle, and travel with the
run. Pairwise items compare their two texts, and the bins are symmetric: exchanging the texts turns every
level around.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, pairwise
from typing import Any

import numpy as np

from raters.records import DataError, shown

LEVELS = ("lowest", "low", "middle", "high", "highest")
MIDDLE = LEVELS.index("middle")
MAX_FITTED_ITEMS = 2_000
"""Items the bins are fitted on at most; quintiles of so many are good to about two percent."""

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?…]+(?=\s|$)")
_FIRST_PERSON = frozenset("i me my mine myself we us our ours ourselves i'm i've i'd i'll we're we've".split())
_SECOND_PERSON = frozenset("you your yours yourself yourselves you're you've you'll you'd".split())
_CONNECTIVES = frozenset(
    (
        "although because but consequently either furthermore hence hereby however if moreover "
        "nevertheless nonetheless otherwise since so still then therefore though thus unless when "
        "whereas whether while yet"
    ).split()
)
_LONG_WORD = 7
_NEVER = float(np.finfo(np.float64).max)
"""A cut that no value reaches; finite, so that it can be written as JSON."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A text taken apart once for all its statistics."""

    raw: str
    words: list[str]
    distinct: frozenset[str]
    bigrams: frozenset[tuple[str, str]]
    repeated_bigrams: int

    @classmethod
    def of(cls, raw: str) -> _Text:
        words = _WORD.findall(raw.lower())
        pairs = list(pairwise(words))
        bigrams = frozenset(pairs)
        return cls(raw, words, frozenset(words), bigrams, len(pairs) - len(bigrams))

    def rate(self, count: float) -> float:
        return count / max(len(self.words), 1)


def _sentences(text: _Text) -> int:
    return max(len(_SENTENCE_END.findall(text.raw)), 1)


def _share(part: frozenset[Any], whole: frozenset[Any]) -> float:
    return len(part & whole) / max(len(whole), 1)


_OF_ONE: Mapping[str, Callable[[_Text], float]] = {
    "length": lambda text: len(text.words),
    "sentences": _sentences,
    "sentence_length": lambda text: len(text.words) / _sentences(text),
    "word_length": lambda text: text.rate(sum(map(len, text.words))),
    # Types over the root of tokens (Guiraud 1954): unlike types over tokens it does not fall with length.
    "richness": lambda text: len(text.distinct) / max(len(text.words), 1) ** 0.5,
    "repetition": lambda text: text.rate(text.repeated_bigrams),
    "long_words": lambda text: text.rate(sum(len(word) >= _LONG_WORD for word in text.words)),
    "first_person": lambda text: text.rate(sum(word in _FIRST_PERSON for word in text.words)),
    "second_person": lambda text: text.rate(sum(word in _SECOND_PERSON for word in text.words)),
    "capitals": lambda text: sum(map(str.isupper, text.raw)) / max(len(text.raw), 1),
    "exclamations": lambda text: text.rate(text.raw.count("!")),
    "questions": lambda text: text.rate(text.raw.count("?")),
    "digits": lambda text: sum(map(str.isdigit, text.raw)) / max(len(text.raw), 1),
    "connectives": lambda text: text.rate(sum(word in _CONNECTIVES for word in text.words)),
    "commas": lambda text: text.rate(text.raw.count(",")),
    "closed_end": lambda text: float(text.raw.rstrip().endswith((".", "!", "?", '"', "…"))),
    "capital_start": lambda text: float(text.raw.lstrip()[:1].isupper()),
}
_OF_TWO: Mapping[str, Callable[[_Text, _Text], float]] = {
    # How much of the second text's words is in this one; coverage is how much of this one's is in the second.
    "overlap": lambda text, second: _share(text.distinct, second.distinct),
    "coverage": lambda text, second: _share(second.distinct, text.distinct),
    "bigram_overlap": lambda text, second: _share(text.bigrams, second.bigrams),
}
STATISTICS = (*_OF_ONE, *_OF_TWO)
IN_WORDS: Mapping[str, str] = {
    "length": "the number of words",
    "sentences": "the number of sentences",
    "sentence_length": "words per sentence",
    "word_length": "letters per word",
    "richness": "how many different words are used, for the length",
    "repetition": "repeated pairs of words",
    "long_words": "the share of long words (seven letters or more)",
    "first_person": "speaking of oneself (I, we, my)",
    "second_person": "speaking to the reader (you, your)",
    "capitals": "the share of capital letters",
    "exclamations": "exclamation marks, for the length",
    "questions": "question marks, for the length",
    "digits": "figures (digits)",
    "connectives": "connecting words (because, however, therefore)",
    "commas": "commas, for the length",
    "closed_end": "ending in a full stop or another closing mark",
    "capital_start": "beginning with a capital letter",
    "overlap": "how much of the other text's words is taken up",
    "coverage": "how much of its own words is in the other text",
    "bigram_overlap": "how many pairs of neighbouring words are taken over from the other text",
}
"""What each statistic is, for people."""


@dataclass(frozen=True, slots=True)
class Observations:
    """Fitted observations: which fields are read, and where the levels begin.

    Attributes:
        fields: The text that is described, or the two texts that are compared.
        second: A field that the text is held against (question, statement, topic); None if there is none.
        cuts: By statistic, the four values at which the levels above the lowest begin, ascending.
    """

    fields: tuple[str, ...]
    second: str | None
    cuts: Mapping[str, tuple[float, ...]]

    @property
    def is_pairwise(self) -> bool:
        """True if two texts are compared."""
        return len(self.fields) == 2

    def levels(self, inputs: Mapping[str, str]) -> dict[str, int]:
        """Return the level, 0 to 4, of every statistic; a missing field counts as an empty text."""
        return levels_of(inputs, self.fields, self.second, self.cuts)

    def as_record(self) -> dict[str, Any]:
        """Return the fit as plain values, for a run's folder or a rater.yaml."""
        cuts = {name: list(values) for name, values in self.cuts.items()}
        return {"fields": list(self.fields), "second": self.second, "cuts": cuts}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Observations:
        """Return the fit that `as_record` wrote.

        Raises:
            DataError: If the record is not one.
        """
        try:
            cuts = {str(name): tuple(float(cut) for cut in values) for name, values in record["cuts"].items()}
            fields, second = record["fields"], record["second"]
            if not all(isinstance(name, str) for name in [*fields, second or ""]) or isinstance(fields, str):
                raise TypeError(f"fields {shown(fields)} and second {shown(second)} are not names")
            if record.keys() - {"fields", "second", "cuts"} or not np.isfinite([*chain(*cuts.values())]).all():
                raise ValueError("unknown keys, or cuts that are no numbers")
            fitted = cls(tuple(fields), second, cuts)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"observations: {error!r} in a fit that was read; fit them again") from error
        wanted = STATISTICS if fitted.second is not None else tuple(_OF_ONE)
        if len(fitted.fields) not in (1, 2) or set(cuts) != set(wanted) or any(len(c) != 4 for c in cuts.values()):
            raise DataError("observations: a fit has other statistics than this version; fit them again")
        return fitted


def fit_observations(inputs: Sequence[Mapping[str, str]], pair: tuple[str, str] | None = None) -> Observations:
    """Return observations with bins fitted on items' texts.

    The described text is the field with the most words on average, the second field the next after it; on a
    pairwise scale the two compared fields are given and the second is the longest of the others.

    Args:
        inputs: Text fields of at least one training item.
        pair: The two compared fields of a pairwise scale.
    """
    totals: dict[str, int] = {}
    for fields in inputs:
        for name, text in fields.items():
            totals[name] = totals.get(name, 0) + len(text.split())
    by_length = sorted(totals, key=lambda name: (-totals[name], name))
    described = pair if pair is not None else (by_length[0],)
    second = next((name for name in by_length if name not in described), None)
    columns: dict[str, list[float]] = {}
    for fields in inputs:
        for name, value in _measure(fields, described, second).items():
            columns.setdefault(name, []).append(value)
    cuts = {name: _cuts(np.array(values), symmetric=pair is not None) for name, values in columns.items()}
    return Observations(described, second, cuts)


def levels_of(
    inputs: Mapping[str, str], fields: Sequence[str], second: str | None, cuts: Mapping[str, Sequence[float]]
) -> dict[str, int]:
    """Return the level, 0 to 4, of every statistic of an item; see `Observations`."""
    values = _measure(inputs, tuple(fields), second)
    return {name: sum(value >= cut for cut in cuts[name]) for name, value in values.items()}


def render_levels(levels: Mapping[str, int], *, swapped: bool = False) -> str:
    """Return levels in controlled English; `swapped` turns each around, as exchanged texts would."""
    top = len(LEVELS) - 1
    return " ".join(f"{name} is {LEVELS[top - level if swapped else level]}." for name, level in levels.items())


def sampled(count: int, most: int = MAX_FITTED_ITEMS) -> Iterable[int]:
    """Return at most `most` places out of `count`, evenly spaced."""
    return range(count) if count <= most else (round(place * (count - 1) / (most - 1)) for place in range(most))


def _measure(inputs: Mapping[str, str], fields: tuple[str, ...], second: str | None) -> Mapping[str, float]:
    texts = tuple(inputs.get(name, "") for name in fields)
    return _measured(texts, None if second is None else inputs.get(second, ""))


@lru_cache(maxsize=4096)  # a rater asks for the same item once a draw
def _measured(texts: tuple[str, ...], second: str | None) -> Mapping[str, float]:
    held_against = None if second is None else _Text.of(second)
    measured = [_measure_text(_Text.of(text), held_against) for text in texts]
    if len(measured) == 1:
        return measured[0]
    first, other = measured
    return {name: value - other[name] for name, value in first.items()}


def _measure_text(text: _Text, second: _Text | None) -> dict[str, float]:
    values = {name: float(statistic(text)) for name, statistic in _OF_ONE.items()}
    if second is not None:
        values |= {name: statistic(text, second) for name, statistic in _OF_TWO.items()}
    return values


def _cuts(values: np.ndarray[Any, np.dtype[np.float64]], *, symmetric: bool) -> tuple[float, ...]:
    """Return the least values whose middle rank reaches 1/5, 2/5, 3/5 and 4/5; `_NEVER` where none does.

    With `symmetric` the ranks are those of the values and their negatives together, and the lower cuts mirror
    the upper ones.
    """
    found, counts = np.unique(np.r_[values, -values] if symmetric else values, return_counts=True)
    middle_ranks = (np.cumsum(counts) - counts / 2) / counts.sum()
    cuts = [
        float(found[ranks[0]]) if len(ranks := np.flatnonzero(middle_ranks >= share)) else _NEVER
        for share in (0.2, 0.4, 0.6, 0.8)
    ]
    if symmetric:
        # A value equal to a cut lies above it; the mirror image must lie below its own.
        cuts[:2] = [float(np.nextafter(-cut, np.inf)) for cut in (cuts[3], cuts[2])]
    return tuple(cuts)
