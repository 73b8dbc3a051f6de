"""Argilla's records: nested as `records.to_json` writes them, flat as `to_datasets` does, or of Argilla 1.

Source: `Record.to_dict` and `GenericIO._record_to_dict` of argilla 2; `FeedbackRecord` of argilla 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import zip_longest
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

_FLAT = ".responses"
_NOT_SAID = ("discarded", "draft")
_OWN = ("id", "status", "_server_id", "external_id")


def is_argilla(record: Mapping[str, Any]) -> bool:
    """Return True for a record of Argilla."""
    nested = isinstance(record.get("fields"), dict) and "responses" in record
    return nested or any(name.endswith(_FLAT) and f"{name}.users" in record for name in record)


def argilla_items(rows: Iterator[Row]) -> Iterator[SourceItem]:
    """Yield what each record says; a question is a dimension, a user an annotator; suggestions are left out.

    Raises:
        DataError: If a record is none.
    """
    for place, record in rows:
        if not is_argilla(record):
            raise DataError(f"{place}: is no record with fields and responses; export with records.to_json")
        yield _nested(record, place) if isinstance(record.get("fields"), dict) else _flat(record, place)


def _nested(record: Mapping[str, Any], place: Place) -> SourceItem:
    inputs = {name: as_text(value, name, place) for name, value in record["fields"].items() if value not in (None, "")}
    responses = record["responses"]
    labels: list[SourceLabel] = []
    if isinstance(responses, dict):
        for question, answers in responses.items():
            for answer in as_list(answers, f"responses to {shown(question)}", place):
                answer = as_object(answer, "response", place)
                if answer.get("status") not in _NOT_SAID:
                    labels.append(SourceLabel(_user(answer.get("user_id"), place), question, answer.get("value")))
    else:
        for response in as_list(responses, "responses", place):
            response = as_object(response, "response", place)
            if response.get("status") not in _NOT_SAID:
                user = _user(response.get("user_id"), place)
                values = as_object(response.get("values"), "values", place)
                labels += [SourceLabel(user, name, _value(answer)) for name, answer in values.items()]
    given = record.get("id") or record.get("external_id")
    item_id = None if given is None else as_id(given, "id", place)
    return SourceItem(place, item_id, inputs, as_object(record.get("metadata"), "metadata", place), labels)


def _flat(record: Mapping[str, Any], place: Place) -> SourceItem:
    questions = [name.removesuffix(_FLAT) for name in record if name.endswith(_FLAT)]
    labels = []
    for question in questions:
        names = [f"{question}{_FLAT}{part}" for part in ("", ".users", ".status")]
        values, users, status = (as_list(record.get(name), name, place) for name in names)
        for value, user, said in zip_longest(values, users, status):
            if said not in _NOT_SAID:
                labels.append(SourceLabel(_user(user, place), question, value))
    known = {name for name in record for question in questions if name.startswith(f"{question}.")}
    rest = {name: value for name, value in record.items() if name not in known and name not in _OWN}
    inputs = {
        name: as_text(value, name, place) for name, value in rest.items() if isinstance(value, str | list) and value
    }
    metadata = {name: value for name, value in rest.items() if name not in inputs and value is not None}
    given = record.get("id")
    return SourceItem(place, None if given is None else as_id(given, "id", place), inputs, metadata, labels)


def _user(user: object, place: Place) -> str:
    return as_id(ONLY_ANNOTATOR if user is None else user, "user_id", place)


def _value(answer: object) -> object:
    return answer["value"] if isinstance(answer, dict) and "value" in answer else answer
