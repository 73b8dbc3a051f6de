"""Stage: infer the reasoning behind label-only annotations by rejection sampling.

A model rates each item up to k times without seeing the label. Draws whose verdict equals the person's label are
kept, and their reasoning stands in for the person's own (Zhang et al. 2026).
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import (
    BATCH_SIZE,
    BatchSizeOption,
    BudgetOptions,
    EngineOptions,
    WorkerOptions,
    parse_options,
)
from pipelines.session import draw_until_done, how_to_go_on, progress_text, run_loop
from raters.journal import to_line, write_atomically
from raters.records import MOST_DRAWS, BudgetError, JudgeseyeError, StorageError

if TYPE_CHECKING:
    from pipelines.inference import Plan
    from raters.checkpoints import Checkpoint
    from raters.ledger import Ledger
    from raters.models.protocol import Model
    from raters.runs import RunFolder

STAGE = "infer_traces"
DESCRIPTION = """\
Infer the thinking behind label-only annotations: draw up to k ratings for each item from a model that does not see
the label, keep those that agree with the person, with their reasoning.

Writes to --out: candidates.jsonl (every draw), traces.jsonl (kept ones), unmatched.jsonl, summary.json,
utilisation.svg, split.json, manifest.json. The same command again continues where it stopped."""


class InferTracesOptions(BudgetOptions, EngineOptions, WorkerOptions):
    """Options of infer_traces."""

    corpus: str = Field("demo", description="corpus folder, or demo for the simulated one that ships with the project")
    dimension: str | None = Field(None, description="which question of the corpus; needed if it has several")
    split: Literal["train", "dev", "test", "all"] = Field("train", description="which part of the corpus to draw for")
    split_seed: int = Field(0, description="seed of the 70/15/15 split by group")
    limit: int | None = Field(None, ge=1, description="most items; a larger limit later goes on with more")
    labels: Literal["median", "majority", "mean", "paper", "per-annotator"] | None = Field(
        None,
        description="how several people's labels become one (default: median on ordinal, majority on nominal and "
        "pairwise, mean on interval scales); per-annotator keeps a trace for each person's own",
    )
    model: str = Field(
        "embedded",
        description="embedded, student, hf/<path or id>, vllm/<path or id>, openai/<name>, or a rater.yaml "
        "(its model, prompt and guideline)",
    )
    guideline: str | None = Field(None, description="file of the guideline to draw under (default: the corpus's)")
    base_url: str | None = Field(None, description="endpoint of openai/<name>; OPENAI_BASE_URL if not given")
    adapter: str | None = Field(None, description="LoRA adapter folder for student, hf/… or vllm/<path or id>")
    batch_size: BatchSizeOption = BATCH_SIZE
    prompt: str | None = Field(None, description="prompt of prompts/ or a .md file (default: the model's own)")
    k: int = Field(16, ge=1, le=MOST_DRAWS, description="most draws for an item; a larger k later goes on with more")
    strategy: Literal["adaptive", "fixed"] | None = Field(
        None, description="adaptive stops an item at its first acceptance (default), fixed makes all k draws"
    )
    keep: Literal["first", "all"] | int = Field(
        "first", description="accepted draws to keep for a label: the first, all, or the N most different"
    )
    tolerance: float | None = Field(
        None, ge=0, description="accept verdicts this far from the label: steps (ordinal), units (interval, required)"
    )
    temperature: float = Field(1.0, ge=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus of probability to sample from")
    max_tokens: int = Field(4096, ge=1, description="most tokens of a draw, reasoning included")
    seed: int = Field(0, description="seed of all draws")
    escalate: str | None = Field(None, description="second chance: another model draws for items without acceptance")
    rationalize: str | None = Field(
        None, description="second chance: this model explains the label it is shown; kept if --recover finds it again"
    )
    recover: str | None = Field(None, description="model that must recover the label (default: the one of --model)")
    second_k: int = Field(4, ge=1, le=MOST_DRAWS, description="most draws of each second chance")
    null_items: int = Field(
        50, ge=0, description="items of an adaptive run that get all k draws, to measure what chance would accept"
    )
    give_up: float = Field(
        0.0, ge=0, lt=1, description="give an item up once the chance of a match in its draws left is below this"
    )
    ahead: bool | None = Field(
        None,
        description="where slots would idle, make further draws of an open item before its last one has come back; "
        "traces stay the same (default: for openai/, hf/ and vllm/)",
    )
    samples_per_request: int = Field(
        1, ge=1, le=128, description="draws of an item in one request to openai/<name>, where the server has it"
    )
    batch: Literal["submit", "collect"] | None = Field(
        None, description="draw by way of openai/<name>'s batch API: submit a round of requests, or collect the answers"
    )
    batch_draws: int = Field(4, ge=1, le=MOST_DRAWS, description="draws of an open item in a round of --batch")
    batch_file: str | None = Field(
        None,
        description="with --batch submit: write the requests here and send nothing (vllm run-batch answers such "
        "files); with --batch collect: the file of answers",
    )
    batch_poll: float = Field(60.0, gt=0, description="seconds between looks at batches that --batch collect waits for")
    concurrency: int = Field(32, ge=1, le=4096, description="requests or items in work at once, of each worker")
    out: str | None = Field(None, description="folder of this run (default: runs/<corpus>[-<dimension>]/infer_traces)")
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")
    show: int = Field(0, ge=0, description="print this many kept traces beside their items")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(InferTracesOptions, STAGE, DESCRIPTION, arguments)
    from pipelines.inference import check_continuation, read_inputs
    from pipelines.screen import say
    from pipelines.workers import check_workers
    from raters.runs import RunFolder

    plan = read_inputs(options)
    say(plan.describe())
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new)
    try:
        check_continuation(plan, folder)
        summary = _run(plan, folder, check_workers(options, folder.path if folder.previous else None, plan.models))
    finally:
        folder.release()
    if summary is None:
        return INTERRUPTED
    if summary:
        _print_results(plan, folder, summary)
    return 0


def _run(plan: Plan, folder: RunFolder, workers: int | None) -> dict[str, Any] | None:
    """Make the draws that are missing and write the results; return the summary.

    It is None if the user stopped it, and empty if what was done is one step of a batch's.
    """
    from pipelines.batches import batch_round
    from pipelines.inference import second_chance
    from pipelines.screen import say
    from pipelines.workers import draw_in_shards, open_infer_traces
    from raters.checkpoints import Checkpoint
    from raters.journal import Journal
    from raters.models import IN_PROCESS, check_spec
    from raters.sampling import giving_up_of
    from raters.shards import clear_up, unfinished

    ledger = plan.empty_ledger()
    journal = Journal(folder.path / "candidates.jsonl", prepare=lambda: _begin(plan, folder))
    checkpoint = Checkpoint(journal, ledger)
    if folder.previous:
        clear_up(journal.path)
        ledger.replay(checkpoint.recover())
    if checkpoint.last_record() is not None:
        say(f"continuing {folder.path}: {sum(ledger.totals.draws.values()):,} draws are there already")
    giving_up_of(ledger, plan.sampling)  # or it would look as if there were work left
    began = time.monotonic()

    def manifest(status: str) -> dict[str, Any]:
        seconds = folder.previous.get("seconds", 0.0) + time.monotonic() - began
        return {**plan.manifest(ledger, status, seconds), "second_chance": second_chance(plan, folder)}

    def begin() -> None:
        if not folder.previous:
            _begin(plan, folder)

    has_work = ledger.has_work(plan.sampling.full_rows(len(ledger.rows)))
    try:
        if plan.options.batch is not None and has_work:
            done = batch_round(plan, ledger, checkpoint, None if folder.previous else begin)
            if not done:
                checkpoint.close()
                folder.write_manifest(manifest("stopped"))
                return {}
        elif workers is not None and has_work:
            begin()
            done = draw_in_shards(
                plan.options,
                open_infer_traces,
                journal.path,
                workers,
                lambda shard: ledger.part(shard.rows(len(ledger.rows))),
                drawn=sum(ledger.totals.draws.values()),
                gpu=check_spec(plan.options.model)[0] in IN_PROCESS,
            )
            if not done:
                folder.write_manifest(manifest("stopped"))
                return None
            ledger.replay(journal.recover(journal.end))
        elif has_work and not run_loop(draw(plan, ledger, checkpoint)):
            checkpoint.close()
            if sum(ledger.totals.draws.values()):
                folder.write_manifest(manifest("stopped"))
            say(how_to_go_on(sum(ledger.totals.draws.values()), folder.path))
            return None
        checkpoint.close()
        summary = _write_results(plan, ledger, folder)
        folder.write_manifest({**manifest("complete"), "kept": summary["kept"]})
        return summary
    except JudgeseyeError as error:
        if sum(ledger.totals.draws.values()) and not unfinished(folder.path):
            say(how_to_go_on(sum(ledger.totals.draws.values()), folder.path))
            with suppress(StorageError):
                checkpoint.close()
                folder.write_manifest(manifest("stopped" if isinstance(error, BudgetError) else "failed"))
        raise
    finally:
        with suppress(OSError):
            journal.close()


def _begin(plan: Plan, folder: RunFolder) -> None:
    """Make the folder, with what is known before the first draw."""
    from pipelines.inference import second_chance

    manifest = plan.manifest(plan.empty_ledger(), "running", 0.0)
    folder.create({**manifest, "second_chance": second_chance(plan, folder)})
    if plan.split is not None:
        write_atomically(folder.path / "split.json", to_line(plan.split.as_record(plan.corpus)))
    if plan.observations is not None:
        write_atomically(folder.path / "observations.json", to_line(plan.observations.as_record()))
    plan.generator.write(folder.path / "rater.yaml")


async def draw(plan: Plan, ledger: Ledger, checkpoint: Checkpoint, *, alone: bool = True) -> bool:
    """Make the draws that are missing; return False if the user stopped it.

    Args:
        plan: Of the run.
        ledger: What is drawn already.
        checkpoint: Of the journal.
        alone: False for one of several workers, who can say nothing of the whole run.

    Raises:
        BudgetError: The budget is spent.
    """
    from pipelines.screen import ProgressBar, say
    from raters.budgets import FIRST_ITEMS
    from raters.drawing import Source
    from raters.models import open_model
    from raters.sampling import Rationalizer, Sampler

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

    def on_draw() -> None:
        bar.update()
        checkpoint.save_if_due()

    def on_first() -> None:
        say(f"\n{plan.estimate(ledger, first_rows)}")

    together = options.samples_per_request
    budget = options.budget(plan.prices.values(), options.max_tokens, together)
    is_new = any(plan.is_undone(ledger, row) for row in range(min(FIRST_ITEMS, len(ledger.rows))))
    first_rows = FIRST_ITEMS if alone and is_new and (plan.is_paid or budget is not None) else 0
    try:
        sampler = Sampler(
            ledger,
            checkpoint.journal,
            source("first"),
            plan.sampling,
            escalate=source("escalated") if options.escalate else None,
            rationalize=Rationalizer(source("rationalized"), source("recovered")) if options.rationalize else None,
            on_draw=on_draw,
            refusal=lambda running: "" if budget is None else budget.refusal(plan.use(ledger), running),
            first_rows=first_rows,
            on_first=on_first,
        )
        totals = ledger.totals
        text = progress_text(
            lambda: sum(totals.draws.values()),
            lambda: totals.prompt_tokens + totals.completion_tokens,
            lambda: plan.cost(ledger),
        )

        full_rows = plan.sampling.full_rows(len(ledger.rows))

        def state() -> tuple[int, str]:
            accepted = 100 * float((ledger.matched_draw >= 0).mean())
            return ledger.rows_done(full_rows), f"accepted {accepted:.1f} % of labels, {text()}"

        bar = ProgressBar(len(ledger.rows), state)
        if (last := checkpoint.last_record()) is not None:
            sampler.complete_group(last)
        done = await draw_until_done(sampler.pool, sampler.run(), bar)
        if sampler.pool.ended:
            raise BudgetError(sampler.pool.ended)
        return done
    finally:
        for model in models.values():
            await model.close()


def _write_results(plan: Plan, ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
    """Write traces, unmatched labels, summary and plot; return the summary."""
    from raters.outcomes import kept_traces, telling_rules, unmatched_labels
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


def _print_results(plan: Plan, folder: RunFolder, summary: Mapping[str, Any]) -> None:
    from pipelines.screen import summary_lines, trace_lines
    from raters.journal import read_lines

    print("\n".join(summary_lines(summary)))
    if plan.options.show and summary["kept"]:
        print()
        places = {item_id: index for index, item_id in enumerate(plan.corpus.item_ids)}
        for _, _, trace in islice(read_lines(folder.path / "traces.jsonl"), plan.options.show):
            inputs = plan.corpus.item(places[trace["item_id"]]).inputs
            print("\n".join(trace_lines(trace, inputs)))
    print(f"\nWritten to {folder.path}: traces.jsonl, candidates.jsonl, unmatched.jsonl, summary.json, utilisation.svg")


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
