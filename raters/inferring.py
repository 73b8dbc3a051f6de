"""A run of infer_traces: its files, its draws, its results. The stage and `raters.infer_traces` are both made of it."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from raters.budgets import FIRST_ITEMS
from raters.checkpoints import Checkpoint
from raters.drawing import Source
from raters.inference import Plan
from raters.inference_checks import second_chance
from raters.journal import Journal, to_line, write_atomically
from raters.ledger import Ledger
from raters.models import open_model
from raters.models.protocol import Model
from raters.outcomes import kept_traces, telling_rules, unmatched_labels
from raters.records import BudgetError, JudgeseyeError, StorageError
from raters.runs import RunFolder
from raters.sampling import Rationalizer, Sampler, giving_up_of


class InferenceRun:
    """One session of a run over its folder.

    Attributes:
        plan: What was asked.
        folder: Where it is.
        ledger: Which draws were made.
        journal: candidates.jsonl.
        checkpoint: Of the journal.
        continued: True if draws of an earlier session are there.
    """

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        """Take up what earlier sessions have left; nothing is written before the first draw."""
        self.plan, self.folder = plan, folder
        self.ledger = plan.empty_ledger()
        self.journal = Journal(folder.path / "candidates.jsonl", prepare=self._write_first_files)
        self.checkpoint = Checkpoint(self.journal, self.ledger)
        if folder.previous:
            self.ledger.replay(self.checkpoint.recover())
        self.continued = self.checkpoint.last_record() is not None
        giving_up_of(self.ledger, plan.sampling)  # or it would look as if there were work left
        self._began = time.monotonic()

    @property
    def drawn(self) -> int:
        """How many draws there are, of all sessions and chances."""
        return sum(self.ledger.totals.draws.values())

    @property
    def full_rows(self) -> int:
        """How many of the first items get all their draws."""
        return self.plan.sampling.full_rows(len(self.ledger.rows))

    @property
    def has_work(self) -> bool:
        """True if a draw is missing."""
        return self.ledger.has_work(self.full_rows)

    def begin(self) -> None:
        """Make the folder of a new run."""
        if not self.folder.previous:
            self._write_first_files()

    def _write_first_files(self) -> None:
        """Make the folder, with what is known before the first draw."""
        plan, folder = self.plan, self.folder
        manifest = plan.manifest(plan.empty_ledger(), "running", 0.0)
        folder.create({**manifest, "second_chance": second_chance(plan, folder)})
        if plan.split is not None:
            write_atomically(folder.path / "split.json", to_line(plan.split.as_record(plan.corpus)))
        if plan.observations is not None:
            write_atomically(folder.path / "observations.json", to_line(plan.observations.as_record()))
        plan.generator.write(folder.path / "rater.yaml")

    def manifest(self, status: str) -> dict[str, Any]:
        """Return what the run says of itself now."""
        seconds = self.folder.previous.get("seconds", 0.0) + time.monotonic() - self._began
        plan = self.plan
        return {**plan.manifest(self.ledger, status, seconds), "second_chance": second_chance(plan, self.folder)}

    def stopped(self) -> None:
        """Note that a session has ended before all draws were made."""
        self.checkpoint.close()
        if self.drawn:
            self.folder.write_manifest(self.manifest("stopped"))

    def failed(self, error: JudgeseyeError) -> None:
        """Note that a session has ended with an error; that this cannot be written either is no news."""
        if self.drawn:
            with contextlib.suppress(StorageError):
                self.checkpoint.close()
                self.folder.write_manifest(self.manifest("stopped" if isinstance(error, BudgetError) else "failed"))

    def finish(self) -> dict[str, Any]:
        """Write the results of a run whose draws are all made, and return the summary."""
        self.checkpoint.close()
        summary = write_results(self.plan, self.ledger, self.folder)
        self.folder.write_manifest({**self.manifest("complete"), "kept": summary["kept"]})
        return summary

    def close(self) -> None:
        """Give back the journal."""
        with contextlib.suppress(OSError):
            self.journal.close()


def progress_state(plan: Plan, ledger: Ledger) -> tuple[int, float, int, float | None]:
    """Return (items done, share of labels with an accepted draw, tokens, USD) of a run; None for an unknown cost."""
    totals = ledger.totals
    accepted = float((ledger.matched_draw >= 0).mean())
    done = ledger.rows_done(plan.sampling.full_rows(len(ledger.rows)))
    return done, accepted, totals.prompt_tokens + totals.completion_tokens, plan.cost(ledger)


@contextlib.asynccontextmanager
async def open_sampler(
    plan: Plan,
    ledger: Ledger,
    checkpoint: Checkpoint,
    *,
    on_draw: Callable[[], None] = lambda: None,
    on_estimate: Callable[[str], None] | None = None,
) -> AsyncIterator[Sampler]:
    """Open the models of a run, and close them with the block; the value makes the draws that are missing.

    Args:
        plan: Of the run.
        ledger: What is drawn already.
        checkpoint: Of the journal.
        on_draw: Called after every draw.
        on_estimate: Called with what the run will use, in words, once its first items are drawn for, if it costs
            anything; None for one of several workers, who can say nothing of the whole run.
    """
    options = plan.options
    models: dict[str, Model] = {}

    def source(purpose: str) -> Source:
        spec = plan.model_spec(purpose)
        if spec not in models:
            models[spec] = open_model(
                spec,
                base_url=options.base_url,
                adapter=options.adapter if spec == options.model else None,
                batch_size=options.batch_size,
                concurrency=options.concurrency,
                limits=options.endpoint_limits,
                engine_options=options.engine_options,
            )
        return Source(models[spec], plan.questions[purpose])

    def drawn() -> None:
        on_draw()
        checkpoint.save_if_due()

    together = options.samples_per_request
    budget = options.budget(plan.prices.values(), options.max_tokens, together)
    is_new = any(plan.is_undone(ledger, row) for row in range(min(FIRST_ITEMS, len(ledger.rows))))
    told = on_estimate is not None and is_new and (plan.is_paid or budget is not None)
    first_rows = FIRST_ITEMS if told else 0
    try:
        sampler = Sampler(
            ledger,
            checkpoint.journal,
            source("first"),
            plan.sampling,
            escalate=source("escalated") if options.escalate else None,
            rationalize=Rationalizer(source("rationalized"), source("recovered")) if options.rationalize else None,
            on_draw=drawn,
            refusal=lambda running: "" if budget is None else budget.refusal(plan.use(ledger), running),
            first_rows=first_rows,
            on_first=lambda: on_estimate and on_estimate(plan.estimate(ledger, first_rows)),
        )
        if (last := checkpoint.last_record()) is not None:
            sampler.complete_group(last)
        yield sampler
    finally:
        for model in models.values():
            await model.close()


def write_results(plan: Plan, ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
    """Write traces, unmatched labels, summary and plot; return the summary."""
    from raters.utilisation import plot_utilisation, summarise

    candidates, question = folder.path / "candidates.jsonl", plan.questions["first"]
    flagged: Counter[str] = Counter()
    written = Counter[str]()

    def trace_lines() -> Iterator[bytes]:
        for trace in kept_traces(ledger, candidates, question, plan.options.keep):
            flagged.update(trace["flags"])
            written["traces"] += 1
            yield to_line(trace)

    write_atomically(folder.path / "traces.jsonl", trace_lines())
    write_atomically(folder.path / "unmatched.jsonl", map(to_line, unmatched_labels(ledger)))
    summary = {
        "corpus": plan.corpus.name,
        "dimension": plan.dimension.name,
        "scale": str(plan.dimension.scale),
        "split": plan.options.split,
        "label_method": plan.method,
        "dropped_items": dict(plan.labels.dropped),
        "model": plan.options.model,
        **summarise(ledger, plan.sampling),
        "traces": written["traces"],
        "flagged": dict(flagged),
    }
    if question.needs_observations:
        summary["rules"] = telling_rules(ledger, candidates, plan.sampling.tolerance)
    write_atomically(folder.path / "summary.json", json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    plot_utilisation(summary, folder.path / "utilisation.svg", f"{plan.corpus.name}: {plan.dimension.name}")
    return summary
