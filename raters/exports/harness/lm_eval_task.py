"""The rater in a task of lm-evaluation-harness: the evaluated model writes, the rater rates what it wrote.

All answers of a run are rated side by side by a filter, before `process_results` asks for them one at a time. Texts
reach the model through functions, since the harness would read a string as a template.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from raters.exports.judge import Rating, load

HERE = Path(__file__).parent
JUDGE = load(HERE)
_RATED: dict[str, Rating] = {}


def items(**_: Any) -> Mapping[str, Any]:
    """Return the items of the export as the task's data set."""
    import datasets

    lines = (HERE / "items.jsonl").read_text(encoding="utf-8").split("\n")
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines if line.strip()])}


def doc_to_text(doc: Mapping[str, Any]) -> str:
    """Return what the evaluated model is asked: the item's other fields. Change it to what yours should be asked."""
    others = [name for name in JUDGE.fields if name != JUDGE.output]
    known = _known(doc)
    if len(others) == 1:
        return str(known[others[0]])
    return "\n\n".join(f"{name}:\n{known[name]}" for name in others)


def doc_to_target(doc: Mapping[str, Any]) -> str:
    """Return what stands in the item where the evaluated model writes; it decides nothing."""
    return str(_known(doc).get(JUDGE.output) or "")


def rate_all(resps: Iterable[Sequence[str]], docs: Iterable[Mapping[str, Any]]) -> list[str]:
    """Rate the first response to each item, all side by side, and return them as they are."""
    first = [answers[0] for answers in resps]
    _rated([JUDGE.item(_known(doc), answer) for doc, answer in zip(docs, first, strict=True)])
    return first


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float | None]:
    """Return the rating of a response on the rater's own scale, None if it cannot be read, and whether it could."""
    (rating,) = _rated([JUDGE.item(_known(doc), results[0])])
    value = JUDGE.number(rating)
    return {JUDGE.name: value, f"{JUDGE.name}_readable": float(value is not None)}


def mean_of_readable(values: Sequence[float | None]) -> float:
    """Return the mean of what could be read; nan if nothing could."""
    readable = [value for value in values if value is not None]
    return sum(readable) / len(readable) if readable else float("nan")


def _known(doc: Mapping[str, Any]) -> dict[str, Any]:
    return {**doc, **(doc.get("inputs") or {})}


def _rated(chosen: Sequence[dict[str, str]]) -> list[Rating]:
    keys = [json.dumps(inputs, sort_keys=True) for inputs in chosen]
    missing = {key: inputs for key, inputs in zip(keys, chosen, strict=True) if key not in _RATED}
    _RATED.update(zip(missing, JUDGE.rate_many(missing.values()), strict=True))
    return [_RATED[key] for key in keys]
