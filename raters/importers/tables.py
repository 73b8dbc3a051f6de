"""Read tables row by row: CSV, TSV, JSON lines, JSON lists, Parquet, and data sets of Hugging Face.

CSV is read by Python's own strict reader: it refuses broken quotes and rows of another width and knows the row, where
faster readers guess. Parquet is read in batches that are small enough for what its pages can unpack to.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from raters.importers.source_files import SourceFile
from raters.importers.source_items import Place
from raters.records import ConfigError, DataError, shown

Row = tuple[Place, Mapping[str, Any]]
_DELIMITERS = (",", ";", "\t", "|")
_EXCEL_SEPARATOR = re.compile(r'"?sep=(.)"?[,;\t|]*\s*', re.IGNORECASE)
_BATCH_BYTES = 512 << 20
_MOST_BATCH_ROWS = 1024


def table_rows(
    file: SourceFile, encoding: str | None = None, delimiter: str | None = None, *, quotes: bool = True
) -> Iterator[Row]:
    """Yield (place, values by column) of every row of a file.

    Args:
        file: A table.
        encoding: Of CSV and TSV; UTF-8, or what its first bytes say, if None.
        delimiter: Between cells of CSV and TSV; told from the header if None.
        quotes: False if a quote is a character like any other in CSV and TSV.

    Raises:
        DataError: On the first row that cannot be read.
    """
    if file.suffix in ("csv", "tsv"):
        return _csv_rows(file, encoding, delimiter, quotes)
    if file.suffix == "parquet":
        return _parquet_rows(file)
    if file.suffix == "json":
        return _json_rows(file)
    return ((Place(file.name, "line", number), record) for number, record in file.records())


def table_columns(file: SourceFile, encoding: str | None, delimiter: str | None) -> list[str]:
    """Return the names in the header of a CSV or TSV file; none if it cannot be read."""
    first, between, _ = _header_line(file, file.text_lines(encoding), delimiter)
    try:
        cells = next(csv.reader([first], delimiter=between), [])
    except csv.Error:
        return []
    return [" ".join(cell.split()) for cell in cells]


def _header_line(file: SourceFile, lines: Iterator[str], delimiter: str | None) -> tuple[str, str, int]:
    """Return (header, what stands between its cells, lines passed over: Excel's `sep=;` before it)."""
    first, passed = next(lines), 0
    if said := _EXCEL_SEPARATOR.fullmatch(first):
        first, passed, delimiter = next(lines, ""), 1, delimiter or said[1]
    return first, delimiter or ("\t" if file.suffix == "tsv" else _delimiter(first)), passed


def _csv_rows(file: SourceFile, encoding: str | None, delimiter: str | None, quotes: bool) -> Iterator[Row]:
    lines = file.text_lines(encoding)
    first, between, passed = _header_line(file, lines, delimiter)
    # A bound on one cell: a quote that is never closed would take the rest of the file for one.
    csv.field_size_limit(file.limits.line_bytes)
    reader = csv.reader(
        _with(first, lines),
        delimiter=between,
        quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE,
        strict=True,
    )
    row = passed
    columns: list[str] | None = None
    nameless: list[int] = []
    found = False
    try:
        for cells in reader:
            row += 1
            if columns is None:
                columns = _header(cells, file.name) if cells else None
                nameless = _nameless(columns or ())
            elif any(cell.strip() for cell in cells):  # spreadsheets leave rows of nothing behind the last one
                if len(cells) != len(columns):
                    line = _line(row, reader.line_num + passed)
                    raise DataError(
                        f"{file.name} row {row}{line}: has {_cells(len(cells))}, the header {len(columns)}; put quotes "
                        f"around a cell that holds {shown(between)} or a line break"
                    )
                if nameless and (value := next((cells[at] for at in nameless if cells[at].strip()), None)):
                    raise DataError(
                        f"{file.name} row 1: several columns are without a name, and row {row} has {shown(value)} in "
                        "one; give every column its own name"
                    )
                found = True
                yield Place(file.name, "row", row), dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        where = f"{file.name} row {row + 1}{_line(row + 1, reader.line_num + passed)}"
        raise DataError(f"{where}: {_problem(error)}") from error
    if columns is None:
        raise DataError(f"{file.name}: is empty; export it again")
    if not found:
        raise DataError(f"{file.name}: holds no row below its header; export it again")


def _cells(count: int) -> str:
    return f"{count} cell" + ("s" if count > 1 else "")


def _line(row: int, line: int) -> str:
    return f" (line {line})" if line != row else ""


def _problem(error: csv.Error) -> str:
    text = str(error)
    if "field larger" in text or "unexpected end" in text:
        return "begins a quoted cell that does not end; close it, or give --no-quotes if cells are never quoted"
    if "expected after" in text:
        return f'a quote ends inside its cell ({text}); write a quote inside a quoted cell twice: ""'
    if "new-line" in text:
        return "holds a carriage return outside quotes; save the file with ordinary line ends"
    return f"cannot be read ({text}); export it again"


def _delimiter(header: str) -> str:
    """Return what most cells of a header stand between; the first of `_DELIMITERS` if it has one cell."""

    def cells(between: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=between)))
        except (csv.Error, StopIteration):
            return 0

    return max(_DELIMITERS, key=cells)


