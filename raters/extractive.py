"""The extractive writer: guideline lines in the traces' own words, chosen by what tells accepted draws from rejected.

It needs no language model and is the baseline that one must beat. On traces in the rule reader's grammar a line is a
rule whose direction is guessed more often in accepted draws. On any other traces a line is the sentence nearest the
centroid of a cluster of sentences that accepted draws of a label contain more often than rejected ones. Either enters
only behind an item-clustered z above 3, draws of one item not being independent.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raters.contrasts import SIGNIFICANT_Z, RuleContrast, contrast_presence, contrast_rules
from raters.critiques import Clusters, cluster, representatives
from raters.embedders import Embedder
from raters.guideline_text import MOST_EDIT_LINES, MOST_SECTION_LINES, Edit, Guideline, UnusableEditError
from raters.models.embedded import STRENGTHS, read_steps
from raters.observations import IN_WORDS
from raters.scales import NominalScale, PairwiseScale
from raters.writers import HEADINGS, Case, Material, Part, Proposal, level_of

RULES_HEADING = "## What to weigh"
REST_IGNORED = "- rest ignored."
_REST_IN_WORDS = "Leave everything else out of account."
_START = "- start at five."
_MOST_SENTENCE_TRACES = 150
_MOST_SENTENCES = 1500
_MOST_CLUSTERS = 40
_MOST_SENTENCE_CHARACTERS = 300
_SOURCES = 5
_RULE = re.compile(rf"^- (\w+) (helps|hurts) ({'|'.join(STRENGTHS)})\.$")
_TWICE_FROM = 2 / 3
"""A rule weighs twice if its z is at least this share of the strongest rule's."""


