"""Label Studio's JSON export: a list of tasks, each with its data and the annotations of several people.

Source: Label Studio's documentation, "Label Studio JSON format of annotated tasks". The shorter JSON-MIN is a table.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raters.importers.source_items import (
    ONLY_ANNOTATOR,
    Place,
    SourceItem,
    SourceLabel,
    as_id,
    as_list,
    as_object,
    as_text,
)
from raters.importers.tables import Row
from raters.records import DataError, shown

_VALUES = {"choices": "choices", "rating": "rating", "number": "number", "pairwise": "selected"}
"""Of the kinds of results that label a whole task: where the value stands."""


def is_label_studio(record: Mapping[str, Any]) -> bool:
    """Return True for a task."""
    return isinstance(record.get("data"), dict) and any(
        isinstance(record.get(name), list) for name in ("annotations", "completions")
    )


def label_studio_items(rows: Iterator[Row]) -> Iterator[SourceItem]:
    """Yield what each task says; a control's name is the dimension, who completed an annotation the annotator.

    Annotations that were skipped, predictions, and results about a part of a text are left out.

    Raises:
        DataError: If a record is no task.
    """
    for place, task in rows:
        if not is_label_studio(task):
            raise DataError(f"{place}: is no task with data and annotations; export as JSON, not JSON-MIN")
        given = as_list(task.get("annotations", task.get("completions")), "annotations", place)
        labels: list[SourceLabel] = []
        for annotation in given:
            annotation = as_object(annotation, "annotation", place)
            if not annotation.get("was_cancelled"):
                labels += _labels(annotation, place)
        inputs, metadata = {}, {}
        for name, value in task["data"].items():
            if (isinstance(value, str) and value.strip()) or isinstance(value, list):
                inputs[name] = as_text(value, f"text {shown(name)}", place)
            elif value is not None:
                metadata[name] = value
        yield SourceItem(place, as_id(task.get("id"), "id", place), inputs, metadata, labels)


def _labels(annotation: Mapping[str, Any], place: Place) -> Iterator[SourceLabel]:
    who = annotation.get("completed_by", annotation.get("created_username"))
    if isinstance(who, dict):
        who = who.get("email") or who.get("id")
    annotator = as_id(ONLY_ANNOTATOR if who is None else who, "completed_by", place)
    by_name: dict[str, list[Any]] = {}
    for result in as_list(annotation.get("result"), "result", place):
        result = as_object(result, "result", place)
        value = as_object(result.get("value"), "value", place)
        key = _VALUES.get(str(result.get("type")))
        if key in value and "start" not in value:
            found = value[key]
            by_name.setdefault(str(result.get("from_name")), []).extend(found if isinstance(found, list) else [found])
    for name, values in by_name.items():
        yield SourceLabel(annotator, name, values if len(values) > 1 else values[0] if values else None)
