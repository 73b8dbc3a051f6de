"""Finished runs of infer_traces whose draws a test writes itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raters.corpora import load_corpus
from raters.gold import default_method
from raters.journal import Record
from raters.plain_raters import plain_rater
from raters.splits import Split, split_corpus
from raters.trace_runs import TraceRun
from tests.small_corpora import DIMENSION, ORDINAL_3, write_corpus, write_jsonl


def draw(
    item_id: str, number: int, trace: str, verdict: object, label: object, *, accepted: bool | None = None, **more: Any
) -> Record:
    """Return a candidate; what is not given is as in a plain run."""
    return {
        "item_id": item_id,
        "dimension": DIMENSION,
        "annotator_id": None,
        "draw": number,
        "chance": "first",
        "swapped": False,
        "trace": trace,
        "verdict": verdict,
        "label": label,
        "accepted": verdict == label if accepted is None else accepted,
        "flags": [],
        **more,
    }


def run_of(
    folder: Path,
    draws: Sequence[Record],
    labels: Mapping[str, Any],
    scale: Mapping[str, Any] = ORDINAL_3,
    *,
    all_train: bool = True,
    **options: Any,
) -> TraceRun:
    """Return a run over a new corpus whose items have one annotator each.

    Args:
        folder: Where corpus and draws are written.
        draws: Lines of candidates.jsonl.
        labels: By item.
        scale: Of the labels.
        all_train: True to have every item in the train split.
        **options: Of `write_corpus`.
    """
    given = {item_id: {"ann": label} for item_id, label in labels.items()}
    corpus = load_corpus(write_corpus(folder / "corpus", given, scale, **options))
    run_folder = folder / "traces"
    run_folder.mkdir()
    write_jsonl(run_folder / "candidates.jsonl", draws)
    dimension = corpus.dimension(None)
    split = Split(0, np.zeros(len(corpus.item_ids), np.int8)) if all_train else split_corpus(corpus, 0)
    manifest = {
        "options": {
            "corpus": str(corpus.folder), "split": "train", "split_seed": 0, "model": "embedded", "adapter": None,
            "prompt": None, "temperature": 1.0, "top_p": 1.0, "max_tokens": 4096, "tolerance": None,
            "strategy": "fixed", "keep": "first", "k": 4, "seed": 0, "limit": None, "null_items": 0,
        },
    }  # fmt: skip
    return TraceRun(
        folder=run_folder,
        manifest=manifest,
        corpus=corpus,
        generator=plain_rater("embedded", corpus, dimension, split),
        split=split,
        method=default_method(dimension.scale),
        kept=run_folder / "traces.jsonl",
    )
