"""What an edited guideline must not do, checked before the edit is kept.

The published guidelines of Zhang et al. 2026 were never checked: one tells raters of a dimension to rate another.
Six checks, all of words alone: another dimension is named, an item is quoted, the frequency of a label is told, the
scale is contradicted, a rule of the original is lost, the text is too long. What the original itself says is never a
finding. Frequencies, scales and reworded rules are read in English; names, quotes and lengths in any language.

A guideline is untrusted text. Patterns run over short tokens with bounded repetition, so time grows with the length
of the text alone, and a text ten times too long is not read further.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raters.guideline_lint.frequencies import tells_frequency
from raters.guideline_lint.reading import Block, Reader, Sentence, spoken
from raters.guideline_lint.rules import Kept, rules_of
from raters.guideline_lint.scale_words import inverts, off_scale
from raters.guideline_lint.words import (
    among,
    count_words,
    grams,
    item_grams,
    line_of_word,
    names_to_find,
    words_with_lines,
)
from raters.models.protocol import one_line
from raters.scales import AnyScale, IntervalScale, listed_labels

_LEAST_LIMIT, _TIMES_ORIGINAL = 400, 3  # words
_NOT_READ_BEYOND = 10  # times the limit

_MENDS = {
    "too_long": "shorten it",
    "other_dimension": "speak of {dimension} alone",
    "quotes_item": "say it in general words, not in those of a rated text",
    "states_frequency": "say what earns a label, not how often it is given",
    "contradicts_scale": "keep to the scale {scale} as the original describes it",
    "lost_rule": "put it back, or name the line that replaces it",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One reason not to keep an edited guideline.

    Attributes:
        line: Line of the guideline, from 1; for `lost_rule` the line of the original where the rule stood.
        check: `other_dimension`, `quotes_item`, `states_frequency`, `contradicts_scale`, `lost_rule` or `too_long`.
        detail: What is wrong, with the words in question, and what to do.
    """

    line: int
    check: str
    detail: str

    def __str__(self) -> str:
        """Return the finding as one line."""
        return f"{'original' if self.check == 'lost_rule' else 'guideline'} line {self.line}: {self.detail}"


