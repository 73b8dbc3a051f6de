"""Stage: apply a rater to the items of a split, every item as often as wanted."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import parse_options
from pipelines.session import draw_until_done, how_to_go_on, progress_text, run_loop
from raters.journal import to_line, write_atomically
from raters.options import BATCH_SIZE, BatchSizeOption, SharedOptions
from raters.records import MOST_DRAWS, BudgetError, ConfigError, DataError, JudgeseyeError, StorageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from raters.budgets import Use
    from raters.checkpoints import Checkpoint
    from raters.corpora import Corpus
    from raters.prices import Price
    from raters.rater_files import RaterSpec
    from raters.rating_runs import RatingSheet
    from raters.runs import RunFolder
    from raters.splits import Split

STAGE = "rate_items"
DESCRIPTION = """\
Rate the items of a split with a rater, each --draws times.

  python -m pipelines.rate_items --model embedded --corpus demo --split test --draws 8
  python -m pipelines.rate_items --rater runs/demo/finetune_rater/rater.yaml --corpus demo

Writes to --out: ratings.jsonl (every draw), verdicts.jsonl (what the draws of an item say together), rater.yaml,
split.json, manifest.json. The same command again continues where it stopped."""


class RateItemsOptions(SharedOptions):
    """Options of rate_items."""

    corpus: str = Field("demo", description="corpus folder, or demo for the simulated one that ships with the project")
    rater: str | None = Field(None, description="rater.yaml to apply; this or --model is needed")
    model: str | None = Field(
        None, description="instead of --rater: this model with the corpus's own guideline (default: none)"
    )
    dimension: str | None = Field(
        None, description="which question of the corpus, with --model (default: the only one)"
    )
    split: Literal["train", "dev", "test", "all"] = Field("test", description="which part of the corpus to rate")
    split_seed: int = Field(0, description="seed of the 70/15/15 split by group")
    limit: int | None = Field(
        None, ge=1, description="most items; a larger limit later goes on with more (default: all)"
    )
    draws: int | None = Field(None, ge=1, le=MOST_DRAWS, description="draws for an item (default: the rater's, or 1)")
    aggregate: Literal["mean", "median", "majority"] | None = Field(
        None, description="how draws become one verdict (default: mean, or majority on scales without order)"
    )
    prompt: str | None = Field(
        None, description="with --model: prompt of prompts/ or a .md file (default: the model's own)"
    )
    reasoning: bool = Field(
        True,
        description="with --model: let it think first; --no-reasoning asks for the verdict alone and, where the model "
        "tells the labels' probabilities, rates by the expected value over them",
    )
    temperature: float | None = Field(None, ge=0, description="sampling temperature (default: the rater's, or 1)")
    top_p: float | None = Field(
        None, gt=0, le=1, description="nucleus to sample from, from 0 to 1 (default: the rater's, or 1)"
    )
    max_tokens: int | None = Field(None, ge=1, description="most tokens of a draw (default: the rater's, or 4096)")
    seed: int | None = Field(None, description="seed of all draws (default: the rater's, or 0)")
    adapter: str | None = Field(
        None, description="with --model: LoRA adapter folder for student, hf/… or vllm/<path or id>"
    )
    base_url: str | None = Field(None, description="endpoint of openai/<name>; OPENAI_BASE_URL if not given")
    batch_size: BatchSizeOption = BATCH_SIZE
    concurrency: int = Field(32, ge=1, description="requests in work at once, of each worker")
    out: str | None = Field(None, description="folder of this run (default: runs/<corpus>[-<dimension>]/rate_items)")
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(RateItemsOptions, STAGE, DESCRIPTION, arguments)
    from pipelines.screen import say
    from pipelines.workers import check_workers
    from raters.runs import RunFolder

    plan = read_inputs(options)
    say(plan.describe())
    if note := plan.seen_remark():
        say(note)
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new)
    try:
        before = folder.previous.get("draws_per_item", 0)
        if plan.draws < before:
            raise ConfigError(
                f"--out {folder.path}: was run with {before} draws, now {plan.draws}, which would leave draws out; "
                "give at least as many, another --out, or --new to start over"
            )
        sheet = _run(plan, folder, check_workers(options, folder.path if folder.previous else None, {plan.spec.model}))
    finally:
        folder.release()
    if sheet is None:
        return INTERRUPTED
    print("\n".join(_summary_lines(plan, sheet)))
    print(f"\nWritten to {folder.path}: ratings.jsonl, verdicts.jsonl, rater.yaml")
    return 0


@dataclass(frozen=True)
class _Plan:
    """What the options and the files they name come to."""

    options: RateItemsOptions
    corpus: Corpus
    spec: RaterSpec
    split: Split | None
    items: NDArray[np.int64]
    draws: int
    out: Path

    def describe(self) -> str:
        times = "once" if self.draws == 1 else f"{self.draws} times"
        return (
            f"corpus {self.corpus.name}: {len(self.items):,} items of the {self.options.split} split; "
            f"{self.spec.model} rates {self.spec.dimension.name} on {self.spec.dimension.scale}, each item {times}"
        )

    def seen_remark(self) -> str:
        """Return that a test split is none for this rater, and why; empty if it has seen nothing of it."""
        from raters.trace_text import printable

        seen = self.spec.seen.touched(self.corpus, self.items)
        if self.options.split != "test" or not len(seen):
            return ""
        return printable(
            f"{len(seen):,} of these items, or items of their group, were seen in making the rater (such as "
            f"{self.corpus.item_ids[int(seen[0])]}), so they are no test of it; give the --split-seed it was made with"
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the meaning of the run's records."""
        return {
            "corpus": self.corpus.name,
            "items.jsonl": self.corpus.sha256["items.jsonl"],
            "dimension": self.spec.dimension.name,
            "model": self.spec.model,
            "adapter": self.spec.adapter,
            "guideline": self.spec.dimension.guideline_sha256,
            "prompt": self.spec.question.prompt.sha256,
            "temperature": self.spec.settings.temperature,
            "top_p": self.spec.settings.top_p,
            "max_tokens": self.spec.settings.max_tokens,
            "seed": self.spec.seed,
            "rater": self.spec.sha256,
            "split": self.options.split,
            "split_seed": self.options.split_seed,
        }

    @cached_property
    def price(self) -> Price | None:
        """What the model costs; None if nobody says."""
        return self.options.known_prices([self.spec.model]).get(self.spec.model)

    def cost(self, sheet: RatingSheet) -> float | None:
        """Return what the draws cost in USD; None if a hosted model has no price."""
        return None if self.price is None else self.price.usd(sheet.prompt_tokens, sheet.completion_tokens)

    def use(self, sheet: RatingSheet) -> Use:
        """Return what the draws have used; nothing in USD if that is unknown."""
        from raters.budgets import Use
        from raters.drawing import REFUSED

        counted = sheet.draws - sheet.untold - sheet.finish_reasons[REFUSED]
        return Use(counted, sheet.prompt_tokens + sheet.completion_tokens, self.cost(sheet) or 0.0, sheet.untold)

    def estimate(self, sheet: RatingSheet, first: int) -> str:
        """Return what the run will use, as a line for the user, once its first draws are made."""
        from raters.budgets import Estimate

        used, draws = self.use(sheet), sheet.numbers.size
        usd = None if self.price is None else used.usd / max(used.draws, 1)
        found = Estimate(draws, draws, draws, draws, used.tokens / max(used.draws, 1), usd)
        return self.options.estimate_line(first, found)

    def manifest(self, sheet: RatingSheet, status: str, seconds: float) -> dict[str, Any]:
        return {
            "status": status,
            "options": self.options.model_dump(),
            **sheet.manifest(self.split),
            "cost_usd": self.cost(sheet),
            "price": None if self.price is None else self.price.as_record(),
            "seconds": round(seconds, 3),
        }


