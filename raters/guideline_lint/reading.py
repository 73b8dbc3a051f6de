"""A guideline as blocks and sentences, in which the labels of a scale are told from other words and numbers."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from raters.guideline_lint.words import APOSTROPHES, LONGEST_TOKEN, PLAIN
from raters.scales import AnyScale, IntervalScale, listed_labels

_TOKEN = re.compile(
    r"(?:(?<![\w)\]`*|])[-−+](?=\d))?(?:\d{1,3}(?:,\d{3}){1,4}(?![\d,])|\d+(?:\.\d+)?)[^\W\d_]*"  # a number
    rf"|[^\W\d_]+(?:[{APOSTROPHES}][^\W\d_]+)*"  # a word
    r"|[^\w\s]|_"
)
_NUMBER = re.compile(r"([-−+]?[\d.,]+)(s?)")
_MARKUP = frozenset('*_`"“”„«»~') | frozenset(APOSTROPHES) | {"‘"}
_HYPHENS = frozenset("-‐‑")
_ENDS = frozenset(".!?。")
_NUMBER_WORDS = {
    word: float(place)
    for place, word in enumerate("zero one two three four five six seven eight nine ten".split())
    if word != "one"  # which is a pronoun more often than a label
}
_MARKER = re.compile(r"[\s>]*(?:(?P<heading>#{1,6}\s)|(?P<row>\|)|(?P<item>(?:[-*+•–]|\(?\d{1,3}[.)]|[a-zA-Z]\))\s))?")
_TERM = re.compile(r"[\s|*]*`([^`\s][^`]{0,39})`[\s*]*[:=|–—-]")
_RULER = re.compile(r"[\s|:+=~*`-]*")
_AFTER_LABEL = frozenset("is was or and if when as in for to wins beats gets should".split())
_MEANS = frozenset(":=|–—-→")


class Token(NamedTuple):
    """A word, number or sign.

    Attributes:
        text: `L=2` for a number that is a label; `W=#1` for the words of the second label, `L=#1` if they stand in
            quotes or as code or are a single capital letter; `N=7` for any other number, `P%` for a percentage; else
            the word in small letters, or the sign.
        line: Line of the text, from 1.
        start: Place of its first character in the line.
        end: Place behind its last one.
        marked: True between quotes or emphasis.
        ends_sentence: True for a sign at the end of a sentence.
    """

    text: str
    line: int
    start: int
    end: int
    marked: bool
    ends_sentence: bool


class Sentence(NamedTuple):
    """Tokens up to the end of a sentence or block.

    Attributes:
        line: Line on which it begins, from 1.
        last_line: Line on which it ends.
        text: The tokens with one blank around each.
        words: Those that are words or numbers.
        shown: As it stands in the text.
        tokens: What it is made of.
    """

    line: int
    last_line: int
    text: str
    words: tuple[str, ...]
    shown: str
    tokens: Sequence[Token]


@dataclass(slots=True)
class Block:
    """A heading, list item, table row or paragraph.

    Attributes:
        label: Token of the label that it says the meaning of, as in "4: helpful"; empty if of none.
        gloss: Words of that meaning.
        off_scale: The number that stands in a label's place but is none.
        term: What stands in a label's place as code.
    """

    kind: str
    line: int
    tokens: list[Token]
    plain: dict[int, str]
    label: str = ""
    gloss: tuple[str, ...] = ()
    off_scale: str | None = None
    term: str | None = None

    def sentences(self) -> Iterator[Sentence]:
        """Yield the sentences in their order."""
        begin = 0
        for place, token in enumerate(self.tokens, start=1):
            if token.ends_sentence or place == len(self.tokens):
                yield self.sentence(self.tokens[begin:place])
                begin = place

    def lines_of(self, sentence: Sentence) -> Iterator[Sentence]:
        """Yield what stands on each line of a wrapped sentence; nothing for one that is not wrapped."""
        if sentence.line != sentence.last_line:
            for _, tokens in groupby(sentence.tokens, key=lambda token: token.line):
                yield self.sentence(list(tokens))

    def sentence(self, tokens: Sequence[Token]) -> Sentence:
        """Return some of the block's tokens as a sentence."""
        first, last = tokens[0], tokens[-1]
        shown = []
        for line in range(first.line, last.line + 1):
            begin = first.start if line == first.line else 0
            shown.append(self.plain.get(line, "")[begin : last.end if line == last.line else None].strip())
        text = f" {' '.join(token.text for token in tokens)} "
        return Sentence(first.line, last.line, text, spoken(tokens), " ".join(shown), tokens)

    @property
    def shown(self) -> str:
        """The block as it stands in the text, without its marker."""
        return self.sentence(self.tokens).shown if self.tokens else ""


