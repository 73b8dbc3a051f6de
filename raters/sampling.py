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
from raters.giving_up import GivingUp
from raters.journal import Journal, Record
from raters.ledger import CHANCES, Ledger
from raters.models.protocol import Completion, Message, SamplingSettings
from raters.records import Candidate, Chance, Label, Mode, Strategy
from raters.scales import PairwiseScale
from raters.scheduling import Schedule
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
        concurrency: Requests in flight.
        null_rows: Rows of an adaptive run that get all draws all the same, so that chance can be measured on them.
        together: Draws of an item that are asked for in one request; they are all made, whatever the first ones say.
        ahead: Make draws of an open item before its last one has come back, once no other item is left.
        give_up: Give a row up whose chance of an acceptance in the draws it has left is below this; 0 for never.
    """

    strategy: Strategy = "adaptive"
    seed: int = 0
    tolerance: float = 0.0
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    concurrency: int = 32
    null_rows: int = 0
    together: int = 1
    ahead: bool = False
    give_up: float = 0.0

    def full_rows(self, rows: int) -> int:
        """Return how many of the first rows get all their draws."""
        return rows if self.strategy == "fixed" else min(self.null_rows, rows)


def giving_up_of(ledger: Ledger, options: SamplingOptions) -> GivingUp | None:
    """Return which rows of a ledger are given up, decided anew from what it holds; None if none ever is."""
    if not options.give_up or options.strategy == "fixed":
        return None
    return GivingUp(ledger, options.give_up, options.tolerance, options.full_rows(len(ledger.rows)))


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
        refusal: From the number of requests in flight to why no further one may begin; empty if it may.
        first_rows: Rows that are drawn for before all others begin, if there are others.
        on_first: Called once they have their first draws.

    Attributes:
        giving_up: Which rows are given up; None if none ever is, or `run` has not begun.
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
        refusal: Callable[[int], str] = lambda running: "",
        first_rows: int = 0,
        on_first: Callable[[], None] = lambda: None,
    ) -> None:
        """Prepare; nothing is drawn yet."""
        self._first_rows, self._on_first = first_rows, on_first
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
        self.giving_up: GivingUp | None = None
        self.pool = DrawPool(options.settings, options.concurrency, answered, refusal)
        self._askers: OrderedDict[tuple[int, int], Callable[..., list[Message]]] = OrderedDict()

    async def run(self) -> None:
        """Make every draw that is still missing, or end early if the pool is stopping.

        Raises:
            ModelAccessError: A model cannot be used.
            ModelError: A model failed after its retries. What arrived before is in the journal.
        """
        self.giving_up = giving_up_of(self.ledger, self.options)
        rows = range(len(self.ledger.rows))
        if 0 < self._first_rows < len(rows):
            # Nothing ahead, since there are other items.
            await self.pool.work(self._inferences("first", self.source, rows[: self._first_rows], ahead=False))
            if not self.pool.ending:
                self._on_first()
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

    def _inferences(
        self, chance: Chance, source: Source, rows: Iterable[int], *, ahead: bool = True
    ) -> Iterator[Job | None]:
        """Return the jobs of a chance."""
        options, most = self.options, self.ledger.numbers[chance].shape[1]
        return Schedule(
            rows,
            missing=partial(self.ledger.missing, chance),
            needed=lambda row: most if self._is_full(chance, row) else self.ledger.draws_needed(row, chance),
            needs_all=partial(self._is_full, chance),
            draw=partial(self._infer, chance, source),
            together=options.together,
            ahead=options.ahead and ahead,
            giving_up=self.giving_up if chance == "first" else None,
        )

    def _is_full(self, chance: Chance, row: int) -> bool:
        return chance == "first" and row < self._full_rows

    async def _infer(self, chance: Chance, source: Source, row: int, draws: Sequence[int]) -> None:
        """Make draws that do not see the label, all of one request, and write their candidates."""
        together = self.options.together
        start = draws[0] // together * together
        places = range(start, min(start + together, self.ledger.numbers[chance].shape[1]))
        questions = [self.asked(chance, source, row, draw) for draw in places]
        messages, seeds = questions[0][0], [seed for _, seed in questions]
        made = await self.pool.ask_together(source, messages, seeds, [draw - start for draw in draws])
        for place, asked in made.items():
            self.take(chance, source, row, start + place, asked.completion, asked.seconds, asked.seed)

    def asked(self, chance: Chance, source: Source, row: int, draw: int) -> tuple[list[Message], int]:
        """Return the messages and the seed of a draw that does not see the label."""
        seed = draw_seed(self.options.seed, self._item_id(row), source.question.dimension.name, draw, chance)
        return self._asker(source, row)(self._is_swapped(source, row, draw)), seed

    def take(
        self,
        chance: Chance,
        source: Source,
        row: int,
        draw: int,
        completion: Completion,
        seconds: float,
        seed: int | None = None,
    ) -> None:
        """Write the candidates of a draw, as what was asked came back.

        Args:
            chance: Of the draw.
            source: Who was asked.
            row: About which row.
            draw: Its number.
            completion: What came.
            seconds: Wall time of its request.
            seed: What it was asked with, if not its own: that of the first draw of a request.

        Raises:
            ModelAccessError: If the model has refused the first requests, all of them.
        """
        scale, swapped = source.question.dimension.scale, self._is_swapped(source, row, draw)
        if seed is None:
            seed = draw_seed(self.options.seed, self._item_id(row), source.question.dimension.name, draw, chance)
        trace, verdict = "", None
        if completion.finish_reason != REFUSED:
            trace, verdict = trace_of(completion), scale.read_verdict(completion.text)
        if swapped and verdict is not None:
            verdict = scale.swapped(verdict)
        made = _Draw(row, draw, chance, "infer", source, seed, swapped, completion, trace, verdict, seconds)
        units = self._concerned(chance, row, draw)
        records = [self._candidate(made, unit).as_record() for unit in units]
        self.pool.keep(source, completion, partial(self._write, records, row, units))

    def _is_swapped(self, source: Source, row: int, draw: int) -> bool:
        dimension = source.question.dimension
        return isinstance(dimension.scale, PairwiseScale) and is_swapped(
            self.options.seed, self._item_id(row), dimension.name, draw // self.options.together
        )

    def _concerned(self, chance: Chance, row: int, draw: int) -> Sequence[int]:
        """Return the units that a draw is held against: without a match before it, or all if there is none."""
        ledger = self.ledger
        if self._is_full(chance, row):
            return ledger.units(row)
        rank = CHANCES.index(chance)
        open_units = [
            unit
            for unit in ledger.units(row)
            if ledger.matched_draw[unit] < 0 or (ledger.matched_chance[unit], ledger.matched_draw[unit]) >= (rank, draw)
        ]
        return open_units or ledger.units(row)

    def _rationalizations(self, rationalizer: Rationalizer, rows: Iterable[int]) -> Iterator[Job | None]:
        """Return the jobs of explaining labels: one draw at a time for each unit that nothing has matched."""
        ledger = self.ledger
        most = ledger.numbers["rationalized"].shape[1]
        return Schedule(
            (unit for row in rows for unit in ledger.unmatched(row)),
            missing=partial(ledger.missing, "rationalized"),
            needed=lambda unit: most if ledger.matched_draw[unit] < 0 else 0,
            needs_all=lambda unit: False,
            draw=partial(self._rationalize, rationalizer),
        )

    async def _rationalize(self, rationalizer: Rationalizer, unit: int, draws: Sequence[int]) -> None:
        """Have a shown label explained, and another model recover it from the explanation alone."""
        scale, row, (draw,) = self.ledger.dimension.scale, int(self.ledger.unit_rows[unit]), draws
        label = scale.label(self.ledger.unit_numbers[unit])
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
        made = _Draw(row, draw, "rationalized", "rationalize", explain, seed, False, explained, trace, verdict, seconds)
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