def read_inputs(options: RateItemsOptions) -> _Plan:
    """Read and check all that can be checked before a model is asked."""
    from raters.corpora import find_corpus, load_corpus
    from raters.drawing import work_order
    from raters.gold import aggregate_draws
    from raters.plain_raters import plain_rater
    from raters.rater_files import read_rater
    from raters.rating import check_fields
    from raters.runs import stage_folder
    from raters.splits import split_corpus

    if (options.rater is None) == (options.model is None):
        given = "neither is given" if options.rater is None else f"{options.rater} and {options.model} are given"
        raise ConfigError(f"--rater, --model: {given}; give one of them")
    corpus = load_corpus(find_corpus(options.corpus))
    split = None if options.split == "all" else split_corpus(corpus, options.split_seed)
    if options.rater is not None:
        fixed = [name for name in ("dimension", "prompt", "adapter") if getattr(options, name) is not None]
        if fixed or not options.reasoning:
            raise ConfigError(
                f"--{(fixed or ['no-reasoning'])[0]}: belongs to --model; {options.rater} says that itself"
            )
        spec = read_rater(Path(options.rater))
        _check_corpus(spec, corpus, options.rater)
    else:
        assert options.model is not None
        spec = plain_rater(
            options.model,
            corpus,
            corpus.dimension(options.dimension),
            split,
            prompt=options.prompt,
            reasoning=options.reasoning,
            adapter=options.adapter,
        )
    options.check_endpoint([spec.model])
    options.check_budget([spec.model])
    settings = replace(
        spec.settings,
        **{
            name: value
            for name in ("temperature", "top_p", "max_tokens")
            if (value := getattr(options, name)) is not None
        },
    )
    draws = options.draws or spec.draws
    changed = replace(
        spec,
        settings=settings,
        seed=spec.seed if options.seed is None else options.seed,
        draws=draws,
        aggregate=options.aggregate or spec.aggregate,
    )
    # What was measured of one rater says nothing of another.
    spec = changed if changed.sha256 == spec.sha256 else replace(changed, certificate=None)
    aggregate_draws(np.array([]), spec.aggregate, spec.dimension.scale)  # raises if the scale lacks the order
    wanted = np.arange(len(corpus.item_ids)) if split is None else split.indices(options.split)
    who = options.rater or options.model
    for item in wanted:
        check_fields(corpus.item(int(item)).inputs, spec, f"{who}: corpus {corpus.name}: item {corpus.item_ids[item]}")
    return _Plan(
        options=options,
        corpus=corpus,
        spec=spec,
        split=split,
        items=work_order(corpus, spec.dimension.name, wanted, spec.seed)[: options.limit],
        draws=draws,
        out=stage_folder(options.out, corpus, spec.dimension.name, STAGE),
    )


