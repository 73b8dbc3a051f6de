"""Prodigy's JSONL (`db-out`): one task a line with its answer, of the interfaces `choice` and `classification`.

Source: Prodigy's documentation of annotation interfaces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raters.importers.source_items import ONLY_ANNOTATOR, SourceItem, SourceLabel, as_id, as_list, as_object, as_text
from raters.importers.tables import Row
from raters.records import DataError

_ANSWERS = ("accept", "reject", "ignore")


def is_prodigy(record: Mapping[str, Any]) -> bool:
    """Return True for an answered task."""
    return record.get("answer") in _ANSWERS and any(
        name in record for name in ("_input_hash", "_task_hash", "_view_id")
    )


def prodigy_items(rows: Iterator[Row], dimension: str) -> Iterator[SourceItem]:
    """Yield what each task says.

    With options the label is the option that was accepted. Without, the label that was offered is the dimension, and
    accept and reject are its labels. A task that was ignored, or rejected as a whole, has none.

    Args:
        rows: Of one file.
        dimension: What options are about.

    Raises:
        DataError: If a line is no answered task, or labels parts of the text.
    """
    for place, task in rows:
        if not is_prodigy(task):
            raise DataError(f"{place}: is no answered task; export with prodigy db-out")
        inputs = {"text": as_text(task["text"], "text", place)} if task.get("text") else {}
        if not inputs:
            raise DataError(f"{place}: has no text; only tasks over texts can be taken")
        who = next((task[name] for name in ("_annotator_id", "_session_id") if task.get(name)), ONLY_ANNOTATOR)
        answer = task["answer"]
        if "options" in task or "accept" in task:
            accepted = as_list(task.get("accept"), "accept", place)
            label = (accepted[0] if len(accepted) == 1 else accepted or None) if answer == "accept" else None
            name = dimension
        elif isinstance(task.get("label"), str):
            label, name = (None if answer == "ignore" else answer), task["label"]
        else:
            raise DataError(f"{place}: has neither options nor a label; spans and free texts are no labels of an item")
        given = task.get("_input_hash")
        labels = [SourceLabel(as_id(who, "annotator", place), name, label)]
        item_id = None if given is None else as_id(given, "_input_hash", place)
        yield SourceItem(place, item_id, inputs, as_object(task.get("meta"), "meta", place), labels)
