"""Finished runs of infer_traces that are quick to train on, written by hand, and what a stage says of them."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.finetune_rater import main
from raters.corpora import load_corpus
from raters.gold import default_method
from raters.journal import Record
from raters.plain_raters import plain_rater
from raters.records import JudgeseyeError
from raters.splits import split_corpus
from raters.traces import training_record
from tests.small_corpora import ORDINAL_3, PAIRWISE, write_corpus, write_jsonl
from tests.small_runs import draw

SHORT_PROMPT = "{{ guideline }}\n{{ labels }}\n{% for name, text in fields %}{{ text }}\n{% endfor %}"
"""Of a few dozen tokens, so that a step takes milliseconds."""
WORDS = ("bad", "fair", "good", "great", "superb")
ITEMS = 48


def write_trace_run(
    folder: Path, scale: Mapping[str, Any] = ORDINAL_3, *, items: int = ITEMS, guideline: str = "Is it good?"
) -> Path:
    """Write a corpus whose labels stand in its texts, and a run over its train split; return the run's folder.

    Each train item has a rejected draw, an accepted one and another rejected one: the labels after the right one on
    the scale, the last label followed by the first. A pair's texts are exchanged in every other item.
    """
    scale = dict(scale)
    labels = scale["labels"] if scale["type"] != "interval" else scale.pop("labels")
    given = {f"item{place:02}": {"ann": labels[place % len(labels)]} for place in range(items)}
    pair = scale["type"] == "pairwise"
    inputs = {}
    for place, item_id in enumerate(given):
        word = WORDS[place % len(labels)]
        texts = {"left": f"{word} text {place}", "right": "other text"} if pair else {"text": f"{word} text {place}"}
        inputs[item_id] = texts
    corpus = load_corpus(write_corpus(folder / "corpus", given, scale, inputs=inputs, guideline=guideline))
    split, dimension = split_corpus(corpus, 0), corpus.dimension(None)
    run = folder / "traces"
    run.mkdir()
    prompt = folder / "short.md"
    prompt.write_text(SHORT_PROMPT)
    spec = plain_rater("hf/generator", corpus, dimension, split, prompt=str(prompt))
    spec.write(run / "rater.yaml")
    candidates, traces = [], []
    for item in split.indices("train").tolist():
        item_id = corpus.item_ids[item]
        place = labels.index(given[item_id]["ann"])
        swapped = pair and item % 2 == 1
        for number, step in enumerate((1, 0, 2)):
            verdict = labels[(place + step) % len(labels)]
            trace = f"It says {WORDS[place]}, so {number}."
            record = draw(item_id, number, trace, verdict, labels[place], swapped=swapped, answer="")
            candidates.append(record)
            if step == 0:
                shown = dimension.scale.swapped(verdict) if swapped else verdict
                traces.append(training_record(record, spec.question.about(corpus.item(item))(swapped), shown))
    write_jsonl(run / "candidates.jsonl", candidates)
    write_jsonl(run / "traces.jsonl", traces)
    manifest = {
        "stage": "infer_traces",
        "status": "complete",
        "identity": {
            "dimension": dimension.name,
            "guideline": dimension.guideline_sha256,
            "prompt": spec.question.prompt.sha256,
            "labels": default_method(dimension.scale),
        },
        "inputs_sha256": dict(corpus.sha256),
        "options": {
            "corpus": str(corpus.folder), "split": "train", "split_seed": 0, "model": "hf/generator", "adapter": None,
            "prompt": None, "temperature": 1.0, "top_p": 1.0, "max_tokens": 4096, "tolerance": None,
            "strategy": "fixed", "keep": "first", "k": 3, "seed": 0, "limit": None, "null_items": 0,
        },
    }  # fmt: skip
    (run / "manifest.json").write_text(json.dumps(manifest))
    return run


def write_pair_run(folder: Path) -> Path:
    """Write a run over pairs of texts."""
    return write_trace_run(folder, PAIRWISE)


@dataclass
class Said:
    """What a call of the stage came to."""

    status: int
    error: str = ""
    out: str = ""
    log: str = ""
    summary: dict[str, Any] = field(default_factory=dict)


def finetune(run: Path, base: Path, out: Path, *more: str, dev_limit: int = 4) -> Said:
    """Call the stage in this process, with few and short ratings of dev."""
    arguments: Sequence[str] = (
        "--traces", str(run), "--base", f"hf/{base}", "--out", str(out), "--dev-limit", str(dev_limit),
        "--dev-draws", "1", "--dev-max-tokens", "4", *more,
    )  # fmt: skip
    printed, log = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(log):
        try:
            said = Said(main(arguments))
        except JudgeseyeError as error:
            said = Said(error.exit_code, str(error))
    said.out, said.log = printed.getvalue(), log.getvalue()
    if (path := out / "summary.json").exists():
        said.summary = json.loads(path.read_text())
    return said


def metrics(out: Path) -> list[Record]:
    """Return the lines of metrics.jsonl."""
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(out: Path) -> list[float]:
    """Return the loss of every step, in order."""
    return [line["loss"] for line in metrics(out) if "loss" in line]
