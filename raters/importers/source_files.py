"""Open the files of a source, packed or not, and read them within bounds.

What comes from elsewhere may be larger than it looks: a line of gigabytes, a kilobyte that unpacks to a terabyte. So a
line, a JSON document and all that a source unpacks to have a most, and reading stops there with what to do.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import json
import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from raters.journal import Record, parse_line
from raters.records import DataError, shown

TABLES = ("csv", "tsv", "jsonl", "ndjson", "json", "parquet")
"""Suffixes of what can be read, behind those of packing."""

PACKED: dict[str, Callable[[Path], Any]] = {"gz": gzip.open, "bz2": bz2.open, "xz": lzma.open}
_UNPACKING_ERRORS = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, gzip.BadGzipFile, NotImplementedError)
_SPREADSHEETS = ("xlsx", "xls", "xlsm", "ods", "numbers")
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that is read.

    Attributes:
        line_bytes: Of one line.
        total_bytes: Of a source, unpacked.
    """

    line_bytes: int = 64 << 20
    total_bytes: int = 4 << 30

    @property
    def document_bytes(self) -> int:
        """Of a JSON document, which is read as a whole."""
        return min(self.total_bytes, 1 << 30)


@dataclass(frozen=True)
class SourceFile:
    """One file of a source.

    Attributes:
        name: As errors name it.
        path: Where it is; that of the archive if it stands in one.
        suffix: Without that of packing, in lower case: `csv`.
        parts: Names of its folders and its own without suffixes: (`ann1`, `annotated_instances`).
        opener: Opens it unpacked.
        limits: The most that is read of it.
    """

    name: str
    path: Path
    suffix: str
    parts: tuple[str, ...]
    opener: Callable[[], IO[bytes]]
    limits: Limits

    @contextlib.contextmanager
    def opened(self) -> Iterator[IO[bytes]]:
        """Open it to read; what cannot be read or unpacked is an error of one line.

        Raises:
            DataError: If so.
        """
        try:
            with self.opener() as file:
                yield file
        except _UNPACKING_ERRORS as error:
            problem = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"{self.name}: cannot be unpacked ({problem}); pack or export it again") from error
        except RuntimeError as error:  # zipfile's word for a password
            if "password" not in str(error):
                raise
            raise DataError(f"{self.name}: is encrypted; unpack it first") from error
        except OSError as error:
            problem = error.strerror or " ".join(str(error).split())
            raise DataError(f"{self.name}: cannot be read ({problem}); check the file") from error

    def lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (number from 1, line) of every line.

        Raises:
            DataError: If the file is empty or a bound is passed.
        """
        total, number = 0, 0
        with self.opened() as file:
            while line := file.readline(self.limits.line_bytes + 1):
                number += 1
                total += len(line)
                if len(line) > self.limits.line_bytes:
                    raise DataError(
                        f"{self.name} line {number}: longer than {_size(self.limits.line_bytes)}; a line of a record "
                        "is missing its end, or the file is no text"
                    )
                self.within(total)
                yield number, line
        if not total:
            raise DataError(f"{self.name}: is empty; export it again")

    def text_lines(self, encoding: str | None) -> Iterator[str]:
        """Yield every line as text, with its line break; UTF-8 unless an encoding is given or it begins as UTF-16.

        Raises:
            DataError: If bytes are not in that encoding, or zero.
        """
        lines = self.lines()
        first = next(lines)
        if encoding is None and first[1].startswith(_UTF16):
            encoding = "utf-16"
        name = encoding or "utf-8"
        if len("\n".encode(name)) != 1:
            yield from self._wide_lines(name)
            return
        for number, line in _chained(first, lines):
            try:
                text = line.decode(name)
            except UnicodeDecodeError as error:
                value = shown(line[error.start : error.start + 1])[1:]
                raise DataError(
                    f"{self.name} line {number}: byte {error.start + 1} ({value}) is not {name}; save the file as "
                    "UTF-8, or give --encoding (cp1252 for most files of older spreadsheets)"
                ) from error
            if "\0" in text:
                raise DataError(f"{self.name} line {number}: holds zero bytes; give a text file, or its --encoding")
            yield text.removeprefix("\ufeff") if number == 1 else text

    def _wide_lines(self, encoding: str) -> Iterator[str]:
        """Yield lines of an encoding whose line break is several bytes, read as a whole within the bounds."""
        text = self._decoded(self.whole(), encoding)
        yield from io.StringIO(text, newline="")

    def _decoded(self, content: bytes, encoding: str) -> str:
        try:
            return content.decode(encoding).removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.name}: byte {error.start + 1} is not {encoding}; save the file as UTF-8, or give --encoding"
            ) from error

    def records(self) -> Iterator[tuple[int, Record]]:
        """Yield (line number, record) of every line that is not blank, each a JSON object.

        Raises:
            DataError: If one is none.
        """
        for number, line in self.lines():
            if line.strip():
                yield number, parse_line(line, f"{self.name} line {number}")

    def whole(self) -> bytes:
        """Return all bytes, within the bound of a document.

        Raises:
            DataError: If there are more, or none.
        """
        parts, total = [], 0
        with self.opened() as file:
            while chunk := file.read(_CHUNK):
                total += len(chunk)
                if total > self.limits.document_bytes:
                    raise DataError(
                        f"{self.name}: more than {_size(self.limits.document_bytes)} in one document; write one "
                        "record a line (JSONL)"
                    )
                parts.append(chunk)
        if not total:
            raise DataError(f"{self.name}: is empty; export it again")
        return b"".join(parts)

    def document(self) -> Any:
        """Return a JSON document.

        Raises:
            DataError: If it is none.
        """
        text = self._decoded(self.whole(), "utf-8")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{self.name} line {error.lineno}: not JSON ({error.msg}); export it again") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self.name}: not JSON ({error}); export it again") from error

    def within(self, total: int) -> None:
        """Check how many bytes the file has come to.

        Raises:
            DataError: If that is too many.
        """
        if total > self.limits.total_bytes:
            raise _too_much(self.name, self.limits)


def _chained(first: tuple[int, bytes], rest: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    yield first
    yield from rest


def _too_much(name: str, limits: Limits) -> DataError:
    most = _size(limits.total_bytes)
    return DataError(f"{name}: unpacks to more than {most}; if that is right, give a higher --max-megabytes")


def _size(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count / size:.4g} {unit}"
    return f"{count} bytes"


def source_files(path: Path, limits: Limits) -> list[SourceFile]:
    """Return the files of a source, in the order of their names: one, those of an archive, or those below a folder.

    Raises:
        DataError: If there is none that can be read.
    """
    if path.is_dir():
        found = [
            each
            for below in sorted(path.rglob("*"))
            if below.is_file() and not any(part.startswith(".") for part in below.relative_to(path).parts)
            for each in _files_of(below, path, limits)
            if each.suffix in TABLES
        ]
        if not found:
            raise DataError(f"{path}: holds no file that can be read ({', '.join(TABLES)}); give the file itself")
        return found
    if not path.is_file():
        raise DataError(f"{path}: no such file; check the name")
    found = _files_of(path, path.parent, limits)
    if not found:
        raise DataError(f"{path}: the archive holds no file that can be read ({', '.join(TABLES)}); unpack it and look")
    if found[0].suffix in _SPREADSHEETS:
        raise DataError(f"{path}: is a spreadsheet; save its sheet as CSV in UTF-8 first, and give that file")
    if found[0].suffix not in TABLES:
        known = ", ".join(TABLES)
        raise DataError(f"{path}: cannot tell what it is from its suffix; name it as one of {known}, or convert it")
    return found


def _files_of(path: Path, root: Path, limits: Limits) -> list[SourceFile]:
    suffixes = [suffix.lstrip(".").lower() for suffix in path.suffixes]
    last = suffixes[-1] if suffixes else ""
    if last == "zip":
        return _members(path, limits)
    packed = last in PACKED
    suffix = (suffixes[-2] if len(suffixes) > 1 else "") if packed else last
    opener: Callable[[], Any] = partial(PACKED[last], path) if packed else partial(path.open, "rb")
    return [SourceFile(str(path), path, suffix, _parts(path.relative_to(root)), opener, limits)]


def _parts(path: Path) -> tuple[str, ...]:
    return (*path.parts[:-1], path.name.split(".")[0])


def _members(path: Path, limits: Limits) -> list[SourceFile]:
    """Return the files of a zip archive that can be read; nothing is written anywhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = sorted(archive.infolist(), key=lambda member: member.filename)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{path}: cannot be unpacked ({' '.join(str(error).split())}); export it again") from error
    # zipfile never reads more of a member than the archive says it has, so this holds whatever is in it.
    if sum(member.file_size for member in members) > limits.total_bytes:
        raise _too_much(str(path), limits)
    found = []
    for name in [member.filename for member in members if not member.is_dir()]:
        suffix = Path(name).suffix.lstrip(".").lower()
        if suffix in TABLES and not name.startswith(("__MACOSX", ".")):
            opener = partial(_open_member, path, name)
            found.append(SourceFile(f"{path}: {name}", path, suffix, _parts(Path(name)), opener, limits))
    return found


def _open_member(path: Path, name: str) -> IO[bytes]:
    return zipfile.ZipFile(path).open(name)
