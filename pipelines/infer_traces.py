"""Stage: infer the reasoning behind label-only annotations by rejection sampling.

A model rates each item up to k times without seeing the label. Draws whose verdict equals the person's label are
kept, and their reasoning stands in for the person's own (Zhang et al. 2026).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import StageOptions, parse_options
from pipelines.session import cost_usd, draw_until_done, how_to_go_on, progress_text
from raters.journal import to_line, write_atomically
from raters.records import ConfigError, DataError, JudgeseyeError, StorageError

if TYPE_CHECKING:
    from raters.corpora import Corpus
    from raters.corpus_files import Dimension
    from raters.gold import GoldMethod, LabelTable
    from raters.journal import Journal, Record
    from raters.ledger import Ledger
    from raters.models.protocol import Model
    from raters.observations import Observations
    from raters.questions import Purpose, Question
    from raters.rater_files import RaterSpec
    from raters.runs import RunFolder
    from raters.sampling import SamplingOptions
    from raters.splits import Split

STAGE = "infer_traces"
MOST_DRAWS = 1024
DESCRIPTION = """\
Infer the thinking behind label-only annotations: draw up to k ratings for each item from a model that does not see
the label, keep those that agree with the person, with their reasoning.

Writes to --out: candidates.jsonl (every draw), traces.jsonl (kept ones), unmatched.jsonl, summary.json,
utilisation.svg, split.json, manifest.json. The same command again continues where it stopped."""


_PURPOSES: Mapping[str, Purpose] = {
    "first": "rate",
    "escalated": "rate",
    "rationalized": "rationalize",
    "recovered": "recover",
}


class InferTracesOptions(StageOptions):
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
        description="embedded, hf/<path or id>, openai/<name>, or a rater.yaml (its model, prompt and guideline)",
    )
    guideline: str | None = Field(None, description="file of the guideline to draw under (default: the corpus's)")
    base_url: str | None = Field(None, description="endpoint of openai/<name>; OPENAI_BASE_URL if not given")
    adapter: str | None = Field(None, description="LoRA adapter folder for hf/<path or id>")
    batch_size: int = Field(16, ge=1, description="rows that hf/<path or id> generates at once")
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
    concurrency: int = Field(32, ge=1, le=4096, description="requests or items in work at once")
    input_price: float | None = Field(None, ge=0, description="USD for a million tokens read, for the cost shown")
    output_price: float | None = Field(None, ge=0, description="USD for a million tokens written")
    out: str | None = Field(None, description="folder of this run (default: runs/<corpus>[-<dimension>]/infer_traces)")
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")
    show: int = Field(0, ge=0, description="print this many kept traces beside their items")

    @property
    def effective_strategy(self) -> Literal["adaptive", "fixed"]:
        """The strategy asked for; keeping more than the first acceptance needs all draws."""
        return self.strategy or ("adaptive" if self.keep == "first" else "fixed")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(InferTracesOptions, STAGE, DESCRIPTION, arguments)
    from pipelines.screen import say
    from raters.runs import RunFolder

    plan = _read_inputs(options)
    say(plan.describe())
    folder = RunFolder(plan.out, STAGE, plan.identity(), new=options.new)
    try:
        _check_continuation(plan, folder)
        summary = _run(plan, folder)
    finally:
        folder.release()
    if summary is None:
        return INTERRUPTED
    _print_results(plan, folder, summary)
    return 0


def _run(plan: _Plan, folder: RunFolder) -> dict[str, Any] | None:
    """Make the draws that are missing and write the results; return the summary, None if the user stopped it."""
    from pipelines.screen import say
    from raters.journal import Journal

    ledger = plan.empty_ledger()
    journal = Journal(folder.path / "candidates.jsonl", prepare=lambda: _begin(plan, folder))
    last = ledger.replay(journal.recover()) if folder.previous else None
    if last is not None:
        say(f"continuing {folder.path}: {sum(ledger.totals.draws.values()):,} draws are there already")
    began = time.monotonic()

    def manifest(status: str) -> dict[str, Any]:
        seconds = folder.previous.get("seconds", 0.0) + time.monotonic() - began
        return {**plan.manifest(ledger, status, seconds), "second_chance": _second_chance(plan, folder)}

    try:
        if ledger.has_work(plan.sampling.full_rows(len(ledger.rows))) and not asyncio.run(
            _draw(plan, ledger, journal, last)
        ):
            if sum(ledger.totals.draws.values()):
                folder.write_manifest(manifest("stopped"))
            say(how_to_go_on(sum(ledger.totals.draws.values()), folder.path))
            return None
        summary = _write_results(plan, ledger, folder)
        folder.write_manifest({**manifest("complete"), "kept": summary["kept"]})
        return summary
    except JudgeseyeError:
        if sum(ledger.totals.draws.values()):
            say(how_to_go_on(sum(ledger.totals.draws.values()), folder.path))
            with suppress(StorageError):
                folder.write_manifest(manifest("failed"))
        raise
    finally:
        with suppress(OSError):
            journal.close()


@dataclass(frozen=True)
class _Plan:
    """What the options and the files they name come to."""

    options: InferTracesOptions
    corpus: Corpus
    dimension: Dimension
    split: Split | None
    method: GoldMethod
    labels: LabelTable
    order: NDArray[np.int64]
    observations: Observations | None
    questions: Mapping[str, Question]
    """By purpose: first, and as far as asked for escalated, rationalized, recovered."""
    out: Path

    @property
    def generator(self) -> RaterSpec:
        """What makes the first draws, as a rater: complete enough for later stages to ask it again."""
        from raters.rater_files import RaterSpec, SeenItems, default_aggregate

        seen = SeenItems.none()
        if self.questions["first"].needs_observations and self.split is not None:
            seen = SeenItems.of(self.corpus, self.split.indices("train"))
        return RaterSpec(
            model=self.options.model,
            question=self.questions["first"],
            adapter=self.options.adapter,
            settings=self.sampling.settings,
            aggregate=default_aggregate(self.dimension.scale),
            seed=self.options.seed,
            seen=seen,
        )

    @property
    def sampling(self) -> SamplingOptions:
        from raters.models.protocol import SamplingSettings
        from raters.sampling import SamplingOptions

        options = self.options
        return SamplingOptions(
            strategy=options.effective_strategy,
            seed=options.seed,
            tolerance=options.tolerance or 0.0,
            settings=SamplingSettings(options.temperature, options.top_p, options.max_tokens),
            concurrency=options.concurrency,
            null_rows=options.null_items,
        )

    def model_spec(self, purpose: str) -> str:
        """Return which model a purpose has."""
        options = self.options
        specs = {"first": options.model, "escalated": options.escalate, "rationalized": options.rationalize}
        return specs.get(purpose) or options.recover or options.model

    def describe(self) -> str:
        dropped = "".join(f", {count} without label ({reason})" for reason, count in self.labels.dropped.items())
        return (
            f"corpus {self.corpus.name}: {len(self.corpus.item_ids):,} items; {self.dimension.name} on "
            f"{self.dimension.scale}; {self.options.split} split: {len(self.order):,} items{dropped}; "
            f"{self.options.model} draws up to {self.options.k} times"
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the meaning of the run's records."""
        options = self.options
        # Which lines a shared draw has depends on them, so they may not change on the way.
        shared = {"strategy": options.effective_strategy, "null_items": options.null_items}
        per_annotator = shared if self.method == "per-annotator" else {}
        return {
            "corpus": self.corpus.name,
            "items.jsonl": self.corpus.sha256["items.jsonl"],
            "annotations.jsonl": self.corpus.sha256["annotations.jsonl"],
            "group_by": self.corpus.group_by,
            "dimension": self.dimension.name,
            "scale": self.dimension.scale.model_dump(mode="json"),
            "guideline": self.dimension.guideline_sha256,
            "split": options.split,
            "split_seed": options.split_seed,
            "labels": self.method,
            "model": options.model,
            "adapter": options.adapter,
            "prompt": self.questions["first"].prompt.sha256,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "tolerance": options.tolerance or 0.0,
            "seed": options.seed,
            **per_annotator,
        }

    def empty_ledger(self) -> Ledger:
        from raters.ledger import Ledger
        from raters.records import Chance

        draws: dict[Chance, int] = {"first": self.options.k}
        if self.options.escalate:
            draws["escalated"] = self.options.second_k
        if self.options.rationalize:
            draws["rationalized"] = self.options.second_k
        return Ledger(
            self.corpus, self.dimension, self.labels, self.order, draws, keep_all=self.options.keep != "first"
        )

    def manifest(self, ledger: Ledger, status: str, seconds: float) -> dict[str, Any]:
        from raters.runs import git_revision, versions

        totals = ledger.totals
        return {
            "status": status,
            "options": self.options.model_dump(),
            "versions": versions(),
            "git_revision": git_revision(),
            "inputs_sha256": {
                **self.corpus.sha256,
                **{f"prompt {purpose}": question.prompt.sha256 for purpose, question in self.questions.items()},
                "guideline": self.dimension.guideline_sha256,
            },
            "split_sha256": self.split.hashes(self.corpus) if self.split else None,
            "items": len(self.order),
            "dropped_items": dict(self.labels.dropped),
            "draws": dict(totals.draws),
            "unreadable": totals.unreadable,
            "prompt_tokens": totals.prompt_tokens,
            "completion_tokens": totals.completion_tokens,
            "cost_usd": self.cost(ledger),
            "seconds": round(seconds, 3),
        }

    def cost(self, ledger: Ledger) -> float | None:
        """Return what the draws cost in USD; None if a hosted model has no price."""
        options, totals = self.options, ledger.totals
        hosted = any(self.model_spec(purpose).startswith("openai/") for purpose in self.questions)
        tokens = (totals.prompt_tokens, totals.completion_tokens)
        return cost_usd(*tokens, options.input_price, options.output_price, hosted=hosted)


