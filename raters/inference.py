"""What the options of infer_traces and the files they name come to, checked before a model is asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raters.records import ConfigError, DataError

if TYPE_CHECKING:
    from raters.budgets import Use
    from raters.corpora import Corpus
    from raters.corpus_files import Dimension
    from raters.gold import GoldMethod, LabelTable
    from raters.inference_options import InferTracesOptions
    from raters.ledger import Ledger
    from raters.observations import Observations
    from raters.prices import Price
    from raters.questions import Purpose, Question
    from raters.rater_files import RaterSpec
    from raters.sampling import SamplingOptions
    from raters.splits import Split

_PURPOSES: Mapping[str, Purpose] = {
    "first": "rate",
    "escalated": "rate",
    "rationalized": "rationalize",
    "recovered": "recover",
}


@dataclass(frozen=True)
class Plan:
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
    rater: RaterSpec | None = None
    """What makes the first draws, if that is a rater."""
    adapter_sha256: str | None = None
    """Hash of its adapter's weights, if it has one."""

    @property
    def generator(self) -> RaterSpec:
        """What makes the first draws, as a rater: complete enough for later stages to ask it again."""
        from raters.rater_files import RaterSpec, default_aggregate, seen_by_adapter

        adapter = self.options.adapter
        seen = seen_by_adapter(None if adapter is None else Path(adapter))
        seen = seen if self.rater is None else self.rater.seen.united(seen)
        if self.questions["first"].needs_observations and self.split is not None:
            seen = seen.with_items(self.corpus, self.split.indices("train"))
        return RaterSpec(
            model=self.options.model,
            question=self.questions["first"],
            adapter=None if adapter is None else str(Path(adapter).resolve()),
            adapter_sha256=self.adapter_sha256,
            settings=self.sampling.settings,
            aggregate=default_aggregate(self.dimension.scale),
            seed=self.options.seed,
            seen=seen,
        )

    @property
    def sampling(self) -> SamplingOptions:
        from raters.models.protocol import SamplingSettings
        from raters.sampling import SamplingOptions, strategy_for

        options = self.options
        return SamplingOptions(
            strategy=strategy_for(options.strategy, options.keep),
            seed=options.seed,
            tolerance=options.tolerance or 0.0,
            settings=SamplingSettings(options.temperature, options.top_p, options.max_tokens),
            concurrency=options.concurrency,
            null_rows=options.null_items,
            together=options.samples_per_request,
            ahead=self.draws_ahead,
            give_up=options.give_up,
        )

    @property
    def draws_ahead(self) -> bool:
        """Whether slots that would idle make further draws of open items: for models that leave slots waiting."""
        specs = (self.options.model, self.options.escalate or "")
        waits = any(spec.startswith(("openai/", "hf/", "vllm/")) for spec in specs)
        return waits if self.options.ahead is None else self.options.ahead

    def model_spec(self, purpose: str) -> str:
        """Return which model a purpose has."""
        options = self.options
        specs = {"first": options.model, "escalated": options.escalate, "rationalized": options.rationalize}
        return specs.get(purpose) or options.recover or options.model

    @property
    def models(self) -> set[str]:
        """Specs of all models that are asked."""
        return {self.model_spec(purpose) for purpose in self.questions}

    def describe(self) -> str:
        dropped = "".join(f", {count} without label ({reason})" for reason, count in self.labels.dropped.items())
        return (
            f"corpus {self.corpus.name}: {len(self.corpus.item_ids):,} items; {self.dimension.name} on "
            f"{self.dimension.scale}; {self.options.split} split: {len(self.order):,} items{dropped}; "
            f"{self.options.model} draws up to {self.options.k} times"
        )

    def identity(self) -> dict[str, Any]:
        """Return what decides the meaning of the run's records."""
        from raters.sampling import strategy_for

        options = self.options
        # Which lines a shared draw has depends on them, so they may not change on the way.
        shared = {"strategy": strategy_for(options.strategy, options.keep), "null_items": options.null_items}
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
            **({} if self.adapter_sha256 is None else {"adapter_sha256": self.adapter_sha256}),
            "prompt": self.questions["first"].prompt.sha256,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "max_tokens": options.max_tokens,
            "tolerance": options.tolerance or 0.0,
            "seed": options.seed,
            **per_annotator,
            **({"samples_per_request": together} if (together := options.samples_per_request) > 1 else {}),
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
            "prices": {purpose: price.as_record() for purpose, price in self.prices.items()},
            "seconds": round(seconds, 3),
        }

    @cached_property
    def prices(self) -> Mapping[str, Price]:
        """What each purpose's model costs, as far as that is known."""
        specs = {purpose: self.model_spec(purpose) for purpose in self.questions}
        known = self.options.known_prices(specs.values())
        return {purpose: known[spec] for purpose, spec in specs.items() if spec in known}

    @property
    def is_paid(self) -> bool:
        """Whether a model that is asked is known to cost something."""
        return any(price.input or price.output for price in self.prices.values())

    def cost(self, ledger: Ledger) -> float | None:
        """Return what the draws cost in USD; None if a hosted model has no price."""
        from raters.prices import dearer

        prices, totals = self.prices, ledger.totals
        if prices.keys() < self.questions.keys():
            return None
        by_chance = dict(prices)
        if "recovered" in prices:  # its tokens stand with those of the explanation
            by_chance["rationalized"] = dearer(prices["rationalized"], prices["recovered"])
        # A chance of an earlier session that is not asked for any more is reckoned as the first.
        return sum(
            by_chance.get(chance, prices["first"]).usd(read, totals.written_by_chance[chance])
            for chance, read in totals.read_by_chance.items()
        )

    def use(self, ledger: Ledger) -> Use:
        """Return what the draws have used; nothing in USD if that is unknown."""
        from raters.budgets import Use
        from raters.drawing import REFUSED

        totals = ledger.totals
        draws, refused = sum(totals.draws.values()), totals.finish_reasons[REFUSED]
        tokens, usd = totals.prompt_tokens + totals.completion_tokens, self.cost(ledger)
        # What was refused is free, as far as anybody says.
        return Use(draws - totals.uncounted, tokens, usd or 0.0, max(totals.uncounted - refused, 0))

    def estimate(self, ledger: Ledger, first_rows: int) -> str:
        """Return what the run will use, as a line for the user, once its first rows are drawn for."""
        from raters.budgets import estimate

        options, used = self.options, self.use(ledger)
        full_rows, together = self.sampling.full_rows(len(ledger.rows)), options.samples_per_request
        found = estimate(ledger, first_rows, full_rows, together, used, self.cost(ledger) is not None)
        more = ", second chances not counted" if options.escalate or options.rationalize else ""
        return options.estimate_line(first_rows, found, more)

    def is_undone(self, ledger: Ledger, row: int) -> bool:
        """Return True if a row needs further first draws."""
        missing = ledger.missing("first", row)
        full_rows = self.sampling.full_rows(len(ledger.rows))
        return bool(missing) and missing[0] < ledger.draws_needed(row, "first", full_rows)


