"""`infer_traces` for programs and notebooks: the stage's work, its folder included, as a call."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from raters.corpora import Corpus
from raters.inference import read_inputs
from raters.inference_checks import check_continuation
from raters.inference_options import InferTracesOptions
from raters.inferring import InferenceRun, open_sampler, progress_state
from raters.journal import read_lines
from raters.library_errors import checked, in_words_of_a_call
from raters.models.batch_size import BatchSize
from raters.records import BudgetError, JudgeseyeError, Label
from raters.runs import RunFolder
from raters.trace_text import summary_lines
from raters.waiting import waited_for

STAGE = "infer_traces"
_SECONDS_BETWEEN_LINES = 2.0


class InferenceArguments(TypedDict, total=False):
    """Optional arguments of `infer_traces`; the defaults are those of `python -m pipelines.infer_traces --help`.

    Attributes:
        dimension: Which question of the corpus; needed if it has several.
        split: Which part of the corpus to draw for (train); the stages after need train.
        split_seed: Seed of the 70/15/15 split by group.
        limit: Most items.
        labels: How several people's labels become one.
        guideline: File of the guideline to draw under, if not the corpus's.
        prompt: Prompt of the project by name, or a .md file.
        k: Most draws for an item (16).
        strategy: `adaptive` stops an item at its first acceptance (default), `fixed` makes all k draws.
        keep: Accepted draws to keep for a label: `first`, `all`, or the so many most different ones.
        tolerance: How far from the label a verdict may be: steps (ordinal), units (interval, where it is required).
        temperature: Of sampling (1).
        top_p: Nucleus of probability to sample from (1).
        max_tokens: Most tokens of a draw, reasoning included (4096).
        seed: Of all draws.
        null_items: Items of an adaptive run that get all k draws, to measure what chance would accept (50).
        give_up: Give an item up once the chance of a match in its draws left is below this.
        escalate: Another model for labels that nothing matched.
        rationalize: Model that explains a label it is shown, as a last chance.
        recover: Model that must find that label again from the explanation.
        second_k: Most draws of each second chance (4).
        base_url: Endpoint of `openai/<name>`; OPENAI_BASE_URL if not given.
        adapter: LoRA adapter folder for `student`, `hf/...` or `vllm/...`.
        batch_size: Most rows that `hf/...` generates at once; `auto` for what fits (default).
        concurrency: Requests at once (32).
        requests_per_minute: Most requests to `openai/<name>`.
        tokens_per_minute: Most tokens, read and written, of `openai/<name>`.
        input_price: USD for a million tokens read.
        output_price: USD for a million tokens written.
        max_cost: Budget in USD.
        max_total_tokens: Budget in tokens.
    """

    dimension: str | None
    split: Literal["train", "dev", "test", "all"]
    split_seed: int
    limit: int | None
    labels: Literal["median", "majority", "mean", "paper", "per-annotator"] | None
    guideline: str | None
    prompt: str | None
    k: int
    strategy: Literal["adaptive", "fixed"] | None
    keep: Literal["first", "all"] | int
    tolerance: float | None
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    null_items: int
    give_up: float
    escalate: str | None
    rationalize: str | None
    recover: str | None
    second_k: int
    base_url: str | None
    adapter: str | None
    batch_size: BatchSize
    concurrency: int
    requests_per_minute: int | None
    tokens_per_minute: int | None
    input_price: float | None
    output_price: float | None
    max_cost: float | None
    max_total_tokens: int | None


@dataclass(frozen=True, slots=True)
class Trace:
    """A kept trace: the reasoning of a draw whose verdict agrees with the person's label.

    Attributes:
        item_id: Of the rated item.
        annotator_id: Whose label; None if it is aggregated.
        label: The person's.
        verdict: The model's.
        draw: Which draw it was, from 0.
        reasoning: What the model wrote before its verdict.
        flags: What makes it doubtful.
    """

    item_id: str
    annotator_id: str | None
    label: Label
    verdict: Label
    draw: int
    reasoning: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Traces:
    """A finished run of `infer_traces`. Iterating reads its kept traces from the disk, `print` shows the summary.

    Attributes:
        folder: Its files, as the stage writes them; `refine_guideline` and every stage take it.
        corpus: Whose items.
        summary: What summary.json holds.
    """

    folder: Path
    corpus: Corpus = field(repr=False)
    summary: Mapping[str, Any] = field(repr=False)
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.summary["traces"])

    def __iter__(self) -> Iterator[Trace]:
        if not len(self):
            return
        for _, _, record in read_lines(self.folder / "traces.jsonl"):
            yield Trace(
                record["item_id"],
                record["annotator_id"],
                record["label"],
                record["verdict"],
                record["draw"],
                record["trace"],
                tuple(record["flags"]),
            )

    def __str__(self) -> str:
        return "\n".join(summary_lines(self.summary))

    @property
    def coverage(self) -> float:
        """Share of labels with a kept trace, from 0 to 1. See `print` for what permuted labels would get."""
        return float(self.summary["kept"] / self.summary["labels"])


def infer_traces(
    corpus: Corpus | str | Path,
    model: str = "embedded",
    *,
    out: str | Path | None = None,
    new: bool = False,
    progress: Callable[[str], None] | None = None,
    **arguments: Unpack[InferenceArguments],
) -> Traces:
    """Return the traces that a model's draws leave: reasoning whose verdict agrees with the person's label.

    Every draw is on the disk before the next one is asked for. The same call with the same `out` goes on where an
    earlier one was stopped, and pays for no draw twice.

    Args:
        corpus: From `load_corpus`, or its folder, or `demo`.
        model: `embedded`, `student`, `hf/<path or id>`, `vllm/<path or id>`, `openai/<name>`, or a rater.yaml.
        out: Folder of the run; None for a temporary one that is gone with the result.
        new: Start over; a run that stands in `out` is kept beside it.
        progress: Called with a line every other second, such as `print`.
        **arguments: See `InferenceArguments`.

    Raises:
        ConfigError: If arguments do not go together, or `out` holds another run.
        DataError: If the corpus is not as it should be.
        ModelError: If the model fails. What was drawn is kept.
        BudgetError: If a budget is spent, likewise.
    """
    return waited_for(infer_traces_async(corpus, model, out=out, new=new, progress=progress, **arguments))


async def infer_traces_async(
    corpus: Corpus | str | Path,
    model: str = "embedded",
    *,
    out: str | Path | None = None,
    new: bool = False,
    progress: Callable[[str], None] | None = None,
    **arguments: Unpack[InferenceArguments],
) -> Traces:
    """Return what `infer_traces` returns, awaited; cancelling it keeps what was drawn."""
    temporary = None
    if out is None:
        temporary = tempfile.TemporaryDirectory(prefix="judgeseye-")
        out = Path(temporary.name) / STAGE
    with in_words_of_a_call():
        name = str(corpus.folder if isinstance(corpus, Corpus) else corpus)
        given = {"corpus": name, "model": model, "out": str(out), "new": new, **arguments}
        options = checked(InferTracesOptions, given)
        plan = read_inputs(options, corpus if isinstance(corpus, Corpus) else None)
        folder = RunFolder(plan.out, STAGE, plan.identity(), new=new)
        try:
            check_continuation(plan, folder)
            run = InferenceRun(plan, folder)
            summary = await _drawn(run, progress or _nothing)
        finally:
            folder.release()
    return Traces(plan.out, plan.corpus, summary, temporary)


async def _drawn(run: InferenceRun, progress: Callable[[str], None]) -> dict[str, Any]:
    plan, ledger = run.plan, run.ledger
    due = time.monotonic() + _SECONDS_BETWEEN_LINES

    def on_draw() -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _SECONDS_BETWEEN_LINES
            progress(_progress_line(run))

    try:
        if run.has_work:
            async with open_sampler(plan, ledger, run.checkpoint, on_draw=on_draw, on_estimate=progress) as sampler:
                await sampler.run()
                if sampler.pool.ended:
                    raise BudgetError(sampler.pool.ended)
        progress(_progress_line(run))
        return run.finish()
    except JudgeseyeError as error:
        run.failed(error)
        raise
    except BaseException:
        run.stopped()
        raise
    finally:
        run.close()


def _progress_line(run: InferenceRun) -> str:
    done, accepted, tokens, usd = progress_state(run.plan, run.ledger)
    cost = "cost unknown" if usd is None else f"${usd:,.2f}"
    items = len(run.ledger.rows)
    return f"{done:,} of {items:,} items, accepted {100 * accepted:.1f} % of labels, {tokens:,} tokens, {cost}"


def _nothing(line: str) -> None:
    """Show no progress."""