class GuidelineLint:
    """The checks for one dimension of one corpus; made once, asked for every edit."""

    def __init__(
        self,
        original: str,
        dimension: str,
        scale: AnyScale,
        other_dimensions: Sequence[str],
        item_texts: Iterable[str],
        *,
        most_words: int | None = None,
        ngram: int = 7,
    ) -> None:
        """Read the original guideline and the items, of which 8 bytes for each different n-gram stay in memory.

        Args:
            original: The guideline that is edited.
            dimension: Name of the rated dimension.
            scale: Its scale.
            other_dimensions: Names of the corpus's dimensions; the rated one among them does not count. Names of one
                or two letters are not looked for.
            item_texts: Every text field of every train item; read once.
            most_words: Longest guideline; None for 400 words, or three times the original if that is more.
            ngram: Words in a row that make a quote; two characters are a word where writing does not part words.
        """
        words, _ = words_with_lines(original)
        self._scale = scale
        self._ngram = ngram
        usual = max(_LEAST_LIMIT, _TIMES_ORIGINAL * count_words(words))
        self._most_words = usual if most_words is None else most_words
        filled = {"dimension": one_line(dimension.replace("_", " "), 80), "scale": one_line(str(scale), 80)}
        self._mends = {check: mend.format(**filled) for check, mend in _MENDS.items()}
        self._names = names_to_find(dimension, other_dimensions, words)
        self._quotable = item_grams(item_texts, ngram)
        self._own_grams = np.sort(grams(words, ngram)[1])
        self._reader = Reader(scale)
        blocks = self._reader.blocks(original)
        sentences = [sentence for block in blocks for sentence in block.sentences()]
        self._rules = rules_of(blocks)
        self._original_lines = original.splitlines()
        self._said = {sentence.words for sentence in sentences}
        self._inverted = any(inverts(sentence.text, scale) for sentence in sentences)
        self._own_blocks = {spoken(block.tokens) for block in blocks}
        glosses = {block.label: block.gloss for block in blocks if block.gloss}
        self._others_glosses = {label: set(glosses.values()) - {gloss} for label, gloss in glosses.items()}
        self._codes_labels = any(block.term is not None and block.label for block in blocks)

    def findings(self, guideline: str, replaced: Mapping[str, str] = {}) -> list[Finding]:
        """Return what is wrong with an edited guideline, in the order of its lines; lost rules come last.

        Args:
            guideline: The guideline after the edit.
            replaced: Line or sentence of the original -> line that stands for it now, which may be replaced in turn.
        """
        words, lines = words_with_lines(guideline)
        found = []
        length = count_words(words)
        if length > self._most_words:
            line = line_of_word(words, lines, self._most_words)
            found.append(self._finding(line, "too_long", f"has {length:,} words, {self._most_words:,} are the most"))
            if length > _NOT_READ_BEYOND * self._most_words:
                return found
        for place, name in self._named(words):
            found.append(self._finding(lines[place], "other_dimension", f"names another dimension, {_quoted(name)}"))
        for first, end in self._quotes(words):
            detail = f"quotes an item, {_quoted(' '.join(words[first:end]))}"
            found.append(self._finding(lines[first], "quotes_item", detail))
        blocks = self._reader.blocks(guideline)
        label_lines = {block.line for block in blocks if block.label}
        for block in blocks:
            found += self._findings_of_block(block, bool({block.line - 1, block.line + 1} & label_lines))
        order = list(_MENDS)
        found.sort(key=lambda finding: (finding.line, order.index(finding.check)))
        return [*_first_of_each(found), *self._lost_rules(guideline, blocks, replaced)]

    def _finding(self, line: int, check: str, detail: str) -> Finding:
        return Finding(line, check, f"{detail}; {self._mends[check]}")

    def _named(self, words: Sequence[str]) -> Iterator[tuple[int, str]]:
        """Yield (place of the first word, name) of each dimension named; the longest name where several fit."""
        place = 0
        while place < len(words):
            for name, other in self._names.get(words[place].rstrip("s"), ()):
                said = words[place : place + len(name)]
                if said[:-1] == list(name[:-1]) and said[-1:] and said[-1].rstrip("s") == name[-1].rstrip("s"):
                    if other is not None:
                        yield place, other
                    place += len(name) - 1
                    break
            place += 1

    def _quotes(self, words: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of each run of words whose n-grams stand in items."""
        starts, hashes, sizes = grams(words, self._ngram)
        hit = among(hashes, self._quotable) & ~among(hashes, self._own_grams)
        first = end = 0
        for start, size in sorted(zip(starts[hit].tolist(), sizes[hit].tolist(), strict=True)):
            if start > end or end == 0:
                if end:
                    yield first, end
                first = start
            end = max(end, start + size)
        if end:
            yield first, end

    def _findings_of_block(self, block: Block, among_labels: bool) -> Iterator[Finding]:
        """Yield findings about the scale; `among_labels` if a line before or after says what a label means."""
        for sentence in block.sentences():
            if sentence.words not in self._said:
                # Its lines may be rules without full stops.
                for said in (sentence, *block.lines_of(sentence)):
                    yield from self._findings_of_sentence(said)
        for problem in self._rubric_problems(block, among_labels):
            yield self._finding(block.line, "contradicts_scale", f"{problem}, {_quoted(block.shown)}")

    def _findings_of_sentence(self, sentence: Sentence) -> Iterator[Finding]:
        shown = _quoted(sentence.shown)
        if tells_frequency(sentence.text):
            yield self._finding(sentence.line, "states_frequency", f"says how often a label is given, {shown}")
        for problem in off_scale(sentence.text, self._scale):
            yield self._finding(sentence.line, "contradicts_scale", f"{problem}, {shown}")
        if not self._inverted and inverts(sentence.text, self._scale):
            yield self._finding(sentence.line, "contradicts_scale", f"turns the order of labels round, {shown}")

    def _rubric_problems(self, block: Block, among_labels: bool) -> Iterator[str]:
        """Yield what is wrong with a line that says what a label means, unless the original has it."""
        if spoken(block.tokens) in self._own_blocks:
            return
        if block.off_scale is not None:
            numeric = isinstance(self._scale, IntervalScale) or not isinstance(listed_labels(self._scale)[0], str)
            if numeric or block.tokens[0].marked:
                yield f"gives a meaning to {block.off_scale}"
        elif block.term is not None and not block.label and among_labels and self._codes_labels:
            if self._scale.parse(block.term) is None:
                yield f"gives a meaning to {_quoted(block.term)}"
        elif block.gloss in self._others_glosses.get(block.label, ()):
            yield "gives a label the meaning of another"

    def _lost_rules(self, guideline: str, blocks: Sequence[Block], replaced: Mapping[str, str]) -> Iterator[Finding]:
        kept = Kept(blocks, self._rules)
        now = {_one_form(line) for line in guideline.splitlines()} - {""}
        follows = {_one_form(old): _one_form(new) for old, new in replaced.items()}
        for rule in self._rules:
            if kept.has(rule):
                continue
            olds = [*self._original_lines[rule.line - 1 : rule.last_line], rule.shown]
            ends = [_last(old, follows, now) for old in map(_one_form, olds) if old in follows]
            if not any(end in now for end in ends):
                missing = f", and what replaces it is not there, {_quoted(ends[0])}" if ends else ""
                yield self._finding(rule.line, "lost_rule", f"its rule is lost, {_quoted(rule.shown)}{missing}")


def _first_of_each(found: Iterable[Finding]) -> list[Finding]:
    """Return the findings without those about frequency or scale on a line that has one of the kind already."""
    first: dict[object, Finding] = {}
    for finding in found:
        once = finding.check in ("states_frequency", "contradicts_scale")
        first.setdefault((finding.line, finding.check, "" if once else finding.detail), finding)
    return list(first.values())


def _quoted(text: str) -> str:
    return f'"{one_line(text, 100)}"'


def _one_form(line: str) -> str:
    return " ".join(line.split())


def _last(line: str, follows: Mapping[str, str], now: set[str]) -> str:
    """Return what stands for a replaced line in the end."""
    seen: set[str] = set()
    while line in follows and line not in seen and (line not in now or not seen):
        seen.add(line)
        line = follows[line]
    return line