def _check_corpus(spec: RaterSpec, corpus: Corpus, path: str) -> None:
    """Refuse a corpus that the rater was not made for."""
    if spec.dimension.name not in corpus.dimensions:
        known = ", ".join(corpus.dimensions)
        raise DataError(
            f"{path}: rates {spec.dimension.name}, which corpus {corpus.name} does not have ({known}); give the corpus "
            "the rater was made for"
        )
    dimension = corpus.dimensions[spec.dimension.name]
    if dimension.scale != spec.dimension.scale:
        raise DataError(
            f"{path}: rates {dimension.name} on {spec.dimension.scale}, and corpus {corpus.name} has it on "
            f"{dimension.scale}; give the corpus the rater was made for"
        )


def _run(plan: _Plan, folder: RunFolder, workers: int | None) -> RatingSheet | None:
    """Make the draws that are missing and write the results; return the sheet, None if the user stopped it."""
    from pipelines.screen import say
    from pipelines.workers import Tally, draw_in_shards, open_rate_items
    from raters.checkpoints import Checkpoint
    from raters.journal import Journal
    from raters.ledger import UNDRAWN
    from raters.models import IN_PROCESS, check_spec
    from raters.rating_runs import RatingSheet
    from raters.shards import clear_up, unfinished

    sheet = RatingSheet.empty(plan.corpus, plan.spec, plan.items, plan.draws)
    began = time.monotonic()

    def manifest(status: str) -> dict[str, Any]:
        return plan.manifest(sheet, status, folder.previous.get("seconds", 0.0) + time.monotonic() - began)

    def begin() -> None:
        folder.create(manifest("running"))
        plan.spec.write(folder.path / "rater.yaml")
        if plan.split is not None:
            write_atomically(folder.path / "split.json", to_line(plan.split.as_record(plan.corpus)))

    journal = Journal(folder.path / "ratings.jsonl", prepare=begin)
    checkpoint = Checkpoint(journal, sheet)
    if folder.previous:
        clear_up(journal.path)
        sheet.replay(checkpoint.recover())
        say(f"continuing {folder.path}: {sheet.draws:,} draws are there already")
    try:
        if folder.previous and sheet.rows_done < len(plan.items):
            folder.write_manifest(manifest("running"))
        if workers is not None and sheet.rows_done < len(plan.items):
            if not folder.previous:
                begin()
            done = draw_in_shards(
                plan.options,
                open_rate_items,
                journal.path,
                workers,
                lambda shard: sheet.part(shard.rows(len(sheet.items))),
                drawn=sheet.draws,
                spent=plan.use(sheet),
                gpu=check_spec(plan.spec.model)[0] in IN_PROCESS,
                tally=Tally(
                    missing=int((sheet.numbers == UNDRAWN).sum()),
                    exact=True,
                    cost=lambda read, written: None if plan.price is None else plan.price.usd(read, written),
                ),
            )
            if not done:
                folder.write_manifest(manifest("stopped"))
                return None
            sheet.replay(journal.recover(journal.end))
        elif sheet.rows_done < len(plan.items) and not run_loop(draw(plan, sheet, checkpoint)):
            checkpoint.close()
            if sheet.draws:
                folder.write_manifest(manifest("stopped"))
            say(how_to_go_on(sheet.draws, folder.path))
            return None
        checkpoint.close()
        write_atomically(folder.path / "verdicts.jsonl", map(to_line, sheet.verdicts()))
        plan.spec.write(folder.path / "rater.yaml")
        folder.write_manifest(manifest("complete"))
        return sheet
    except JudgeseyeError as error:
        if isinstance(error, BudgetError) and unfinished(folder.path):
            folder.write_manifest(manifest("stopped"))
        elif sheet.draws and not unfinished(folder.path):
            say(how_to_go_on(sheet.draws, folder.path))
            with suppress(StorageError):
                checkpoint.close()
                folder.write_manifest(manifest("stopped" if isinstance(error, BudgetError) else "failed"))
        raise
    finally:
        with suppress(OSError):
            journal.close()


