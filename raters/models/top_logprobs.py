"""Log-probabilities of labels, read from the `top_logprobs` that a server sends with each token it wrote.

A server tells the most likely tokens at each place of the one answer that it wrote. So at the place behind `<rating>`
the first tokens of all labels can be seen, and what follows a first token only for the label that was written. A label
is reported if its first token tells it from the other labels; where labels begin alike (`1` and `10` in a vocabulary
of single digits), the written one is followed until they part, and the others are missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raters.scales import rating_start, rating_text

_NEGLIGIBLE = 0.01
"""Probability of a beginning that several labels share, up to which they are reported all the same."""
_ROUNDING = 1e-3
"""How far above 0 a logarithm may be by rounding."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token that a server wrote, and what else it might have written there.

    Attributes:
        text: Its bytes.
        entry: What the server says of it.
    """

    text: bytes
    entry: Mapping[str, Any]

    def options(self) -> dict[bytes, float]:
        """Return the probability of each likely token in its place by its bytes, its own among them."""
        others = self.entry.get("top_logprobs")
        found: dict[bytes, float] = {}
        for option in [self.entry, *(others if isinstance(others, list) else ())]:
            text, probability = _bytes(option), _probability(option)
            if text is not None and probability is not None:
                found.setdefault(text, probability)
        return found


def read_tokens(logprobs: object) -> list[Token] | None:
    """Return the tokens of a choice's `logprobs` field; None if the server sent none that can be read."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    tokens = []
    for entry in content:
        text = _bytes(entry)
        if text is None:
            return None  # without it nothing behind it has a known place
        tokens.append(Token(text, entry))
    return tokens


def label_logprobs(tokens: Sequence[Token], answer: str, labels: Sequence[str]) -> dict[str, float] | None:
    """Return the log-probability of each label behind the answer's `<rating>`, as far as the tokens tell.

    The same text with other white space or case around it is the same label. What ends a label is not scored, since
    nothing tells it for those that were not written.

    Args:
        tokens: All that the server wrote, reasoning included.
        answer: The answer without the reasoning.
        labels: The scale's labels as text.

    Returns:
        Natural logarithms by label; labels that were not reported, or cannot be told apart, are missing. None if the
        answer has no `<rating>`, is not what the tokens say, or goes on otherwise than its first token promises
        (`3.5`), so that first tokens mean no labels here.
    """
    begin = rating_start(answer)
    written_bytes = b"".join(token.text for token in tokens)
    at = written_bytes.rfind(_encoded(answer))
    if begin is None or at < 0:
        return None
    start = at + len(_encoded(answer[:begin]))
    forms = {label: _encoded(label).lower() for label in labels}
    found, shared = dict.fromkeys(labels, 0.0), dict.fromkeys(labels, 0.0)
    seen, reached = b"", 1.0  # what is written behind the tag so far, and its probability
    meant: list[str] = list(labels)
    end = 0
    for token in tokens:
        end += len(token.text)
        if end <= start:
            continue
        # A first token that begins with the end of the tag (`>3`) stands for what is behind it.
        before = max(0, start - (end - len(token.text)))
        written = seen + token.text[before:]
        texts = {
            seen + text[before:]: probability
            for text, probability in token.options().items()
            if len(text) > before and text[:before] == token.text[:before]
        }
        meant = _meant(written, forms, texts)
        for text, probability in texts.items():
            those = _meant(text, forms, texts)
            if len(those) == 1:
                found[those[0]] += reached * probability
            elif text != written and len(those) < len(labels):
                for label in those:
                    shared[label] += reached * probability
        if len(meant) < 2:
            break
        seen, reached = written, reached * texts.get(written, 0.0)
    stated = rating_text(answer)
    if len(meant) == 1 and stated is not None and _encoded(stated).lower() != forms[meant[0]]:
        return None
    if 1 < len(meant) < len(labels):  # the answer ended before they parted
        for label in meant:
            shared[label] += reached
    return {label: math.log(mass) for label, mass in found.items() if mass > 0 and shared[label] <= _NEGLIGIBLE}


def _meant(text: bytes, forms: Mapping[str, bytes], beside: Mapping[bytes, float]) -> list[str]:
    """Return the labels that a text may be the beginning of, or the one that it is.

    Args:
        text: What stands behind the tag.
        forms: Each label as it is written.
        beside: Texts that might stand there instead. A longer label that is one of them would have been written at
            once, so that its beginning is a label of its own.
    """
    text = text.lstrip().lower()
    possible = [
        label
        for label, form in forms.items()
        if form.startswith(text) or (text.startswith(form) and text[len(form) :].lstrip()[:1] in (b"", b"<"))
    ]
    whole = {other.strip().lower() for other in beside}
    exact = [label for label in possible if forms[label] == text.rstrip()]
    if exact and all(forms[label] in whole for label in possible):
        return exact
    return possible


def _bytes(entry: Any) -> bytes | None:
    """Return a token's bytes: as the server lists them, which holds parts of characters too, or those of its text."""
    if not isinstance(entry, dict):
        return None
    listed, text = entry.get("bytes"), entry.get("token")
    if isinstance(listed, list) and all(type(value) is int and 0 <= value < 256 for value in listed):
        return bytes(listed)
    return _encoded(text) if isinstance(text, str) else None


def _probability(entry: Any) -> float | None:
    value = entry.get("logprob") if isinstance(entry, dict) else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value <= _ROUNDING:
        return None
    return math.exp(value)


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
