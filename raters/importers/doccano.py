"""doccano's JSONL: one file for each person (in a zip archive or a folder), or one for all if they worked together.

Source: `data_export` of doccano 1.8: {"id", "text", ..., "label": [...]}, or "cats" beside "entities".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raters.importers.source_items import SourceItem, SourceLabel, as_id, as_text
from raters.importers.tables import Row
from raters.records import DataError, shown

_OWN = ("id", "text", "data", "label", "labels", "cats", "entities", "relations", "Comments", "comments")


def is_doccano(record: Mapping[str, Any]) -> bool:
    """Return True for a line of an export."""
    return isinstance(_labels_of(record), list) and "id" in record and ("text" in record or "data" in record)


def _labels_of(record: Mapping[str, Any]) -> object:
    return next((record[name] for name in ("label", "cats", "labels") if name in record), None)


def doccano_items(rows: Iterator[Row], annotator: str, dimension: str) -> Iterator[SourceItem]:
    """Yield what each line says.

    Args:
        rows: Of one file.
        annotator: Whose it is.
        dimension: What its labels are about.

    Raises:
        DataError: If a line is none of an export, or labels parts of the text.
    """
    for place, record in rows:
        found = _labels_of(record)
        if not is_doccano(record) or not isinstance(found, list):
            raise DataError(
                f"{place}: has no text with a list of labels; export as JSONL from a classification project"
            )
        if any(isinstance(label, list | dict) for label in found):
            raise DataError(f"{place}: label {shown(found[0])} is of a part of the text; items are labelled as wholes")
        text = as_text(record.get("text", record.get("data")), "text", place)
        metadata = {name: value for name, value in record.items() if name not in _OWN and value is not None}
        label = found[0] if len(found) == 1 else found or None
        yield SourceItem(place, as_id(record["id"], "id", place), {"text": text} if text.strip() else {}, metadata,
                         [SourceLabel(annotator, dimension, label)])  # fmt: skip