@dataclass
class ExtractiveWriter:
    """Writes with the words of traces.

    Attributes:
        embedder: For sentences.
        gate: Least |z|; 0 lets every rule through that is guessed more often, for comparison only.
        drafted_rules: Most rules of a draft. One is best where edits follow: statistics of one text go together, and
            a rule that only stands for another one is then refused by the gate.
        most_rules: Most rules that are proposed to join those that are stated.
    """

    embedder: Embedder
    gate: float = SIGNIFICANT_Z
    drafted_rules: int = 1
    most_rules: int = 6
    needs_cases: bool = False
    _last: tuple[Material, list[RuleContrast], dict[str, list[int]]] | None = field(default=None, repr=False)

    async def draft(self, part: Part, material: Material, guideline: Guideline, number: int) -> Proposal | None:
        """Return the guideline with a section of rules, or of sentences for each label; None if none is significant."""
        if part == "criteria":
            return self._criteria(material, guideline, number)
        if _place_of_rules(guideline) is not None:
            return None  # the section is there: what is to join it is proposed rule by rule
        rules, _ = self._rules(material)
        new = self._unstated(rules, guideline)[: self.drafted_rules]
        return self._section(material, guideline, new, number) if new else None

    def _unstated(self, rules: Sequence[RuleContrast], guideline: Guideline) -> list[RuleContrast]:
        stated = _stated(guideline)
        return [rule for rule in rules if rule.observation not in stated]

    def _section(
        self, material: Material, guideline: Guideline, new: Sequence[RuleContrast], number: int
    ) -> Proposal | None:
        """Return the guideline with a section of rules."""
        _, sources = self._rules(material)
        strongest = max(abs(rule.z) for rule in new)
        lines = [line for rule in new for line in self._rule_lines(material, rule, self._strength(rule, strongest))]
        try:
            changed = guideline.with_section(RULES_HEADING, [_opening(material), *lines], number)
        except UnusableEditError:
            return None
        places = [place for rule in new for place in sources[rule.observation][:_SOURCES]]
        why = "; ".join(f"{rule} (z {rule.z:+.1f} over {rule.items:,} items)" for rule in new)
        return Proposal(number, "instructions", changed, why, material.sources(places))

    async def propose(
        self, material: Material, guideline: Guideline, cases: Sequence[Case], tried: Sequence[str], number: int
    ) -> Proposal | None:
        """Return the first edit that was not tried: a rule more, a strength, a start, a rule less; None at the end."""
        if _place_of_rules(guideline) is None:
            return self._other_section(material, guideline, tried, number)
        for edits, why, places in self._edits(material, guideline):
            if why not in tried:
                changed = guideline
                for edit in edits:
                    changed = changed.apply(edit, number)
                return Proposal(number, edits[0].action, changed, why, material.sources(places[:_SOURCES]))
        return None

    def _other_section(
        self, material: Material, guideline: Guideline, tried: Sequence[str], number: int
    ) -> Proposal | None:
        """Return a section that was not tried, the draft having been refused: all rules together, then each alone."""
        rules, _ = self._rules(material)
        new = self._unstated(rules, guideline)[: self.most_rules]
        for chosen in (new, *([rule] for rule in new)):
            proposal = self._section(material, guideline, chosen, number) if chosen else None
            if proposal is not None and proposal.why not in tried:
                return proposal
        return None

    def _edits(self, material: Material, guideline: Guideline) -> Iterator[tuple[list[Edit], str, list[int]]]:
        """Yield the steps of an edit from the bottom up, why, and draws that suggest it."""
        rules, sources = self._rules(material)
        stated = _stated(guideline)
        stop = _place_of_rules(guideline)
        assert stop is not None
        strongest = max([abs(rule.z) for rule in rules], default=1.0)
        beside = ", ".join(stated)
        unstated = [rule for rule in rules if rule.observation not in stated][: self.most_rules]
        for rule in unstated:
            likely = self._strength(rule, strongest)
            for strength in (likely, 3 - likely):
                text = "\n".join(self._rule_lines(material, rule, strength))
                why = f"add {rule} {STRENGTHS[strength - 1]} (z {rule.z:+.1f}) to {beside}"
                yield [Edit("add", stop, text)], why, sources[rule.observation]
        if 2 <= len(unstated) <= MOST_EDIT_LINES // 2:
            # What is too little alone to be told from chance may be enough together.
            text = "\n".join(line for rule in unstated for line in self._rule_lines(material, rule, 1))
            places = [place for rule in unstated for place in sources[rule.observation][:1]]
            yield [Edit("add", stop, text)], f"add {', '.join(map(str, unstated))} to {beside}", places
        lines = [line.text for line in guideline.lines]
        if _START not in lines:
            yield [Edit("add", stop, f"Begin in the middle of the scale.\n{_START}")], "add a start in the middle", []
        if REST_IGNORED not in lines:
            yield (
                [Edit("add", stop, f"{_REST_IN_WORDS}\n{REST_IGNORED}")],
                f"leave out all but {', '.join(stated)}",
                [],
            )
        for name, (place, direction, _) in reversed(stated.items()):
            if guideline.lines[place].original is None and len(stated) > 1:
                why = f"remove {name}, keep {_others(stated, name)}"
                has_words = place > 0 and lines[place - 1] == self._in_words(material, name, direction)
                # The sentence for people goes with its rule.
                edits = [Edit("remove", place + 1), *([Edit("remove", place)] if has_words else [])]
                yield edits, why, sources.get(name, [])
        for name, (place, direction, strength) in stated.items():
            for other in _nearby(strength):
                edits = [Edit("sharpen", place + 1, f"- {name} {direction} {STRENGTHS[other]}.")]
                yield (
                    edits,
                    f"{name} {STRENGTHS[other]} instead of {STRENGTHS[strength]}, beside {_others(stated, name)}",
                    sources.get(name, []),
                )

    def _rules(self, material: Material) -> tuple[list[RuleContrast], dict[str, list[int]]]:
        """Return the significant rules, strongest first, and by observation accepted draws that guess them."""
        if self._last is None or self._last[0] is not material:
            draws = material.draws
            found, codes = np.unique(draws.items, return_inverse=True)
            expected = _expected(material)
            guesses: dict[tuple[str, int], list[int]] = defaultdict(list)

            def rows() -> Iterator[tuple[int, str, bool, float]]:
                for place, record in enumerate(draws.records(range(len(draws)))):
                    if draws.accepted[place]:
                        for step in read_steps(record["trace"]):
                            if step.rule.guessed and step.change:
                                guesses[step.rule.observation, step.rule.sign].append(place)
                    yield int(codes[place]), record["trace"], bool(draws.accepted[place]), float(expected[place])

            contrasts = [rule for rule in contrast_rules(rows(), len(found)) if abs(rule.z) > self.gate]
            sources = {rule.observation: guesses[rule.observation, 1 if rule.z > 0 else -1] for rule in contrasts}
            self._last = material, contrasts, sources
        return self._last[1:]

    def _strength(self, rule: RuleContrast, strongest: float) -> int:
        """Return how often a rule should count at first: once or twice."""
        return 2 if abs(rule.z) >= _TWICE_FROM * strongest else 1

    def _rule_lines(self, material: Material, rule: RuleContrast, strength: int) -> list[str]:
        """Return a rule for people, and for the rule reader below it."""
        direction = "helps" if rule.z > 0 else "hurts"
        return [self._in_words(material, rule.observation, direction), f"- {rule} {STRENGTHS[strength - 1]}."]

    def _in_words(self, material: Material, observation: str, direction: str) -> str:
        """Return what a rule says to people."""
        words, more = IN_WORDS.get(observation, observation), "more" if direction == "helps" else "less"
        if isinstance(material.scale, PairwiseScale):
            meaning = f"the text with {more} of it is ahead"
        elif isinstance(material.scale, NominalScale):
            meaning = f"the {more}, the likelier {material.levels[0]}"
        else:
            meaning = f"the {more}, the higher the rating"
        return f"{words[0].upper()}{words[1:]}: {meaning}."

    def _criteria(self, material: Material, guideline: Guideline, number: int) -> Proposal | None:
        """Return the guideline with the telling sentences of each label."""
        levels = range(len(material.levels))
        most = max(1, MOST_SECTION_LINES // len(levels))
        telling = [(level, *found) for level in levels for found in self._sentences(material, level)[:most]]
        try:
            changed = _with_criteria(material, guideline, telling, number)
            # A sentence may quote its item or name another dimension: those go, the others stay.
            wrong = {finding.line for finding in material.findings(changed) if finding.check != "lost_rule"}
            start, _ = changed.section(HEADINGS["criteria"])
            telling = [one for place, one in enumerate(telling) if start + 3 + place not in wrong]
            changed = _with_criteria(material, guideline, telling, number)
        except UnusableEditError:
            return None
        reasons = ", ".join(f"{material.levels[level]} (z {z:+.1f})" for level, _, z, _ in telling)
        sources = [source for *_, places in telling for source in material.sources(places[:_SOURCES])]
        why = f"sentences that accepted draws contain more often than rejected ones: {reasons}"
        return Proposal(number, "criteria", changed, why, tuple(dict.fromkeys(sources)))

    def _sentences(self, material: Material, level: int) -> list[tuple[str, float, list[int]]]:
        """Return the telling sentences of a label, each with its z and accepted draws that contain it.

        Among draws with the label's verdict some are accepted and some are not. A sentence of its cluster tells the
        two apart if it stands more often in accepted ones.
        """
        draws = material.draws
        verdicts = np.where(np.isfinite(draws.numbers), draws.numbers, -1.0)
        of_level = np.isfinite(draws.numbers) & (level_of(verdicts, material.scale) == level)
        chance = np.random.default_rng([material.seed, level])
        chosen = [
            chance.permutation(np.flatnonzero(of_level & kind & ~draws.doubtful))[:_MOST_SENTENCE_TRACES]
            for kind in (draws.accepted, ~draws.accepted)
        ]
        if not all(len(places) for places in chosen):
            return []
        places = np.sort(np.concatenate(chosen))
        texts, owners = [], []
        for place, record in zip(places.tolist(), draws.records(places), strict=True):
            swapped_pair = record["swapped"] and isinstance(material.scale, PairwiseScale)
            if swapped_pair or next(read_steps(record["trace"]), None) is not None:
                continue
            for sentence in sentences_of(record["trace"]):
                texts.append(sentence)
                owners.append(place)
        texts, owners = texts[:_MOST_SENTENCES], owners[:_MOST_SENTENCES]
        if len(set(texts)) < 2:
            return []
        vectors = self.embedder.embed(texts)
        clusters = _grouped(vectors, material.seed)
        found = []
        for members in filter(None, representatives(texts, vectors, clusters)):
            code = clusters.assignment[members[0]]
            inside = {owners[place] for place in np.flatnonzero(clusters.assignment == code).tolist()}
            used = sorted(set(owners))
            present = np.array([place in inside for place in used])
            z = contrast_presence(draws.items[used], present, draws.accepted[used])
            if z > self.gate:
                found.append(
                    (texts[members[0]], z, [place for place in used if place in inside and draws.accepted[place]])
                )
        return sorted(found, key=lambda one: -one[1])


def _with_criteria(
    material: Material, guideline: Guideline, telling: Sequence[tuple[int, str, float, list[int]]], number: int
) -> Guideline:
    lines = [f"- {material.levels[level]}: {sentence}" for level, sentence, _, _ in telling]
    return guideline.with_section(HEADINGS["criteria"], lines, number)


def _grouped(vectors: NDArray[np.float64], seed: int) -> Clusters:
    """Return groups of sentences that say the same: 40 of them, or one for every sentence if fewer differ.

    Silhouettes would choose very few, each of sentences that have little in common, and so tell nothing.
    """
    _, first, which = np.unique(vectors, axis=0, return_index=True, return_inverse=True)
    if len(first) <= _MOST_CLUSTERS:
        return Clusters(which.reshape(-1).astype(np.int64), vectors[first], 0.0)
    return cluster(vectors, fewest=_MOST_CLUSTERS, most=_MOST_CLUSTERS, seed=seed)


def sentences_of(trace: str) -> list[str]:
    """Return the sentences of a trace that can stand in a guideline: of three words or more, not too long."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", trace)
    cleaned = (re.sub(r"^[\s>*#•-]+|^\d+[.)]\s+", "", part).strip() for part in parts)
    return [part for part in cleaned if len(part.split()) >= 3 and len(part) <= _MOST_SENTENCE_CHARACTERS]


def _expected(material: Material) -> NDArray[np.float64]:
    """Return (draws,) how frequent labels are, over items, that each draw's verdict would agree with."""
    draws = material.draws
    _, first = np.unique(draws.items, return_index=True)
    labels, tolerance = draws.labels[first], material.run.tolerance + 1e-9
    verdicts, codes = np.unique(np.nan_to_num(draws.numbers, nan=-1.0), return_inverse=True)
    shares = np.array([float((np.abs(labels - verdict) <= tolerance).mean()) for verdict in verdicts])
    return np.where(np.isfinite(draws.numbers), shares[codes], 0.0)


def _opening(material: Material) -> str:
    weights = "Once, twice and thrice say how much it weighs."
    if isinstance(material.scale, PairwiseScale):
        return f"Compare the two texts in these respects. Where they differ little, one counts for nothing. {weights}"
    return f"Look at these respects. What is about average in one counts for nothing there. {weights}"


def _place_of_rules(guideline: Guideline) -> int | None:
    """Return after how many lines a further rule goes: at the end of its section, but before what ends it."""
    start, stop = guideline.section(RULES_HEADING)
    if start == stop:
        return None
    return next((place for place in range(start, stop) if guideline.lines[place].text == _REST_IN_WORDS), stop)


def _stated(guideline: Guideline) -> dict[str, tuple[int, str, int]]:
    """Return by observation where its rule stands, its direction, and the place of its strength."""
    found = {}
    for place, line in enumerate(guideline.lines):
        if rule := _RULE.match(line.text.strip()):
            found[rule[1]] = (place, rule[2], STRENGTHS.index(rule[3]))
    return found


def _nearby(strength: int) -> list[int]:
    return [other for other in (strength + 1, strength - 1) if 0 <= other < len(STRENGTHS)]


def _others(stated: dict[str, tuple[int, str, int]], name: str) -> str:
    return ", ".join(f"{other} {STRENGTHS[strength]}" for other, (_, _, strength) in stated.items() if other != name)
