"""Stage: synthesise a clearer guideline from traces, every edit gated on held-out labels."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import BATCH_SIZE, BatchSizeOption, EndpointOptions, parse_options
from pipelines.screen import say
from pipelines.session import draw_until_done, run_loop
from raters.records import MOST_DRAWS, JudgeseyeError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pipelines.refinement_inputs import Plan
    from raters.guideline_text import Guideline
    from raters.guidelines import Refinement
    from raters.models.protocol import Model
    from raters.rounds import Redrawing
    from raters.runs import RunFolder
    from raters.trace_runs import Draws
    from raters.trials import Spending, Trials
    from raters.writers import Writer

STAGE = "refine_guideline"
DESCRIPTION = """\
Write a clearer guideline from the traces of a run of infer_traces, keep each edit only if it raises the raters'
agreement with people on the dev split, and rate the test split once with the guideline before and after.

Writes to --out: guideline.md, diff.md, provenance.jsonl, proposals.jsonl, raters/<rater>.yaml, report.html,
summary.json, test/<rater>-{original,refined}/ratings.jsonl, manifest.json. The same command again goes on where it
stopped."""


class RefineGuidelineOptions(EndpointOptions):
    """Options of refine_guideline."""

    traces: str | None = Field(None, description="folder of a finished run of infer_traces on the train split")
    corpus: str | None = Field(None, description="where that run's corpus is now (default: where it was)")
    writer: str = Field("extractive", description="extractive, hf/<path or id>, vllm/<path or id>, or openai/<name>")
    rater: tuple[str, ...] = Field(
        ("embedded",), description="raters that the guideline is for, one or more: models, or rater.yaml files"
    )
    method: Literal["contrast", "paper", "post-hoc"] = Field(
        "contrast",
        description="contrast: two drafts and a loop of small edits, each gated; paper: both drafts as they come; "
        "post-hoc: gated drafts from explanations of labels that are shown",
    )
    guideline: str | None = Field(
        None, description="file of the guideline to begin with (default: the one the traces are of)"
    )
    rounds: int = Field(1, ge=1, le=20, description="infer traces again under the refined guideline, so many times")
    level: float = Field(0.05, gt=0, lt=1, description="level of the one-sided test that an edit has to pass")
    patience: int = Field(10, ge=1, description="proposals in a row without a gain that end a round")
    max_proposals: int = Field(40, ge=1, description="most proposals of a round")
    draws: int = Field(8, ge=1, le=MOST_DRAWS, description="draws of a rater for an item")
    dev_limit: int | None = Field(None, ge=20, description="most dev items that decide (default: all)")
    train_items: int = Field(60, ge=1, description="train items rated to find where raters go wrong")
    cases: int = Field(4, ge=1, description="items that the writer is shown at once")
    instruction_traces: int = Field(10, ge=1, description="traces of each label for the procedure")
    rubric_traces: int = Field(50, ge=1, description="traces of each label for the criteria")
    embeddings: str = Field(
        "tfidf", description="of critiques and sentences: tfidf, openai/<name>, or sentence-transformers/<name>"
    )
    gate_z: float = Field(3.0, ge=0, description="least |z| of what the extractive writer proposes")
    explain: str | None = Field(None, description="post-hoc: model that explains labels (default: the run's)")
    recover: str | None = Field(None, description="post-hoc: model that must recover them (default: the run's)")
    explanations: int = Field(4, ge=1, le=64, description="post-hoc: most explanations of a label")
    max_words: int | None = Field(None, ge=1, description="most words of the guideline (default: 400, or 3 x as many)")
    test: bool = Field(True, description="rate the test split once, before and after")
    max_requests: int | None = Field(None, ge=1, description="budget: most answers of writer and raters")
    max_tokens: int | None = Field(None, ge=1, description="budget: most tokens read and written")
    max_cost: float | None = Field(None, ge=0, description="budget in USD; needs prices")
    input_price: float | None = Field(None, ge=0, description="USD for a million tokens read")
    output_price: float | None = Field(None, ge=0, description="USD for a million tokens written")
    base_url: str | None = Field(None, description="endpoint of openai/<name>; OPENAI_BASE_URL if not given")
    writer_base_url: str | None = Field(None, description="endpoint of the writer, if another than --base-url")
    batch_size: BatchSizeOption = BATCH_SIZE
    concurrency: int = Field(32, ge=1, le=4096, description="requests in work at once")
    resamples: int = Field(2000, ge=200, le=100_000, description="of the bootstrap")
    seed: int = Field(0, description="of all choices, and of the raters' draws")
    out: str | None = Field(
        None, description="folder of this run (default: runs/<corpus>[-<dimension>]/refine_guideline)"
    )
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(RefineGuidelineOptions, STAGE, DESCRIPTION, arguments)
    from pipelines.refinement_inputs import read_inputs
    from raters.runs import RunFolder

    plan = read_inputs(options)
    say(plan.describe())
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new)
    try:
        finished = _run(plan, folder)
    finally:
        folder.release()
    if finished is None:
        return INTERRUPTED
    from pipelines.refinement import summary_lines

    print("\n".join(summary_lines(finished)))
    files = "guideline.md, diff.md, provenance.jsonl, proposals.jsonl, raters/, report.html, summary.json"
    print(f"\nWritten to {folder.path}: {files}")
    return 0


@dataclass
class _Work:
    """Everything that asks a model, so that it can be stopped and counted together.

    Attributes:
        trials: Raters.
        redrawing: The generator of traces.
        spending: Of all of them.
    """

    trials: Trials
    redrawing: Redrawing
    spending: Spending
    models: dict[tuple[str, str | None, str | None], Model] = field(default_factory=dict)

    @property
    def stopping(self) -> bool:
        """True once the user has asked to stop."""
        return self.spending.stopping

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self.trials.stop()
        self.redrawing.stop()


class _Ticker:
    """Says now and then how far a long step is."""

    def __init__(self, spending: Spending) -> None:
        self._spending, self._due = spending, time.monotonic() + 10.0

    def tick(self) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + 10.0
            used, usd = self._spending, self._spending.usd
            tokens = used.prompt_tokens + used.completion_tokens
            cost = "cost unknown" if usd is None else f"${usd:,.2f}"
            say(f"  {used.requests:,} answers, {tokens:,} tokens, {cost}")

    def close(self) -> None:
        """Nothing is open."""


def _run(plan: Plan, folder: RunFolder) -> dict[str, Any] | None:
    """Refine, rate the test split, write the results; return the summary, None if the user stopped it."""
    from raters.rounds import Redrawing
    from raters.runs import git_revision, versions
    from raters.trials import Spending, Trials

    options = plan.options
    spending = Spending(options.max_requests, options.max_tokens, options.max_cost, plan.price)
    ticker = _Ticker(spending)
    trials = Trials(folder.path / "trials", plan.run.corpus, {}, options.concurrency, spending, ticker.tick)
    redrawing = Redrawing(plan.run, folder.path / "rounds", spending, options.concurrency, ticker.tick)
    work = _Work(trials, redrawing, spending)
    began = time.monotonic()

    def manifest(status: str) -> dict[str, Any]:
        return {
            "status": status,
            "options": options.model_dump(mode="json"),
            "versions": versions(),
            "git_revision": git_revision(),
            "inputs_sha256": dict(plan.run.corpus.sha256),
            "split_sha256": plan.run.split.hashes(plan.run.corpus),
            "requests": spending.requests,
            "prompt_tokens": spending.prompt_tokens,
            "completion_tokens": spending.completion_tokens,
            "cost_usd": spending.usd,
            "seconds": round(folder.previous.get("seconds", 0.0) + time.monotonic() - began, 3),
        }

    folder.create(manifest("running"))
    trials.recount()
    redrawing.recount()
    if spending.requests:
        say(f"continuing {folder.path}: {spending.requests:,} answers are there already")
    try:
        results: dict[str, Any] = {}
        if not run_loop(_with_models(plan, folder, work, ticker, results)):
            folder.write_manifest(manifest("stopped"))
            say(f"{spending.requests:,} answers are kept in {folder.path}; give the same command again to go on")
            return None
        from pipelines.refinement import write_results

        summary = write_results(folder.path, results["refinement"], results, options.method)
        folder.write_manifest(manifest("complete"))
        return summary
    except JudgeseyeError as error:
        if not isinstance(error, StorageError):
            folder.write_manifest(manifest("failed"))
        if spending.requests:
            say(f"{spending.requests:,} answers are kept in {folder.path}; give the same command again to go on")
        raise


async def _with_models(plan: Plan, folder: RunFolder, work: _Work, ticker: _Ticker, results: dict[str, Any]) -> bool:
    """Open the models and do everything that asks one; return False if the user stopped it."""
    from raters.models import open_model
    from raters.writing import Scribe

    options = plan.options

    def opened(spec: str, adapter: str | None = None, base_url: str | None = None) -> Model:
        base_url = base_url or options.base_url
        key = (spec, adapter, base_url)
        if key not in work.models:
            work.models[key] = open_model(
                spec,
                base_url=base_url,
                adapter=adapter,
                batch_size=options.batch_size,
                concurrency=options.concurrency,
                limits=options.endpoint_limits,
            )
        return work.models[key]

    scribe: Scribe | None = None
    try:
        work.trials.models = {(spec.model, spec.adapter): opened(spec.model, spec.adapter) for spec in plan.raters}
        if options.writer != "extractive":
            scribe = Scribe(
                opened(options.writer, None, options.writer_base_url),
                folder.path / "writer.jsonl",
                work.spending,
                seed=options.seed,
                concurrency=options.concurrency,
                log=say,
            )
            scribe.recover()
        refinement = _refinement(plan, work, _writer(plan, scribe), opened)
        return await draw_until_done(work, _refine(plan, work, refinement, opened, results), ticker)
    finally:
        if scribe is not None:
            scribe.close()
        for model in work.models.values():
            await model.close()


def _generator(plan: Plan) -> tuple[str, str | None]:
    return plan.run.options["model"], plan.run.options["adapter"]


def _writer(plan: Plan, scribe: Any) -> Writer:
    from raters.embedders import Embedder, KeptEmbedder, open_embedder
    from raters.extractive import ExtractiveWriter
    from raters.writers import ModelWriter

    options = plan.options
    embedder: Embedder = open_embedder(options.embeddings, options.base_url)
    if options.embeddings != "tfidf":  # whose vectors depend on the texts beside
        embedder = KeptEmbedder(embedder, plan.out / "embeddings.jsonl")
    if scribe is None:
        return ExtractiveWriter(embedder, options.gate_z, drafted_rules=1 if options.method == "contrast" else 10)
    return ModelWriter(scribe, embedder, options.instruction_traces, options.rubric_traces)


def _refinement(plan: Plan, work: _Work, writer: Writer, opened: Any) -> Refinement:
    from raters.extractive import REST_IGNORED
    from raters.guideline_lint import GuidelineLint
    from raters.guidelines import Refinement, RefineSettings

    options, run = plan.options, plan.run
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

    async def infer_again(guideline: Guideline, round_number: int) -> Draws:
        again = "explaining labels" if options.method == "post-hoc" else "inferring traces"
        say(f"round {round_number}: {again} again under the refined guideline")
        # Who may not guess the rest shows nothing of what the rest is worth.
        text = "".join(f"{line.text}\n" for line in guideline.lines if line.text != REST_IGNORED)
        if options.method == "post-hoc":
            return await _explained(plan, work, opened, text)
        return await work.redrawing.under(text, opened(*_generator(plan)), round_number)

    return Refinement(
        run=run,
        guideline=plan.original,
        raters=plan.raters,
        names=plan.names,
        dev_items=plan.dev_items,
        labels=plan.labels,
        writer=writer,
        lint=lint,
        trials=work.trials,
        settings=settings,
        infer_again=infer_again,
        log=say,
    )


async def _explained(plan: Plan, work: _Work, opened: Any, guideline: str) -> Draws:
    """Return explanations of labels that are shown, by a guideline."""
    from raters.models import prompt_family

    options = plan.options
    model, adapter = _generator(plan)
    explain, recover = options.explain or model, options.recover or model
    if explain == recover:
        say(f"{explain} recovers labels from its own explanations; --recover with another model is stricter")
    return await work.redrawing.explained(
        guideline,
        opened(explain, adapter if explain == model else None),
        opened(recover, adapter if recover == model else None),
        (prompt_family(explain), prompt_family(recover)),
        options.rubric_traces,
        options.explanations,
    )


async def _refine(plan: Plan, work: _Work, refinement: Refinement, opened: Any, results: dict[str, Any]) -> None:
    """Refine, and rate the test split before and after."""
    from raters.trials import WorkEnds

    options, run = plan.options, plan.run
    draws = run.draws
    try:
        if options.method == "post-hoc":
            draws = await _explained(plan, work, opened, plan.original.text)
        await refinement.refine(draws)
        results |= {"refinement": refinement, "dev": await _before_and_after(plan, refinement, plan.dev_items)}
        if options.test and not work.stopping:
            results["test"] = await _before_and_after(plan, refinement, run.split.indices("test"))
    except WorkEnds as end:
        results.setdefault("refinement", refinement)
        refinement.ended = refinement.ended or str(end)
        say(f"ended early: {end}")


async def _before_and_after(plan: Plan, refinement: Refinement, items: NDArray[np.int64]) -> Mapping[str, Any]:
    """Return what the raters say of items under the original and under the refined guideline."""
    before = await refinement.rated(plan.original, items)
    changed = refinement.guideline.text != plan.original.text
    after = await refinement.rated(refinement.guideline, items) if changed else before
    return {"items": items, "before": before, "after": after}


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