async def draw(plan: _Plan, sheet: RatingSheet, checkpoint: Checkpoint, *, alone: bool = True) -> bool:
    """Make the draws that are missing; return False if the user stopped it.

    Args:
        plan: Of the run.
        sheet: What is drawn already.
        checkpoint: Of the journal.
        alone: False for one of several workers, who can say nothing of the whole run.

    Raises:
        BudgetError: The budget is spent.
    """
    from pipelines.screen import ProgressBar, say
    from raters.budgets import FIRST_ITEMS
    from raters.models import open_model
    from raters.rating_runs import RatingRun

    options = plan.options
    model = open_model(
        plan.spec.model,
        base_url=options.base_url,
        adapter=plan.spec.adapter,
        batch_size=options.batch_size,
        concurrency=options.concurrency,
        limits=options.endpoint_limits,
        engine_options=options.engine_options,
    )
    try:
        text = progress_text(
            lambda: sheet.draws, lambda: sheet.prompt_tokens + sheet.completion_tokens, lambda: plan.cost(sheet)
        )

        def state() -> tuple[int, str]:
            unreadable = 100 * sheet.unreadable / max(sheet.draws, 1)
            return sheet.rows_done, f"unreadable {unreadable:.1f} %, {text()}"

        def on_draw() -> None:
            bar.update()
            checkpoint.save_if_due()

        bar = ProgressBar(len(sheet.items), state)
        budget = options.budget(filter(None, [plan.price]), plan.spec.settings.max_tokens)
        told = budget is not None or (plan.price is not None and bool(plan.price.input or plan.price.output))
        run = RatingRun(
            sheet,
            checkpoint.journal,
            model,
            options.concurrency,
            on_draw,
            refusal=lambda running: "" if budget is None else budget.refusal(plan.use(sheet), running),
            first_draws=FIRST_ITEMS if alone and told and not sheet.draws else 0,
            on_first=lambda: say(f"\n{plan.estimate(sheet, FIRST_ITEMS)}"),
        )
        done = await draw_until_done(run.pool, run.run(), bar)
        if run.pool.ended:
            raise BudgetError(run.pool.ended)
        return done
    finally:
        await model.close()


def _summary_lines(plan: _Plan, sheet: RatingSheet) -> list[str]:
    """Return what was rated, for a reader."""
    from raters.scales import listed_labels
    from raters.trace_text import percent, printable, row

    verdicts = [record["verdict"] for record in sheet.verdicts()]
    counts: dict[Any, int] = {}
    for verdict in verdicts:
        counts[verdict] = counts.get(verdict, 0) + 1
    dimension = plan.spec.dimension
    labels = [label for label in listed_labels(dimension.scale) if label in counts]
    missing = "(unreadable)" if "unreadable" in labels else "unreadable"
    names = [str(label) for label in labels] + ([missing] if labels and None in counts else [])
    shown = [f"{counts[label]:,}" for label in labels] + ([f"{counts[None]:,}"] if None in counts else [])
    lines = [
        printable(f"{plan.corpus.name}, {dimension.name} ({dimension.scale}), {plan.options.split} split"),
        printable(f"  model {plan.spec.model}, {plan.draws} draw(s) an item, aggregate: {plan.spec.aggregate}"),
        f"  rated {len(verdicts):,} items; unreadable draws: {percent(sheet.unreadable / max(sheet.draws, 1), 2)}",
    ]
    lines += _probability_lines(sheet)
    if names:
        lines += [row("verdict", names), row("items", shown)]
    cost = plan.cost(sheet)
    tokens = f"{sheet.prompt_tokens:,} tokens read, {sheet.completion_tokens:,} written"
    return [*lines, f"  {tokens}, {'cost unknown' if cost is None else f'${cost:,.2f}'}"]


def _probability_lines(sheet: RatingSheet) -> list[str]:
    """Return how many draws came with the probabilities of the labels, if those were asked for."""
    if not sheet.probabilities.size:
        return []
    if not sheet.with_probabilities:
        return ["  the model told no probabilities of the labels: rated by the verdicts it wrote"]
    what = {"mean": "expected value", "median": "median", "majority": "most probable label"}[sheet.spec.aggregate]
    line = (
        f"  rated by the {what} over the labels' probabilities in {sheet.with_probabilities:,} of {sheet.draws:,} draws"
    )
    unread = sheet.read_from["probabilities"]
    return [line + (f", {unread:,} of them with an answer that cannot be read" if unread else "")]


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