def _read_inputs(options: InferTracesOptions) -> _Plan:
    """Read and check all that can be checked before a model is asked."""
    from raters.corpora import find_corpus, load_corpus
    from raters.corpus_files import read_guideline_file
    from raters.drawing import work_order
    from raters.gold import default_method, gold_labels
    from raters.models import check_spec, prompt_family
    from raters.prompts import load_prompt
    from raters.questions import Question, fit_to_corpus
    from raters.rater_files import read_rater
    from raters.runs import run_name
    from raters.splits import split_corpus

    corpus = load_corpus(find_corpus(options.corpus))
    rater = read_rater(Path(options.model)) if options.model.endswith((".yaml", ".yml")) else None
    dimension = corpus.dimension(options.dimension or (rater.dimension.name if rater else None))
    if rater is not None:
        options, dimension = _as_rater(options, dimension, rater)
    if options.guideline is not None:
        dimension = replace(dimension, guideline=read_guideline_file(Path(options.guideline), "--guideline"))
    _check_options(options, dimension)
    split = None if options.split == "all" else split_corpus(corpus, options.split_seed)
    chosen = None if split is None else split.indices(options.split)
    method = options.labels or default_method(dimension.scale)
    labels = gold_labels(corpus, dimension.name, method, chosen)
    if not len(labels):
        raise ConfigError(
            f"corpus {corpus.name}: no item of the {options.split} split has a label on {dimension.name} "
            f"under --labels {method}; give another --split, --split-seed or --labels"
        )
    prompts = {"first": options.prompt or prompt_family(options.model) + "rate"}
    if options.escalate:
        prompts["escalated"] = prompt_family(options.escalate) + "rate"
    if options.rationalize:
        prompts["rationalized"] = prompt_family(options.rationalize) + "rationalize"
        prompts["recovered"] = prompt_family(options.recover or options.model) + "recover"
    for spec in filter(None, (options.model, options.escalate, options.rationalize, options.recover)):
        check_spec(spec)
    loaded = {purpose: load_prompt(name) for purpose, name in prompts.items()}
    if rater is not None and options.prompt is None:
        loaded["first"] = rater.question.prompt
    if options.model == "embedded" and "fields" in loaded["first"].slots:
        raise ConfigError(f"--prompt {options.prompt}: shows text, and embedded reads observations; give embedded/rate")
    observations = None
    if any("observations" in prompt.slots for prompt in loaded.values()):
        training = np.arange(len(corpus.item_ids)) if split is None else split.indices("train")
        observations = fit_to_corpus(corpus, dimension.scale, training)
        if rater is not None and rater.question.observations is not None:
            observations = rater.question.observations
    return _Plan(
        options=options,
        corpus=corpus,
        dimension=dimension,
        split=split,
        method=method,
        labels=labels,
        order=work_order(corpus, dimension.name, np.unique(labels.items), options.seed)[: options.limit],
        observations=observations,
        questions={name: Question(dimension, prompt, observations, _PURPOSES[name]) for name, prompt in loaded.items()},
        out=Path(options.out) if options.out else Path("runs") / run_name(corpus, dimension.name) / STAGE,
    )


