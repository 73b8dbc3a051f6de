"""Rejection sampling: draw candidates for items, keep those whose verdict agrees with the person's label.

After Zhang et al. 2026, section on inferring traces: k independent draws that never see the label, the first
that agrees is kept. Here a draw's seed comes from run seed, item, dimension and draw number alone, so that
stopping an item at its first acceptance keeps the very trace that drawing all k would have kept.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from raters.drawing import REFUSED, DrawPool, Job, Source, draw_seed, is_swapped
from raters.journal import Journal, Record
from raters.ledger import CHANCES, Ledger
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.records import Candidate, Chance, Label, Mode, Strategy
from raters.scales import PairwiseScale
from raters.traces import strip_ratings, trace_flags, trace_of


def strategy_for(asked: Strategy | None, keep: str | int) -> Strategy:
    """Return the strategy asked for, or the one for what is kept: more than the first acceptance needs all draws."""
    return asked or ("adaptive" if keep == "first" else "fixed")


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How items are drawn for.

    Attributes:
        strategy: `adaptive` stops an item at its first acceptance, `fixed` makes all draws.
        seed: Of the run.
        tolerance: How far a verdict may be from the label, in the scale's unit.
        settings: Temperature, top-p, most tokens.
        concurrency: Items in work at once (`adaptive`), draws in flight (`fixed`).
        null_rows: Rows of an adaptive run that get all draws all the same, so that chance can be measured on them.
    """

    strategy: Strategy = "adaptive"
    seed: int = 0
    tolerance: float = 0.0
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    concurrency: int = 32
    null_rows: int = 0

    def full_rows(self, rows: int) -> int:
        """Return how many of the first rows get all their draws."""
        return rows if self.strategy == "fixed" else min(self.null_rows, rows)


@dataclass(frozen=True, slots=True)
class Rationalizer:
    """Who explains a label that is shown, and who must recover it from the explanation."""

    explain: Source
    recover: Source


@dataclass(frozen=True, slots=True)
class _Draw:
    """A draw that was made, before it is held against a label."""

    row: int
    draw: int
    chance: Chance
    mode: Mode
    source: Source
    seed: int
    swapped: bool
    completion: Completion
    trace: str
    verdict: Label | None
    seconds: float


