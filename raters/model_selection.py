"""Which checkpoint is kept: the one whose ratings of the dev split agree best with people's labels.

A checkpoint is rated by the project's own rating code, with the same seeds of draws at every step, so that two
checkpoints differ by their weights alone. Every draw goes to a journal, one per checkpoint, so that a killed run
repeats none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.corpora import Corpus
from raters.dev_gate import DevLabels, choice_figure, labelled_items
from raters.gold import gold_labels
from raters.journal import Journal
from raters.ledger import UNDRAWN
from raters.models.protocol import Model
from raters.rater_files import RaterSpec
from raters.rating_runs import RatingRun, RatingSheet
from raters.records import DataError
from raters.trace_runs import TraceRun


@dataclass
class Selection:
    """The best checkpoint so far, and whether it is worth going on.

    Attributes:
        patience: Steps without a better checkpoint after which training ends.
        best_step: Step of the best checkpoint; 0 before the first one.
        best: Its figure; None before the first one.
        last_step: Step of the latest checkpoint.
    """

    patience: int
    best_step: int = 0
    best: float | None = None
    last_step: int = 0

    def enter(self, step: int, figure: float) -> bool:
        """Enter a checkpoint's figure; return True if it is the best. Of equals the first one stays."""
        self.last_step = step
        if self.best is not None and figure <= self.best:
            return False
        self.best_step, self.best = step, figure
        return True

    @property
    def exhausted(self) -> bool:
        """True if the latest checkpoint is `patience` steps or more behind the best one."""
        return self.best is not None and self.last_step - self.best_step >= self.patience


@dataclass(frozen=True)
class DevSplit:
    """The items that decide, and people's labels of them.

    Attributes:
        corpus: Where they are.
        items: (items,) corpus index, ascending.
        labels: What raters are held against.
    """

    corpus: Corpus
    items: NDArray[np.int64]
    labels: DevLabels

    @classmethod
    def of(cls, run: TraceRun, limit: int | None) -> DevSplit:
        """Return the labelled dev items of a run's corpus, or a fair sample of at most `limit` of them.

        Raises:
            DataError: If none is labelled, or all have the same label.
        """
        name, scale = run.dimension.name, run.dimension.scale
        dev = run.split.indices("dev")
        items, labels = labelled_items(run.corpus, run.dimension, run.gold_method, dev, limit)
        where = f"corpus {run.corpus.name}: the dev split"
        mend = "label more, or infer under another --split-seed"
        if not len(items):
            raise DataError(f"{where} has no item with a label on {name}, by which a checkpoint is chosen; {mend}")
        if len(np.unique(labels.gold)) < 2:
            same = gold_labels(run.corpus, name, run.gold_method, items[:1]).numbers[0]
            raise DataError(
                f"{where}: its {len(items)} labelled items all have {name} {scale.label(float(same))}, so that no "
                f"checkpoint can be told from another; {mend}"
            )
        return cls(run.corpus, items, labels)

    def figure(self, sheet: RatingSheet) -> float:
        """Return the choice figure of a filled sheet over these items (see `dev_gate`)."""
        figure = choice_figure(sheet.spec.dimension.scale)
        return self.labels.sums(sheet.as_draws(sheet.spec.model)).points()[figure].value


@dataclass
class DevRater:
    """Rates the dev split by checkpoints of one rater.

    Attributes:
        split: The items.
        spec: The rater, but for its weights.
        folder: Of the journals.
        concurrency: Draws that wait at once.
        on_draw: Called after every new draw.
    """

    split: DevSplit
    spec: RaterSpec
    folder: Path
    concurrency: int = 32
    on_draw: Callable[[], None] = lambda: None
    _running: RatingRun | None = field(default=None, repr=False)
    _stopping: bool = False

    def rate(self, name: str, open_model: Callable[[], Model]) -> dict[str, Any] | None:
        """Return what a checkpoint's ratings come to; None if it was stopped.

        Args:
            name: Of the checkpoint: that of its journal.
            open_model: Returns the model in the state of the checkpoint, if draws are missing; it is closed here.

        Raises:
            JudgeseyeError: If the model fails. What arrived is in the journal.
        """
        sheet = RatingSheet.empty(self.split.corpus, self.spec, self.split.items, self.spec.draws)
        path = self.folder / f"{name}.jsonl"
        journal = Journal(path, prepare=lambda: self.folder.mkdir(parents=True, exist_ok=True))
        sheet.replay(journal.recover())
        if (sheet.numbers == UNDRAWN).any():
            try:
                asyncio.run(self._draw(sheet, journal, open_model()))
            finally:
                with suppress(OSError):
                    journal.close()
        if (sheet.numbers == UNDRAWN).any():
            return None
        return {
            "figure": choice_figure(self.spec.dimension.scale),
            "value": self.split.figure(sheet),
            "items": len(sheet.items),
            "draws": sheet.draws,
            "unreadable": sheet.unreadable,
            "tokens": sheet.completion_tokens,
        }

    async def _draw(self, sheet: RatingSheet, journal: Journal, model: Model) -> None:
        run = self._running = RatingRun(sheet, journal, model, self.concurrency, self.on_draw)
        run.pool.stopping = self._stopping
        try:
            await run.run()
        finally:
            self._running = None
            await model.close()

    def stop(self) -> None:
        """End after the draws that are in flight."""
        self._stopping = True
        if self._running is not None:
            self._running.pool.stopping = True


def replayed(patience: int, lines: Iterable[Mapping[str, Any]]) -> Selection:
    """Return the selection as lines of metrics.jsonl leave it, those of one phase in their order."""
    selection = Selection(patience)
    for line in lines:
        if "dev" in line and line["step"] > 0:
            selection.enter(line["step"], line["dev"]["value"])
    return selection