def _as_rater(
    options: InferTracesOptions, dimension: Dimension, rater: RaterSpec
) -> tuple[InferTracesOptions, Dimension]:
    """Return options and dimension with the model, adapter and guideline of a rater.

    Raises:
        DataError: If the rater is of another dimension or scale.
    """
    if (rater.dimension.name, rater.dimension.scale) != (dimension.name, dimension.scale):
        raise DataError(
            f"--model {options.model}: rates {rater.dimension.name} on {rater.dimension.scale}, and wanted is "
            f"{dimension.name} on {dimension.scale}; give a rater of that"
        )
    changed = {"model": rater.model, "adapter": options.adapter or rater.adapter}
    return options.model_copy(update=changed), rater.dimension


def _check_options(options: InferTracesOptions, dimension: Dimension) -> None:
    """Refuse combinations that cannot mean what they say."""
    unit = dimension.scale.tolerance_unit
    if options.tolerance and unit is None:
        raise ConfigError(f"--tolerance {options.tolerance}: labels {dimension.scale} have no distance; leave it out")
    if options.tolerance is None and dimension.scale.type == "interval":
        raise ConfigError(
            f"--tolerance is missing: on scale {dimension.scale} of {dimension.name} say how near is near enough"
        )
    if isinstance(options.keep, int) and options.keep < 1:
        raise ConfigError(f"--keep {options.keep}: must be first, all, or a number of at least 1")
    if options.keep != "first" and options.strategy == "adaptive":
        raise ConfigError(
            f"--keep {options.keep} --strategy adaptive: adaptive stops at the first; give --strategy fixed"
        )
    if options.base_url and not any(
        (spec or "").startswith("openai/")
        for spec in (options.model, options.escalate, options.rationalize, options.recover)
    ):
        raise ConfigError(f"--base-url {options.base_url}: is for openai/<name>, and no such model is asked for")
    different = 2 if dimension.scale.type == "pairwise" else 1
    if options.temperature == 0 and options.k > different:
        raise ConfigError(
            f"--temperature 0 --k {options.k}: at temperature 0 all draws of an item are the same; give --k {different}"
        )
    if options.recover and not options.rationalize:
        raise ConfigError(f"--recover {options.recover}: is for --rationalize, which is not given; add it")


