"""What infer_traces can be asked for."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from raters.options import BATCH_SIZE, BatchSizeOption, SharedOptions
from raters.records import MOST_DRAWS


class InferTracesOptions(SharedOptions):
    """Options of infer_traces."""

    corpus: str = Field("demo", description="corpus folder, or demo for the simulated one that ships with the project")
    dimension: str | None = Field(None, description="which question of the corpus (default: the only one)")
    split: Literal["train", "dev", "test", "all"] = Field("train", description="which part of the corpus to draw for")
    split_seed: int = Field(0, description="seed of the 70/15/15 split by group")
    limit: int | None = Field(
        None, ge=1, description="most items; a larger limit later goes on with more (default: all)"
    )
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
        None,
        ge=0,
        description="accept verdicts this far from the label: steps (ordinal; default: 0), units (interval; has to be "
        "given)",
    )
    temperature: float = Field(1.0, ge=0, description="sampling temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="nucleus to sample from, as a share of probability from 0 to 1")
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
        0.0,
        ge=0,
        lt=1,
        description="give an item up once the chance, from 0 to 1, of a match in its draws left is below this",
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
