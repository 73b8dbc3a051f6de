"""What a source is, and its items as it says them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from raters.importers.argilla import argilla_items, is_argilla
from raters.importers.columns import Columns
from raters.importers.doccano import doccano_items, is_doccano
from raters.importers.label_studio import is_label_studio, label_studio_items
from raters.importers.potato import holds_texts, is_potato, potato_items
from raters.importers.prodigy import is_prodigy, prodigy_items
from raters.importers.published import PUBLISHED, Published, published_as
from raters.importers.source_files import PACKED, TABLES, Limits, SourceFile, source_files
from raters.importers.source_items import ONLY_ANNOTATOR, SourceItem
from raters.importers.table_items import choose_texts, read_table, texts_of
from raters.importers.tables import Row, dataset_rows, is_saved_dataset, table_columns, table_rows
from raters.records import ConfigError, DataError

TOOLS = {
    "label-studio": is_label_studio,
    "argilla": is_argilla,
    "potato": is_potato,
    "prodigy": is_prodigy,
    "doccano": is_doccano,
}
"""How a record of each tool is known; tried in this order."""

FORMATS = ("table", *TOOLS, *(each.name for each in PUBLISHED))
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """How a source is to be read.

    Attributes:
        name: A file, a folder, or a data set's id.
        format: One of `FORMATS`; None to tell from the first record.
        columns: What the user says of a table's columns.
        dimension: Of labels that have none in the source.
        items: A file with the items' texts, if the source has labels alone.
        encoding: Of CSV and TSV.
        delimiter: Between cells of CSV and TSV.
        quotes: False if a quote is a character like any other there.
        subset: Configuration of a data set.
        split: Part of a data set.
        limits: The most that is read.
    """

    name: str
    format: str | None = None
    columns: Columns = field(default_factory=Columns)
    dimension: str | None = None
    items: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    quotes: bool = True
    subset: str | None = None
    split: str | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True)
class Reading:
    """A source as it is understood.

    Attributes:
        format: One of `FORMATS`.
        items: What it says, row by row.
        texts: What the items are, if another file says it.
        columns: Which column is what; as the user said it where the source is no table.
        notes: What was guessed.
        published: The data set of the paper that it is; None otherwise.
        paths: Files that were read.
    """

    format: str
    items: Iterator[SourceItem]
    texts: Mapping[str, SourceItem] | None
    columns: Columns
    notes: Sequence[str]
    published: Published | None
    paths: Sequence[Path]


def read_source(source: Source) -> Reading:
    """Return a source as it is understood; its rows are read as they are asked for.

    Raises:
        ConfigError: If what is what cannot be told, or the format is another one.
        DataError: If it cannot be read.
    """
    path = Path(source.name)
    if not path.exists() and _is_hub_id(source.name):
        return _read_rows(source, [], dataset_rows(source.name, source.subset, source.split))
    if path.is_dir() and is_saved_dataset(path):
        return _read_rows(source, [], dataset_rows(source.name, None, source.split))
    if source.subset or source.split:
        raise ConfigError("--subset, --split: are for a data set of Hugging Face; leave them out")
    files = _telling(source_files(path, source.limits))
    if files[0].suffix in ("csv", "tsv"):
        # Before any row is read: a data set may have quotes that quote nothing.
        columns = table_columns(files[0], source.encoding, source.delimiter)
        known = _published(source.format) if source.format else published_as(dict.fromkeys(columns))
        source = replace(source, quotes=source.quotes and (known is None or known.quotes))
    tables = [_rows(source, file) for file in files]
    first, tables[0] = _peek(tables[0], source.name)
    kind = source.format or _format_of(first)
    paths = list(dict.fromkeys(file.path for file in files))
    if kind in TOOLS:
        return _read_tool(source, kind, paths, first, list(zip(_people(kind, files), tables, strict=True)))
    return _read_rows(replace(source, format=kind), paths, chain.from_iterable(tables))


def _peek(rows: Iterator[Row], name: str) -> tuple[Mapping[str, Any], Iterator[Row]]:
    """Return (the values of the first row, all rows)."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{name}: holds no rows; export it again")
    return first[1], chain([first], rows)


def _telling(files: Sequence[SourceFile]) -> Sequence[SourceFile]:
    """Return those files of a folder that hold labels, where an annotation tool has written others beside them."""
    for name in ("annotated_instances", "user_state"):
        if found := [file for file in files if file.parts[-1] == name]:
            return found
    return files