def _check_continuation(plan: _Plan, folder: RunFolder) -> None:
    """Refuse to continue a run under options that would leave paid draws out or mix models."""
    options = plan.options
    before = {"k": folder.previous.get("options", {}).get("k"), **folder.previous.get("second_chance", {})}
    for name in ("k", "second_k"):
        if (then := before.get(name)) is not None and getattr(options, name) < then:
            raise ConfigError(
                f"--out {folder.path}: was run with {name.replace('_', '-')} {then}, now {getattr(options, name)}, "
                "which would leave draws out; give at least as many, another --out, or --new to start over"
            )
    if (then := folder.previous.get("items", 0)) > len(plan.order):
        raise ConfigError(
            f"--out {folder.path}: was run on {then} items, now {len(plan.order)}, which would leave draws out; "
            "give a --limit at least as large, another --out, or --new to start over"
        )
    for name in ("escalate", "rationalize", "recover", "prompts"):
        then, now = before.get(name), _second_chance_now(plan)[name]
        if name == "prompts" and then and now:
            then = {purpose: sha256 for purpose, sha256 in then.items() if purpose in now}
            now = {purpose: sha256 for purpose, sha256 in now.items() if purpose in then}
        if then is not None and now is not None and then != now:
            raise ConfigError(
                f"--out {folder.path}: belongs to another run ({name} was {then}, now {now}); "
                "give another --out, or --new to start over"
            )


