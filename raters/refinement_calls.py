"""`refine_guideline` for programs and notebooks: the stage's work, its folder included, as a call."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from raters.library_errors import checked, in_words_of_a_call
from raters.records import JudgeseyeError, StorageError
from raters.refinement_inputs import read_inputs
from raters.refinement_options import RefineGuidelineOptions
from raters.refinement_text import summary_lines
from raters.refining import RefinementRun
from raters.runs import RunFolder
from raters.trace_calls import Traces
from raters.waiting import waited_for

STAGE = "refine_guideline"


class RefinementArguments(TypedDict, total=False):
    """Optional arguments of `refine_guideline`; defaults as in `python -m pipelines.refine_guideline --help`.

    Attributes:
        corpus: Where the traces' corpus is now, if not where it was.
        method: `contrast`: two drafts and small edits, each gated (default); `paper`: both drafts as they come;
            `post-hoc`: gated drafts from explanations of labels that are shown.
        guideline: File of the guideline to begin with, if not the one the traces are of.
        rounds: How often traces are inferred, under the guideline as it stands (1).
        level: Of the one-sided test that an edit has to pass (0.05).
        patience: Proposals in a row without a gain that end a round (10).
        max_proposals: Most proposals of a round (40).
        draws: Of a rater for an item (8).
        dev_limit: Most dev items that decide.
        train_items: Train items rated to find where raters go wrong (60).
        max_words: Most words of the guideline.
        explain: post-hoc: model that explains labels.
        recover: post-hoc: model that must recover them.
        embeddings: `tfidf`, `openai/<name>`, or `sentence-transformers/<name>`.
        test: Rate the test split once, before and after (True).
        resamples: Of the bootstrap (2000).
        seed: Of all choices.
        max_requests: Budget: most answers.
        max_tokens: Budget: most tokens.
        max_cost: Budget in USD; needs prices.
        input_price: USD for a million tokens read.
        output_price: USD for a million tokens written.
        base_url: Endpoint of `openai/<name>`.
        writer_base_url: Endpoint of the writer, if another.
        concurrency: Requests at once (32).
    """

    corpus: str | None
    method: Literal["contrast", "paper", "post-hoc"]
    guideline: str | None
    rounds: int
    level: float
    patience: int
    max_proposals: int
    draws: int
    dev_limit: int | None
    train_items: int
    max_words: int | None
    explain: str | None
    recover: str | None
    embeddings: str
    test: bool
    resamples: int
    seed: int
    max_requests: int | None
    max_tokens: int | None
    max_cost: float | None
    input_price: float | None
    output_price: float | None
    base_url: str | None
    writer_base_url: str | None
    concurrency: int


@dataclass(frozen=True)
class RefinedGuideline:
    """What a refinement came to. `print` shows its lines with the evidence for each.

    Attributes:
        folder: Its files, as the stage writes them.
        guideline: As it is now.
        original: As it was.
        raters: The rater.yaml of every rater under the refined guideline, by name; `load_rater` takes them.
        summary: What summary.json holds.
    """

    folder: Path
    guideline: str = field(repr=False)
    original: str = field(repr=False)
    raters: Mapping[str, Path]
    summary: Mapping[str, Any] = field(repr=False)
    _temporary: tempfile.TemporaryDirectory[str] | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return "\n".join(summary_lines(self.summary))

    @property
    def changed(self) -> bool:
        """True if a line was changed, added or removed."""
        return bool(self.summary["changed"])


def refine_guideline(
    traces: Traces | str | Path,
    raters: Sequence[str | Path] = ("embedded",),
    *,
    writer: str = "extractive",
    out: str | Path | None = None,
    new: bool = False,
    progress: Callable[[str], None] | None = None,
    **arguments: Unpack[RefinementArguments],
) -> RefinedGuideline:
    """Return a clearer guideline, each edit kept only if people's labels of the dev split say so.

    Every answer is on the disk before the next one is asked for; the same call with the same `out` goes on.

    Args:
        traces: From `infer_traces`, or the folder of a run; what people reviewed in it counts.
        raters: Whom the guideline is for: models, or rater.yaml files.
        writer: `extractive`, which needs no language model, `hf/...`, `vllm/...` or `openai/<name>`.
        out: Folder of the run; None for a temporary one that is gone with the result.
        new: Start over; a run that stands in `out` is kept beside it.
        progress: Called with a line about every proposal, such as `print`.
        **arguments: See `RefinementArguments`.

    Raises:
        ConfigError: If arguments do not go together, or `out` holds another run.
        DataError: If the traces are no finished run on the train split.
        ModelError: If a model fails. What was drawn is kept.
    """
    work = refine_guideline_async(traces, raters, writer=writer, out=out, new=new, progress=progress, **arguments)
    return waited_for(work)


async def refine_guideline_async(
    traces: Traces | str | Path,
    raters: Sequence[str | Path] = ("embedded",),
    *,
    writer: str = "extractive",
    out: str | Path | None = None,
    new: bool = False,
    progress: Callable[[str], None] | None = None,
    **arguments: Unpack[RefinementArguments],
) -> RefinedGuideline:
    """Return what `refine_guideline` returns, awaited; cancelling it keeps what was drawn."""
    temporary = None
    if out is None:
        temporary = tempfile.TemporaryDirectory(prefix="judgeseye-")
        out = Path(temporary.name) / STAGE
    with in_words_of_a_call():
        place = traces.folder if isinstance(traces, Traces) else traces
        names = (raters,) if isinstance(raters, str | Path) else raters
        given = {"traces": str(place), "writer": writer, "rater": tuple(map(str, names)), "out": str(out), "new": new}
        plan = read_inputs(checked(RefineGuidelineOptions, {**given, **arguments}))
        folder = RunFolder(plan.out, STAGE, plan.identity(), new=new)
        try:
            summary = await _refined(RefinementRun(plan, folder, say=progress or _nothing))
        finally:
            folder.release()
    files = {name: plan.out / "raters" / f"{name}.yaml" for name in plan.names}
    guideline = (plan.out / "guideline.md").read_text(encoding="utf-8")
    return RefinedGuideline(plan.out, guideline, plan.original.text, files, summary, temporary)


async def _refined(run: RefinementRun) -> dict[str, Any]:
    try:
        async with run.opened():
            await run.refine()
        return run.finish()
    except JudgeseyeError as error:
        if not isinstance(error, StorageError):
            run.folder.write_manifest(run.manifest("failed"))
        raise
    except BaseException:
        with contextlib.suppress(StorageError):
            run.folder.write_manifest(run.manifest("stopped"))
        raise


def _nothing(line: str) -> None:
    """Show no progress."""
