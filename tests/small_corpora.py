"""Small corpora, scripted models, and runs over them, for tests of what works on a corpus."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from raters.corpora import Corpus, load_corpus
from raters.corpus_files import Dimension
from raters.drawing import Source, work_order
from raters.gold import GoldMethod, default_method, gold_labels
from raters.journal import Journal, read_at, read_lines
from raters.ledger import CHANCES, Ledger
from raters.models.embedded import EmbeddedModel
from raters.models.protocol import Completion, Message, Model, SamplingSettings
from raters.observations import fit_observations
from raters.prompts import load_prompt
from raters.questions import Purpose, Question
from raters.records import Chance
from raters.sampling import Rationalizer, Sampler, SamplingOptions
from raters.scales import SCALE_ADAPTER, PairwiseScale

ORDINAL_3 = {"type": "ordinal", "labels": [1, 2, 3]}
ORDINAL_5 = {"type": "ordinal", "labels": [1, 2, 3, 4, 5]}
NOMINAL = {"type": "nominal", "labels": ["present", "not_present"]}
PAIRWISE = {"type": "pairwise", "labels": ["A", "B", "tie"], "fields": ["left", "right"]}
INTERVAL = {"type": "interval", "min": 0, "max": 100}
DIMENSION = "quality"
GUIDELINE = "Say how good the text is."
REASONING = "It names a reason and an example."

Labels = Mapping[str, Mapping[str, Any]]
"""By item id and annotator id."""
Inputs = Mapping[str, Mapping[str, str]]
SHORT_PROMPT = """{{ guideline }}
Labels: {{ labels }}
{% for name, text in fields %}
{{ name }}: {{ text }}
{% endfor %}
"""
"""A prompt short enough for a tiny model's context."""