def _second_chance_now(plan: _Plan) -> dict[str, Any]:
    """Return the models and prompts of the second chances that are asked for now; None for those that are not."""
    options = plan.options
    recover = plan.model_spec("recovered") if options.rationalize else None
    prompts = {purpose: question.prompt.sha256 for purpose, question in plan.questions.items() if purpose != "first"}
    used = {name: getattr(options, name) for name in ("escalate", "rationalize")}
    return {**used, "recover": recover, "prompts": prompts or None, "second_k": options.second_k if prompts else None}


def _second_chance(plan: _Plan, folder: RunFolder) -> dict[str, Any]:
    """Return which models and prompts second chances have had, in this session or an earlier one."""
    earlier, now = folder.previous.get("second_chance", {}), _second_chance_now(plan)
    merged = {name: value if value is not None else earlier.get(name) for name, value in now.items()}
    return {**merged, "prompts": {**(earlier.get("prompts") or {}), **(now["prompts"] or {})} or None}


def _begin(plan: _Plan, folder: RunFolder) -> None:
    """Make the folder, with what is known before the first draw."""
    manifest = plan.manifest(plan.empty_ledger(), "running", 0.0)
    folder.create({**manifest, "second_chance": _second_chance(plan, folder)})
    if plan.split is not None:
        write_atomically(folder.path / "split.json", to_line(plan.split.as_record(plan.corpus)))
    if plan.observations is not None:
        write_atomically(folder.path / "observations.json", to_line(plan.observations.as_record()))
    plan.generator.write(folder.path / "rater.yaml")


async def _draw(plan: _Plan, ledger: Ledger, journal: Journal, last: Record | None) -> bool:
    """Make the draws that are missing; return False if the user stopped it."""
    from pipelines.screen import ProgressBar
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
            )
        return Source(models[spec], plan.questions[purpose])

    try:
        sampler = Sampler(
            ledger,
            journal,
            source("first"),
            plan.sampling,
            escalate=source("escalated") if options.escalate else None,
            rationalize=Rationalizer(source("rationalized"), source("recovered")) if options.rationalize else None,
            on_draw=lambda: bar.update(),
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
        if last is not None:
            sampler.complete_group(last)
        return await draw_until_done(sampler.pool, sampler.run(), bar)
    finally:
        for model in models.values():
            await model.close()


def _write_results(plan: _Plan, ledger: Ledger, folder: RunFolder) -> dict[str, Any]:
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


def _print_results(plan: _Plan, folder: RunFolder, summary: Mapping[str, Any]) -> None:
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
