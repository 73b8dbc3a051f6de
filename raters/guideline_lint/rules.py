"""The rules that a guideline states, and whether an edited one still states them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from raters.guideline_lint.reading import Block, Sentence

LEAST_SHARED = 0.7
"""Share of a rule's content words that a line must have to count as the rule in other words.

Of three words none may change, of four or five one. A line must have that share also when a word that n rules of the
original have weighs 1/n, since rules of one guideline share their words ("rate", "reasons"). So every line and sentence
that is taken out of the corpora's guidelines is missed; without the weights two of 120 were not (see the tests).
"""

_LONGEST_CANDIDATE = 60  # words of a paragraph or list item that can stand for a rule as a whole
_STOPWORDS = frozenset(
    "a an and any are as at be been being but by can could did do does each every for from had has have he her his how "
    "i if in into is it its just may me might more most must my of on one or our own per she should so some such than "
    "that the their them then there these they this those to too up upon us very was we were what when where whether "
    "which while who whom whose will with would you your".split()
)
_NEGATIONS = frozenset(
    "not no never none nor neither without cannot dont doesnt isnt arent wont cant shouldnt mustnt needs neednt nobody "
    "nothing".split()
) - {"needs"}


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule of a guideline, or a line that may say one.

    Attributes:
        label: Label that it says the meaning of; empty if of none.
        content: Stems of its words without function words and negations.
        negations: How many negations it has.
    """

    line: int
    last_line: int
    words: tuple[str, ...]
    label: str
    content: frozenset[str]
    negations: int
    shown: str


def _rule(sentence: Sentence, label: str = "", gloss: Sequence[str] = ()) -> Rule:
    words = gloss if label else sentence.words
    content = frozenset(_stem(word) for word in words if word not in _STOPWORDS and word not in _NEGATIONS)
    negations = sum(word in _NEGATIONS for word in words)
    return Rule(sentence.line, sentence.last_line, sentence.words, label, content, negations, sentence.shown)


def _stem(word: str) -> str:
    for ending in ("ies", "ing", "ed", "es", "ly", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and "=" not in word:
            return word[: -len(ending)]
    return word.rstrip("ey") if len(word) > 4 and "=" not in word else word


def rules_of(blocks: Sequence[Block]) -> list[Rule]:
    """Return each sentence outside headings; a table row, and a line that explains a label, is one rule."""
    rules: list[Rule] = []
    for block in blocks:
        if block.kind == "heading" or not block.tokens:
            continue
        if block.label or block.kind == "row":
            rules.append(_rule(block.sentence(block.tokens), block.label, block.gloss))
        else:
            rules += [_rule(sentence) for sentence in block.sentences()]
    return [rule for rule in rules if rule.words]


class Kept:
    """What an edited guideline says, to look the original's rules up in."""

    def __init__(self, blocks: Sequence[Block], originals: Sequence[Rule]) -> None:
        """Read the edited guideline's blocks; `originals` are all rules of the original."""
        rules_with = Counter(word for rule in originals for word in rule.content)
        self._weights = {word: 1 / count for word, count in rules_with.items()}
        self._lines: list[Rule] = []
        self._block: list[int] = []  # of each line
        for number, block in enumerate(blocks):
            found = rules_of([block])
            if len(found) > 1:
                whole = _rule(block.sentence(block.tokens))
                found += [whole] if len(whole.words) <= _LONGEST_CANDIDATE else []
            self._lines += found
            self._block += [number] * len(found)
        self._verbatim = {line.words for line in self._lines}
        self._all = f" {' '.join(' '.join(line.words) for line in self._lines)} "
        self._with: dict[str, list[int]] = defaultdict(list)
        for place, line in enumerate(self._lines):
            for word in line.content:
                self._with[word].append(place)

    def has(self, rule: Rule) -> bool:
        """True if the rule is there verbatim, or a line has `LEAST_SHARED` of its content.

        A line that explains a label stands only for one that explains the same label. A rule that forbids is not kept
        by a line that does not, nor a rule by the same words with nothing but a negation added. A rule of
        function words alone has to be there verbatim.
        """
        if rule.words in self._verbatim:
            return True
        if rule.label and not rule.content:
            return any(line.label == rule.label for line in self._lines)
        if not rule.content:
            return f" {' '.join(rule.words)} " in self._all
        counts: dict[int, int] = defaultdict(int)
        weights: dict[int, float] = defaultdict(float)
        for word in rule.content:
            for place in self._with.get(word, ()):
                counts[place] += 1
                weights[place] += self._weights[word]
        least_count = LEAST_SHARED * len(rule.content) - 1e-9
        least_weight = LEAST_SHARED * sum(self._weights[word] for word in rule.content) - 1e-9
        judged = set()
        for place in sorted(counts):  # a paragraph as a whole comes behind its sentences
            enough = counts[place] >= least_count and weights[place] >= least_weight
            if enough and self._block[place] not in judged:
                if self._same_sense(rule, self._lines[place]):
                    return True
                judged.add(self._block[place])
        return False

    @staticmethod
    def _same_sense(rule: Rule, line: Rule) -> bool:
        if rule.label != line.label or (rule.negations and not line.negations):
            return False
        return not (line.negations > rule.negations and line.content <= rule.content)