def read_inputs(options: InferTracesOptions, corpus: Corpus | None = None) -> Plan:
    """Read and check all that can be checked before a model is asked.

    Args:
        options: What is asked for.
        corpus: The one that they name, if it is loaded already.
    """
    from raters.corpora import find_corpus, load_corpus
    from raters.corpus_files import read_guideline_file
    from raters.drawing import work_order
    from raters.gold import default_method, gold_labels
    from raters.inference_checks import check_options
    from raters.models import OF_OBSERVATIONS, STUDENT, check_adapter, check_spec, prompt_family
    from raters.prompts import load_prompt
    from raters.questions import Question, fit_to_corpus
    from raters.rater_files import adapter_sha256, read_rater
    from raters.runs import stage_folder
    from raters.splits import split_corpus

    corpus = corpus or load_corpus(find_corpus(options.corpus))
    rater = read_rater(Path(options.model)) if options.model.endswith((".yaml", ".yml")) else None
    dimension = corpus.dimension(options.dimension or (rater.dimension.name if rater else None))
    if rater is not None:
        options, dimension = _as_rater(options, dimension, rater)
    if options.guideline is not None:
        dimension = replace(dimension, guideline=read_guideline_file(Path(options.guideline), "--guideline"))
    check_options(options, dimension)
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
    check_adapter(options.model, options.adapter)
    for name, asked in (("rationalize", options.rationalize), ("recover", options.recover or options.model)):
        if options.rationalize and asked == STUDENT:
            raise ConfigError(f"--{name} student: it has learned to rate alone; give another model")
    loaded = {purpose: load_prompt(name) for purpose, name in prompts.items()}
    if rater is not None and options.prompt is None:
        loaded["first"] = rater.question.prompt
    if options.model in OF_OBSERVATIONS and "fields" in loaded["first"].slots:
        raise ConfigError(
            f"--prompt {options.prompt}: shows text, and {options.model} reads observations; give embedded/rate"
        )
    observations = None
    if any("observations" in prompt.slots for prompt in loaded.values()):
        training = np.arange(len(corpus.item_ids)) if split is None else split.indices("train")
        observations = fit_to_corpus(corpus, dimension.scale, training)
        if rater is not None and rater.question.observations is not None:
            observations = rater.question.observations
    plan = Plan(
        options=options,
        corpus=corpus,
        dimension=dimension,
        split=split,
        method=method,
        labels=labels,
        order=work_order(corpus, dimension.name, np.unique(labels.items), options.seed)[: options.limit],
        observations=observations,
        questions={name: Question(dimension, prompt, observations, _PURPOSES[name]) for name, prompt in loaded.items()},
        out=stage_folder(options.out, corpus, dimension.name, "infer_traces"),
        rater=rater,
        adapter_sha256=None if options.adapter is None else adapter_sha256(Path(options.adapter)),
    )
    options.check_budget([plan.model_spec(purpose) for purpose in plan.questions])
    return plan


def _as_rater(
    options: InferTracesOptions, dimension: Dimension, rater: RaterSpec
) -> tuple[InferTracesOptions, Dimension]:
    """Return options and dimension with the model, adapter and guideline of a rater.

    Raises:
        DataError: If the rater is of another dimension or scale, or does not reason.
    """
    if (rater.dimension.name, rater.dimension.scale) != (dimension.name, dimension.scale):
        raise DataError(
            f"--model {options.model}: rates {rater.dimension.name} on {rater.dimension.scale}, and wanted is "
            f"{dimension.name} on {dimension.scale}; give a rater of that"
        )
    if not rater.reasoning and options.prompt is None:
        raise DataError(
            f"--model {options.model}: gives its rating alone, and a trace is reasoning; give a rater that reasons"
        )
    changed = {"model": rater.model, "adapter": options.adapter or rater.adapter}
    return options.model_copy(update=changed), rater.dimension