class Sampler:
    """Makes the draws that a ledger still misses and writes each to the journal as it arrives.

    Args:
        ledger: Rows, units, and what was drawn already.
        journal: Where candidates go.
        source: The model that draws, and its question.
        options: Strategy, seed, settings.
        escalate: A second model for items with an unmatched label.
        rationalize: The label-conditioned second chance for labels that are still unmatched.
        on_draw: Called after every draw.

    Attributes:
        pool: What runs the draws; set its `stopping` to end after those in flight.
    """

    def __init__(
        self,
        ledger: Ledger,
        journal: Journal,
        source: Source,
        options: SamplingOptions,
        *,
        escalate: Source | None = None,
        rationalize: Rationalizer | None = None,
        on_draw: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is drawn yet."""
        self.ledger, self.journal, self.source, self.options = ledger, journal, source, options
        self.escalate, self.rationalize = escalate, rationalize
        self._on_draw = on_draw
        sources: dict[Chance, Source | None] = {
            "first": source,
            "escalated": escalate,
            "rationalized": rationalize.explain if rationalize else None,
        }
        answered = {asked.model.spec for chance, asked in sources.items() if asked and ledger.totals.draws[chance] > 0}
        self._full_rows = options.full_rows(len(ledger.rows))
        self.pool = DrawPool(options.settings, options.concurrency, answered)
        self._askers: OrderedDict[tuple[int, int], Callable[..., list[Message]]] = OrderedDict()

    async def run(self) -> None:
        """Make every draw that is still missing, or end early if the pool is stopping.

        Raises:
            ModelAccessError: A model cannot be used.
            ModelError: A model failed after its retries. What arrived before is in the journal.
        """
        rows = range(len(self.ledger.rows))
        await self.pool.work(self._inferences("first", self.source, rows))
        if self.escalate is not None:
            await self.pool.work(self._inferences("escalated", self.escalate, self._open_rows()))
        if self.rationalize is not None:
            await self.pool.work(self._rationalizations(self.rationalize, self._open_rows()))
        self.pool.settle(any_answer=bool(self.ledger.totals.draws))

    def complete_group(self, last: Record) -> None:
        """Write the lines that a crash cut off a draw which several annotators share.

        Args:
            last: The last line of the journal that is being continued.
        """
        ledger, item_ids, scale = self.ledger, self.ledger.corpus.item_ids, self.ledger.dimension.scale
        row = next((row for row, item in enumerate(ledger.rows) if item_ids[item] == last["item_id"]), None)
        shared = last["chance"] in ("first", "escalated") and last["chance"] in ledger.numbers
        if row is None or last["annotator_id"] is None or not shared:
            return
        if last["draw"] >= ledger.numbers[last["chance"]].shape[1]:
            return
        # Lines of a draw stand in the order of units, so what was cut off comes after the last one.
        written = next(unit for unit in ledger.units(row) if ledger.annotator_id(unit) == last["annotator_id"])
        lost = [unit for unit in self._concerned(last["chance"], row, last["draw"]) if unit > written]
        records = []
        for unit in lost:
            label = scale.label(ledger.unit_numbers[unit])
            accepted = scale.agrees(last["verdict"], label, self.options.tolerance)
            held_against = {"annotator_id": ledger.annotator_id(unit), "label": label, "accepted": accepted}
            records.append({**last, **held_against, "flags": trace_flags(last["trace"]) if accepted else ()})
        if records:
            self._write(records, row, lost)

    def _open_rows(self) -> list[int]:
        return [row for row in range(len(self.ledger.rows)) if self.ledger.unmatched(row)]

    def _inferences(self, chance: Chance, source: Source, rows: Iterable[int]) -> Iterator[Job]:
        """Yield the jobs of a chance: a row each if it may stop early, else a draw each."""
        for row in rows:
            missing = self.ledger.missing(chance, row)
            if self._is_full(chance, row):
                for draw in missing:
                    yield partial(self._infer, chance, source, row, draw)
            elif missing and missing[0] < self.ledger.draws_needed(row, chance):
                yield partial(self._infer_until_matched, chance, source, row, missing)

    def _is_full(self, chance: Chance, row: int) -> bool:
        return chance == "first" and row < self._full_rows

    async def _infer_until_matched(self, chance: Chance, source: Source, row: int, draws: Sequence[int]) -> None:
        for draw in draws:
            if self.pool.ending or draw >= self.ledger.draws_needed(row, chance):
                return
            await self._infer(chance, source, row, draw)

    async def _infer(self, chance: Chance, source: Source, row: int, draw: int) -> None:
        """Make one draw that does not see the label, and write its candidates."""
        messages, seed = self.asked(chance, source, row, draw)
        completion, seconds = await self.pool.ask(source, messages, seed)
        self.take(chance, source, row, draw, completion, seconds)

    def asked(self, chance: Chance, source: Source, row: int, draw: int) -> tuple[list[Message], int]:
        """Return the messages and the seed of a draw that does not see the label."""
        seed = draw_seed(self.options.seed, self._item_id(row), source.question.dimension.name, draw, chance)
        return self._asker(source, row)(self._is_swapped(source, row, draw)), seed

    def take(self, chance: Chance, source: Source, row: int, draw: int, completion: Completion, seconds: float) -> None:
        """Write the candidates of a draw, as what was asked came back.

        Raises:
            ModelAccessError: If the model has refused the first requests, all of them.
        """
        scale, swapped = source.question.dimension.scale, self._is_swapped(source, row, draw)
        seed = draw_seed(self.options.seed, self._item_id(row), source.question.dimension.name, draw, chance)
        trace, verdict = "", None
        if completion.finish_reason != REFUSED:
            trace, verdict = trace_of(completion), scale.read_verdict(completion.text)
        if swapped and verdict is not None:
            verdict = scale.swapped(verdict)
        made = _Draw(row, draw, chance, "infer", source, seed, swapped, completion, trace, verdict, seconds)
        # What came in a batch may be more than was needed; it was paid for, so it is written all the same.
        units = self._concerned(chance, row, draw) or self.ledger.units(row)
        records = [self._candidate(made, unit).as_record() for unit in units]
        self.pool.keep(source, completion, partial(self._write, records, row, units))

    def _is_swapped(self, source: Source, row: int, draw: int) -> bool:
        dimension = source.question.dimension
        return isinstance(dimension.scale, PairwiseScale) and is_swapped(
            self.options.seed, self._item_id(row), dimension.name, draw
        )

    def _concerned(self, chance: Chance, row: int, draw: int) -> Sequence[int]:
        """Return the units that a draw is held against: all of the row, or those without a match before it."""
        ledger = self.ledger
        if self._is_full(chance, row):
            return ledger.units(row)
        rank = CHANCES.index(chance)
        return [
            unit
            for unit in ledger.units(row)
            if ledger.matched_draw[unit] < 0 or (ledger.matched_chance[unit], ledger.matched_draw[unit]) >= (rank, draw)
        ]

    def _rationalizations(self, rationalizer: Rationalizer, rows: Iterable[int]) -> Iterator[Job]:
        for row in rows:
            for unit in self.ledger.unmatched(row):
                if missing := self.ledger.missing("rationalized", unit):
                    yield partial(self._rationalize, rationalizer, row, unit, missing)

    async def _rationalize(self, rationalizer: Rationalizer, row: int, unit: int, draws: Sequence[int]) -> None:
        """Have a shown label explained until another model recovers it from the explanation alone."""
        scale = self.ledger.dimension.scale
        label = scale.label(self.ledger.unit_numbers[unit])
        for draw in draws:
            if self.pool.ending or self.ledger.matched_draw[unit] >= 0:
                return
            explain, recover = rationalizer.explain, rationalizer.recover
            who = self.ledger.annotator_id(unit) or ""
            seed = draw_seed(
                self.options.seed, self._item_id(row), f"{self.ledger.dimension.name}\0{who}", draw, "rationalized"
            )
            explained, seconds = await self.pool.ask(explain, self._asker(explain, row)(label=label), seed)
            trace, verdict = "", None
            if explained.finish_reason != REFUSED:
                trace = strip_ratings(trace_of(explained), scale)
            if trace:
                recovered, more_seconds = await self.pool.ask(recover, recover.question.about_reasoning(trace), seed)
                verdict = None if recovered.finish_reason == REFUSED else scale.read_verdict(recovered.text)
                seconds += more_seconds
                explained = replace(
                    explained,
                    text=recovered.text,
                    prompt_tokens=_sum(explained.prompt_tokens, recovered.prompt_tokens),
                    completion_tokens=_sum(explained.completion_tokens, recovered.completion_tokens),
                )
            made = _Draw(
                row, draw, "rationalized", "rationalize", explain, seed, False, explained, trace, verdict, seconds
            )
            records = [self._candidate(made, unit).as_record()]
            self.pool.keep(explain, explained, partial(self._write, records, unit, [unit]))

    def _asker(self, source: Source, row: int) -> Callable[..., list[Message]]:
        """Return the question about a row's item; the last few are kept, since draws of an item come together."""
        key = (id(source), row)
        if key in self._askers:
            self._askers.move_to_end(key)
            return self._askers[key]
        asker = source.question.about(self.ledger.corpus.item(int(self.ledger.rows[row])))
        self._askers[key] = asker
        if len(self._askers) > 2 * self.options.concurrency:
            self._askers.popitem(last=False)
        return asker

    def _item_id(self, row: int) -> str:
        return self.ledger.corpus.item_ids[int(self.ledger.rows[row])]

    def _candidate(self, made: _Draw, unit: int) -> Candidate:
        """Return a draw as the record of holding it against a unit's label."""
        question, scale = made.source.question, self.ledger.dimension.scale
        label = scale.label(self.ledger.unit_numbers[unit])
        accepted = scale.agrees(made.verdict, label, self.options.tolerance)
        return Candidate(
            item_id=self._item_id(made.row),
            dimension=question.dimension.name,
            annotator_id=self.ledger.annotator_id(unit),
            draw=made.draw,
            chance=made.chance,
            mode=made.mode,
            model=made.source.model.spec,
            prompt_sha256=question.prompt.sha256,
            guideline_sha256=question.dimension.guideline_sha256,
            seed=made.seed,
            temperature=self.options.settings.temperature,
            swapped=made.swapped,
            trace=made.trace,
            answer=made.completion.text,
            verdict=made.verdict,
            label=label,
            accepted=accepted,
            flags=trace_flags(made.trace) if accepted else (),
            finish_reason=made.completion.finish_reason,
            prompt_tokens=made.completion.prompt_tokens,
            completion_tokens=made.completion.completion_tokens,
            seconds=round(made.seconds, 4),
        )

    def _write(self, records: Sequence[Record], place: int, units: Sequence[int]) -> None:
        """Write the candidates of one draw in one go, and enter them."""
        offsets = self.journal.append(records)
        for record, unit, offset in zip(records, units, offsets, strict=True):
            self.ledger.enter(record, place, unit, offset)
        self._on_draw()


def _sum(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else first + second
