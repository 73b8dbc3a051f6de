"""Who proposes guideline edits, what they are shown, and what a proposal is.

A writer drafts the two parts of Zhang et al. 2026 (a procedure from traces of every label; criteria from their
critiques, clustered) and then proposes one small edit at a time. It sees traces of the train split alone, never the
items that decide whether an edit is kept.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from raters.critiques import cluster, representatives
from raters.embedders import Embedder
from raters.guideline_lint import Finding
from raters.guideline_text import Action, Edit, Guideline, UnusableEditError
from raters.journal import Record
from raters.prompts import harmless
from raters.scales import AnyScale, IntervalScale, listed_labels
from raters.trace_runs import Draws, TraceRun
from raters.writing import Scribe, UnusableAnswerError, lines_of, tagged

Part = Literal["instructions", "criteria"]
PARTS: tuple[Part, ...] = ("instructions", "criteria")
HEADINGS: dict[Part, str] = {"instructions": "## How to rate", "criteria": "## What speaks for each label"}
LEVELS_OF_AN_INTERVAL = 5
MOST_TRACE_CHARACTERS = 4000
_MOST_STEPS, _MOST_CRITERIA, _MOST_CRITIQUES = 14, 40, 20


@dataclass(frozen=True, slots=True)
class TraceId:
    """The trace that suggested something: an item and a draw of it."""

    item_id: str
    draw: int


@dataclass(frozen=True, slots=True)
class Proposal:
    """A changed guideline, before anybody has checked it.

    Attributes:
        number: Counted from 1 over a run.
        action: What kind of change.
        guideline: With the change.
        why: The writer's reason.
        sources: Traces that suggested it.
    """

    number: int
    action: Action | Part
    guideline: Guideline
    why: str
    sources: tuple[TraceId, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """An item of the train split on which raters go wrong.

    Attributes:
        label: What people say, as a rater was shown the item.
        verdicts: What raters say.
        accepted: Places of draws that agree with people.
        rejected: Places of draws that do not.
    """

    label: str
    verdicts: str
    accepted: tuple[int, ...]
    rejected: tuple[int, ...]


@dataclass(frozen=True)
class Material:
    """What a writer works from.

    Attributes:
        run: The run that the traces are of.
        draws: The draws of this round.
        findings: From a guideline to what is wrong with it.
        seed: Of every choice among traces.
    """

    run: TraceRun
    draws: Draws
    findings: Callable[[Guideline], Sequence[Finding]]
    seed: int = 0

    @property
    def scale(self) -> AnyScale:
        """The dimension's scale."""
        return self.run.dimension.scale

    @cached_property
    def levels(self) -> list[str]:
        """Names of the labels; of an interval scale, of its fifths."""
        return level_names(self.scale)

    @cached_property
    def draw_levels(self) -> NDArray[np.int64]:
        """(draws,) place in `levels` of the label that each draw was held against."""
        return level_of(self.draws.labels, self.scale)

    def accepted(self, count: int) -> list[NDArray[np.int64]]:
        """Return for every level up to `count` accepted draws without a flag, of as many items as possible."""
        chance = np.random.default_rng(self.seed)
        usable = np.flatnonzero(self.draws.accepted & ~self.draws.doubtful)
        chosen = []
        for level in range(len(self.levels)):
            places = chance.permutation(usable[self.draw_levels[usable] == level])
            _, first = np.unique(self.draws.items[places], return_index=True)
            others = np.setdiff1d(np.arange(len(places)), first)
            order = np.r_[np.sort(first), others]
            chosen.append(places[order[:count]])
        return chosen

    def seen_label(self, record: Record) -> str:
        """Return the verdict of a candidate in the order of texts that its trace speaks of."""
        verdict = record["verdict"]
        if verdict is None:
            return "unreadable"
        return str(self.scale.swapped(verdict) if record["swapped"] else verdict)

    def sources(self, places: Sequence[int] | NDArray[np.int64]) -> tuple[TraceId, ...]:
        """Return which traces some draws are."""
        return tuple(TraceId(record["item_id"], record["draw"]) for record in self.draws.records(places))