def write_jsonl(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Write records as one JSON object a line."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


def write_corpus(
    folder: Path,
    labels: Labels,
    scale: Mapping[str, Any] = ORDINAL_5,
    *,
    inputs: Inputs | None = None,
    groups: Mapping[str, str] | None = None,
    guideline: str = GUIDELINE,
) -> Path:
    """Write a corpus of one dimension and return its folder.

    Args:
        folder: Made if it is missing.
        labels: What each annotator said about each item; an item may have none.
        scale: As in corpus.yaml.
        inputs: Text fields by item; one field `text` that names the item if None.
        groups: Group of each item; items stand alone if None.
        guideline: Its text.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "name": "small",
        "dimensions": {DIMENSION: {"scale": dict(scale), "guideline": "guideline.md"}},
    }
    if groups is not None:
        settings["group_by"] = "metadata.group"
    (folder / "corpus.yaml").write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "guideline.md").write_text(guideline, encoding="utf-8")
    items = [
        {
            "item_id": item_id,
            "inputs": dict(inputs[item_id]) if inputs is not None else {"text": f"This is the text of {item_id}."},
            "metadata": {} if groups is None else {"group": groups[item_id]},
        }
        for item_id in labels
    ]
    annotations = [
        {"item_id": item_id, "annotator_id": annotator_id, "dimension": DIMENSION, "label": label}
        for item_id, given in labels.items()
        for annotator_id, label in given.items()
    ]
    write_jsonl(folder / "items.jsonl", items)
    write_jsonl(folder / "annotations.jsonl", annotations)
    return folder


def small_corpus(folder: Path, labels: Labels, scale: Mapping[str, Any] = ORDINAL_5, **options: Any) -> Corpus:
    """Write a corpus as `write_corpus` does, and load it."""
    return load_corpus(write_corpus(folder, labels, scale, **options))


def dimension_of(scale: Mapping[str, Any], guideline: str = GUIDELINE) -> Dimension:
    """Return a dimension without a corpus."""
    return Dimension(DIMENSION, SCALE_ADAPTER.validate_python(dict(scale)), guideline)


def varied_texts(count: int) -> dict[str, dict[str, str]]:
    """Return inputs of items whose surface differs in length, commas, digits, questions and capitals."""
    chooser = np.random.default_rng(7)
    words = "the chain is loose, because nobody checked it; You should look at 3 BOLTS! why? therefore oil".split()
    texts = {}
    for number in range(count):
        chosen = chooser.choice(words, size=int(chooser.integers(3, 40)))
        texts[f"item{number:03}"] = {"question": f"Why is part {number} loose?", "reply": " ".join(chosen)}
    return texts


class ScriptedModel:
    """A model whose answers a test writes.

    Args:
        answer: Takes the last message and the seed; returns the answer's text or a whole completion, or raises.
        spec: As records name it.

    Attributes:
        prompts: Last message of every request, in the order of arrival.
        seeds: Seed of every request.
    """

    def __init__(self, answer: Callable[[str, int], Completion | str], spec: str = "scripted/model") -> None:
        """Remember the script."""
        self.spec = spec
        self.prompts: list[str] = []
        self.seeds: list[int] = []
        self._answer = answer

    async def complete(
        self, messages: Sequence[Message], seeds: Sequence[int], settings: SamplingSettings
    ) -> list[Completion]:
        """Return one scripted completion per seed."""
        completions = []
        for seed in seeds:
            self.prompts.append(messages[-1]["content"])
            self.seeds.append(seed)
            await asyncio.sleep(0)
            answer = self._answer(messages[-1]["content"], seed)
            whole = answer if isinstance(answer, Completion) else Completion(answer, REASONING, "stop", 10, 5)
            completions.append(whole)
        return completions

    async def close(self) -> None:
        """Nothing is held."""


def rating(label: object) -> str:
    """Return a label as an answer."""
    return f"<rating>{label}</rating>"


def shown_fields(prompt: str) -> dict[str, str]:
    """Return the text fields that a prompt shows, in the order shown."""
    return dict(re.findall(r'<field name="(.*?)">\n(.*?)\n</field>', prompt, re.DOTALL))


@dataclass
class Run:
    """A sampling run over a small corpus, put together as a stage does it."""

    ledger: Ledger
    journal: Journal
    sampler: Sampler
    options: SamplingOptions
    draws_seen: list[int] = field(default_factory=list)

    def draw(self) -> None:
        """Make every missing draw, and close the journal whatever happens."""
        try:
            asyncio.run(self.sampler.run())
        finally:
            self.journal.close()

    def records(self) -> list[dict[str, Any]]:
        """Return the lines of the journal."""
        return [record for _, _, record in read_lines(self.journal.path)]

    def kept(self) -> dict[tuple[str, str | None], dict[str, Any]]:
        """Return the kept candidate of every matched unit, without its wall time."""
        ledger, found = self.ledger, {}
        for unit in np.flatnonzero(ledger.matched_draw >= 0).tolist():
            (record,) = read_at(self.journal.path, [int(ledger.matched_offset[unit])])
            assert record["draw"] == ledger.matched_draw[unit]
            assert record["chance"] == CHANCES[ledger.matched_chance[unit]]
            record.pop("seconds")
            item_id = ledger.corpus.item_ids[ledger.rows[ledger.unit_rows[unit]]]
            found[item_id, ledger.annotator_id(unit)] = record
        return found


def start_run(
    corpus: Corpus,
    journal_path: Path,
    model: Model,
    *,
    k: int = 4,
    second_k: int = 2,
    method: GoldMethod | None = None,
    options: SamplingOptions | None = None,
    escalate: Model | None = None,
    explain: Model | None = None,
    recover: Model | None = None,
    keep_all: bool = False,
    limit: int | None = None,
) -> Run:
    """Return a run that goes on from what the journal holds; `draw` makes the rest."""
    options = options or SamplingOptions()
    dimension = corpus.dimension(None)
    labels = gold_labels(corpus, dimension.name, method or default_method(dimension.scale))
    order = work_order(corpus, dimension.name, np.unique(labels.items), options.seed)[:limit]
    draws: dict[Chance, int] = {"first": k}
    if escalate is not None:
        draws["escalated"] = second_k
    if explain is not None:
        draws["rationalized"] = second_k
    ledger = Ledger(corpus, dimension, labels, order, draws, keep_all=keep_all)
    pair = dimension.scale.fields if isinstance(dimension.scale, PairwiseScale) else None
    observations = fit_observations([corpus.item(index).inputs for index in range(len(corpus.item_ids))], pair)

    def source(reader: Model, purpose: Purpose) -> Source:
        family = "embedded/" if isinstance(reader, EmbeddedModel) else ""
        return Source(reader, Question(dimension, load_prompt(family + purpose), observations, purpose))

    seen: list[int] = []
    sampler = Sampler(
        ledger,
        journal := Journal(journal_path),
        source(model, "rate"),
        options,
        escalate=None if escalate is None else source(escalate, "rate"),
        rationalize=None
        if explain is None
        else Rationalizer(source(explain, "rationalize"), source(recover or model, "recover")),
        on_draw=lambda: seen.append(len(seen)),
    )
    last = ledger.replay(journal.recover())
    if last is not None:
        sampler.complete_group(last)
        seen.clear()
    return Run(ledger, journal, sampler, options, seen)