def _header(cells: list[str], name: str) -> list[str]:
    columns = [" ".join(cell.split()) for cell in cells]
    for column, count in Counter(columns).items():
        if count > 1 and column:
            raise DataError(f"{name} row 1: column {shown(column)} stands twice; give every column its own name")
    return columns


def _nameless(columns: Sequence[str]) -> list[int]:
    """Return where columns without a name are, if there are several: spreadsheets leave empty ones at the end."""
    places = [place for place, column in enumerate(columns) if not column]
    return places if len(places) > 1 else []


def _with(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _json_rows(file: SourceFile) -> Iterator[Row]:
    document = file.document()
    if isinstance(document, dict):
        lists = [value for value in document.values() if isinstance(value, list)]
        document = lists[0] if len(lists) == 1 else [document]
    if not isinstance(document, list) or not document:
        raise DataError(f"{file.name}: holds no list of records; export it again")
    for number, record in enumerate(document, start=1):
        if not isinstance(record, dict):
            raise DataError(f"{file.name} record {number}: {shown(record)} is no object; export it again")
        yield Place(file.name, "record", number), record


def _parquet_rows(file: SourceFile) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(f"{file.name}: Parquet needs pyarrow; pip install -e '.[datasets]'") from error
    total, number = 0, 0
    try:
        with file.opened() as opened, pyarrow.parquet.ParquetFile(opened) as table:
            metadata = table.metadata
            groups = [metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups)]
            file.within(sum(groups))
            # A page holds each distinct value once, so a row may be as large as its group of rows is unpacked.
            rows = max(1, min(_MOST_BATCH_ROWS, _BATCH_BYTES // max([1, *groups])))
            for batch in table.iter_batches(batch_size=rows):
                total += batch.nbytes
                file.within(total)
                for values in batch.to_pylist():
                    number += 1
                    yield Place(file.name, "row", number), values
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise DataError(f"{file.name}: is no Parquet file that can be read ({problem}); export it again") from error
    if not number:
        raise DataError(f"{file.name}: holds no row; export it again")


def dataset_rows(name: str, subset: str | None, split: str | None) -> Iterator[Row]:
    """Yield the rows of a data set of Hugging Face, or of a folder that `datasets` has saved.

    Args:
        name: Id on the hub, or the folder.
        subset: Configuration of the data set, if it has several.
        split: Which part; the only one, or all of them, if None.

    Raises:
        ConfigError: If `datasets` is not installed.
        DataError: If the data set cannot be loaded.
    """
    try:
        import datasets
    except ImportError as error:
        raise ConfigError(f"{name}: a data set needs datasets; pip install -e '.[datasets]'") from error
    try:
        saved = Path(name).is_dir()
        loaded = datasets.load_from_disk(name) if saved else datasets.load_dataset(name, subset)
    except Exception as error:  # whatever a hub, a network or a file can do
        problem = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{name}: no such file, and no data set of that id that can be loaded ({problem}); check the name, or give "
            "--subset"
        ) from error
    parts = dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}
    if split is not None and split not in parts:
        raise DataError(f"{name}: has no split {shown(split)}; give one of {', '.join(parts)}")
    for part, rows in parts.items():
        if split in (None, part):
            where = f"{name} {part}".strip()
            names = {column: kind for column, kind in rows.features.items() if isinstance(kind, datasets.ClassLabel)}
            for number, values in enumerate(_readable(rows, where), start=1):
                for column, kind in names.items():
                    if isinstance(values[column], int) and values[column] >= 0:
                        values[column] = kind.int2str(values[column])
                yield Place(where, "row", number), values


def _readable(rows: Iterable[Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield rows of a data set; what it cannot read (an image without its library, a broken file) is an error."""
    iterator = iter(rows)
    while True:
        try:
            values = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            problem = " ".join(str(error).split())[:300] or type(error).__name__
            raise DataError(f"{where}: a row cannot be read ({problem}); save it as JSONL or Parquet first") from error
        yield dict(values)


def is_saved_dataset(path: Path) -> bool:
    """Return True for a folder that `datasets` has saved."""
    return any((path / name).is_file() for name in ("dataset_dict.json", "dataset_info.json", "state.json"))
