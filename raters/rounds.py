"""Drawing again for the items of a finished run: under another guideline, or with the label shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raters.drawing import DrawPool, Source
from raters.journal import Journal, sha256_of
from raters.ledger import Ledger
from raters.models.protocol import Model
from raters.prompts import load_prompt
from raters.questions import Question
from raters.sampling import Rationalizer, Sampler, SamplingOptions, strategy_for
from raters.trace_runs import Draws, TraceRun, read_draws_of
from raters.trials import Spending

MakeSampler = Callable[[Journal, Callable[[], None]], Sampler]


@dataclass
class Redrawing:
    """Draws for the train split of a run, into journals of their own.

    Attributes:
        run: Whose items, labels, prompt and settings they have.
        folder: Of the journals.
        spending: Counts every draw.
        concurrency: Most requests at once.
        on_draw: Called after every draw.
    """

    run: TraceRun
    folder: Path
    spending: Spending
    concurrency: int = 32
    on_draw: Callable[[], None] = lambda: None
    _pool: DrawPool | None = None

    def recount(self) -> None:
        """Count what earlier sessions left in the folder."""
        for path in sorted(self.folder.glob("*.jsonl")):
            counted = set()
            for _, _, record in Journal(path).recover():
                # A draw that several people's labels are held against has a line for each of them.
                who = record["annotator_id"] if record["chance"] == "rationalized" else None
                draw = (record["item_id"], record["chance"], record["draw"], who)
                if draw not in counted:
                    counted.add(draw)
                    self.spending.count(record)

    def stop(self) -> None:
        """End after the draws that are in flight."""
        self.spending.stopping = True
        if self._pool is not None:
            self._pool.stopping = True

    async def under(self, guideline: str, model: Model, round_number: int) -> Draws:
        """Return draws of a model under another guideline, as many as the run made for each item.

        Raises:
            WorkEnds: If the budget is spent, or the user stops.
            ModelError: If the model fails. What was drawn is in the journal.
        """
        options = self.run.options
        sampling = SamplingOptions(
            strategy=strategy_for(options["strategy"], options["keep"]),
            seed=options["seed"] + round_number - 1,
            tolerance=self.run.tolerance,
            settings=self.run.settings,
            concurrency=self.concurrency,
            null_rows=options["null_items"],
        )
        order = self.run.order
        ledger = Ledger(self.run.corpus, self.run.dimension, self.run.labels, order, {"first": options["k"]})
        path = self.folder / f"infer-{round_number}-{sha256_of(guideline)[:16]}.jsonl"
        source = Source(model, self.run.question(guideline))

        def sampler(journal: Journal, on_draw: Callable[[], None]) -> Sampler:
            return Sampler(ledger, journal, source, sampling, on_draw=on_draw)

        await self._draw(ledger, path, sampler, sampling.full_rows(len(order)))
        return read_draws_of(path, self.run.corpus, self.run.dimension)

    async def explained(
        self, guideline: str, explain: Model, recover: Model, families: tuple[str, str], items_of_a_level: int, k: int
    ) -> Draws:
        """Return label-conditioned explanations, ratings stripped; accepted are those whose label was recovered.

        Args:
            guideline: That the explanations go by.
            explain: Model that sees the label.
            recover: Model that must find it from the explanation alone.
            families: Of prompts, of either.
            items_of_a_level: Labels of each kind to explain, at most.
            k: Most explanations of a label.

        Raises:
            WorkEnds: If the budget is spent, or the user stops.
            ModelError: If a model fails. What was written is in the journal.
        """
        from raters.writers import level_of

        run, options = self.run, self.run.options
        labels, order = run.labels, run.order
        label_of = dict(zip(labels.items.tolist(), level_of(labels.numbers, run.dimension.scale).tolist(), strict=True))
        levels = np.array([label_of[item] for item in order.tolist()])
        chosen = np.concatenate([np.flatnonzero(levels == level)[:items_of_a_level] for level in np.unique(levels)])
        order = order[np.sort(chosen)]
        asked = run.question(guideline).dimension

        def question(family: str, purpose: str) -> Question:
            prompt = load_prompt(family + purpose)
            observed = run.observations if "observations" in prompt.slots else None
            return Question(asked, prompt, observed, purpose)  # type: ignore[arg-type]

        rationalizer = Rationalizer(
            Source(explain, question(families[0], "rationalize")), Source(recover, question(families[1], "recover"))
        )
        ledger = Ledger(run.corpus, run.dimension, labels, order, {"first": 0, "rationalized": k})
        sampling = SamplingOptions(
            seed=options["seed"],
            tolerance=run.tolerance,
            settings=run.settings,
            concurrency=self.concurrency,
        )
        path = self.folder / f"explain-{sha256_of(guideline)[:16]}.jsonl"
        source = Source(explain, run.question(guideline))

        def sampler(journal: Journal, on_draw: Callable[[], None]) -> Sampler:
            return Sampler(ledger, journal, source, sampling, rationalize=rationalizer, on_draw=on_draw)

        await self._draw(ledger, path, sampler, 0)
        return read_draws_of(path, run.corpus, run.dimension, "rationalized")

    async def _draw(self, ledger: Ledger, path: Path, make: MakeSampler, full_rows: int) -> None:
        """Make the draws that a ledger misses, as far as the budget reaches."""
        journal = Journal(path, prepare=lambda: self.folder.mkdir(parents=True, exist_ok=True))
        last = ledger.replay(journal.recover())
        counted = _used(ledger)

        def on_draw() -> None:
            nonlocal counted
            now = _used(ledger)
            requests, read, written = (new - old for new, old in zip(now, counted, strict=True))
            counted = now
            self.spending.requests += requests
            self.spending.prompt_tokens += read
            self.spending.completion_tokens += written
            sampler.pool.stopping |= bool(self.spending.refusal(1))
            self.on_draw()

        sampler = make(journal, on_draw)
        if ledger.has_work(full_rows):
            self.spending.check(1)
        self._pool = sampler.pool
        try:
            if last is not None:
                sampler.complete_group(last)
            await sampler.run()
        finally:
            self._pool = None
            journal.close()
        if self.spending.stopping or ledger.has_work(full_rows):
            self.spending.check(1)


def _used(ledger: Ledger) -> tuple[int, int, int]:
    """Return the draws of a ledger, and the tokens they read and wrote."""
    totals = ledger.totals
    return sum(totals.draws.values()), totals.prompt_tokens, totals.completion_tokens
