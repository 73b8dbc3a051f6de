"""Potato's annotations: `annotated_instances.jsonl` or `user_state.json` in a folder a user, or its JSONL export.

Source: example projects, `docs/data-export/export_formats.md` and `tabular_exporter.py` of potato. The newer forms
hold no texts, which then come from the project's data file (`--items`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raters.importers.source_items import Place, SourceItem, SourceLabel, as_id, as_object, as_text
from raters.importers.tables import Row
from raters.records import DataError

_STATE = "instance_id_to_label_to_value"
_CHOSEN = ("true", "on", True)
_FREE_TEXT = ("text_box", "free_response")


def is_potato(record: Mapping[str, Any]) -> bool:
    """Return True for a record of Potato in one of its forms."""
    exported = isinstance(record.get("labels"), dict) and "instance_id" in record and "user_id" in record
    return exported or isinstance(record.get("label_annotations"), dict) or isinstance(record.get(_STATE), dict)


def holds_texts(record: Mapping[str, Any]) -> bool:
    """Return True if a record of Potato has the text that was labelled."""
    return "displayed_text" in record


def potato_items(rows: Iterator[Row], folder_user: str) -> Iterator[SourceItem]:
    """Yield what each record says; a schema is a dimension. Free texts and spans are left out.

    Args:
        rows: Of one file.
        folder_user: Whose they are where they do not say it: the folder's name.

    Raises:
        DataError: If a record is none of Potato's.
    """
    for place, record in rows:
        if not is_potato(record):
            raise DataError(f"{place}: is no record of Potato (label_annotations, labels or user state); export again")
        user = as_id(record.get("user_id", folder_user), "user_id", place)
        if isinstance(states := record.get(_STATE), dict):
            for instance, schemas in states.items():
                yield SourceItem(place, as_id(instance, "instance", place), {}, {}, _labels(schemas, user, place))
            continue
        schemas = record.get("label_annotations", record.get("labels"))
        item_id = as_id(record.get("id", record.get("instance_id")), "id", place)
        inputs = {"text": as_text(record["displayed_text"], "text", place)} if holds_texts(record) else {}
        yield SourceItem(place, item_id, inputs, {}, _labels(schemas, user, place))


def _labels(schemas: object, user: str, place: Place) -> list[SourceLabel]:
    found = []
    for name, answers in as_object(schemas, "labels", place).items():
        if isinstance(answers, dict) and set(answers) == {"labels"} and isinstance(answers["labels"], dict):
            answers = answers["labels"]
        if not isinstance(answers, dict):
            found.append(SourceLabel(user, name, answers))
            continue
        chosen = [_answer(key, value) for key, value in answers.items() if key not in _FREE_TEXT]
        if chosen or not answers:
            found.append(SourceLabel(user, name, chosen[0] if len(chosen) == 1 else chosen or None))
    return found


def _answer(key: str, value: object) -> object:
    """Return what was answered: the label that was ticked, or the value that was set."""
    chosen = isinstance(value, str) and value.lower() in _CHOSEN
    return key if chosen or value is True else value
