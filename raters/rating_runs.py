"""Draws of a rater, and a rater over the items of a corpus: every draw in a journal, rebuilt from it at any time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.drawing import REFUSED, DrawPool, Source, draw_seed, is_swapped
from raters.gold import nearest_label
from raters.journal import Journal, Record, sha256_of
from raters.label_probabilities import (
    Probabilities,
    as_record,
    expected_value,
    from_record,
    joined_draws,
    most_probable,
    probabilities_of,
    swapped_back,
)
from raters.ledger import UNDRAWN, UNREADABLE
from raters.models.protocol import Completion, Model
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec
from raters.records import DataError, Item, Label, shown
from raters.runs import git_revision, versions
from raters.scales import PairwiseScale
from raters.splits import Split, ids_sha256
from raters.traces import trace_of


@dataclass(frozen=True, slots=True)
class Draw:
    """One draw of a rater for an item.

    Attributes:
        number: Which one, from 0.
        seed: Of this draw alone.
        swapped: True if a pair's texts were shown in exchanged order; the verdict is in the original one.
        completion: What the model wrote.
        seconds: Wall time of the request.
        trace: Its reasoning.
        verdict: On the scale; None if unreadable.
        probabilities: (labels,) of each label, in the original order of a pair; None if the model told none.
        verdict_from: `answer`; or `probabilities` where nothing can be read in the answer, so that the verdict is the
            label the model was most likely to write; None if unreadable.
    """

    number: int
    seed: int
    swapped: bool
    completion: Completion
    seconds: float
    trace: str
    verdict: Label | None
    probabilities: Probabilities | None = None
    verdict_from: Literal["answer", "probabilities"] | None = None


async def ask_once(pool: DrawPool, source: Source, spec: RaterSpec, item: Item, number: int) -> Draw:
    """Return one draw of a rater for an item."""
    scale, name = spec.dimension.scale, spec.dimension.name
    seed = draw_seed(spec.seed, item.item_id, name, number)
    swapped = isinstance(scale, PairwiseScale) and is_swapped(spec.seed, item.item_id, name, number)
    completion, seconds = await pool.ask(source, source.question.about(item)(swapped), seed)
    if completion.finish_reason == REFUSED:
        return Draw(number, seed, swapped, completion, seconds, "", None)
    verdict = scale.read_verdict(completion.text)
    probabilities = probabilities_of(completion.label_logprobs, scale)
    if swapped:
        verdict = None if verdict is None else scale.swapped(verdict)
        probabilities = None if probabilities is None else swapped_back(probabilities, scale)
    source_of_verdict: Literal["answer", "probabilities"] | None = None if verdict is None else "answer"
    if verdict is None and probabilities is not None:
        verdict, source_of_verdict = most_probable(probabilities, scale), "probabilities"
    trace = trace_of(completion)
    return Draw(number, seed, swapped, completion, seconds, trace, verdict, probabilities, source_of_verdict)


_COUNTS = (
    "draws", "unreadable", "with_probabilities", "read_from", "finish_reasons", "prompt_tokens", "completion_tokens",
    "untold",
)  # fmt: skip


@dataclass
class RatingSheet:
    """Which draws a rater has made for the items of a split; rebuilt from the journal at any time.

    Attributes:
        corpus: Where the items are.
        spec: The rater.
        items: (rows,) corpus index of each item, in the order of work.
        numbers: (rows, draws) verdict as the scale's number, UNDRAWN or UNREADABLE.
        probabilities: (rows, draws, labels) of each label, nan where a draw has none; no labels if none are asked for.
        untold: Draws that were answered without a count of tokens.
    """

    corpus: Corpus
    spec: RaterSpec
    items: NDArray[np.int64]
    numbers: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    draws: int = 0
    unreadable: int = 0
    with_probabilities: int = 0
    read_from: Counter[str] = field(default_factory=Counter)
    finish_reasons: Counter[str] = field(default_factory=Counter)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    untold: int = 0

    @classmethod
    def empty(cls, corpus: Corpus, spec: RaterSpec, items: NDArray[np.int64], draws: int) -> Self:
        """Return a sheet on which nothing is drawn."""
        shape = (len(items), draws, len(spec.asked_settings.label_logprobs or ()))
        return cls(corpus, spec, items, np.full(shape[:2], UNDRAWN), np.full(shape, np.nan))

    def enter(self, record: Record, row: int) -> None:
        """Enter a line of ratings.jsonl."""
        place, scale = (row, record["draw"]), self.spec.dimension.scale
        if self.numbers[place] != UNDRAWN:
            return
        told = record.get("label_probabilities")
        if told is not None and self.probabilities.size:
            self.probabilities[place] = from_record(told, scale)
            self.with_probabilities += 1
        verdict = record["verdict"]
        self.numbers[place] = UNREADABLE if verdict is None else scale.number(verdict)
        self.draws += 1
        self.read_from[str(record.get("verdict_from"))] += 1
        self.unreadable += verdict is None
        self.finish_reasons[record["finish_reason"]] += 1
        self.prompt_tokens += record["prompt_tokens"] or 0
        self.completion_tokens += record["completion_tokens"] or 0
        self.untold += record["completion_tokens"] is None and record["finish_reason"] != REFUSED

    def replay(self, lines: Iterable[tuple[int, int, Record]]) -> None:
        """Enter what an earlier session left, as far as it belongs here.

        Raises:
            DataError: If a line is not a rating.
        """
        rows = {self.corpus.item_ids[item]: row for row, item in enumerate(self.items)}
        for line_number, _, record in lines:
            try:
                row, draw = rows.get(record["item_id"]), record["draw"]
                if type(draw) is not int or draw < 0:
                    raise ValueError(f"draw {draw!r}")
                if record["rater_sha256"] != self.spec.sha256:
                    raise ValueError(f"rater_sha256 {shown(record['rater_sha256'])} is another rater's")
                if record["verdict"] is not None:
                    self.spec.dimension.scale.canonical(record["verdict"])
                for name in ("prompt_tokens", "completion_tokens"):
                    if type(record[name]) not in (int, type(None)):
                        raise TypeError(f"{name} {shown(record[name])}")
                if row is not None and record["draw"] < self.numbers.shape[1]:
                    self.enter(record, row)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise DataError(
                    f"ratings.jsonl line {line_number}: {shown(record)} is not a rating of this run "
                    f"({type(error).__name__}: {error}); remove the line"
                ) from error

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return all that was entered; see `checkpoints.Counted`."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        rows, draws, labels = self.probabilities.shape
        arrays = {f"numbers {draw}": self.numbers[:, draw] for draw in range(draws)}
        arrays |= {f"probabilities {draw}": self.probabilities[:, draw] for draw in range(draws)}
        facts = {"rows": rows, "draws": draws, "labels": labels, "asked": self._asked(rows), "counts": counts}
        return arrays, facts

    def restore(self, arrays: Mapping[str, NDArray[Any]], facts: Mapping[str, Any]) -> bool:
        """Take over what `state` returned, of this sheet or one with fewer items or draws; False if of another one."""
        rows, draws = facts["rows"], facts["draws"]
        fits = draws <= self.numbers.shape[1] and facts["labels"] == self.probabilities.shape[2]
        if not fits or facts["asked"] != self._asked(rows):
            return False
        for draw in range(draws):  # one by one, so that little more than the sheet is in memory
            self.numbers[:rows, draw] = arrays[f"numbers {draw}"]
            self.probabilities[:rows, draw] = arrays[f"probabilities {draw}"]
        for name in _COUNTS:
            count = facts["counts"][name]
            setattr(self, name, Counter(count) if isinstance(count, dict) else count)
        return True

    def part(self, rows: slice) -> dict[str, NDArray[Any]]:
        """Return the arrays of `state` for some rows alone: what a sheet of them takes over with `restore`."""
        return {name: array[rows] for name, array in self.state()[0].items()}

    def _asked(self, rows: int) -> str:
        """Return what makes two sheets the same in their first rows."""
        return sha256_of(self.spec.sha256 + self.items[:rows].tobytes().hex())

    @property
    def rows_done(self) -> int:
        """How many items have all their draws."""
        return int((self.numbers != UNDRAWN).all(axis=1).sum())

    def manifest(self, split: Split | None) -> dict[str, Any]:
        """Return what a manifest says of the ratings: what was rated, how much of it, from which inputs.

        Args:
            split: That the items are a part of; None if they are of the whole corpus.
        """
        return {
            "versions": versions(),
            "git_revision": git_revision(),
            "inputs_sha256": dict(self.corpus.sha256),
            "split_sha256": split.hashes(self.corpus) if split else None,
            "rated_sha256": ids_sha256([self.corpus.item_ids[item] for item in self.items]),
            "items": len(self.items),
            "items_done": self.rows_done,
            "draws_per_item": self.numbers.shape[1],
            "draws": self.draws,
            "unreadable": self.unreadable,
            "draws_with_probabilities": self.with_probabilities,
            "verdicts_from_probabilities": self.read_from["probabilities"],
            "finish_reasons": dict(self.finish_reasons),
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def missing(self) -> Iterator[tuple[int, int]]:
        """Yield (row, draw) of what is not drawn yet: a first draw of every item, then a second, ..."""
        for draw in range(self.numbers.shape[1]):
            for row in np.flatnonzero(self.numbers[:, draw] == UNDRAWN).tolist():
                yield row, draw

    def _joined(self, row: int) -> float | None:
        """Return what the draws of a row say together, as a quantity; None if nothing can be read."""
        made = self.numbers[row] != UNDRAWN
        told = self.probabilities[row, made]
        return joined_draws(self.numbers[row, made], told, self.spec.aggregate, self.spec.dimension.scale)

    def as_draws(self, name: str) -> RaterDraws:
        """Return what was drawn so far as what is held against people, without the order that pairs were shown in.

        Args:
            name: Of the rater.
        """
        values = None
        if self.with_probabilities:
            joined = map(self._joined, range(len(self.items)))
            values = np.array([np.nan if value is None else value for value in joined])
        drawn = (self.numbers != UNDRAWN).sum(axis=1)
        no_swap = np.zeros(self.numbers.shape, bool)
        return RaterDraws(name, self.items, self.numbers, drawn, no_swap, self.spec.aggregate, values)

    def verdicts(self) -> Iterator[dict[str, Any]]:
        """Yield what the draws of each item say together, in the order of the corpus."""
        scale = self.spec.dimension.scale
        for row in np.argsort(self.items, kind="stable").tolist():
            numbers = self.numbers[row]
            made = numbers[numbers != UNDRAWN]
            value = self._joined(row)
            yield {
                "item_id": self.corpus.item_ids[self.items[row]],
                "dimension": self.spec.dimension.name,
                "verdict": None if value is None else nearest_label(value, scale),
                "value": value,
                "draws": len(made),
                "unreadable": int(np.isnan(made).sum()),
            }


class RatingRun:
    """Makes the draws that a sheet still misses and writes each to the journal as it arrives.

    Args:
        sheet: What was drawn already.
        journal: Where draws go.
        model: The rater's.
        concurrency: Requests in flight.
        on_draw: Called after every draw.
        refusal: From the number of requests in flight to why no further one may begin; empty if it may.
        first_draws: How many come back before all others begin, if there are others.
        on_first: Called once they have.

    Attributes:
        pool: What runs the draws; set its `stopping` to end after those in flight.
    """

    def __init__(
        self,
        sheet: RatingSheet,
        journal: Journal,
        model: Model,
        concurrency: int,
        on_draw: Callable[[], None],
        *,
        refusal: Callable[[int], str] = lambda running: "",
        first_draws: int = 0,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is drawn yet."""
        self._first_draws, self._on_first = first_draws, on_first
        self.sheet, self.journal = sheet, journal
        self.source = Source(model, sheet.spec.question)
        self.pool = DrawPool(sheet.spec.asked_settings, concurrency, {model.spec} if sheet.draws else set(), refusal)
        self._on_draw = on_draw

    async def run(self) -> None:
        """Make every draw that is still missing, or end early if the pool is stopping.

        Raises:
            ModelAccessError: The model cannot be used.
            ModelError: The model failed after its retries. What arrived before is in the journal.
        """
        if 0 < self._first_draws < self.sheet.numbers.size:
            first = list(islice(self.sheet.missing(), self._first_draws))
            await self.pool.work(partial(self._draw, *place) for place in first)
            if not self.pool.ending:
                self._on_first()
        await self.pool.work(partial(self._draw, row, draw) for row, draw in self.sheet.missing())
        self.pool.settle(any_answer=self.sheet.draws > 0)

    async def _draw(self, row: int, number: int) -> None:
        spec = self.sheet.spec
        item = self.sheet.corpus.item(int(self.sheet.items[row]))
        draw = await ask_once(self.pool, self.source, spec, item, number)
        scale, told = spec.dimension.scale, draw.probabilities
        record = {
            "item_id": item.item_id,
            "dimension": spec.dimension.name,
            "draw": number,
            "model": spec.model,
            "rater_sha256": spec.sha256,
            "seed": draw.seed,
            "swapped": draw.swapped,
            "trace": draw.trace,
            "answer": draw.completion.text,
            "verdict": draw.verdict,
            "verdict_from": draw.verdict_from,
            "expected": None if told is None else expected_value(told, scale),
            "label_probabilities": None if told is None else as_record(told, scale),
            "finish_reason": draw.completion.finish_reason,
            "prompt_tokens": draw.completion.prompt_tokens,
            "completion_tokens": draw.completion.completion_tokens,
            "seconds": round(draw.seconds, 4),
        }

        def write() -> None:
            self.journal.append([record])
            self.sheet.enter(record, row)
            self._on_draw()

        self.pool.keep(self.source, draw.completion, write)
