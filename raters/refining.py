"""A run of refine_guideline: everything that asks a model. The stage and `raters.refine_guideline` are made of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raters.embedders import Embedder, KeptEmbedder, open_embedder
from raters.extractive import REST_IGNORED, ExtractiveWriter
from raters.guideline_lint import GuidelineLint
from raters.guideline_text import Guideline
from raters.guidelines import Refinement, RefineSettings
from raters.models import open_model, prompt_family
from raters.models.protocol import Model
from raters.pace import time_left
from raters.refinement_inputs import Plan
from raters.refinement_results import write_results
from raters.rounds import Redrawing
from raters.runs import RunFolder, git_revision, versions
from raters.trace_runs import Draws
from raters.trials import Spending, Trials, WorkEnds
from raters.writers import ModelWriter, Writer
from raters.writing import Scribe


class RefinementRun:
    """One session of a run over its folder. Set `stopping` to end after the answers in flight.

    Attributes:
        plan: What was asked.
        folder: Where it is.
        spending: What all that asks a model has used.
        trials: Raters.
        redrawing: The generator of traces.
        results: What was found so far; complete once `refine` has returned.
    """

    def __init__(
        self,
        plan: Plan,
        folder: RunFolder,
        *,
        say: Callable[[str], None],
        on_answer: Callable[[RefinementRun], None] = lambda run: None,
    ) -> None:
        """Make the folder, and count what earlier sessions have used.

        Args:
            plan: What was asked.
            folder: Where it is.
            say: Called with a line about what goes on.
            on_answer: Called after every answer of a rater or the generator.
        """
        options = plan.options
        self.plan, self.folder, self._say = plan, folder, say
        self.spending = Spending(options.max_requests, options.max_tokens, options.max_cost, plan.price)

        def tick() -> None:
            on_answer(self)

        concurrency, path = options.concurrency, folder.path
        self.trials = Trials(path / "trials", plan.run.corpus, {}, concurrency, self.spending, tick)
        self.redrawing = Redrawing(plan.run, path / "rounds", self.spending, concurrency, tick)
        self.results: dict[str, Any] = {}
        self._models: dict[tuple[str, str | None, str | None], Model] = {}
        self._refinement: Refinement | None = None
        self._began = time.monotonic()
        folder.create(self.manifest("running"))
        self.trials.recount()
        self.redrawing.recount()

    @property
    def stopping(self) -> bool:
        """True once the user has asked to stop."""
        return self.spending.stopping

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.trials.stop()
        self.redrawing.stop()

    def manifest(self, status: str) -> dict[str, Any]:
        """Return what the run says of itself now."""
        run, spending = self.plan.run, self.spending
        return {
            "status": status,
            "options": self.plan.options.model_dump(mode="json"),
            "versions": versions(),
            "git_revision": git_revision(),
            "inputs_sha256": dict(run.corpus.sha256),
            "split_sha256": run.split.hashes(run.corpus),
            "requests": spending.requests,
            "prompt_tokens": spending.prompt_tokens,
            "completion_tokens": spending.completion_tokens,
            "cost_usd": spending.usd,
            "seconds": round(self.folder.previous.get("seconds", 0.0) + time.monotonic() - self._began, 3),
        }

    def progress(self) -> str:
        """Return how far the run is: answers, tokens, cost, how many proposals were kept, and at most how long yet."""
        used, options = self.spending, self.plan.options
        tokens = used.prompt_tokens + used.completion_tokens
        parts = [f"{used.requests:,} answers", f"{tokens:,} tokens"]
        parts.append("cost unknown" if used.usd is None else f"${used.usd:,.2f}")
        attempts = [] if self._refinement is None else self._refinement.attempts
        if attempts:
            kept = sum(attempt.outcome == "kept" for attempt in attempts)
            parts.append(f"{kept} of {len(attempts)} proposals kept ({100 * kept / len(attempts):.0f} %)")
            most = options.rounds * options.max_proposals if options.method == "contrast" else options.rounds * 2
            left = time_left(len(attempts), most, time.monotonic() - self._began)
            parts.append(left.replace("about", "at most about"))
        return ", ".join(filter(None, parts))

    def finish(self) -> dict[str, Any]:
        """Write the results, and return the summary."""
        refinement, method = self.results["refinement"], self.plan.options.method
        summary = write_results(self.folder.path, refinement, self.results, method)
        self.folder.write_manifest(self.manifest("complete"))
        return summary

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        """Open writer and raters, and close all models with the block."""
        options = self.plan.options
        scribe: Scribe | None = None
        try:
            raters = self.plan.raters
            self.trials.models = {(spec.model, spec.adapter): self._open(spec.model, spec.adapter) for spec in raters}
            if options.writer != "extractive":
                scribe = Scribe(
                    self._open(options.writer, None, options.writer_base_url),
                    self.folder.path / "writer.jsonl",
                    self.spending,
                    seed=options.seed,
                    concurrency=options.concurrency,
                    log=self._say,
                )
                scribe.recover()
            self._refinement = self._prepared(self._writer(scribe))
            yield
        finally:
            if scribe is not None:
                scribe.close()
            for model in self._models.values():
                await model.close()

    async def refine(self) -> None:
        """Refine, and rate the test split before and after; `results` has what came out."""
        options, run, refinement = self.plan.options, self.plan.run, self._refinement
        assert refinement is not None, "the block of `opened` has not begun"
        draws = run.draws
        try:
            if options.method == "post-hoc":
                draws = await self._explained(self.plan.original.text)
            await refinement.refine(draws)
            dev = await self._before_and_after(refinement, self.plan.dev_items)
            self.results |= {"refinement": refinement, "dev": dev}
            if options.test and not self.stopping:
                self.results["test"] = await self._before_and_after(refinement, run.split.indices("test"))
        except WorkEnds as end:
            self.results.setdefault("refinement", refinement)
            refinement.ended = refinement.ended or str(end)
            self._say(f"ended early: {end}")

    def _open(self, spec: str, adapter: str | None = None, base_url: str | None = None) -> Model:
        options = self.plan.options
        base_url = base_url or options.base_url
        key = (spec, adapter, base_url)
        if key not in self._models:
            self._models[key] = open_model(
                spec,
                base_url=base_url,
                adapter=adapter,
                batch_size=options.batch_size,
                concurrency=options.concurrency,
                limits=options.endpoint_limits,
            )
        return self._models[key]

    @property
    def _generator(self) -> tuple[str, str | None]:
        options = self.plan.run.options
        return options["model"], options["adapter"]

    def _writer(self, scribe: Scribe | None) -> Writer:
        options = self.plan.options
        embedder: Embedder = open_embedder(options.embeddings, options.base_url)
        if options.embeddings != "tfidf":  # whose vectors depend on the texts beside
            embedder = KeptEmbedder(embedder, self.plan.out / "embeddings.jsonl")
        if scribe is None:
            return ExtractiveWriter(embedder, options.gate_z, drafted_rules=1 if options.method == "contrast" else 10)
        return ModelWriter(scribe, embedder, options.instruction_traces, options.rubric_traces)

    def _prepared(self, writer: Writer) -> Refinement:
        plan, options, run = self.plan, self.plan.options, self.plan.run
        texts = (text for item in run.split.indices("train") for text in run.corpus.item(int(item)).inputs.values())
        others = [name for name in run.corpus.dimensions if name != run.dimension.name]
        most = {} if options.max_words is None else {"most_words": options.max_words}
        lint = GuidelineLint(plan.original.text, run.dimension.name, run.dimension.scale, others, texts, **most)
        settings = RefineSettings(
            gated=options.method != "paper",
            edits=options.method == "contrast",
            level=options.level,
            rounds=options.rounds,
            patience=options.patience,
            most_proposals=options.max_proposals,
            dev_draws=options.draws,
            train_items=options.train_items,
            cases=options.cases,
            resamples=options.resamples,
            seed=options.seed,
        )
        return Refinement(
            run=run,
            guideline=plan.original,
            raters=plan.raters,
            names=plan.names,
            dev_items=plan.dev_items,
            labels=plan.labels,
            writer=writer,
            lint=lint,
            trials=self.trials,
            settings=settings,
            infer_again=self._infer_again,
            log=self._say,
        )

    async def _infer_again(self, guideline: Guideline, round_number: int) -> Draws:
        again = "explaining labels" if self.plan.options.method == "post-hoc" else "inferring traces"
        self._say(f"round {round_number}: {again} again under the refined guideline")
        # Who may not guess the rest shows nothing of what the rest is worth.
        text = "".join(f"{line.text}\n" for line in guideline.lines if line.text != REST_IGNORED)
        if self.plan.options.method == "post-hoc":
            return await self._explained(text)
        return await self.redrawing.under(text, self._open(*self._generator), round_number)

    async def _explained(self, guideline: str) -> Draws:
        """Return explanations of labels that are shown, by a guideline."""
        options = self.plan.options
        model, adapter = self._generator
        explain, recover = options.explain or model, options.recover or model
        if explain == recover:
            self._say(f"{explain} recovers labels from its own explanations; --recover with another model is stricter")
        return await self.redrawing.explained(
            guideline,
            self._open(explain, adapter if explain == model else None),
            self._open(recover, adapter if recover == model else None),
            (prompt_family(explain), prompt_family(recover)),
            options.rubric_traces,
            options.explanations,
        )

    async def _before_and_after(self, refinement: Refinement, items: NDArray[np.int64]) -> Mapping[str, Any]:
        """Return what the raters say of items under the original and under the refined guideline."""
        original = self.plan.original
        before = await refinement.rated(original, items)
        changed = refinement.guideline.text != original.text
        after = await refinement.rated(refinement.guideline, items) if changed else before
        return {"items": items, "before": before, "after": after}
