"""Crash-safe append-only record files: one JSON object a line.

A line reaches the operating system before the next draw is asked for, so `kill -9` loses nothing that was
appended. What came within a second goes to the disk together, so only the machine's own death can lose that second.
A line that was cut off half way is removed when the file is opened again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

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
        text = line.decode("utf-8", "surrogatepass").removeprefix("\ufeff")
        record = _DECODER.decode(text)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        problem = f"not JSON ({error}): {shown(text.strip())}"
        raise DataError(f"{where}: {problem}; write one JSON object a line") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: {shown(record)} is not a JSON object; write one JSON object a line")
    return record


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
"""One for all lines: `json.loads` with an option builds a new one each time, which takes as long as the parsing."""


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
    with replacing(path) as file:
        if isinstance(content, str):
            file.write(content.encode())
        elif isinstance(content, bytes):
            file.write(content)
        else:
            file.writelines(content)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written; it takes the place of the old one when the block ends without an error.

    Raises:
        StorageError: If it cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    with _writing(path), partial.open("wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Bring a folder's list of files to the disk; without that, a new file may be gone after a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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

    Others may read it meanwhile (`read_lines` with `pass_over_torn`): a line is whole once its line break is there.

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
        self._size = self._lines = self._last = 0
        self._sync_due: threading.Timer | None = None
        self._sync_failure: OSError | None = None
        self._descriptor_in_use = threading.Lock()

    @property
    def end(self) -> tuple[int, int, int]:
        """(bytes, lines, byte offset of the last line) of what was recovered and appended so far."""
        return self._size, self._lines, self._last

    def recover(self, after: tuple[int, int, int] = (0, 0, 0)) -> Iterator[tuple[int, int, Record]]:
        """Yield (line number, byte offset, record) of all that was appended so far, and cut off a torn last line.

        Args:
            after: The `end` of an earlier session: what came before it is known and passed over.

        Raises:
            DataError: If a line before the last one is broken.
        """
        if not self.path.exists():
            return
        self._continues = True
        self._size, self._lines, self._last = after
        with self.path.open("rb") as file:
            file.seek(self._size)
            for line in file:
                if not line.endswith(b"\n"):
                    os.truncate(self.path, self._size)
                    break
                number, offset = self._lines + 1, self._size
                yield number, offset, parse_line(line, f"{self.path} line {number}")
                self._size, self._lines, self._last = offset + len(line), number, offset

    def append(self, records: Sequence[Record]) -> list[int]:
        """Append records in one write and return the byte offset of each.

        Raises:
            StorageError: If they cannot be written, or those before them did not reach the disk.
        """
        descriptor = self._open()
        lines = [to_line(record) for record in records]
        ends = list(accumulate(map(len, lines), initial=self._size))
        rest = memoryview(b"".join(lines))
        with _writing(self.path):
            if self._sync_failure is not None:
                raise self._sync_failure
            try:
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            except OSError:
                os.ftruncate(descriptor, self._size)  # or what comes next would stand behind half a line
                raise
        if lines:
            self._size, self._lines, self._last = ends[-1], self._lines + len(lines), ends[-2]
        if self._sync_due is None:
            # In a thread, because a disk may take longer for it than a hundred answers take to arrive.
            self._sync_due = threading.Timer(_SYNC_SECONDS, self._sync)
            self._sync_due.daemon = True
            self._sync_due.start()
        return ends[:-1]

    def close(self) -> None:
        """Bring everything to the disk; more may be appended all the same.

        Raises:
            StorageError: If the disk does not take it.
        """
        if (timer := self._sync_due) is not None:
            timer.cancel()
            self._sync_due = None
        with self._descriptor_in_use, _writing(self.path):
            if self._descriptor is None:
                return
            try:
                os.fsync(self._descriptor)
            finally:
                os.close(self._descriptor)
                self._descriptor = None
            if self._sync_failure is not None:  # the system reports a failure once, and then forgets it
                raise self._sync_failure

    def _sync(self) -> None:
        """Bring to the disk what was appended since the last time, in a thread of its own."""
        self._sync_due = None  # first: what is appended from now on asks for the next time
        with self._descriptor_in_use:
            if self._descriptor is None:
                return
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                self._sync_failure = error

    def _open(self) -> int:
        if self._descriptor is None:
            if not self._continues:
                self._prepare()
            with _writing(self.path):
                self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                if not self._continues:
                    _sync_folder(self.path.parent)
                self._size = os.fstat(self._descriptor).st_size
        return self._descriptor


def read_at(path: Path, offsets: Iterable[int]) -> Iterator[Record]:
    """Yield the records of a record file that start at the given byte offsets."""
    with path.open("rb") as file:
        for offset in offsets:
            file.seek(offset)
            yield parse_line(file.readline(), f"{path} at byte {offset}")
