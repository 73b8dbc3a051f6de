"""Traces: the reasoning of accepted candidates, what makes one doubtful, and how it leaves for training."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raters.journal import Record
from raters.models.protocol import THINK_CLOSE, THINK_OPEN, Completion, Message
from raters.records import Label
from raters.scales import AnyScale, IntervalScale, PairwiseScale

_FEWEST_WORDS, _FEWEST_LETTERS = 3, 12
_RATED = re.compile(r"<rating>.*?(</rating>|$)", re.IGNORECASE | re.DOTALL)
_LABEL = r"(?:label|rating|score|verdict|annotation)s?"
_KNOWS_LABEL = re.compile(
    rf"\b(?:the|this)\s+(?:given|provided|assigned|known|actual|true|gold|expected|target|reference|human|annotated)"
    rf"\s+{_LABEL}\b"
    rf"|\b(?:the|this)\s+correct\s+(?:label|rating|verdict|annotation)s?\b"
    rf"|\b(?:know|given|since|because|told)\s+(?:that\s+)?the\s+{_LABEL}\s+(?:is|was|has)\b"
    rf"|\b{_LABEL}\s+(?:(?:that\s+)?(?:was|is|has\s+been)\s+)?(?:already\s+)?(?:given|provided|assigned|known)\b"
    rf"|\b(?:annotators?|humans?|person|people|raters?)(?:'s|s'|\s+(?:gave|rated|chose|labell?ed|scored))\b"
    rf"|\b(?:i|we)\s+(?:was|were|am|are|have\s+been)\s+(?:told|given)\s+(?:that\s+)?(?:the\s+)?(?:{_LABEL}|answer)\b"
    r"|\bground[\s-]truth\b|\banswer\s+key\b",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"[^\n.!?]*(?:[.!?](?!\s|$)[^\n.!?]*)*[.!?]*[ \t]*\n?")
_COMPARES = re.compile(
    r"\b(?:wins?|winner|won|better|best|more|stronger|strongest|superior|ahead|beats?|prefer\w*|cho(?:o?se|ice|sen)|pick\w*|"
    r"answer|verdict|label|rating|rate[sd]?|convincing|persuasive|equal\w*|so|therefore|thus|hence|final\w*|goes|total)\b",
    re.IGNORECASE,
)
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def trace_of(completion: Completion) -> str:
    """Return a draw's reasoning: the model's thinking, or what it wrote before its rating if it shows none."""
    return completion.reasoning or _RATED.sub("", completion.text).strip()


def trace_flags(trace: str) -> tuple[str, ...]:
    """Return what makes a trace doubtful, as far as words show it.

    `mentions_known_label`: it speaks of a label that it should not know. `no_reasoning`: it ends before any.
    """
    flags = []
    if _KNOWS_LABEL.search(trace):
        flags.append("mentions_known_label")
    # Letters, because not every script parts its words.
    if len(trace.split()) < _FEWEST_WORDS and len(re.findall(r"[^\W\d_]", trace)) < _FEWEST_LETTERS:
        flags.append("no_reasoning")
    return tuple(flags)


def strip_ratings(text: str, scale: AnyScale) -> str:
    """Return an explanation of a label that was shown, without the sentences that name a label.

    Every sentence or line in which a label of the scale stands by itself is dropped, whatever it says: a reason lost
    costs less than a label that leaks. Numbers are labels in figures, and in words where they can be a rating; on an
    interval scale every number is one. The labels of a pair name its two texts as well, so there a sentence is
    dropped if it also compares or concludes.

    Args:
        text: What the model wrote.
        scale: The scale of the label.
    """
    names = _names_of_labels(scale)
    kept = []
    for sentence in _SENTENCE.findall(_RATED.sub("", text)):
        named = names.search(sentence)
        if named and (not isinstance(scale, PairwiseScale) or _COMPARES.search(sentence)):
            # The line break stays, or what follows would move up into the sentence before.
            kept.append("\n" if sentence.endswith("\n") else "")
        else:
            kept.append(sentence)
    return re.sub(r"\n{3,}", "\n\n", "".join(kept)).strip()


def _names_of_labels(scale: AnyScale) -> re.Pattern[str]:
    """Return a pattern that finds a label standing by itself."""
    if isinstance(scale, IntervalScale):
        return re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?!\w)")
    patterns = []
    for label in scale.labels:
        text = str(label)
        if isinstance(label, int) and 0 <= label < len(_NUMBER_WORDS):
            word = _NUMBER_WORDS[label]
            # Number words are everywhere, the rule reader's rungs included: only where one can be a rating.
            patterns.append(
                rf"(?i:(?:an?|it|of|is|rates?|rated|scores?|gives?)\s+{word}|{word}\s+(?:stars?|points?|out))"
            )
        # One letter is told from the article by its case; words are found however they are written.
        form = re.escape(text).replace("_", r"[\s_-]").replace(r"\ ", r"[\s_-]+")
        patterns.append(form if len(text) == 1 else f"(?i:{form})")
    return re.compile(rf"(?<![\w.+-])(?:{'|'.join(patterns)})(?!\w|\.\d)")


def training_record(candidate: Record, prompt: list[Message], rating: Label) -> Record:
    """Return a kept candidate with the conversation that a rater is to learn, in TRL's prompt/completion form.

    Args:
        candidate: A line of candidates.jsonl.
        prompt: What the rater is asked, in the order of texts that the trace speaks of.
        rating: The rating the trace ends in, in that order.
    """
    answer = f"{THINK_OPEN}\n{candidate['trace']}\n{THINK_CLOSE}\n\n<rating>{rating}</rating>"
    return {**candidate, "prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def most_different(traces: Sequence[str], count: int) -> list[int]:
    """Return the places of `count` traces that differ most, the first one among them, ascending.

    Greedy farthest-point choice on the Jaccard distance of their sets of words: each next trace is the one whose
    nearest chosen trace is farthest away (Gonzalez 1985); the earlier one of equals.
    """
    words = [frozenset(re.findall(r"\w+", trace.lower())) for trace in traces]
    chosen = [0][: len(traces)]
    while len(chosen) < min(count, len(traces)):
        rest = [place for place in range(len(traces)) if place not in chosen]
        chosen.append(max(rest, key=lambda place: min(_distance(words[place], words[other]) for other in chosen)))
    return sorted(chosen)


def _distance(first: frozenset[str], second: frozenset[str]) -> float:
    union = len(first | second)
    return 1 - len(first & second) / union if union else 0.0