def level_names(scale: AnyScale) -> list[str]:
    """Return the names of a scale's labels, or of the fifths of an interval scale."""
    if isinstance(scale, IntervalScale):
        edges = np.linspace(scale.min, scale.max, LEVELS_OF_AN_INTERVAL + 1)
        return [f"{low:g}..{high:g}" for low, high in pairwise(edges)]
    return [str(label) for label in listed_labels(scale)]


def level_of(numbers: NDArray[np.float64], scale: AnyScale) -> NDArray[np.int64]:
    """Return the place in `level_names` of each of the scale's numbers."""
    if isinstance(scale, IntervalScale):
        share = (numbers - scale.min) / (scale.max - scale.min)
        return np.clip((share * LEVELS_OF_AN_INTERVAL).astype(np.int64), 0, LEVELS_OF_AN_INTERVAL - 1)
    return numbers.astype(np.int64)


def shortened(trace: str, most: int = MOST_TRACE_CHARACTERS) -> str:
    """Return a trace for a prompt: harmless, and with its middle cut out if it is long."""
    text = harmless(trace).strip()
    return text if len(text) <= most else f"{text[: most // 2]}\n[...]\n{text[-most // 2 :]}"


class Writer(Protocol):
    """Proposes changes of a guideline.

    Attributes:
        needs_cases: True if `propose` wants to see items on which raters go wrong.
    """

    needs_cases: bool

    async def draft(self, part: Part, material: Material, guideline: Guideline, number: int) -> Proposal | None:
        """Return the guideline with one of its two parts written anew; None if the writer has nothing to say."""
        ...

    async def propose(
        self, material: Material, guideline: Guideline, cases: Sequence[Case], tried: Sequence[str], number: int
    ) -> Proposal | None:
        """Return one small edit; None if the writer sees none.

        Args:
            material: Traces.
            guideline: As it stands.
            cases: Items on which raters go wrong.
            tried: Edits that were not kept, in words.
            number: Of the proposal.
        """
        ...


@dataclass
class ModelWriter:
    """A language model that writes.

    Attributes:
        scribe: Asks it.
        embedder: For critiques.
        instruction_traces: Traces of each label for the procedure (10 in the paper).
        rubric_traces: Traces of each label for the criteria (50 in the paper).
    """

    scribe: Scribe
    embedder: Embedder
    instruction_traces: int = 10
    rubric_traces: int = 50
    needs_cases: bool = True

    async def draft(self, part: Part, material: Material, guideline: Guideline, number: int) -> Proposal | None:
        """Return the guideline with the part that the model wrote; None if no attempt was usable."""
        if part == "instructions":
            places = np.concatenate(material.accepted(self.instruction_traces))
            traces = [(material.seen_label(one), shortened(one["trace"])) for one in material.draws.records(places)]
            values: dict[str, Any] = {"traces": traces}
            why = f"the procedure that {len(traces)} accepted traces follow"
        else:
            values, places = await self._critiques(material)
            why = f"what {len(values['critiques'])} critiques say, each the middle of a cluster"
            if not values["critiques"]:
                return None

        def read(answer: str) -> Guideline:
            most = _MOST_STEPS if part == "instructions" else _MOST_CRITERIA
            written = guideline.with_section(HEADINGS[part], lines_of(tagged(answer, part), most), number)
            return _checked(written, material)

        written = await self.scribe.write(part, read, **self._constants(material), guideline=guideline.text, **values)
        return None if written is None else Proposal(number, part, written, why, material.sources(places))

    async def propose(
        self, material: Material, guideline: Guideline, cases: Sequence[Case], tried: Sequence[str], number: int
    ) -> Proposal | None:
        """Return the edit that the model proposes; None if it proposes none, or no attempt was usable."""
        shown = [self._case(material, case) for case in cases]
        places = [place for case in cases for place in (*case.accepted, *case.rejected)]

        def read(answer: str) -> tuple[Edit, str, Guideline] | None:
            found = parse_edit(answer)
            return found and (*found, _checked(guideline.apply(found[0], number), material))

        written = await self.scribe.write(
            "edit",
            read,
            **self._constants(material),
            guideline=guideline.numbered(),
            cases=shown,
            tried=[harmless(edit) for edit in tried],
        )
        if written is None:
            return None
        edit, why, changed = written
        what = f"{edit.action} line {edit.line}: {' '.join(edit.text.split())[:300]}".rstrip(": ")
        return Proposal(number, edit.action, changed, why or what, material.sources(places))

    async def _critiques(self, material: Material) -> tuple[dict[str, Any], NDArray[np.int64]]:
        """Return the critiques nearest the centroids of each label's clusters, and the traces they are from."""
        constants = self._constants(material)

        async def of_trace(record: Record) -> list[str]:
            found = await self.scribe.write(
                "critiques",
                lambda answer: lines_of(tagged(answer, "critiques"), _MOST_CRITIQUES),
                **constants,
                label=material.seen_label(record),
                trace=shortened(record["trace"]),
            )
            return [line.lstrip("-*• ").strip() for line in found or []]

        critiques: list[tuple[str, str]] = []
        used: list[int] = []
        for level, places in zip(material.levels, material.accepted(self.rubric_traces), strict=True):
            many = await gathered([of_trace(record) for record in material.draws.records(places)])
            texts = [text for found in many for text in found]
            owners = [int(place) for place, found in zip(places, many, strict=True) for _ in found]
            if not texts:
                continue
            vectors = self.embedder.embed(texts)
            for chosen in representatives(texts, vectors, cluster(vectors, seed=material.seed)):
                critiques += [(level, texts[place]) for place in chosen]
                used += [owners[place] for place in chosen]
        return {"critiques": [(level, harmless(text)) for level, text in critiques]}, np.array(used, np.int64)

    def _constants(self, material: Material) -> dict[str, Any]:
        dimension = material.run.dimension
        return {"dimension": dimension.name.replace("_", " "), "labels": dimension.scale.describe()}

    def _case(self, material: Material, case: Case) -> dict[str, Any]:
        wrong = list(material.draws.records(case.rejected))
        return {
            "label": case.label,
            "verdicts": case.verdicts,
            "accepted": [shortened(record["trace"]) for record in material.draws.records(case.accepted)],
            "rejected": [(material.seen_label(record), shortened(record["trace"])) for record in wrong],
        }


