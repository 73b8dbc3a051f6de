"""Collect what a source says into items and labels, and see that it does not contradict itself."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from raters.importers.source_items import ONLY_ANNOTATOR, Place, SourceItem, is_missing
from raters.records import DataError, is_utf8, shown

Duplicates = Literal["refuse", "first", "last"]


@dataclass(slots=True)
class DraftItem:
    """An item: its texts, what else is known of it, and where it came first."""

    inputs: dict[str, str]
    metadata: dict[str, Any]
    place: Place


@dataclass(slots=True)
class DraftLabel:
    """A label as it stands in the source; `rationale` is the person's own reason."""

    value: object
    place: Place
    rationale: str | None


@dataclass
class Draft:
    """All that a source says.

    Attributes:
        items: By id, in the order of the source.
        labels: By dimension, then by (item id, annotator id).
        annotators: In the order of the source.
        missing: Labels that are not there, by dimension.
        repeated: Labels that stand there twice and say the same.
        overruled: Labels that lost to another one of the same person for the same item.
        blank_texts: Texts that an item lacks, by name.
        metadata_differs: Rows whose metadata are others than the item's first.
        formula_texts: Texts that a spreadsheet would take for formulas.
    """

    items: dict[str, DraftItem] = field(default_factory=dict)
    labels: dict[str, dict[tuple[str, str], DraftLabel]] = field(default_factory=dict)
    annotators: dict[str, None] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    repeated: int = 0
    overruled: int = 0
    blank_texts: Counter[str] = field(default_factory=Counter)
    metadata_differs: int = 0
    formula_texts: int = 0

    @property
    def num_labels(self) -> int:
        """How many labels there are, of all dimensions."""
        return sum(map(len, self.labels.values()))


def collect(
    found: Iterable[SourceItem],
    texts: Mapping[str, SourceItem] | None,
    *,
    missing: frozenset[str],
    duplicates: Duplicates,
    dimensions: tuple[str, ...] = (),
) -> Draft:
    """Return all that a source says, each label once.

    Args:
        found: Row by row.
        texts: What the items are, if the source does not say it itself.
        missing: Texts that stand for no label, folded.
        duplicates: Which label counts if one person gave an item several that differ; `refuse` them by default.
        dimensions: Those wanted; all if empty.

    Raises:
        DataError: If the source contradicts itself, or a text cannot be written.
    """
    draft = Draft()
    where = "the source"
    for one in found:
        where = one.place.file
        _check_texts(one)
        item_id = one.item_id if one.item_id is not None else _id_of(one.inputs)
        if texts is not None:
            if item_id not in texts:
                raise DataError(
                    f"{one.place}: item {shown(item_id)} is not in --items; add it there, or remove the row"
                )
            source = texts[item_id]
            one = SourceItem(one.place, item_id, source.inputs, {**source.metadata, **one.metadata}, one.labels)
        _add_item(draft, item_id, one)
        for label in one.labels:
            if dimensions and label.dimension not in dimensions:
                continue
            if is_missing(label.label, missing):
                draft.missing[label.dimension] += 1
                continue
            draft.annotators.setdefault(label.annotator_id)
            _add_label(draft, (item_id, label.annotator_id), label.dimension,
                       DraftLabel(label.label, one.place, label.rationale), duplicates)  # fmt: skip
    if not draft.num_labels:
        known = ", ".join(sorted(draft.missing)) or "none"
        wanted = f" on {', '.join(dimensions)} (there is: {known})" if dimensions else ""
        raise DataError(f"{where}: holds no label{wanted}; give another --label, or --missing without what means one")
    names = list(dict.fromkeys(name for item in draft.items.values() for name in item.inputs))
    for item in draft.items.values():
        draft.blank_texts.update(name for name in names if name not in item.inputs)
        draft.formula_texts += sum(text.lstrip().startswith(("=", "+", "@")) for text in item.inputs.values())
    return draft


def _add_item(draft: Draft, item_id: str, one: SourceItem) -> None:
    known = draft.items.get(item_id)
    if known is None:
        draft.items[item_id] = DraftItem(dict(one.inputs), dict(one.metadata), one.place)
        return
    if known.inputs != one.inputs:
        name = next(name for name in {**known.inputs, **one.inputs} if known.inputs.get(name) != one.inputs.get(name))
        raise DataError(
            f"{one.place}: item {shown(item_id)} has {name} {shown(one.inputs.get(name))}, in {known.place.unit} "
            f"{known.place.number} it was {shown(known.inputs.get(name))}; give every item its own id, or name "
            "another --item"
        )
    for name, value in one.metadata.items():
        if known.metadata.setdefault(name, value) != value:
            draft.metadata_differs += 1


def _add_label(draft: Draft, key: tuple[str, str], dimension: str, label: DraftLabel, duplicates: Duplicates) -> None:
    labels = draft.labels.setdefault(dimension, {})
    earlier = labels.setdefault(key, label)
    if earlier is label:
        return
    if str(earlier.value).strip() == str(label.value).strip():
        draft.repeated += 1
        return
    if duplicates == "refuse":
        item_id, annotator_id = key
        if annotator_id == ONLY_ANNOTATOR:
            raise DataError(
                f"{label.place}: item {shown(item_id)} has {shown(label.value)} on {dimension}, in "
                f"{earlier.place.unit} {earlier.place.number} it was {shown(earlier.value)}, and nothing says who "
                "labelled; name the column that does as --annotator, or give --duplicates first or last"
            )
        raise DataError(
            f"{label.place}: annotator {shown(annotator_id)} gives item {shown(item_id)} {shown(label.value)} on "
            f"{dimension}, in {earlier.place.unit} {earlier.place.number} it was {shown(earlier.value)}; keep one of "
            "them, or give --duplicates first or last"
        )
    draft.overruled += 1
    if duplicates == "last":
        labels[key] = label


def _check_texts(one: SourceItem) -> None:
    said = [text for label in one.labels for text in label if isinstance(text, str)]
    for text in (one.item_id or "", *one.inputs, *one.inputs.values(), *one.metadata, *said):
        if not is_utf8(text):
            raise DataError(
                f"{one.place}: {shown(text)} holds half a surrogate pair, which no file can hold; remove it"
            )


def _id_of(inputs: Mapping[str, str]) -> str:
    """Return an id for texts: the same for the same ones."""
    content = json.dumps(inputs, ensure_ascii=False, sort_keys=True).encode()
    return f"item-{hashlib.blake2b(content, digest_size=6).hexdigest()}"
