"""What a source says of its items, before anything is known of scales: the one form that every reader yields."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any, NamedTuple

from raters.records import DataError, shown

ONLY_ANNOTATOR = "annotator"
"""Whose labels are where nothing says who labelled."""

FORMULA_STARTS = ("=", "+", "-", "@")
"""What a spreadsheet takes for the beginning of a formula."""


class Place(NamedTuple):
    """Where something stands in a source: `labels.csv row 5`."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        """Return it as an error line begins."""
        return f"{self.file} {self.unit} {self.number}"


class SourceLabel(NamedTuple):
    """A person's label as it stands in a source; `label` is None where there is none."""

    annotator_id: str
    dimension: str
    label: object
    rationale: str | None = None


@dataclass(frozen=True, slots=True)
class SourceItem:
    """What one row or record says of one item.

    Attributes:
        place: Where it stands.
        item_id: None if the source names none: the texts then tell the item.
        inputs: Named texts; empty if they stand elsewhere.
        metadata: What a rater never sees.
        labels: People's, with those that are missing.
    """

    place: Place
    item_id: str | None
    inputs: Mapping[str, str]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[SourceLabel] = ()


_MOST_NAMES = 10


def in_short(names: Sequence[str]) -> str:
    """Return names in a line; the first ten, and how many more there are."""
    rest = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {rest:,} more" if rest > 0 else "")


def is_missing(value: object, missing: frozenset[str] = frozenset()) -> bool:
    """Return True for what is no value: null, nan, blank, or a text that stands for that (compared folded)."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and (not value.strip() or value.strip().casefold() in missing)


def as_object(value: object, name: str, place: Place) -> dict[str, Any]:
    """Return a value of a record as an object; null as an empty one.

    Raises:
        DataError: If it is another kind of value.
    """
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{place}: {name} {shown(value)} is no object; export it again")
    return value


def as_list(value: object, name: str, place: Place) -> list[Any]:
    """Return a value of a record as a list; null as an empty one.

    Raises:
        DataError: If it is another kind of value.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{place}: {name} {shown(value)} is no list; export it again")
    return value


def as_text(value: object, name: str, place: Place) -> str:
    """Return a value as a text of an item; a conversation as one paragraph a turn.

    Raises:
        DataError: If it is no text (an image, say).
    """
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float | Decimal | date | time):
        return str(value)
    if isinstance(value, list) and value and all(isinstance(turn, Mapping) and "content" in turn for turn in value):
        return "\n\n".join(f"{turn.get('role', 'turn')}: {turn['content']}" for turn in value)
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise DataError(f"{place}: {name} is no text but {type(value).__name__}; leave the column out") from error


def as_id(value: object, name: str, place: Place) -> str:
    """Return a value as an id: 7 and 7.0 are "7".

    Raises:
        DataError: If it is blank, a formula of a spreadsheet, or neither text nor number.
    """
    if is_missing(value):
        raise DataError(f"{place}: {name} is blank; fill it in or remove the row")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal | date):
        raise DataError(f"{place}: {name} {shown(value)} is neither text nor number; give another column")
    text = str(value).strip()
    if is_formula(text):
        raise DataError(f"{place}: {name} {shown(text)} is a formula of a spreadsheet; export values, not formulas")
    return text


def is_formula(text: str) -> bool:
    """Return True for a text that a spreadsheet would compute; numbers with a sign and names are none."""
    return text.startswith("=") or (text.startswith(FORMULA_STARTS) and text.endswith(")") and "(" in text)
