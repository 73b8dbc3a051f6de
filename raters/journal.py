"""Crash-safe append-only record files: one JSON object a line.

A line reaches the operating system before the next draw is asked for, so `kill -9` loses nothing that was
appended; only the machine's own death can lose the last second. A line that was cut off half way is removed when
the file is opened again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from raters.records import DataError, JudgeseyeError, StorageError, shown

_SYNC_SECONDS = 1.0
Record = dict[str, Any]


def read_lines(
    path: Path, digest: hashlib._Hash | None = None, *, pass_over_torn: bool = False
) -> Iterator[tuple[int, int, Record]]:
    """Yield (line number from 1, byte offset, record) of every line of a record file.

    Args:
        path: A JSON-lines file in UTF-8; lines of white space alone are passed over.
        digest: Fed with every byte read, if given.
        pass_over_torn: Leave out a last line without a line break: what a run that was killed, or is still writing,
            has left.

    Raises:
        DataError: If the file is missing or empty, or a line is not a JSON object in UTF-8.
    """
    offset, empty = 0, True
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; check the folder's name") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    with file:
        for line_number, line in enumerate(file, start=1):
            if pass_over_torn and not line.endswith(b"\n"):
                break
            if digest is not None:
                digest.update(line)
            if line.strip():
                empty = False
                yield line_number, offset, parse_line(line, f"{path} line {line_number}")
            offset += len(line)
    if empty:
        raise DataError(f"{path}: holds no records; write one JSON object a line")


def parse_line(line: bytes, where: str) -> Record:
    """Return the record of one line.

    Args:
        line: The line as it stands in the file.
        where: File and place, for the error.

    Raises:
        DataError: If it is not a JSON object in UTF-8.
    """
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        text = shown(line.strip().decode("utf-8", "replace"))
        raise DataError(f"{where}: not JSON ({error}): {text}; write one JSON object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not a JSON object; write one JSON object a line")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def to_line(record: Record) -> bytes:
    """Return a record as one line of a record file; half a surrogate pair, which UTF-8 lacks, becomes U+FFFD."""
    line = json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        return line.encode()
    except UnicodeEncodeError:
        return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", line).encode()


def write_atomically(path: Path, content: str | bytes | Iterable[bytes]) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises:
        StorageError: If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with _writing(path), partial.open("wb") as file:
        if isinstance(content, str):
            file.write(content.encode())
        elif isinstance(content, bytes):
            file.write(content)
        else:
            file.writelines(content)
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except JudgeseyeError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); mend that and try again") from error


def without_nan(record: Mapping[str, Any]) -> Record:
    """Return a record with null for nan and infinities, which JSON lacks."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }


def sha256_of(text: str) -> str:
    """Return the SHA-256 of a text in UTF-8, as 64 hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """An append-only record file. One process writes it at a time: `runs.RunFolder` sees to that.

    Args:
        path: The file; made with its first record.
        prepare: Called before the first record, to make the folder, unless `recover` found the file there.
    """

    def __init__(self, path: Path, prepare: Callable[[], None] = lambda: None) -> None:
        """Remember where the journal is; nothing is opened yet."""
        self.path = path
        self._prepare = prepare
        self._continues = False
        self._descriptor: int | None = None
        self._size = 0
        self._synced = 0.0

    def recover(self) -> Iterator[tuple[int, int, Record]]:
        """Yield (line number, byte offset, record) of all that was appended so far, and cut off a torn last line.

        Raises:
            DataError: If a line before the last one is broken.
        """
        if not self.path.exists():
            return
        self._continues = True
        offset = 0
        with self.path.open("rb") as file:
            for line_number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    os.truncate(self.path, offset)
                    break
                yield line_number, offset, parse_line(line, f"{self.path} line {line_number}")
                offset += len(line)

    def append(self, records: Sequence[Record]) -> list[int]:
        """Append records in one write and return the byte offset of each.

        Raises:
            StorageError: If they cannot be written.
        """
        descriptor = self._open()
        lines = [to_line(record) for record in records]
        ends = list(accumulate(map(len, lines), initial=self._size))
        rest = memoryview(b"".join(lines))
        with _writing(self.path):
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError:
                os.ftruncate(descriptor, self._size)  # or what comes next would stand behind half a line
                raise
            self._size = ends[-1]
            if (now := time.monotonic()) - self._synced > _SYNC_SECONDS:
                os.fsync(descriptor)
                self._synced = now
        return ends[:-1]

    def close(self) -> None:
        """Bring everything to the disk."""
        if self._descriptor is not None:
            os.fsync(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None

    def _open(self) -> int:
        if self._descriptor is None:
            if not self._continues:
                self._prepare()
            with _writing(self.path):
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                self._size = os.fstat(self._descriptor).st_size
        return self._descriptor


def read_at(path: Path, offsets: Iterable[int]) -> Iterator[Record]:
    """Yield the records of a record file that start at the given byte offsets."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield parse_line(file.readline(), f"{path} at byte {offset}")
