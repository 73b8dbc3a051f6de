"""Traces: the reasoning of accepted candidates, what makes one doubtful, and how it leaves for training."""

from __future__ import annotations

import re
from collections.abc import Sequence

from raters.journal import Record
from raters.models.protocol import THINK_CLOSE, THINK_OPEN, Completion, Message
from raters.records import Label

_FEWEST_WORDS_OF_REASONING = 3
_RATED = re.compile(r"<rating>.*?(</rating>|$)", re.IGNORECASE | re.DOTALL)
_KNOWS_LABEL = re.compile(
    r"\b(?:the|this|a)\s+(?:given|provided|known|actual|correct|true|gold|expected|target|reference|human|annotated)"
    r"\s+(?:label|rating|score|verdict|annotation)s?\b"
    r"|\b(?:label|rating|score|verdict)\s+(?:that\s+)?(?:was|is|has\s+been)\s+(?:already\s+)?(?:given|provided|known)\b"
    r"|\b(?:annotators?|humans?|person)(?:'s|s')\s+(?:label|rating|score|verdict)\b"
    r"|\bground[\s-]truth\b|\banswer\s+key\b"
    r"|\b(?:i|we)\s+(?:was|were|am|are|have\s+been)\s+(?:told|given)\s+(?:that\s+)?the\s+(?:label|rating|answer|score)\b",
    re.IGNORECASE,
)
FLAGS = ("mentions_known_label", "no_reasoning")


def trace_of(completion: Completion) -> str:
    """Return a draw's reasoning: the model's thinking, or what it wrote before its rating if it shows none."""
    return completion.reasoning or _RATED.sub("", completion.text).strip()


def trace_flags(trace: str) -> tuple[str, ...]:
    """Return what makes a trace doubtful: it speaks of a label it should not know, or ends before reasoning."""
    flags = []
    if _KNOWS_LABEL.search(trace):
        flags.append("mentions_known_label")
    if len(trace.split()) < _FEWEST_WORDS_OF_REASONING:
        flags.append("no_reasoning")
    return tuple(flags)


def strip_ratings(text: str, labels: Sequence[Label]) -> str:
    """Return an explanation without explicit mentions of the rating.

    Rating tags go with their content; after words such as rating, score, label or total the label itself goes,
    as it does before `/ 5` or `out of 5`.

    Args:
        text: What the model wrote about a label that it was shown.
        labels: The scale's labels; any number if there are none.
    """
    names = "|".join(re.escape(str(label)) for label in sorted(labels, key=lambda label: -len(str(label))))
    names = names or r"\d+(?:\.\d+)?"
    text = _RATED.sub("", text)
    text = re.sub(
        rf"\b((?:rat(?:e[ds]?|ings?)|scor(?:e[ds]?|ing)|label(?:l?ed|s)?|verdict|grade[ds]?|total)\b[^.\n]{{0,40}}?)"
        rf"(?<![\w-])[`'\"*]*(?:{names})(?:[`'\"*\s]+(?:{names}))*[`'\"*]*(?![\w-])",
        r"\1",
        text,
        flags=re.IGNORECASE,
    )
    return re.sub(rf"(?<![\w.-])(?:{names})\s*(?:/|out of)\s*\d+\b", "", text, flags=re.IGNORECASE).strip()


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
