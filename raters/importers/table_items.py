"""Tables and exports as items: each row's or record's texts, metadata and labels, once columns are told apart."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import chain, islice
from typing import Any

from raters.importers.columns import Columns, Holds, is_text, tell_columns
from raters.importers.source_items import ONLY_ANNOTATOR, Place, SourceItem, SourceLabel, as_id, as_text, is_missing
from raters.importers.tables import Row
from raters.records import ConfigError, DataError, shown

SAMPLE_ROWS = 1000
"""So many rows are looked at before columns are told apart."""


def read_table(
    rows: Iterable[Row], columns: Columns, default_dimension: str | None, holds: Holds = "both"
) -> tuple[Iterator[SourceItem], Columns, list[str]]:
    """Return (items as rows say them, which column is what, what was guessed) of a table.

    Args:
        rows: Of the table.
        columns: What the user says of them.
        default_dimension: Of a single column of labels; that column's name if None.
        holds: What the table has; texts or labels may stand in another file.

    Raises:
        ConfigError: If a column that was named is not there, or what a column is cannot be told.
        DataError: As the rows are read.
    """
    iterator = iter(rows)
    sample = list(islice(iterator, SAMPLE_ROWS))
    if not sample:
        raise DataError("the source holds no rows; export it again")
    columns, notes = tell_columns(sample, columns, holds)
    return _items(chain(sample, iterator), columns, default_dimension), columns, notes


def _items(rows: Iterable[Row], columns: Columns, default_dimension: str | None) -> Iterator[SourceItem]:
    """Yield what each row says."""
    group = () if columns.group is None or columns.group in columns.texts else (columns.group,)
    metadata = tuple(dict.fromkeys([*(columns.metadata or ()), *group]))
    for place, values in rows:
        inputs = {
            name: as_text(values[name], f"text {shown(name)}", place)
            for name in columns.texts
            if not is_missing(values.get(name))
        }
        item_id = None if columns.item is None else as_id(values.get(columns.item), columns.item, place)
        if columns.texts and not inputs:
            raise DataError(f"{place}: {' and '.join(map(shown, columns.texts))} blank; fill in or remove the row")
        kept = {name: values[name] for name in metadata if not is_missing(values.get(name))}
        yield SourceItem(place, item_id, inputs, kept, _labels(values, columns, default_dimension, place))


def _labels(values: Mapping[str, Any], columns: Columns, default: str | None, place: Place) -> list[SourceLabel]:
    rationale = None if columns.rationale is None else values.get(columns.rationale)
    reason = None if is_missing(rationale) else str(rationale)
    if columns.several:
        return [SourceLabel(one.annotator, one.dimension, values.get(one.column), reason) for one in columns.several]
    if columns.annotators:
        name = default or "quality"
        return [SourceLabel(column, name, values.get(column), reason) for column in columns.annotators]
    who = ONLY_ANNOTATOR
    if columns.annotator is not None:
        given = [values.get(column) for column in columns.labels]
        if is_missing(values.get(columns.annotator)) and all(is_missing(label) for label in given):
            return []  # an item that nobody has labelled yet
        who = as_id(values.get(columns.annotator), columns.annotator, place)
    if columns.dimension is not None:
        about = as_id(values.get(columns.dimension), columns.dimension, place)
        return [SourceLabel(who, about, values.get(columns.labels[0]), reason)]
    names = [default] if default and len(columns.labels) == 1 else columns.labels
    return [
        SourceLabel(who, name, values.get(column), reason) for name, column in zip(names, columns.labels, strict=True)
    ]


def texts_of(rows: Iterable[Row], columns: Columns) -> dict[str, SourceItem]:
    """Return what a file of texts says of each item, by id.

    Args:
        rows: Of the file.
        columns: What the user says of item, texts, metadata and group.

    Raises:
        ConfigError: If item or texts cannot be told.
        DataError: If an item stands twice.
    """
    iterator = iter(rows)
    sample = list(islice(iterator, SAMPLE_ROWS))
    names = {name for _, values in sample for name in values}
    told, _ = tell_columns(
        sample,
        Columns(
            item=columns.item if columns.item in names else None,
            texts=columns.texts,
            group=columns.group if columns.group in names else None,
            metadata=columns.metadata,
            pair=columns.pair,
        ),
        "texts",
    )
    found: dict[str, SourceItem] = {}
    for item in _items(chain(sample, iterator), told, None):
        assert item.item_id is not None  # or tell_columns had asked for it
        if item.item_id in found:
            raise DataError(f"{item.place}: item {shown(item.item_id)} stands twice; give every item its own id")
        found[item.item_id] = item
    return found


def choose_texts(found: Iterator[SourceItem], asked: Columns, *, guess: bool) -> tuple[Iterator[SourceItem], list[str]]:
    """Return (items with the texts that a rater sees, what was guessed) of the export of a tool.

    Args:
        found: Items with all their texts.
        asked: The texts and metadata that the user names.
        guess: True to leave texts that look like none to the metadata.

    Raises:
        ConfigError: If a text that was named is not there.
    """
    sample = list(islice(found, SAMPLE_ROWS))
    rows: list[Row] = [(item.place, {**item.metadata, **item.inputs}) for item in sample]
    names = list(dict.fromkeys(name for item in sample for name in item.inputs))
    everything = list(dict.fromkeys(name for _, values in rows for name in values))
    for name, option in asked.named().items():
        if name not in everything:
            listed = ", ".join(map(shown, everything))
            raise ConfigError(f"{option} {name}: {sample[0].place.file} has no such field; it has {listed}")
    texts = asked.texts or tuple(
        name for name in names if not guess or len(names) == 1 or name in asked.pair or is_text(rows, name)
    )
    notes = [] if asked.texts else [f"a rater sees {', '.join(map(shown, texts))} (--text)"]
    if left := [name for name in names if name not in texts]:
        notes.append(f"metadata, which no rater sees: {', '.join(map(shown, left))} (--metadata)")
    return (_with_texts(item, texts, asked) for item in chain(sample, found)), notes


def _with_texts(item: SourceItem, texts: tuple[str, ...], asked: Columns) -> SourceItem:
    values = {**item.metadata, **item.inputs}
    inputs = {name: as_text(values[name], name, item.place) for name in texts if not is_missing(values.get(name))}
    if not inputs:
        raise DataError(f"{item.place}: {' and '.join(map(shown, texts))} blank; fill in or remove the record")
    kept = [name for name in values if name not in inputs]
    if asked.metadata is not None:
        kept = [name for name in kept if name in asked.metadata or name == asked.group]
    return replace(item, inputs=inputs, metadata={name: values[name] for name in kept})
