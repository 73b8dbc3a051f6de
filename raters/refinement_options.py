"""What refine_guideline can be asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raters.options import BATCH_SIZE, BatchSizeOption, EndpointOptions
from raters.records import MOST_DRAWS


class RefineGuidelineOptions(EndpointOptions):
    """Options of refine_guideline."""

    traces: str | None = Field(None, description="folder of a finished run of infer_traces on the train split; needed")
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
    level: float = Field(
        0.05, gt=0, lt=1, description="level, from 0 to 1, of the one-sided test that an edit has to pass"
    )
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
    max_requests: int | None = Field(
        None, ge=1, description="budget: most answers of writer and raters (default: no limit)"
    )
    max_tokens: int | None = Field(None, ge=1, description="budget: most tokens read and written (default: no limit)")
    max_cost: float | None = Field(None, ge=0, description="budget in USD, with prices (default: no limit)")
    input_price: float | None = Field(None, ge=0, description="USD for a million tokens read (default: unknown)")
    output_price: float | None = Field(None, ge=0, description="USD for a million tokens written (default: unknown)")
    base_url: str | None = Field(None, description="endpoint of openai/<name>; OPENAI_BASE_URL if not given")
    writer_base_url: str | None = Field(None, description="endpoint of the writer (default: --base-url)")
    batch_size: BatchSizeOption = BATCH_SIZE
    concurrency: int = Field(32, ge=1, le=4096, description="requests in work at once")
    resamples: int = Field(2000, ge=200, le=100_000, description="resamples of the bootstrap")
    seed: int = Field(0, ge=0, description="seed of all choices, and of the raters' draws")
    out: str | None = Field(
        None, description="folder of this run (default: runs/<corpus>[-<dimension>]/refine_guideline)"
    )
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")