def _checked(guideline: Guideline, material: Material) -> Guideline:
    """Return a written guideline, or raise what is wrong with it, so that the writer is asked again."""
    if findings := material.findings(guideline):
        raise UnusableAnswerError(str(findings[0]))
    return guideline


async def gathered(work: Sequence[Any]) -> list[Any]:
    """Return the results of awaitables that run side by side, or raise the first failure once all have ended.

    What is in flight is paid for, so its answer is waited for and kept.
    """
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def parse_edit(answer: str) -> tuple[Edit, str] | None:
    """Return the edit that a writer's answer proposes, and why; None if it says that it has none.

    Raises:
        UnusableAnswerError: If it cannot be read.
    """
    block = tagged(answer, "edit")
    if not block.strip():
        return None
    fields = dict(_fields(block))
    action = fields.get("action", "").strip().lower()
    if action not in ("add", "sharpen", "remove", "move"):
        raise UnusableAnswerError(f"its action is {action[:40]!r}; it is add, sharpen, remove or move")
    numbers = {}
    for name in ("line", "to"):
        value = fields.get(name, "").strip().strip("[]")
        if name == "to" and action != "move":
            continue
        if not re.fullmatch(r"[0-9]{1,6}", value):
            raise UnusableAnswerError(f"its {name} is {value[:40]!r}, not the number of a line")
        numbers[name] = int(value)
    text = fields.get("text", "") if action in ("add", "sharpen") else ""
    if action in ("add", "sharpen") and not text.strip():
        raise UnusableEditError("it has no text")
    why = " ".join(fields.get("why", "").split())[:300]
    return Edit(action, numbers["line"], text, numbers.get("to", 0)), why  # type: ignore[arg-type]


def _fields(block: str) -> Iterator[tuple[str, str]]:
    for name in ("action", "line", "to", "text", "why"):
        found = re.findall(rf"<{name}>(.*?)</{name}>", block, re.DOTALL | re.IGNORECASE)
        if len(found) > 1:
            raise UnusableAnswerError(f"it has <{name}> {len(found)} times; one edit is wanted")
        if found:
            yield name, found[0]
