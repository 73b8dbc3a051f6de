"""Rating items by raters that are on trial: every draw goes to a journal, so that none is paid for twice.

A trial is known by the rater's hash, in which its guideline is. So the same rater asked for the same items again, in
this session or after a crash, answers from its file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.journal import Journal, Record
from raters.ledger import UNDRAWN
from raters.models.protocol import Model
from raters.rater_draws import RaterDraws
from raters.rater_files import RaterSpec
from raters.rating_runs import RatingRun, RatingSheet


class WorkEnds(Exception):
    """A run ends early and in order: its budget is spent, or the user stopped it. What it has is kept."""


@dataclass
class Spending:
    """What a run has used, earlier sessions included, and the most it may use.

    Attributes:
        most_requests: None for no limit.
        most_tokens: None for no limit.
        most_usd: None for no limit.
        price: From (tokens read, tokens written) to USD; None if unknown.
        requests: Answers that came.
        prompt_tokens: Read.
        completion_tokens: Written.
        stopping: True once the user has asked to stop.
    """

    most_requests: int | None = None
    most_tokens: int | None = None
    most_usd: float | None = None
    price: Callable[[int, int], float | None] = lambda read, written: 0.0
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    stopping: bool = False

    def count(self, record: Record) -> None:
        """Count an answer that stands in a journal."""
        self.requests += 1
        self.prompt_tokens += record.get("prompt_tokens") or 0
        self.completion_tokens += record.get("completion_tokens") or 0

    @property
    def usd(self) -> float | None:
        """What it cost; None if unknown."""
        return self.price(self.prompt_tokens, self.completion_tokens)

    def check(self, more_requests: int) -> None:
        """Refuse to begin what would exceed the budget. Tokens are known afterwards only, so the last step may.

        Raises:
            WorkEnds: If so many more requests, or any more tokens, are over it, or the user stops.
        """
        if reason := self.refusal(more_requests):
            raise WorkEnds(reason)

    def refusal(self, more_requests: int) -> str:
        """Return why so many more requests may not begin; empty if they may."""
        tokens, usd = self.prompt_tokens + self.completion_tokens, self.usd
        if self.stopping:
            return "stopped"
        if self.most_requests is not None and self.requests + more_requests > self.most_requests:
            return f"{more_requests:,} more requests are over the budget of {self.most_requests:,}"
        if self.most_tokens is not None and tokens >= self.most_tokens:
            return f"{tokens:,} tokens are used, of at most {self.most_tokens:,}"
        if self.most_usd is not None and usd is not None and usd >= self.most_usd:
            return f"${usd:,.2f} are used, of at most ${self.most_usd:,.2f}"
        return ""


@dataclass
class Trials:
    """Rates items by raters, from journals as far as they reach.

    Attributes:
        folder: Of the journals.
        corpus: Where the items are.
        models: By spec and adapter.
        concurrency: Most requests at once.
        spending: Counts every draw.
        on_draw: Called after every new draw.
    """

    folder: Path
    corpus: Corpus
    models: Mapping[tuple[str, str | None], Model]
    concurrency: int
    spending: Spending
    on_draw: Callable[[], None] = lambda: None
    _known: dict[tuple[str, bytes, int], RatingSheet] = field(default_factory=dict)
    _running: RatingRun | None = None

    def recount(self) -> None:
        """Count what earlier sessions left in the folder."""
        for path in sorted(self.folder.glob("*.jsonl")):
            for _, _, record in Journal(path).recover():
                self.spending.count(record)

    async def rate(self, spec: RaterSpec, name: str, items: NDArray[np.int64], draws: int) -> RaterDraws:
        """Return what a rater says of items, ascending.

        Raises:
            WorkEnds: If the draws that are missing exceed the budget, or the user stops.
            JudgeseyeError: If its model fails. What arrived is in the journal.
        """
        return (await self.sheet(spec, items, draws)).as_draws(name)

    async def sheet(self, spec: RaterSpec, items: NDArray[np.int64], draws: int) -> RatingSheet:
        """Return the filled sheet of a rater over items; see `rate`."""
        items = np.sort(items)
        key = (spec.sha256, items.tobytes(), draws)
        if key in self._known:
            return self._known[key]
        sheet = RatingSheet.empty(self.corpus, spec, items, draws)
        journal = Journal(self.path(spec), prepare=lambda: self.folder.mkdir(parents=True, exist_ok=True))
        sheet.replay(journal.recover())
        missing = int((sheet.numbers == UNDRAWN).sum())
        if missing:
            self.spending.check(missing)
            await self._draw(sheet, journal)
            if self.spending.stopping:
                raise WorkEnds("stopped")
        self._known[key] = sheet
        return sheet

    async def _draw(self, sheet: RatingSheet, journal: Journal) -> None:
        """Make the draws that a sheet misses."""
        before, read, written = sheet.draws, sheet.prompt_tokens, sheet.completion_tokens
        model = self.models[sheet.spec.model, sheet.spec.adapter]
        run = self._running = RatingRun(sheet, journal, model, self.concurrency, self.on_draw)
        try:
            await run.run()
        finally:
            self._running = None
            self.spending.requests += sheet.draws - before
            self.spending.prompt_tokens += sheet.prompt_tokens - read
            self.spending.completion_tokens += sheet.completion_tokens - written
            with suppress(OSError):
                journal.close()

    def stop(self) -> None:
        """End after the draws that are in flight."""
        self.spending.stopping = True
        if self._running is not None:
            self._running.pool.stopping = True

    def path(self, spec: RaterSpec) -> Path:
        """Return the journal of a rater."""
        return self.folder / f"{spec.sha256[:16]}.jsonl"