def _people(kind: str, files: Sequence[SourceFile]) -> list[str]:
    """Return whose labels each file holds where its records do not say it."""
    if kind == "potato":
        return [file.parts[-2] if len(file.parts) > 1 else file.path.resolve().parent.name for file in files]
    return [file.parts[-1] for file in files] if len(files) > 1 else [ONLY_ANNOTATOR]


def _is_hub_id(name: str) -> bool:
    ours = tuple(f".{suffix}" for suffix in (*TABLES, *PACKED, "zip"))
    return bool(_HUB_ID.fullmatch(name)) and not name.lower().endswith(ours)


def _rows(source: Source, file: SourceFile) -> Iterator[Row]:
    return table_rows(file, source.encoding, source.delimiter, quotes=source.quotes)


def _all_rows(source: Source, files: Sequence[SourceFile]) -> Iterator[Row]:
    return chain.from_iterable(_rows(source, file) for file in files)


def _published(name: str) -> Published | None:
    return next((each for each in PUBLISHED if each.name == name), None)


def _format_of(record: Mapping[str, Any]) -> str:
    """Return the format that a record is of; `table` if nothing speaks for another."""
    if (known := published_as(record)) is not None:
        return known.name
    return next((name for name, knows in TOOLS.items() if knows(record)), "table")


def _read_rows(source: Source, paths: Sequence[Path], rows: Iterator[Row]) -> Reading:
    """Return a table, or a data set of the paper, as it is understood."""
    first, rows = _peek(rows, source.name)
    kind = source.format or _format_of(first)
    if kind in TOOLS:  # written by a tool with `datasets`
        return _read_tool(source, kind, paths, first, [(ONLY_ANNOTATOR, rows)])
    published = _published(kind)
    if published is not None:
        if source.items or source.columns.named():
            raise ConfigError(
                f"{source.name}: is {kind}, whose columns are known; leave out --items and options for columns, or "
                "give --format table"
            )
        return Reading(kind, published.items(rows), None, source.columns, (), published, paths)
    texts = _texts(source)
    asked = source.columns
    if texts is not None:
        asked = replace(asked, texts=(), pair=(), metadata=(), group=asked.group if asked.group in first else None)
    items, columns, notes = read_table(rows, asked, source.dimension, "both" if texts is None else "labels")
    return Reading("table", items, texts, columns, notes, None, [*paths, *_texts_path(source)])


def _read_tool(
    source: Source,
    kind: str,
    paths: Sequence[Path],
    first: Mapping[str, Any],
    tables: Sequence[tuple[str, Iterator[Row]]],
) -> Reading:
    """Return the export of a tool as it is understood.

    Args:
        source: How it is to be read.
        kind: Which tool's.
        paths: Files.
        first: Values of the first record.
        tables: Records of each file, with whose they are.
    """
    given = source.columns.named()
    if wrong := [option for option in given.values() if option not in ("--text", "--metadata", "--group-by", "--pair")]:
        raise ConfigError(
            f"{wrong[0]}: is for tables, and {source.name} is read as {kind}; leave it out, or give --format table"
        )
    texts = _texts(source)
    if kind == "potato" and texts is None and not holds_texts(first):
        raise ConfigError(f"{source.name}: holds labels without texts; give the data file of the project as --items")
    dimension = source.dimension or "label"
    items = chain.from_iterable(_tool_items(kind, rows, who, dimension) for who, rows in tables)
    if texts is not None:
        return Reading(kind, items, texts, source.columns, (), None, [*paths, *_texts_path(source)])
    found, notes = choose_texts(items, source.columns, guess=kind in ("label-studio", "argilla"))
    return Reading(kind, found, None, source.columns, notes, None, paths)


def _tool_items(kind: str, rows: Iterator[Row], who: str, dimension: str) -> Iterator[SourceItem]:
    if kind == "label-studio":
        return label_studio_items(rows)
    if kind == "argilla":
        return argilla_items(rows)
    if kind == "potato":
        return potato_items(rows, who)
    return prodigy_items(rows, dimension) if kind == "prodigy" else doccano_items(rows, who, dimension)


def _texts(source: Source) -> dict[str, SourceItem] | None:
    """Return what the items are, by id, from the file that says it."""
    if source.items is None:
        return None
    files = source_files(Path(source.items), source.limits)
    return texts_of(_all_rows(source, files), source.columns)


def _texts_path(source: Source) -> list[Path]:
    return [] if source.items is None else [Path(source.items)]