def spoken(tokens: Iterable[Token]) -> tuple[str, ...]:
    """Return the tokens that are words or numbers."""
    return tuple(token.text for token in tokens if token.text[0].isalnum())


class Reader:
    """Reads a guideline into blocks of tokens, in which the labels of a scale are told from other words."""

    def __init__(self, scale: AnyScale) -> None:
        self._scale = scale
        self._numbers: set[float] = set()
        self._names: dict[str, list[tuple[tuple[str, ...], str]]] = defaultdict(list)
        for place, label in enumerate(listed_labels(scale)):
            if not isinstance(label, str):
                self._numbers.add(float(label))
                continue
            parts = [part for part in _TOKEN.findall(label.translate(PLAIN)) if part not in _MARKUP | _HYPHENS]
            value = _number(parts[0]) if len(parts) == 1 else None
            if value is not None:
                self._numbers.add(value)
            elif parts:
                # One letter is told from a word by its case.
                name = tuple(parts) if len(label) == 1 else tuple(part.lower() for part in parts)
                self._names[name[0]].append((name, f"#{place}"))
        for names in self._names.values():
            names.sort(key=lambda entry: -len(entry[0]))

    def blocks(self, text: str) -> list[Block]:
        """Return the blocks of a text in their order."""
        blocks: list[Block] = []
        going_on = False
        for number, line in enumerate(text.splitlines(), start=1):
            plain = line.translate(PLAIN)
            if _RULER.fullmatch(plain):  # blank, the rule under a table's head or a heading, or a fence
                if plain.strip() and blocks and blocks[-1].line + len(blocks[-1].plain) == number:
                    ruled = blocks[-1]
                    if ruled.kind == "row" or (ruled.kind == "text" and set(plain.strip()) <= set("=-")):
                        ruled.kind = "heading"
                going_on = False
                continue
            marker = _MARKER.match(plain)
            assert marker is not None
            kind = marker.lastgroup or "text"
            block = Block(kind, number, self._tokens(plain, marker.end(), number), {number: plain})
            self._read_rubric(block, plain[marker.end() :])
            explains = block.label or block.off_scale or block.term
            # A line of its own behind a list item or an explained label is not a part of it, unless it is indented.
            indented = plain.startswith(" ") or (going_on and blocks[-1].kind == "text" and not blocks[-1].label)
            if kind == "text" and going_on and indented and not explains:
                blocks[-1].plain[number] = plain
                blocks[-1].tokens += block.tokens
                if blocks[-1].label:
                    blocks[-1].gloss += spoken(block.tokens)
                continue
            if kind == "text" and re.fullmatch(r"\s*\*\*[^*]{1,80}(?<![.!?:])\*\*\s*", plain):
                block.kind = "heading"
            blocks.append(block)
            going_on = block.kind in ("text", "item")
        return blocks

    def _read_rubric(self, block: Block, plain: str) -> None:
        """Note the label whose meaning a line gives."""
        tokens = block.tokens
        term = _TERM.match(plain)
        block.term = term[1] if term else None
        if block.kind == "heading" or len(tokens) < 2 or tokens[1].text not in _MEANS:
            return
        label, third = tokens[0].text, tokens[2].text if len(tokens) > 2 else ""
        if third[:2] in ("L=", "N=", "P%") and tokens[1].text in (":", "-", "–", "—"):
            return  # a time or a range
        if label[:2] in ("L=", "W="):
            block.label, block.gloss = label[2:], spoken(tokens[2:])
        elif label.startswith("N="):
            block.off_scale = label[2:]

    def _tokens(self, plain: str, start: int, line: int) -> list[Token]:
        found = list(_TOKEN.finditer(plain, start))
        said = [place for place, match in enumerate(found) if not self._joins(match[0], plain, match.start())]
        tokens: list[Token] = []
        at = 0
        while at < len(said):
            text, taken = self._token_at(found, said, at, bool(tokens) and not tokens[-1].ends_sentence)
            first, last = said[at], said[at + taken - 1]
            around = (found[first - 1][0] if first else "", found[last + 1][0] if last + 1 < len(found) else "")
            marked = all(sign in _MARKUP for sign in around)
            text = f"L={text[2:]}" if marked and text.startswith("W=") else text
            end = found[last].end()
            tokens.append(
                Token(text, line, found[first].start(), end, marked, _ends_sentence(text, plain, end, tokens))
            )
            at += taken
        return tokens

    @staticmethod
    def _joins(sign: str, plain: str, start: int) -> bool:
        """True for emphasis and quotes, and for a hyphen before a letter inside a word."""
        if sign not in _HYPHENS:
            return sign in _MARKUP
        return 0 < start < len(plain) - 1 and plain[start - 1].isalnum() and plain[start + 1].isalpha()

    def _token_at(self, found: Sequence[re.Match[str]], said: Sequence[int], at: int, inside: bool) -> tuple[str, int]:
        """Return a token's text and of how many signs it is made."""
        raw = found[said[at]][0]
        small = raw.lower()
        for key in sorted({raw, small, small.removesuffix("s")}):
            for name, place in self._names.get(key, ()):
                parts = [found[place][0] for place in said[at : at + len(name)]]
                if _same_words(parts, name):
                    following = found[said[at + 1]][0] if at + 1 < len(said) else ""
                    if raw in ("A", "I") and not inside and following.isalpha() and following not in _AFTER_LABEL:
                        break  # the article or the pronoun that begins a sentence
                    return ("L=" if raw == name[0] and len(raw) == 1 else "W=") + place, len(name)
        value = _NUMBER_WORDS.get(small, _number(raw))
        if value is None:
            word = re.sub(f"[{APOSTROPHES}]", "", small)
            return word[:LONGEST_TOKEN], 1
        unit = [found[place][0].lower() for place in said[at + 1 : at + 3]]
        if unit[:1] in (["%"], ["percent"], ["pct"]):
            return "P%", 2
        if unit == ["per", "cent"]:
            return "P%", 3
        if isinstance(self._scale, IntervalScale):
            on_scale = self._scale.min <= value <= self._scale.max
        else:
            on_scale = value in self._numbers
        return f"{'L' if on_scale else 'N'}={value:.12g}", 1


def _same_words(parts: Sequence[str], name: Sequence[str]) -> bool:
    """True if words are a label's, or its plural."""
    if len(name) == 1 == len(name[0]):
        return parts[0] == name[0]
    said = [part.lower() for part in parts]
    return len(said) == len(name) and said[:-1] == [*name[:-1]] and said[-1] in (name[-1], f"{name[-1]}s")


def _number(text: str) -> float | None:
    """Return the value of a number as it stands in prose: 3, 2.5, -1, 1,000, and 3s for several threes."""
    match = _NUMBER.fullmatch(text[: LONGEST_TOKEN + 1])
    if match is None or len(text) > LONGEST_TOKEN or not any(char.isdigit() for char in text):
        return None
    try:
        return float(match[1].replace(",", "").replace("−", "-"))
    except ValueError:
        return None


def _ends_sentence(text: str, plain: str, end: int, before: Sequence[Token]) -> bool:
    if text not in _ENDS:
        return False
    if text == "。":
        return True
    rest = plain[end : end + 2].lstrip("*_`\"”’')]")
    abbreviated = text == "." and before and re.fullmatch(r"[a-z]|vs|etc|cf|approx", before[-1].text)
    return not abbreviated and (not rest or rest[0] == " ")
